"""What is searched: candidates to put before a question, as text or as vectors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.data.tokens import prompt_tokens
from jaxunlearn.errors import UserError
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.soft import with_soft_prompts


class Candidate(NamedTuple):
    """One way to ask; a candidate with neither asks the question as it is."""

    name: str
    """written-3: line 3 of the instructions; soft-1-20, decoded-1-20: of point 20 of round 1; all
    counted from 0."""
    instruction: str | None = None
    """{question} in it is where the question goes; without it the question follows after a
    space."""
    soft: np.ndarray | None = None
    """[P, D], before the prompt's tokens."""


Proposer = Callable[[int], list[Candidate]]
"""From the outer round, counted from 0, to its candidates: the same ones whenever it is asked."""


def written(instructions: Sequence[str], settings: RevealConfig, *, seed: int) -> Proposer:
    """The instructions, without repeats; a random choice of them where a round has fewer.

    Raises:
      UserError: there is none.
    """
    first = {text: place for place, text in reversed(list(enumerate(map(str.strip, instructions))))}
    kept = sorted((place, text) for text, place in first.items() if text)
    if not kept:
        raise UserError(
            "reveal.instructions: no instruction is there to search; give a file with one in each "
            "line, or set reveal.proposer to soft or decoded"
        )

    def propose(outer: int) -> list[Candidate]:
        count = min(settings.candidates, len(kept))
        chosen = np.random.default_rng([seed, outer]).choice(len(kept), count, replace=False)
        return [Candidate(f"written-{kept[i][0]}", kept[i][1]) for i in np.sort(chosen)]

    return propose


def soft(hidden_size: int, settings: RevealConfig, *, seed: int) -> Proposer:
    """Scrambled Sobol points z, each projected to a soft prompt P z.

    The entries of P are uniform in (-1, 1) and there is no other scale, as INSTINCT's code has it
    (arXiv 2310.02905). A round goes on in the sequence where the one before ended.

    Args:
      hidden_size: D of the model.
      settings: `candidates` prompts of `soft_tokens` vectors, from points of `dimension`.
      seed: of the points and of P.
    """
    size, length = settings.candidates, settings.soft_tokens
    rng = np.random.default_rng(seed)
    projection = rng.uniform(-1, 1, (settings.dimension, length * hidden_size))
    scrambling = int(rng.integers(2**32))

    def propose(outer: int) -> list[Candidate]:
        sequence = qmc.Sobol(settings.dimension, scramble=True, rng=scrambling)
        # The first 2^k points are spread evenly for any k.
        points = sequence.random_base2(((outer + 1) * size - 1).bit_length())
        vectors = (points[outer * size : (outer + 1) * size] @ projection).astype(np.float32)
        prompts = vectors.reshape(size, length, hidden_size)
        return [Candidate(f"soft-{outer}-{i}", soft=prompt) for i, prompt in enumerate(prompts)]

    return propose


def asked(candidate: Candidate | None, question: Text) -> Text:
    """The question under the candidate's instruction."""
    if candidate is None or candidate.instruction is None:
        return question
    if "{question}" in candidate.instruction:
        text = candidate.instruction.replace("{question}", question.question)
    else:
        text = f"{candidate.instruction} {question.question}".rstrip()
    return question._replace(question=text)


def prompted(
    model: LanguageModel,
    candidates: Sequence[Candidate | None],
    questions: Sequence[Text],
    *,
    template: str,
) -> tuple[LanguageModel, list[list[int]]]:
    """Token ids of n questions, each under its candidate, and a model that knows them.

    Args:
      model: with a tokenizer.
      candidates: n of them; None asks the question as it is.
      questions: n of them; their answers are not read.
      template: the prompt of models without a chat template, with {question} in it.

    Returns:
      The model, with the soft prompts if there are any, and the ids.
    """
    texts = [asked(c, question) for c, question in zip(candidates, questions, strict=True)]
    coded = {
        text: prompt_tokens(model.tokenizer, text.question, template=template, raw=text.raw)
        for text in dict.fromkeys(texts)
    }
    softs = [None if candidate is None else candidate.soft for candidate in candidates]
    different = {id(soft): soft for soft in softs if soft is not None}
    before: dict[int, list[int]] = {}
    if different:
        model, ids = with_soft_prompts(model, np.stack(list(different.values())))
        before = dict(zip(different, ids, strict=True))
    return model, [
        before.get(id(soft), []) + coded[text] for soft, text in zip(softs, texts, strict=True)
    ]
