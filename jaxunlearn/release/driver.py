"""Reveal and Release: a model reveals, adapters learn that, and are subtracted; iterated.

An iteration that is finished is a file, and its adapters are modules of the run; a run that was cut
off goes on after the last of them, and inside it with what is there: the pulls of the search, the
answers, the checkpoints of the trainings.

Reference: Xie et al., Reveal and Release, arXiv 2509.14624. Its body was not available to us: that
instructions are optimised, that the model's own answers are the forget data, that a retain and a
forget adapter are trained with O-LoRA and that the weights change in small steps is the paper's as
its abstract and summaries of it tell; the rest follows the works that it builds on, or is ours.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.likelihood import text_nlls
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import Module, ModuleStore, composed
from jaxunlearn.release.choosing import Measured
from jaxunlearn.release.iteration import (
    Iteration,
    Job,
    Learned,
    Pair,
    controlled,
    finite,
    mean_overlap,
    measure,
    signal,
    train_pair,
    weighed,
)
from jaxunlearn.reveal.harvest import Harvest, harvest
from jaxunlearn.reveal.proposing import proposer
from jaxunlearn.reveal.search import Rated, search
from jaxunlearn.writing import write_text

SATURATED = 0.02
"""Mean NLL below which rows are known so well that they hardly train anything."""


def release(job: Job, store: ModuleStore) -> Iterator[tuple[Iteration, LanguageModel]]:
    """Iterates until all iterations are done or one is the last.

    Args:
      job: all settings and data.
      store: keeps the adapters of each iteration.

    Yields:
      Each iteration, and the model after it: the start model with one adapter, or without one
      before the first that is used.

    Raises:
      UserError: the scorer fails, or a file of an earlier start is damaged.
    """
    model = job.start
    for number in range(1, job.settings.iterations + 1):
        path = job.folder / str(number) / "iteration.json"
        done = _read(path)
        if done is None:
            first = None if number == 1 else _read(job.folder / "1" / "iteration.json")
            done = _iterate(job, store, model.merged(), number, first)
            write_text(path, json.dumps(dataclasses.asdict(done), indent=2, allow_nan=False) + "\n")
        # Always of the start model, so that the modules alone decide the weights.
        model = composed(job.start, _used(store, number))
        yield done, model
        if done.ended is not None:
            job.say(f"iteration {number}: {done.ended}")
            return


def read(folder: Path) -> list[Iteration]:
    """The finished iterations of a Reveal-and-Release."""
    found = [_read(path) for path in folder.glob("*/iteration.json")]
    return sorted((one for one in found if one is not None), key=lambda one: one.number)


def _iterate(
    job: Job, store: ModuleStore, model: LanguageModel, number: int, first: Iteration | None
) -> Iteration:
    settings = job.settings
    before = measure(job, model, number)
    done = Iteration(number, before)
    if before.retain_nll is None:
        raise UserError(
            f"iteration {number}: the model gives retain rows no finite likelihood, so that no loss"
            " of utility can be measured; start from a model whose weights are finite"
        )
    start_nll = before.retain_nll if first is None else first.before.retain_nll
    if before.score <= settings.target_score:
        ended = f"the score is {before.score:.3g}, the target {settings.target_score}"
        if number == 1:
            ended += "; if the model does know it, check reveal.scorer and the questions"
        return dataclasses.replace(done, ended=ended)
    learned, done = _learned(job, model, done)
    if done.kept_fraction is not None and (
        done.kept_fraction < settings.min_kept or not done.kept_fraction
    ):
        share = f"{done.kept_fraction:.1%} of {done.answers} answers"
        return dataclasses.replace(done, ended=f"nothing is left to reveal: {share} are kept")
    if learned.chosen:
        done = _with_forget_nll(job, model, [learned.rows[i] for i in learned.chosen], done)
    earlier = [
        store.adapter(one.name)
        for one in _modules(store, number - 1)
        if one.name.endswith("forget")
    ]
    pair = train_pair(job, model, number, learned, earlier)
    if pair[1] is not None:
        done = dataclasses.replace(done, signal=signal(job, model, pair[1]))
    pair = controlled(job, pair, number)
    if None not in pair:
        done = dataclasses.replace(done, overlap=mean_overlap(*pair))
    curve, point = weighed(job, model, number, pair, before, start_nll)
    _store(job, store, number, pair, point)
    if point is None:
        why = (
            "no weight forgets enough and keeps the utility"
            if settings.line_search
            else "it takes too much of the utility"
        )
        return dataclasses.replace(done, curve=curve, ended=f"{why}; it is not used")
    ended = None
    if point.score <= settings.target_score:
        ended = f"the score is {point.score:.3g}, the target {settings.target_score}"
    return dataclasses.replace(done, curve=curve, chosen=point, used=True, ended=ended)


def _learned(job: Job, model: LanguageModel, done: Iteration) -> tuple[Learned, Iteration]:
    """What the forget adapter learns, and what the iteration says of it."""
    settings = job.settings
    if not settings.line_search and not settings.forget_weight:
        return Learned(), done
    if settings.rows_from == "forget_set":
        return Learned(job.forget, range(len(job.forget))), done
    number = done.number if settings.regenerate else 1
    # What was said in the first iteration is in its folder.
    candidates = _searched(job, model, number) if number == done.number else []
    found = _said(job, model, candidates, number)
    kept = found.kept
    if settings.rows_from == "unfiltered":
        # Of nothing there is nothing to learn.
        kept = tuple(i for i, row in enumerate(found.rows) if row.answer)
    done = dataclasses.replace(
        done,
        answers=len(found.rows),
        kept_fraction=len(kept) / len(found.rows),
        filters=found.fractions,
        candidates=[_told(one) for one in candidates],
    )
    return Learned(found.rows, kept, found.cut), done


def _searched(job: Job, model: LanguageModel, number: int) -> list[Rated]:
    """What brings answers out best, if it is to be searched."""
    if job.reveal.proposer == "none":
        return []
    template, seed = job.experiment.data.template, job.seed(number, 4)
    propose = proposer(
        model,
        job.questions,
        job.scorer,
        job.reveal,
        instructions=job.instructions,
        template=template,
        seed=seed,
    )
    return search(
        model,
        job.questions,
        job.scorer,
        propose,
        job.reveal,
        template=template,
        seed=seed,
        log=job.folder / str(number) / "search.jsonl",
        say=job.say,
    )[: job.reveal.best]


def _said(job: Job, model: LanguageModel, rated: Sequence[Rated], number: int) -> Harvest:
    """What the model answers; that of an iteration is in its folder once it is there."""
    return harvest(
        model,
        job.questions,
        [one.candidate for one in rated] or [None],
        job.scorer,
        job.reveal,
        job.folder / str(number),
        template=job.experiment.data.template,
        seed=job.seed(number, 5),
        iteration=number,
    )


def _with_forget_nll(
    job: Job, model: LanguageModel, rows: Sequence[Row], done: Iteration
) -> Iteration:
    nlls = text_nlls(model, [row.key for row in rows], job.experiment.data.template)
    nll = finite(float(nlls[nlls == nlls].mean()))
    if nll is not None and nll < SATURATED:
        job.say(
            f"iteration {done.number}: the NLL of the forget rows is {nll:.2g} before any training;"
            " rows that are known so well hardly train the forget adapter"
        )
    return dataclasses.replace(done, forget_nll=nll)


def _store(job: Job, store: ModuleStore, number: int, pair: Pair, point: Measured | None) -> None:
    """Keeps both adapters; those of an iteration that is not used with weight 0."""
    kept = 0.0 if point is None else point.forget_weight
    weights = (0.0 if point is None else job.settings.retain_weight, 0.0 - kept)
    for role, adapter, weight in zip(("retain", "forget"), pair, weights, strict=True):
        if adapter is not None:
            about = f"iteration {number}" + (", not used" if point is None else "")
            store.write(Module(f"{number}-{role}", weight, about), adapter, job.start, job.base)


def _told(rated: Rated) -> dict[str, Any]:
    """A candidate as the report shows it."""
    found = {"name": rated.candidate.name, "instruction": rated.candidate.instruction}
    return found | {key: getattr(rated, key) for key in ("reward", "relevance", "diversity")}


def _used(store: ModuleStore, number: int) -> list[tuple[float, Adapter]]:
    """Weight and adapter of what is used, up to this iteration."""
    found = _modules(store, number)
    return [(one.weight, store.adapter(one.name)) for one in found if one.weight]


def _modules(store: ModuleStore, number: int) -> list[Module]:
    """Those of iterations up to this one: a kill may have left some of the next."""
    return [one for one in store.modules() if int(one.name.partition("-")[0]) <= number]


def _read(path: Path) -> Iteration | None:
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        for key in ("before", "chosen"):
            tree[key] = tree[key] and Measured(*tree[key])
        tree["curve"] = [Measured(*one) for one in tree["curve"]]
        return Iteration(**tree)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it, it is made again") from None
