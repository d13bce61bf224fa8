"""One iteration of Release: adapters are trained on what the model revealed, and weighed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.config import AdapterConfig, Experiment, TrainingConfig
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Row, Scorer, Text
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.evaluation.likelihood import mean_nll
from jaxunlearn.methods.orthogonality import overlaps
from jaxunlearn.methods.release_settings import Release
from jaxunlearn.models.adapter_algebra import concatenate, random_like, without_common
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import composed
from jaxunlearn.release.choosing import GRID, Measured, keeps, smallest
from jaxunlearn.reveal.drawing import draw
from jaxunlearn.unlearning import finetune_rows

PROBES = 128
"""Answers that are scored to see what is left; their questions are spread over all."""


@dataclass(frozen=True)
class Job:
    """What all iterations of one Reveal-and-Release share."""

    start: LanguageModel
    """The model that is to forget, without an adapter."""
    base: str | Path
    """Its folder or Hub id, for PEFT."""
    forget: Sequence[Row]
    """Real forget rows; learned by the oracle only, and what the signal is measured on."""
    retain: Sequence[Row]
    questions: Sequence[Text]
    """That are put to the model; their answers are not read."""
    scorer: Scorer
    instructions: Sequence[str]
    retain_table: TokenTable
    """Watched retain rows."""
    forget_table: TokenTable
    """Watched forget rows."""
    experiment: Experiment
    settings: Release
    reveal: RevealConfig
    adapter: AdapterConfig
    training: TrainingConfig
    steps: int | None
    """Of each training; None: as its epochs give."""
    folder: Path
    """For what is revealed and found."""
    checkpoints: Callable[[str], Path]
    """Of a training, by its stage."""
    logger: Callable[[str], Callable[..., None]]
    """What a training of a stage tells its steps to."""
    say: Callable[[str], None]

    def seed(self, *key: int) -> int:
        """Of one use of random numbers in one iteration."""
        return int(np.random.SeedSequence((self.experiment.seed, *key)).generate_state(1)[0] >> 1)


@dataclass(frozen=True)
class Iteration:
    """What one iteration did; plain data, kept as JSON."""

    number: int
    before: Measured
    """The model that it began with."""
    used: bool = False
    """Whether its adapters are part of the result."""
    ended: str | None = None
    """Why it is the last one; None: it is not, or all are done."""
    answers: int = 0
    """That the model gave."""
    kept_fraction: float | None = None
    """Of these."""
    filters: Mapping[str, float] = field(default_factory=dict)
    """Of each filter the share that it kept."""
    candidates: Sequence[Mapping[str, Any]] = ()
    """What brought the answers out, if it was searched."""
    forget_nll: float | None = None
    """Of the rows that the forget adapter learns, before it does."""
    signal: float | None = None
    """Relative fall of the NLL of real forget rows when the forget adapter is added: whether it
    learned anything about them."""
    overlap: Mapping[str, float | None] = field(default_factory=dict)
    """Of retain and forget adapter: means over targets and layers."""
    curve: Sequence[Measured] = ()
    """With both adapters at work, by rising weight of the forget adapter."""
    chosen: Measured | None = None
    """The point of the curve that it stands for."""


class Learned(NamedTuple):
    """What a forget adapter learns."""

    rows: Sequence[Row] = ()
    """That there are."""
    chosen: Sequence[int] = ()
    """Those of them that it learns."""
    cut: Sequence[int] = ()
    """Those whose answers are not at their end."""


Pair = tuple[Adapter | None, Adapter | None]
"""Retain and forget adapter."""


def train_pair(
    job: Job,
    model: LanguageModel,
    number: int,
    learned: Learned,
    earlier: Sequence[Adapter],
) -> Pair:
    """The iteration's retain and forget adapter, as they will be added and subtracted.

    Args:
      job: settings and retain rows.
      model: without an adapter.
      number: of the iteration.
      learned: what the forget adapter learns.
      earlier: forget adapters of earlier iterations.
    """
    settings = job.settings
    # One table for both trainings, so that they share a compiled program.
    everything = [*job.retain, *learned.rows]
    first = len(job.retain)

    def trained(role: int, start: LanguageModel, indices: Sequence[int], **more: Any) -> Adapter:
        stage = f"{('retain', 'forget')[role]}-{number}"
        return finetune_rows(
            start,
            everything,
            indices,
            job.experiment,
            job.training,
            unfinished=[first + i for i in learned.cut],
            steps=job.steps,
            adapter=job.adapter,
            seed=job.seed(number, role),
            checkpoints=job.checkpoints(stage),
            on_steps=job.logger(stage),
            say=job.say,
            **more,
        ).adapter

    retain = forget = None
    if settings.retain_weight:
        retain = trained(0, model, range(len(job.retain)))
    if learned.chosen:
        apart = [*([retain] if retain else []), *(earlier if settings.earlier else [])]
        more: dict[str, Any] = {}
        if settings.orthogonality_weight and apart:
            more["apart_from"] = concatenate(apart, [1.0] * len(apart)).factors
            more["orthogonality"] = (settings.orthogonality, settings.orthogonality_weight)
        start = model
        if settings.coactive and retain is not None:
            start = composed(model, [(1.0, retain)]).merged()
        forget = trained(1, start, [first + i for i in learned.chosen], **more)
    return retain, forget


def controlled(job: Job, pair: Pair, number: int) -> Pair:
    """The pair with the forget adapter that is to be subtracted in the place of the trained one."""
    retain, forget = pair
    if forget is not None and job.settings.random:
        forget = random_like(forget, key=jax.random.key(job.seed(number, 2)))
    if forget is not None and retain is not None and job.settings.ext_sub:
        forget = without_common(forget, retain)
    return retain, forget


def measure(
    job: Job, model: LanguageModel, number: int, pair: Pair = (None, None), weight: float = 0.0
) -> Measured:
    """A model with a pair at work: what it says, and what it keeps."""
    now = composed(model, parts(job.settings, pair, weight)).merged()
    asked = [job.questions[i * len(job.questions) // PROBES] for i in range(PROBES)]
    answers = draw(
        now,
        [None] * PROBES,
        asked,
        job.reveal,
        template=job.experiment.data.template,
        seed=job.seed(number, 3),
    )
    texts = [text._replace(answer=one) for text, one in zip(asked, answers.texts, strict=True)]
    nll = finite(mean_nll(now, job.retain_table))
    return Measured(weight, float(job.scorer(texts).mean()), nll)


def finite(value: float) -> float | None:
    """The value; None if it is infinite or not a number, of which JSON has neither."""
    return value if math.isfinite(value) else None


def parts(settings: Release, pair: Pair, weight: float) -> list[tuple[float, Adapter]]:
    """Weight and adapter of what a pair adds."""
    retain, forget = pair
    found = [] if retain is None else [(settings.retain_weight, retain)]
    return found + ([] if forget is None or not weight else [(-weight, forget)])


def weighed(
    job: Job, model: LanguageModel, number: int, pair: Pair, before: Measured, start_nll: float
) -> tuple[list[Measured], Measured | None]:
    """The curve over the forget adapter's weight, and the point of it to go on with, if any."""
    settings = job.settings
    curve = [measure(job, model, number, pair)]
    if pair[1] is None:
        return curve, curve[0] if keeps(curve[0], settings, start_nll) else None
    weights = GRID if settings.line_search else (settings.forget_weight,)
    curve += [measure(job, model, number, pair, weight) for weight in weights]
    if settings.line_search:
        return curve, smallest(curve[1:], settings, score=before.score, start_nll=start_nll)
    return curve, curve[1] if keeps(curve[1], settings, start_nll) else None


def signal(job: Job, model: LanguageModel, forget: Adapter) -> float | None:
    """Relative fall of the NLL of real forget rows when the adapter is added; None: not finite."""
    before = mean_nll(model, job.forget_table)
    return finite(1 - mean_nll(composed(model, [(1.0, forget)]), job.forget_table) / before)


def mean_overlap(retain: Adapter, forget: Adapter) -> dict[str, float | None]:
    """Each measure of `orthogonality.overlaps`, as its mean over targets and layers; None: not
    finite."""
    found = overlaps(retain, forget)
    return {
        name: finite(float(np.mean([np.asarray(values) for values in by_path.values()])))
        for name, by_path in found.items()
    }
