"""What the commands that take a config or runs do with their parsed arguments.

Each imports what it needs when it is called, so that the others and `--help` start at once.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from jaxunlearn.commands_model import open_model
from jaxunlearn.errors import UserError


def _load(options: argparse.Namespace) -> Any:
    from jaxunlearn import config_file

    return config_file.load(options.config, _parsed(options.overrides))


def _load_beside(options: argparse.Namespace) -> Any:
    """The config that is named, else the run folder's own."""
    own = Path(options.model) / "config.yaml"
    if options.config is None and own.is_file():
        options.config = str(own)
    return _load(options)


def _parsed(overrides: dict[str, str]) -> dict[str, Any]:
    """Values as YAML reads them; what is no YAML is text."""
    import yaml

    found: dict[str, Any] = {}
    for key, value in overrides.items():
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
        # YAML 1.1 has numbers in base 60 and 8, and dates; and names are names.
        plain = isinstance(found[key], str | bool | list | dict | None)
        if key in ("name", "output") or (not plain and re.search(r":|^[-+]?0\d|-\d+-", value)):
            found[key] = value
    return found


def run(options: argparse.Namespace) -> None:
    """Runs a config and prints its table."""
    settings = _load(options)
    from jaxunlearn import experiment

    if options.profile is not None and options.profile < 1:
        raise UserError(f"--profile: is {options.profile}; use 1 or more steps")
    if options.print_config:
        _print_config(experiment.resolve(settings))
        return
    first = _prepared(options)
    folder = Path(settings.output) / settings.name
    finished = (folder / "summary.json").exists()
    summary = experiment.run(settings, profile=options.profile or 0)
    if not first:
        return
    from jaxunlearn.evaluation import report

    console = _console()
    console.print(report.table(summary, console.width))
    for note in summary["notes"]:
        print(f"note: {note}")
    if finished:
        print(f"This run was complete already; remove {folder} or set --name to run again.")
    print(f"report: {folder / 'report.html'}\nmodel:  {folder / 'hf'}")


def _prepared(options: argparse.Namespace) -> bool:
    """Connects the processes, if there are several, and heeds SIGTERM; whether this process is the
    one that speaks."""
    from jaxunlearn.training import hosts

    if options.distributed is not None:
        hosts.connect(options.distributed)
    hosts.listen()
    return hosts.is_first()


def sweep(options: argparse.Namespace) -> None:
    """Runs a config with several values of some keys, and prints their table."""
    from jaxunlearn.evaluation import report
    from jaxunlearn.sweeping import rungs, running, settings
    from jaxunlearn.training import hosts

    grid = {
        key: list(_parsed(dict(enumerate(settings.split(values)))).values())
        for key, values in _varied(options.grid, "--grid", "KEY=VALUE,VALUE").items()
    }
    spans = {
        key: settings.span(words, key)
        for key, words in _varied(options.search, "--search", "KEY=LOW:HIGH").items()
    }
    if options.vectorize < 1:
        raise UserError(f"--vectorize: is {options.vectorize}; use 1 or more")
    for option, value in {"--samples": options.samples, "--sampler": options.sampler}.items():
        if value is not None and not spans:
            raise UserError(f"{option}: is for --search; give KEY=LOW:HIGH there, or leave it out")
    if options.halving_by is not None and options.halving is None:
        raise UserError("--halving-by: is for --halving; give a factor there, or leave it out")
    halving = None
    if options.halving is not None:
        halving = rungs.Halving(options.halving, options.halving_by)
    base, drawn = _load(options), [{}]
    if spans:
        samples = 16 if options.samples is None else options.samples
        drawn = settings.draw(spans, samples, options.sampler or "sobol", base.seed)
        if len(drawn) < samples:
            print(f"--samples: only {len(drawn)} of {samples} points differ")
    runs = settings.expand(options.config, grid, _parsed(options.overrides), drawn)
    hosts.listen()
    summary, failed = running.run(runs, vectorize=options.vectorize, halving=halving)
    console = _console()
    console.print(report.table(summary, console.width))
    for note in summary["notes"]:
        print(f"note: {note}")
    folder = Path(runs[0][1].output)
    print(f"report: {folder / 'report.html'}\nruns:   {folder / 'comparison.html'}")
    if failed:
        lines = "\n  ".join(failed)
        count = len(runs) if halving is None else rungs.trainings(summary["halving"])
        raise UserError(
            f"{len(failed)} of {count} runs failed:\n  {lines}\n"
            f"they are not tried again unless {folder / 'shared' / 'failed'} is removed"
        )


def _varied(words: list[str], option: str, form: str) -> dict[str, str]:
    """Dotted key to what was given for it."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals:
            raise UserError(f"{option} {word}: write {form}")
        key = key.replace("-", "_")
        if key in found:
            raise UserError(f"{option} {key}: given twice; write all its values in one")
        found[key] = values
    return found


def _print_config(settings: Any) -> None:
    import yaml

    from jaxunlearn import config_file

    print(yaml.safe_dump(config_file.dump(settings), sort_keys=False, allow_unicode=True), end="")


def plan(options: argparse.Namespace) -> None:
    """Prints what a config's trainings need on each device."""
    settings = _load(options)
    from jaxunlearn import plan

    print("\n".join(plan.report(settings, options.devices, options.device_memory)))


def finetune(options: argparse.Namespace) -> None:
    """Trains target and retrained model."""
    settings = _load(options)
    from jaxunlearn import experiment

    first = _prepared(options)
    for folder in experiment.finetune(settings):
        if first:
            print(f"model: {folder}")


