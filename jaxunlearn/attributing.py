"""Which owners' training answers texts come from: several functions beside each other, each with
how good it is."""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from jaxunlearn import config_file
from jaxunlearn.attribution import of_run
from jaxunlearn.attribution.classifier import LastToken
from jaxunlearn.attribution.functions import fitted
from jaxunlearn.attribution.heads import Classifier
from jaxunlearn.attribution.owners import owners_of
from jaxunlearn.attribution.reports import accuracy, expected_calibration_error, masking_curve
from jaxunlearn.attribution.responses import (
    Attributor,
    Responses,
    answers_of,
    check_readable,
    from_table,
    in_batches,
    random_prefixes,
)
from jaxunlearn.config import Experiment
from jaxunlearn.config_attribution import AttributionConfig, FunctionConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.report import PlainTable
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.tables import encode_rows, max_length, need_tokenizer

KINDS: tuple[str, ...] = get_args(get_type_hints(FunctionConfig)["kind"])
CHEAP = ("classifier", "encoder", "overlap")
"""What is asked by default: the functions that need no backward pass to score a text."""
MASKED = (0, 1, 2, 4, 8)
"""Tokens replaced in a report."""
REPORT_ROWS = 256
"""Training answers, at most, that a report is made of."""
_BATCH = 32


@dataclass(frozen=True)
class Report:
    """How good a function is on training answers, which it was fitted to."""

    answers: int
    """How many, drawn from all."""
    accuracy: float
    """Share of the answers whose owner has the highest score."""
    prefix_accuracy: float
    """The same, each answer cut to a random prefix."""
    paraphrase_accuracy: float | None
    """The same of paraphrased answers, which it was not fitted to; None: the data has none."""
    calibration_error: float
    """Of the prefixes."""
    masked: Mapping[int, float]
    """Tokens replaced to the mean score of the true owner."""
    milliseconds: float
    """To score one response, in a batch of 32, once compiled."""


@dataclass(frozen=True)
class Attribution:
    """What the functions say of the texts."""

    owners: tuple[str, ...]
    texts: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    """Function to [texts, owners], in [0, 1]."""
    reports: Mapping[str, Report]


def attribute(
    model: LanguageModel,
    texts: Sequence[str],
    experiment: Experiment,
    *,
    kinds: Sequence[str] = CHEAP,
    say: Callable[[str], None] = print,
) -> Attribution:
    """Fits functions to the forget and retain answers, scores texts, and reports on the functions.

    The settings of a kind are those of `attribution.function` or `attribution.held_out`, whichever
    is of that kind, else the defaults.

    Args:
      model: with a tokenizer; the one whose training answers the data has.
      texts: answers, without their questions.
      experiment: its data, attribution and seed count.
      kinds: of KINDS.
      say: told which rows are left out.

    Raises:
      UserError: an unknown kind, no text or an empty or too long one, a row without an entity, an
        owner of forget and retain rows or only one owner, or a model that cannot read the rows.
    """
    section = experiment.attribution or AttributionConfig()
    functions = {kind: _settings(section, kind) for kind in kinds}
    if not functions:
        raise UserError(f"--kinds: names no function; give some of {', '.join(KINDS)}")
    data = load_data(experiment)
    rows = (*data.forget, *data.retain)
    sides = owners_of(data.forget, data.retain, group=section.group)
    owners = [owner for side in sides for owner in side]
    asked = _read(model, texts, rows[0], experiment)
    limit = max_length(model, experiment)
    encoded = encode_rows(model, rows, experiment, limit, "attribution", say)
    responses = from_table(encoded.table, [owners[i] for i in encoded.kept])
    reworded = _paraphrases(model, rows, owners, responses.names, experiment, say)
    asked = dataclasses.replace(asked, names=responses.names)
    scores, reports = {}, {}
    for kind, settings in functions.items():
        function = fitted(settings, model, responses, seed=experiment.seed)
        if isinstance(function, Classifier) and isinstance(function.network, LastToken):
            # Its model may be another one, which takes less.
            check_readable(function.network.config, asked)
        scores[kind] = in_batches(function.scores, asked, min(_BATCH, len(asked)))
        reports[kind] = report(function, responses, reworded, seed=experiment.seed)
    return Attribution(responses.names, tuple(texts), scores, reports)


def attached(
    data: UnlearningData,
    experiment: Experiment,
    run: Path,
    say: Callable[[str], None] = print,
) -> UnlearningData:
    """The data, whose forget sets know how much a run's own functions attribute to the owner of a
    question; without them, and said so, if the run's target is gone.

    Args:
      data: what is evaluated.
      experiment: has an attribution section, which must be that of the run.
      run: its folder.
      say: called with what the user should know.

    Raises:
      UserError: another attribution section, a function of the run is damaged, or the target is
        another one than it was.
    """
    own = config_file.load(run / "config.yaml")
    if own.attribution != experiment.attribution:
        raise UserError(
            f"attribution: is another one than that of {run}, whose functions are used; leave it as"
            f" it is in {run / 'config.yaml'}"
        )
    place = own.model.path if own.finetune is None else run / "target"
    if own.finetune is not None and not place.is_dir():
        say(f"attribution is left out: its functions read {place}, the run's target, which is gone")
        return data
    target = load_model(place, quantize=own.model.quantize)
    found = of_run.fit(target, load_data(own), own, folder=run / "attribution", say=say)
    return found.attached(data, target, own)


