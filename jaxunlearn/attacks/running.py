"""Attacks on finished runs: which there are, and what they write.

Every attack is made on the models of the chosen methods and, where there is one, on the retrained
model, which shows what the attack gives when nothing is there to be brought back. Attacks that look
inside are made on the target as well, which has everything.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxunlearn import config_file, shadows
from jaxunlearn.attacks import inside, models, prompts, weights
from jaxunlearn.attacks.case import Case, Options, Values, measure, measured
from jaxunlearn.config import Experiment
from jaxunlearn.data.rows import UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import robustness
from jaxunlearn.evaluation.robustness import Measured
from jaxunlearn.experiment import labels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.progress import Bars, Stage
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.tables import need_tokenizer
from jaxunlearn.unlearning_job import batch_slots
from jaxunlearn.writing import write_text

PUBLISHED_RATE = 2e-5
"""Learning rate of relearning in OpenUnlearning (arXiv 2506.12618), 4.1; it takes one epoch."""

ATTACKS: Mapping[str, Callable[[Case], list[Measured]]] = {
    "relearning": weights.relearn,
    "benign": weights.fine_tune,
    "quantisation": weights.quantise,
    "prompts": prompts.prompt,
    "samples": prompts.sample,
    "lens": inside.lens,
    "probe": inside.probe,
}
"""In the order of reports."""
INSIDE = ("lens", "probe")

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run that is to be attacked."""

    folder: Path
    experiment: Experiment
    data: UnlearningData
    options: Options
    """Resolved."""
    shadows: shadows.Plan | None
    """None: no attack by shadow models."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers, as JSON gives it back."""
        settings = dataclasses.asdict(self.options)
        del settings["only"], settings["shadows"]
        settings["methods"] = list(self.options.methods)
        return {**settings, "forget_rows": len(self.data.forget)}


def attack(
    folders: Sequence[str],
    options: Options,
    output: str | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Result, Path]:
    """Attacks finished runs, one after another; all are checked before the first attack.

    Writes `attacks.json` and `attacks.html` into each run folder, at the end and atomically, and
    what `shadows` keeps; nothing else in it changes. Attacks that `attacks.json` already has with
    the same settings, and made after the run, are not made again; others are added to them. Of
    several runs the means (`robustness.over_runs`) are written as a page and, beside it, as JSON.

    Args:
      folders: of the runs; one that is given twice counts once.
      options: which attacks, and how hard they try.
      output: the page over several runs, default `attacks.html`; None for one run.
      say: called with what the user should know.

    Returns:
      What `attacks.json` holds, of the run or over the runs: `{"name", "settings",
      "before": {model: Measured}, ATTACK: {model: [Measured]}, "aggregates"}`; and the page.

    Raises:
      UserError: not the folder of a finished run, a method that the run does not have or whose
        checkpoints are gone, more rows than the forget set has, an earlier attack with other
        settings, or an output that cannot be.
    """
    folders = list(dict.fromkeys(folders))
    page = _page(folders, output)
    runs = [open_run(Path(folder), options) for folder in folders]
    known = [_before(run, say) for run in runs]
    results = [_attack(run, one, say) for run, one in zip(runs, known, strict=True)]
    if len(runs) == 1:
        return results[0], page
    together = robustness.over_runs(results, folders)
    page.parent.mkdir(parents=True, exist_ok=True)
    robustness.write_page(page, together, {})
    write_text(page.with_suffix(".json"), _json(together))
    return together, page


def open_run(folder: Path, options: Options) -> Run:
    """A run folder and the options, checked."""
    if not all((folder / file).is_file() for file in ("config.yaml", "summary.json")):
        raise UserError(f"{folder}: not a finished run; give a run folder that has a summary.json")
    experiment = config_file.load(folder / "config.yaml")
    data = load_data(experiment)
    options = resolve(options, experiment, len(data.forget))
    models.check(folder, experiment, data, options.methods)
    plan = shadows.plan(experiment, data, options.shadows) if options.shadows else None
    return Run(folder, experiment, data, options, plan)