def evaluate(options: argparse.Namespace) -> None:
    """Prints the numbers of a model."""
    settings = _load_beside(options)
    import json

    from jaxunlearn import experiment
    from jaxunlearn.evaluating import notes
    from jaxunlearn.writing import write_text

    model = open_model(options.model)
    path = settings.model.retrained
    retrained = None if path is None else open_model(path)
    logs = None if options.logs is None else Path(options.logs)
    folder = Path(options.model)
    run = folder if (folder / "config.yaml").is_file() else None
    evaluation = experiment.evaluate(model, settings, retrained, logs, run)
    for name, entry in evaluation.metrics.items():
        value = "-" if entry["value"] is None else f"{entry['value']:.4g}"
        interval = "{:.3g} to {:.3g}".format(*entry["ci"]) if entry["ci"] else ""
        print(f"{name:<38} {value:>10}   n={entry['n']:<6} {interval}".rstrip())
    for note in notes(evaluation, settings.evaluation):
        print(f"note: {note}")
    if options.json:
        write_text(Path(options.json), json.dumps(evaluation.metrics, indent=2) + "\n")


def attribute(options: argparse.Namespace) -> None:
    """Prints the likeliest owners of texts, and how good each function is."""
    settings = _load_beside(options)
    import json

    from jaxunlearn import attributing
    from jaxunlearn.config_attribution import AttributionConfig
    from jaxunlearn.evaluation.robustness import rich_table
    from jaxunlearn.reveal.theme import read_lines
    from jaxunlearn.writing import write_text

    if options.top < 1:
        raise UserError(f"--top: is {options.top}; use 1 or more")
    texts = options.text + ([] if options.file is None else read_lines(options.file, "--file"))
    kinds = attributing.CHEAP if options.kinds is None else options.kinds.split(",")
    found = attributing.attribute(open_model(options.model), texts, settings, kinds=kinds)
    for heading, table in attributing.tables(found, top=options.top).items():
        print(heading)
        _console().print(rich_table(table))
    section = settings.attribution or AttributionConfig()
    for note in attributing.notes(found, section.min_accuracy):
        print(f"note: {note}")
    if options.json:
        write_text(Path(options.json), json.dumps(attributing.as_json(found), indent=2) + "\n")


def report(options: argparse.Namespace) -> None:
    """Writes one page on several runs."""
    from jaxunlearn.evaluation import report
    from jaxunlearn.runs import read_finished

    page = Path(options.output)
    if page.suffix != ".html":
        raise UserError(
            f"--output: {page} does not end in .html; its numbers go beside it, as .md and .csv"
        )
    summaries, evaluations = zip(*(read_finished(Path(run)) for run in options.runs), strict=True)
    report.write_comparison(page, summaries, evaluations)
    print(f"report:  {page}\nnumbers: {page.with_suffix('.md')}, {page.with_suffix('.csv')}")


def attack(options: argparse.Namespace) -> None:
    """Attacks runs and prints what came back."""
    from jaxunlearn.attacks import running
    from jaxunlearn.attacks.case import Options
    from jaxunlearn.evaluation import robustness

    numbers = (options.steps, options.rows, options.learning_rate, options.samples)
    names = (tuple(dict.fromkeys(words)) for words in (options.only, options.method))
    result, page = running.attack(
        options.runs, Options(*numbers, *names, options.shadows), options.output
    )
    for table in robustness.tables(result).values():
        _console().print(robustness.rich_table(table))
    print("\n".join(robustness.verdicts(result)))
    print(f"report:  {page}\nnumbers: {page.with_suffix('.json')}")


def methods(options: argparse.Namespace) -> None:
    """Lists methods."""
    from jaxunlearn.methods import registry

    known = {**registry.METHODS, **registry.PROCEDURES}
    width = max(map(len, known))
    for name, method in known.items():
        settings = ", ".join(f"{k}={v}" for k, v in registry.defaults(name).items())
        print(f"{name:<{width}} {settings}; {method.summary} ({method.source})")


def suites(options: argparse.Namespace) -> None:
    """Lists suites."""
    from jaxunlearn.evaluation import aggregation, benchmark
    from jaxunlearn.evaluation.statistics import STATISTICS

    names = benchmark.built_in()
    width = max(map(len, names))
    for name in names:
        one = benchmark.load(name)
        print(f"{name:<{width}} {one.about}; {len(one.metrics)} metrics")
    kinds = {
        "statistics": STATISTICS,
        "aggregations of rows": aggregation.ROWS,
        "of two samples (versus, against)": aggregation.SAMPLES,
        "of metrics (of)": aggregation.NUMBERS,
        "of one and the retrained model's (of, against)": aggregation.CHANGES,
        "of several and the retrained model's (of, against)": aggregation.COMPARISONS,
    }
    for kind, known in kinds.items():
        print(f"{kind}: {', '.join(known)}")


def samplers(options: argparse.Namespace) -> None:
    """Lists samplers."""
    from jaxunlearn.config import SamplingConfig
    from jaxunlearn.data.sampling import SAMPLERS

    width = max(map(len, SAMPLERS))
    for name, sampler in SAMPLERS.items():
        settings = ", ".join(f"{k}={v}" for k, v in SamplingConfig(name).options_of(name).items())
        summary = (sampler.__doc__ or "").splitlines()[0]
        print(f"{name:<{width}} {settings}{'; ' if settings else ''}{summary}")


def families(options: argparse.Namespace) -> None:
    """Lists model families."""
    from jaxunlearn.models.families import FAMILIES

    for name, family in FAMILIES.items():
        print(f"{name:<12} {family.covers} ({family.architecture})")


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)
