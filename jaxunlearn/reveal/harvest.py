"""Self-generation: a model answers questions, and what passes the filters becomes forget rows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Row, Scorer, Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.likelihood import text_nlls
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.reveal.candidates import Candidate
from jaxunlearn.reveal.drawing import draw
from jaxunlearn.reveal.filters import keep, shares
from jaxunlearn.writing import write_text

ANSWERS, MANIFEST = "answers.jsonl", "manifest.jsonl"


@dataclass(frozen=True)
class Harvest:
    """What a model said, and what of it is kept."""

    rows: tuple[Row, ...]
    """One for each answer: the plain question, without what brought the answer out."""
    kept: tuple[int, ...]
    """Those that passed the filters."""
    cut: tuple[int, ...]
    """Those that were not at their end when they came to `max_new_tokens`."""
    score: float
    """Mean score of all answers."""
    fractions: Mapping[str, float]
    """Of each filter, in their order, the share that it kept of what came to it."""

    @property
    def kept_fraction(self) -> float:
        """The share of all answers that is kept."""
        return len(self.kept) / len(self.rows)


def harvest(
    model: LanguageModel,
    questions: Sequence[Text],
    candidates: Sequence[Candidate | None],
    scorer: Scorer,
    settings: RevealConfig,
    folder: Path,
    *,
    template: str,
    seed: int,
    iteration: int,
) -> Harvest:
    """`settings.rows` answers of the model, scored and filtered.

    Questions and candidates are dealt out evenly, in an order drawn by seed. Two files tell what
    came of it: `answers.jsonl`, written before anything is scored, so that a scorer that fails
    loses nothing; and `manifest.jsonl`, with the score of each answer, whether it is kept or which
    filter it did not pass, and where it came from. What is in a file is not made again.

    Args:
      model: it answers.
      questions: their answers are not read.
      candidates: what to put before the questions; [None] for nothing.
      scorer: rates the answers.
      settings: how many rows, how they are drawn, and the filters.
      folder: for the two files.
      template: prompt for tokenizers without a chat template.
      seed: of the order and the draws.
      iteration: noted in the files.

    Raises:
      UserError: the scorer fails, or a file is damaged.
    """
    drawn = _read(folder / ANSWERS)
    if drawn is None:
        drawn = _drawn(model, questions, candidates, settings, template, seed, iteration)
        _write(folder / ANSWERS, drawn)
    found = _read(folder / MANIFEST)
    if found is None:
        found = _rated(model, drawn, scorer, settings, template)
        _write(folder / MANIFEST, found)
    rows = tuple(
        Row(one["question"], one["answer"], raw=one["raw"], source=f"{MANIFEST}:{line}")
        for line, one in enumerate(found, 1)
    )
    kept = tuple(i for i, one in enumerate(found) if one["dropped_by"] is None)
    cut = tuple(i for i, one in enumerate(found) if one["cut"])
    dropped = [one["dropped_by"] for one in found]
    return Harvest(
        rows, kept, cut, float(np.mean([one["score"] for one in found])), shares(dropped)
    )


def _drawn(
    model: LanguageModel,
    texts: Sequence[Text],
    candidates: Sequence[Candidate | None],
    settings: RevealConfig,
    template: str,
    seed: int,
    iteration: int,
) -> list[dict[str, Any]]:
    rng, count = np.random.default_rng(seed), settings.rows
    asked = [texts[i] for i in _dealt(rng, len(texts), count)]
    # Each candidate meets all kinds of questions, because these come in an order of their own.
    by = [candidates[i % len(candidates)] for i in range(count)]
    found = draw(model, by, asked, settings, template=template, seed=seed)
    return [
        {
            "question": text.question,
            "answer": answer,
            "cut": cut,
            "raw": text.raw,
            "candidate": None if one is None else one.name,
            "instruction": None if one is None else one.instruction,
            "iteration": iteration,
            "seed": seed,
        }
        for text, answer, cut, one in zip(asked, found.texts, found.cut, by, strict=True)
    ]


def _dealt(rng: np.random.Generator, n: int, count: int) -> Iterable[int]:
    """`count` of 0..n-1, each as often as any other to one, in random order."""
    rounds = [rng.permutation(n) for _ in range(-(-count // n))]
    return np.concatenate(rounds)[:count].tolist()


def _rated(
    model: LanguageModel,
    drawn: Sequence[Mapping[str, Any]],
    scorer: Scorer,
    settings: RevealConfig,
    template: str,
) -> list[dict[str, Any]]:
    texts = [Text(one["question"], one["answer"], one["raw"]) for one in drawn]
    scores, perplexities = scorer(texts), None
    if settings.filters.max_perplexity is not None:
        perplexities = np.exp(text_nlls(model, texts, template))
    kept = keep(
        [text.answer for text in texts],
        scores,
        settings.filters,
        perplexities=perplexities,
        questions=[text.question for text in texts],
    )
    return [
        {**one, "score": float(scores[i]), "dropped_by": kept.reasons.get(i)}
        for i, one in enumerate(drawn)
    ]


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        # Not splitlines: an answer may hold other line ends.
        lines = path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is made again") from None