def resolve(options: Options, experiment: Experiment, forget_rows: int) -> Options:
    """The options with everything filled in: all forget rows, one epoch over them, the learning
    rate that made the target, else the published one, all attacks, and the main method.

    Raises:
      UserError: more rows than there are, or an attack that is not there.
    """
    rows = forget_rows if options.rows is None else options.rows
    if rows > forget_rows:
        raise UserError(f"--rows: is {rows}, but the run has {forget_rows} forget rows; use fewer")
    for name in options.only:
        if name not in ATTACKS:
            raise UserError(f"--only: no attack {name!r}; there are {', '.join(ATTACKS)}")
    epoch = -(-rows // batch_slots(experiment.training, rows))
    made = experiment.finetune
    return dataclasses.replace(
        options,
        steps=epoch if options.steps is None else options.steps,
        rows=rows,
        learning_rate=options.learning_rate or (made.learning_rate if made else PUBLISHED_RATE),
        only=options.only or tuple(ATTACKS),
        methods=options.methods or (list(labels(experiment))[-1],),
    )


def _page(folders: Sequence[str], output: str | None) -> Path:
    """Of one run in its folder; of several never in one of theirs."""
    if len(folders) == 1:
        if output is not None:
            raise UserError("--output: is for several runs; the page of one is in its own folder")
        return Path(folders[0]) / "attacks.html"
    page = Path(output or "attacks.html")
    if page.suffix != ".html":
        raise UserError(f"--output: {page} must end in .html; the numbers go beside it as .json")
    if page.resolve().parent in [Path(folder).resolve() for folder in folders]:
        raise UserError(f"--output: {page} is in the folder of one of the runs; choose another")
    return page


def _attack(run: Run, known: Result, say: Callable[[str], None]) -> Result:
    missing = [name for name in ATTACKS if name in run.options.only and name not in known]
    membership = known.get("membership")
    by_shadows = run.shadows is not None and (
        membership is None or membership["shadows"] != run.options.shadows
    )
    if not missing and not by_shadows:
        say(f"{run.folder}: attacked already; remove {run.folder / 'attacks.json'} to do it again")
        return known
    found: dict[str, Any] = {name: {} for name in missing}
    start: dict[str, Measured] = {}
    attacked: dict[str, LanguageModel] = {}
    with Bars() as bars:
        for label, model in models.load(run.folder, run.experiment, run.options.methods, bars):
            need_tokenizer(model)
            with bars.stage(f"{label} as it is") as stage:
                before = measure(model, run.data.forget, run.experiment, stage)
            start[label] = measured("before", before)
            for name in missing:
                if label != "target" or name in INSIDE:
                    with bars.stage(f"{label} {name}") as stage:
                        found[name][label] = ATTACKS[name](_case(run, model, stage, before))
            if by_shadows and label != "target":
                attacked[label] = model
        if by_shadows:
            membership = shadows.run(run.folder, run.shadows, attacked, bars)
    made = {name: found.get(name, known.get(name)) for name in ATTACKS}
    made = {name: one for name, one in made.items() if one is not None}
    result = {
        "name": str(run.experiment.name),
        "settings": run.settings,
        "before": start,
        **made,
        "aggregates": robustness.aggregates(made, run.options.methods),
        **({} if membership is None else {"membership": membership}),
    }
    page = run.folder / "attacks.html"
    robustness.write_page(page, result, config_file.dump(run.experiment))
    write_text(run.folder / "attacks.json", _json(result))
    return result


def _case(run: Run, model: LanguageModel, stage: Stage, before: Values) -> Case:
    data = run.data
    return Case(model, data.forget, data.retain, run.experiment, run.options, stage, before)


def _before(run: Run, say: Callable[[str], None]) -> Result:
    """What an earlier attack with the same settings found; empty if there is none."""
    path = run.folder / "attacks.json"
    if not path.is_file():
        return {}
    if path.stat().st_mtime_ns < (run.folder / "summary.json").stat().st_mtime_ns:
        say(f"{path}: older than the run; it is replaced")
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        settings = known["settings"]
        other = [key for key, value in run.settings.items() if settings.get(key) != value]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; remove it, it is made again") from None
    if other:
        before = ", ".join(f"{key} {settings.get(key)}" for key in other)
        now = ", ".join(f"{key} {run.settings[key]}" for key in other)
        raise UserError(
            f"{path}: made with {before}, now {now}; move it away, or attack with the same"
        )
    return known


def _json(result: Result) -> str:
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"