def report(
    function: Attributor,
    responses: Responses,
    paraphrases: Responses | None = None,
    *,
    seed: int = 0,
) -> Report:
    """How good a function is on at most REPORT_ROWS of the answers.

    Args:
      function: fitted.
      responses: training answers of its owners.
      paraphrases: further answers of the same owners.
      seed: of the draws.
    """
    whole = _sample(responses, seed)
    # Other prefixes than those that the temperature was fitted on.
    prefixes = random_prefixes(whole, seed=seed + 1)
    of_whole = in_batches(function.scores, whole, _BATCH)
    started = time.perf_counter()
    of_prefixes = in_batches(function.scores, prefixes, _BATCH)
    seconds = time.perf_counter() - started
    curve = masking_curve(function, whole, MASKED, seed=seed, batch_size=_BATCH)
    return Report(
        len(whole),
        accuracy(of_whole, whole.owners),
        accuracy(of_prefixes, whole.owners),
        None if paraphrases is None else _accuracy(function, _sample(paraphrases, seed)),
        expected_calibration_error(of_prefixes, whole.owners),
        dict(zip(MASKED, curve.tolist(), strict=True)),
        1000 * seconds / len(whole),
    )


def tables(found: Attribution, *, top: int = 5) -> dict[str, PlainTable]:
    """Heading to table: of each text its likeliest owners by the mean of all functions, and of the
    functions their reports.

    Args:
      found: of `attribute`.
      top: owners shown of each text.
    """
    made: dict[str, PlainTable] = {}
    for i, text in enumerate(found.texts):
        scores = np.stack([by_kind[i] for by_kind in found.scores.values()])
        best = np.argsort(-scores.mean(axis=0), kind="stable")[:top]
        made[f"{i + 1}: {text}"] = {
            "corner": "owner",
            "columns": list(found.scores),
            "rows": {found.owners[o]: [f"{score:.3f}" for score in scores[:, o]] for o in best},
        }
    number = max(one.answers for one in found.reports.values())
    about = f"{number} training answers of {len(found.owners)} owners"
    made[
        f"Right owner first in {about}, in prefixes and paraphrases of them; calibration error of "
        "prefixes; mean score of the right owner with k tokens masked; milliseconds per response"
    ] = {
        "corner": "function",
        "columns": [
            *("answers", "prefixes", "paraphrases", "cal. error"),
            *(f"{count} masked" for count in MASKED),
            "ms",
        ],
        "rows": {kind: _cells(one) for kind, one in found.reports.items()},
    }
    return made


def notes(found: Attribution, least: float) -> list[str]:
    """Which functions name fewer than this share of the owners of what they were fitted to."""
    return [
        f"{kind} names the owner of only {one.accuracy:.1%} of its training answers, so its scores"
        " tell little; train it longer (its epochs and learning_rate) or take another function"
        for kind, one in found.reports.items()
        if one.accuracy < least
    ]


def as_json(found: Attribution) -> dict[str, Any]:
    """All numbers, as JSON holds them."""
    return {
        "texts": [
            {
                "text": text,
                "scores": {
                    kind: dict(zip(found.owners, scores[i].tolist(), strict=True))
                    for kind, scores in found.scores.items()
                },
            }
            for i, text in enumerate(found.texts)
        ],
        "functions": {kind: dataclasses.asdict(one) for kind, one in found.reports.items()},
    }


def _cells(one: Report) -> list[str]:
    shares = (one.accuracy, one.prefix_accuracy, one.paraphrase_accuracy, one.calibration_error)
    numbers = (*shares, *(one.masked[count] for count in MASKED))
    return [*("-" if x is None else f"{x:.3f}" for x in numbers), f"{one.milliseconds:.2g}"]


def _sample(responses: Responses, seed: int) -> Responses:
    order = np.random.default_rng((seed, 2)).permutation(len(responses))
    return responses.take(np.sort(order[:REPORT_ROWS]))


def _accuracy(function: Attributor, responses: Responses) -> float:
    return accuracy(in_batches(function.scores, responses, _BATCH), responses.owners)


def _paraphrases(
    model: LanguageModel,
    rows: Sequence[Row],
    owners: Sequence[str],
    names: tuple[str, ...],
    experiment: Experiment,
    say: Callable[[str], None],
) -> Responses | None:
    """Paraphrased answers of these owners; None: there are none."""
    pairs = [
        (dataclasses.replace(row, answer=row.paraphrased_answer), names.index(owner))
        for row, owner in zip(rows, owners, strict=True)
        if row.paraphrased_answer and owner in names
    ]
    if not pairs:
        return None
    reworded = [row for row, _ in pairs]
    limit = max_length(model, experiment)
    encoded = encode_rows(model, reworded, experiment, limit, "attribution: paraphrases", say)
    whose = np.array([pairs[i][1] for i in encoded.kept], np.int32)
    return Responses(*answers_of(encoded.table), whose, names)


def _settings(section: AttributionConfig, kind: str) -> FunctionConfig:
    if kind not in KINDS:
        raise UserError(f"--kinds: no function {kind!r}; there are {', '.join(KINDS)}")
    given = (one for one in (section.function, section.held_out) if one.kind == kind)
    return next(given, None) or FunctionConfig(kind)


def _read(
    model: LanguageModel, texts: Sequence[str], row: Row, experiment: Experiment
) -> Responses:
    """The texts as answers of a row; whose they are is not known and stays 0."""
    if not texts:
        raise UserError("there is no text; give one with --text, or a file of them with --file")
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise UserError(f"text {number}: is empty; give an answer to attribute")
    table = tokens.encode(
        need_tokenizer(model),
        [row.text(text) for text in texts],
        template=experiment.data.template,
        max_length=sys.maxsize,
    ).table
    tokens.check_ids(table, model.config.vocab_size)
    found, lengths = answers_of(table)
    most = model.config.max_positions - 1  # beside the start token
    for number, length in enumerate(lengths, start=1):
        if length > most:
            raise UserError(
                f"text {number}: has {length} tokens, and the model takes {most}; shorten it"
            )
    return Responses(found, lengths, np.zeros(len(found), np.int32), ())
