"""The attribution functions of a run: fitted once, before anything is unlearned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from jaxunlearn.attribution import classifier_files
from jaxunlearn.attribution.functions import base_of, check_accuracy, fitted
from jaxunlearn.attribution.owners import owners_of
from jaxunlearn.attribution.responses import (
    Attributor,
    Responses,
    answers_of,
    from_table,
    in_batches,
)
from jaxunlearn.config import Experiment
from jaxunlearn.config_attribution import AttributionConfig, FunctionConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import EvalSet, Row, Text, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.tables import encode_rows, max_length

_SEEDLESS = ("overlap", "watermark")
"""Kinds that another seed does not make another function of."""
_OR_SEED = {False: " or seed", True: ""}
FUNCTIONS = ("function", "held_out")
"""Keys of the attribution section: what rewards, and what only looks on."""


@dataclass(frozen=True)
class Attributions:
    """Attribution functions of the same owners, and who these are."""

    functions: tuple[Attributor, Attributor]
    """In the order of FUNCTIONS."""
    owner_of: Mapping[str, str]
    """Entity to owner."""
    forget: frozenset[str]
    """Owners that are to be forgotten."""

    @property
    def names(self) -> tuple[str, ...]:
        """All owners, in the order of the functions' classes."""
        return self.functions[0].names

    def owners(self, rows: Sequence[Row]) -> np.ndarray:
        """Each row's owner as an index into the names, int32 [n]; -1 where it has none."""
        place = {name: i for i, name in enumerate(self.names)}
        found = [place.get(self.owner_of.get(row.entity, ""), -1) for row in rows]
        return np.array(found, np.int32)

    def attached(
        self, data: UnlearningData, model: LanguageModel, experiment: Experiment
    ) -> UnlearningData:
        """The data, whose forget sets now know how much of an answer is attributed to the owner of
        its question.

        Args:
          data: what is evaluated.
          model: with the tokenizer of the functions; it does not answer.
          experiment: its template and limit count.
        """
        return replace(
            data,
            evaluation={
                name: self._with_scorers(one, model, experiment) if one.role == "forget" else one
                for name, one in data.evaluation.items()
            },
        )

    def _with_scorers(self, one: EvalSet, model: LanguageModel, experiment: Experiment) -> EvalSet:
        owners: dict[str, int] = {}
        for row, owner in zip(one.rows, self.owners(one.rows), strict=True):
            # A question that several owners' rows ask has no owner.
            owners[row.question] = owner if owners.get(row.question, owner) == owner else -1
        score = partial(_score, owners=owners, model=model, experiment=experiment)
        rewarding, held_out = (partial(score, attributor=each) for each in self.functions)
        return replace(one, attribution=rewarding, attribution_held_out=held_out)


