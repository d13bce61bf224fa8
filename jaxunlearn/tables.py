"""From rows of text to the token tables that a method trains on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxunlearn.config import (
    Experiment,
    MethodConfig,
)
from jaxunlearn.data import sampling, tokens
from jaxunlearn.data.answers import other_answers, refusals
from jaxunlearn.data.pairing import pool_of
from jaxunlearn.data.rows import Row
from jaxunlearn.data.tokens import Encoded, TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.rouge import rouge_l_recall
from jaxunlearn.methods import registry
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.language_model import LanguageModel

TEMPERATURES = (1.0, 1.0, 1.5, 2.0, 3.0)
"""Of the draws of an invented answer; five to a question, as AltPO (arXiv 2409.13474) draws."""
MOST_SHARED = 0.6
"""ROUGE-L recall of the truth in an invented answer from which on a stranger one is looked for."""


def make_tables(
    model: LanguageModel,
    forget: Sequence[Row],
    retain: Sequence[Row],
    experiment: Experiment,
    method: MethodConfig,
    say: Callable[[str], None],
) -> tuple[dict[str, TokenTable], sampling.Pool]:
    """Token tables of the groups that the method looks at, all of one width, and their rows as a
    sampler sees them. To a method that looks at no retain rows each forget row comes alone."""
    chosen, limit = registry.lookup(method.name), max_length(model, experiment)
    other = {
        "refusal": lambda: refusals(forget, experiment.seed),
        "random": lambda: other_answers(forget, experiment.seed),
        "generated": lambda: invented_answers(model, forget, experiment, say),
    }
    answers = {
        "forget": chosen.answers,
        "labels": chosen.labels,
        "alternative": chosen.alternative,
    }
    groups = {
        group: [replace(row, answer=a) for row, a in zip(forget, other[kind](), strict=True)]
        for group, kind in answers.items()
        if kind in other
    }
    groups = {"forget": forget, **groups}
    if len(groups) > 1:
        fits = [
            set(encode_rows(model, rows, experiment, limit, name, say).kept)
            for name, rows in groups.items()
        ]
        kept = sorted(set.intersection(*fits))
        groups = {name: [rows[i] for i in kept] for name, rows in groups.items()}
    if "retain" in registry.objective(method)[0].groups:
        groups["retain"] = retain
    encoded = {
        name: encode_rows(model, rows, experiment, limit, name, say)
        for name, rows in groups.items()
    }
    tables = {name: found.table for name, found in encoded.items()}
    known = {name: [groups[name][i] for i in found.kept] for name, found in encoded.items()}
    pool = pool_of(known["forget"], known.get("retain", [Row("", "")]))
    if "labels" in tables:
        tables["forget"] = tokens.relabel(tables["forget"], tables.pop("labels"))
    return dict(zip(tables, tokens.same_width(*tables.values()), strict=True)), pool


def invented_answers(
    model: LanguageModel,
    rows: Sequence[Row],
    experiment: Experiment,
    say: Callable[[str], None] = print,
) -> tuple[str, ...]:
    """For each row an answer that the model draws itself and that is unlike the true one.

    None is longer than the longest true answer. The question is answered once at each of
    TEMPERATURES; the first answer that shares little with the truth is taken, else the one that
    shares least, and where all are empty a refusal; `say` tells for how many rows that is so.
    """
    tokenizer, template = need_tokenizer(model), experiment.data.template
    prompts = [
        tokens.prompt_tokens(tokenizer, row.question, template=template, raw=row.raw)
        for row in rows
    ]
    # As long as the longest true answer: a model that never stops must not fill its positions.
    room = max(len(tokenizer(row.answer)["input_ids"]) for row in rows)
    room = min(room, model.config.max_positions - max(map(len, prompts)))
    best: list[tuple[float, str]] = [(math.inf, "")] * len(rows)
    for number, temperature in enumerate(TEMPERATURES):
        drawn = generate(
            model.config,
            model.params,
            prompts,
            lora=model.lora,
            max_new_tokens=room,
            stop_tokens=model.stop_tokens,
            sampling=Sampling(temperature),
            seed=experiment.seed + number,
        )
        texts = [text.strip() for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
        found = zip(rouge_l_recall(texts, [row.answer for row in rows]), texts, strict=True)
        best = [
            new if old[0] > MOST_SHARED and new[1] and new[0] < old[0] else old
            for old, new in zip(best, found, strict=True)
        ]
    empty = sum(not text for _, text in best)
    if empty:
        say(f"alternative: {empty} of {len(rows)} rows get a refusal; all drawn answers are empty")
    close = sum(bool(text) and shared > MOST_SHARED for shared, text in best)
    if close:
        say(
            f"alternative: for {close} of {len(rows)} rows every drawn answer is much like the "
            "true one; the least similar is taken"
        )
    # A data set without refusals of its own lacks nothing here.
    plain = refusals([replace(row, refusal=row.refusal or None) for row in rows], experiment.seed)
    return tuple(text or other for (_, text), other in zip(best, plain, strict=True))


def encode_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    experiment: Experiment,
    limit: int,
    what: str,
    say: Callable[[str], None],
) -> Encoded:
    """Rows as tokens; says how many were longer than the limit and so left out.

    Raises:
      UserError: no row is short enough, or the tokenizer is not the model's own.
    """
    texts = [row.key for row in rows]
    encoded = tokens.encode(
        need_tokenizer(model), texts, template=experiment.data.template, max_length=limit
    )
    tokens.check_ids(encoded.table, model.config.vocab_size)
    if encoded.left_out:
        first = rows[encoded.left_out[0]].source
        say(
            f"{what}: {len(encoded.left_out)} of {len(rows)} rows are longer than {limit} tokens "
            f"and were left out (the first is {first})"
        )
    if not encoded.kept:
        raise UserError(
            f"{what}: every row is longer than {limit} tokens, the limit of the model or of "
            "data.max_length; use shorter rows or raise it"
        )
    return encoded


def max_length(model: LanguageModel, experiment: Experiment) -> int:
    """Tokens a row may have."""
    own = model.config.max_positions
    return min(experiment.data.max_length or own, own)


def need_tokenizer(model: LanguageModel) -> Any:
    """The model's tokenizer.

    Raises:
      UserError: it has none.
    """
    if model.tokenizer is None:
        raise UserError(
            f"{model.folder}: no tokenizer here; copy tokenizer.json and tokenizer_config.json of "
            "the model into this folder"
        )
    return model.tokenizer