def fit(
    model: LanguageModel,
    data: UnlearningData,
    experiment: Experiment,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Attributions:
    """Fits the functions that the attribution section names to the data's training answers.

    Args:
      model: the one that is to forget.
      data: whose forget and retain rows have entities.
      experiment: settings; it has an attribution section.
      folder: where classifiers are kept, and taken from when they are there.
      say: called with what the user should know.

    Raises:
      UserError: as `check`, or a function is too bad.
    """
    settings = experiment.attribution
    known = _checked(data, settings)
    rows, owners = (*data.forget, *data.retain), [*known[0], *known[1]]
    responses = _responses(model, rows, owners, experiment, say)
    found = []
    for name in FUNCTIONS:
        chosen, place = getattr(settings, name), folder and folder / name
        found.append(_made(chosen, model, responses, experiment.seed, place))
        where = f"attribution.{name}"
        accuracy = check_accuracy(found[-1], responses, settings.min_accuracy, where=where)
        say(
            f"{where}: {chosen.kind}, names the owner of {accuracy:.1%} of {len(responses)}"
            f" training answers of {len(responses.names)} owners"
        )
    entities = [row.entity for row in rows]
    return Attributions(tuple(found), dict(zip(entities, owners, strict=True)), frozenset(known[0]))


def check(
    model: LanguageModel, data: UnlearningData, experiment: Experiment, say: Callable[[str], None]
) -> None:
    """Refuses what would fail only after the target is trained.

    Args:
      model: the start model.
      data: as for `fit`.
      experiment: settings; it has an attribution section.
      say: called with what the user should know.

    Raises:
      UserError: a row without an entity, an owner on both sides, one owner only or one whose rows
        are all too long, a held-out function that is the rewarding one, a classifier's model that
        cannot be used, or a watermark that is not there.
    """
    settings = experiment.attribution
    forget, retain = _checked(data, settings)
    rows = (*data.forget, *data.retain)
    responses = _responses(model, rows, [*forget, *retain], experiment, say)
    for name in FUNCTIONS:
        chosen = getattr(settings, name)
        if chosen.kind == "classifier":
            base_of(chosen, model)
        elif chosen.kind == "watermark":
            fitted(chosen, model, responses)


def _checked(data: UnlearningData, settings: AttributionConfig) -> tuple[list[str], list[str]]:
    """The owners of forget and of retain rows."""
    same = settings.held_out
    if same.kind in _SEEDLESS:
        same = replace(same, seed=settings.function.seed)
    if settings.function == same:
        raise UserError(
            "attribution.held_out: is the same as attribution.function, and would not show that the"
            f" reward is cheated; give it another kind{_OR_SEED[same.kind in _SEEDLESS]}"
        )
    forget, retain = owners_of(data.forget, data.retain, group=settings.group)
    if len({*forget, *retain}) < 2:
        raise UserError(
            f"attribution: there is a single owner, {forget[0]}; a response can come only from it,"
            " so give rows of others too (entity) or lower attribution.group"
        )
    return forget, retain


def _responses(
    model: LanguageModel,
    rows: Sequence[Row],
    owners: Sequence[str],
    experiment: Experiment,
    say: Callable[[str], None],
) -> Responses:
    """The answers of all rows that are short enough."""
    encoded = encode_rows(model, rows, experiment, max_length(model, experiment), "owners", say)
    kept = [owners[i] for i in encoded.kept]
    lost = set(owners) - set(kept)
    if lost:
        raise UserError(
            f"attribution: all rows of {min(lost)} are too long, so that nothing is known of this"
            " owner; shorten them, leave the owner out, or raise data.max_length if it is set"
        )
    return from_table(encoded.table, kept)


def _made(
    settings: FunctionConfig,
    model: LanguageModel,
    responses: Responses,
    seed: int,
    place: Path | None,
) -> Attributor:
    if place is None or settings.kind not in ("classifier", "encoder"):
        return fitted(settings, model, responses, seed=seed)
    if place.exists():
        return classifier_files.load(place, base_of(settings, model))
    found = fitted(settings, model, responses, seed=seed)
    classifier_files.save(found, place)
    return found


def _score(
    texts: Sequence[Text],
    *,
    attributor: Attributor,
    owners: Mapping[str, int],
    model: LanguageModel,
    experiment: Experiment,
) -> np.ndarray:
    """[n] in [0, 1]; nan of a question without an owner, and of an answer that is too long."""
    limit = max_length(model, experiment)
    encoded = tokens.encode(
        model.tokenizer, texts, template=experiment.data.template, max_length=limit
    )
    found = np.full(len(texts), np.nan)
    whose = np.array([owners.get(texts[i].question, -1) for i in encoded.kept], int)
    said = Responses(*answers_of(encoded.table), whose, attributor.names)
    rows = np.flatnonzero(whose >= 0)
    if len(rows):
        scores = in_batches(attributor.scores, said.take(rows), 64)
        found[np.array(encoded.kept)[rows]] = scores[np.arange(len(rows)), whose[rows]]
    return found
