"""The command line: thin, it calls the functions of the package."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import __version__
from jaxunlearn.errors import UserError

EXIT_USER_ERROR = 2
_WITH_CONFIG = ("run", "sweep", "finetune", "evaluate")
_OWN_OPTIONS = ("--help", "--print-config", "--json", "--logs", "--grid")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 2 bad input, 1 anything else."""
    # transformers says at every start that there is no PyTorch; none is needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        overrides = _take_overrides(words) if words and words[0] in _WITH_CONFIG else {}
        options = _parser().parse_args(words)
        options.overrides = overrides
        options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Exception as error:
        if type(error).__name__ != "DivergedError":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxunlearn",
        description="Make a language model forget, and prove that it did.",
        epilog="Every config key can be set on the command line: --training.epochs 3",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    config_help = "YAML file; left out: the built-in quickstart"
    model_help = "Hugging Face folder, Hub id (org/name), PEFT adapter folder, or run folder"
    sub = command("run", _run, "prepare, unlearn, evaluate, report, export")
    sub.add_argument("config", nargs="?", help=config_help)
    sub.add_argument("--print-config", action="store_true", help="show the resolved config; stop")

    sub = command("sweep", _sweep, "run a config with several values of some keys")
    sub.add_argument("config", nargs="?", help=config_help)
    sub.add_argument(
        "--grid", action="append", default=[], metavar="KEY=VALUE,VALUE", help="may be repeated"
    )

    sub = command("finetune", _finetune, "train the target model and the retrained reference")
    sub.add_argument("config", nargs="?", help=config_help)

    sub = command("evaluate", _evaluate, "score a model on a config's data")
    sub.add_argument("model", help=model_help)
    own_help = "YAML file; left out: the run folder's own config, else the built-in quickstart"
    sub.add_argument("config", nargs="?", help=own_help)
    sub.add_argument("--json", metavar="FILE", help="write the numbers to a file")
    logs_help = "write TOFU_EVAL.json and TOFU_SUMMARY.json as open-unlearning does"
    sub.add_argument("--logs", metavar="FOLDER", help=logs_help)

    sub = command("lm-eval", _lm_eval, "run tasks of EleutherAI's lm-evaluation-harness")
    sub.add_argument("model", help=model_help)
    sub.add_argument("--tasks", required=True, metavar="NAME,NAME", help="* stands for anything")
    sub.add_argument("--include-path", metavar="DIR", help="task files of your own")
    sub.add_argument("--limit", type=int, metavar="N", help="documents of each task; default: all")
    sub.add_argument("--num-fewshot", type=int, metavar="N", help="default: as the task says")
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="default 8")
    sub.add_argument("--apply-chat-template", action="store_true", help="the tokenizer's own")
    sub.add_argument("--json", metavar="FILE", help="write the harness's results to a file")

    sub = command("generate", _generate, "continue a prompt")
    sub.add_argument("model", help=model_help)
    text = sub.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", help="text to continue")
    text.add_argument("--question", help="question to answer, put into the model's prompt template")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    sub.add_argument("--top-k", type=int, default=0, metavar="K", help="0 (default): all tokens")
    sub.add_argument("--top-p", type=float, default=1.0, metavar="P")
    sub.add_argument("--seed", type=int, default=0)

    sub = command("convert", _convert, "Hugging Face folder to Orbax and back; adapters are merged")
    sub.add_argument("source", help=f"{model_help}, or Orbax folder")
    sub.add_argument("destination", help="new folder")
    dtypes = ("float32", "bfloat16", "float16")
    sub.add_argument("--dtype", choices=dtypes, help="of the weights; default: as they are")
    sub.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="default 5")

    sub = command("report", _report, "compare finished runs on one page")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    sub.add_argument("--output", default="comparison.html", metavar="FILE")

    sub = command("attack", _attack, "try to bring back what a finished run forgot")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    many = {"action": "append", "default": []}
    sub.add_argument("--method", **many, metavar="LABEL", help="of the run; default: its main one")
    sub.add_argument("--steps", type=int, metavar="N", help="of relearning; default: one epoch")
    sub.add_argument("--rows", type=int, metavar="K", help="to relearn; default: all forget rows")
    rate_help = "default: that of the run's finetune section, else 2e-5"
    sub.add_argument("--learning-rate", type=float, metavar="X", help=rate_help)
    shadows_help = "shadow models to tell forgotten rows from unseen ones; default: no such attack"
    sub.add_argument("--shadows", type=int, default=0, metavar="K", help=shadows_help)
    sub.add_argument("--samples", type=int, default=8, metavar="N", help="per question; default 8")
    sub.add_argument("--only", **many, metavar="NAME", help="may be repeated; default: all")
    sub.add_argument("--output", metavar="FILE", help="of several runs; default: attacks.html")

    command("methods", _methods, "list methods, their hyper-parameters and sources")
    command("samplers", _samplers, "list samplers")
    command("suites", _suites, "list what can be measured; evaluation.suite names one")
    command("families", _families, "list model families by the model_type of config.json")
    return parser


def _take_overrides(words: list[str]) -> dict[str, str]:
    """Takes --dotted.key value and --dotted.key=value out of a command's words.

    It is done before argparse sees them: it would read a value as the config file.
    """
    found: dict[str, str] = {}
    rest = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--") or key in _OWN_OPTIONS:
            rest.append(word)
            continue
        if not equals:
            if not queue:
                raise UserError(f"{key}: needs a value, as in {key} 3")
            value = queue.pop(0)
        found[key[2:].replace("-", "_")] = value
    words[:] = rest
    return found


def _load(options: argparse.Namespace) -> Any:
    from jaxunlearn import config_file

    return config_file.load(options.config, _parsed(options.overrides))


def _parsed(overrides: dict[str, str]) -> dict[str, Any]:
    """Values as YAML reads them; what is no YAML is text."""
    import yaml

    found: dict[str, Any] = {}
    for key, value in overrides.items():
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
    return found


def _run(options: argparse.Namespace) -> None:
    settings = _load(options)
    from jaxunlearn import experiment

    if options.print_config:
        _print_config(experiment.resolve(settings))
        return
    folder = Path(settings.output) / settings.name
    finished = (folder / "summary.json").exists()
    summary = experiment.run(settings)
    from jaxunlearn.evaluation import report

    _console().print(report.table(summary))
    for note in summary["notes"]:
        print(f"note: {note}")
    if finished:
        print(f"This run was complete already; remove {folder} or set --name to run again.")
    print(f"report: {folder / 'report.html'}\nmodel:  {folder / 'hf'}")


def _sweep(options: argparse.Namespace) -> None:
    from jaxunlearn import sweep
    from jaxunlearn.evaluation import report

    grid = {}
    for word in options.grid:
        key, equals, values = word.partition("=")
        if not equals:
            raise UserError(f"--grid {word}: write KEY=VALUE,VALUE")
        key = key.replace("-", "_")
        if key in grid:
            raise UserError(f"--grid {key}: given twice; write all its values with commas")
        numbered = dict(enumerate(values.split(",")))
        grid[key] = list(_parsed(numbered).values())
    runs = sweep.expand(options.config, grid, _parsed(options.overrides))
    summary, failed = sweep.run(runs)
    _console().print(report.table(summary))
    for note in summary["notes"]:
        print(f"note: {note}")
    folder = Path(runs[0][1].output)
    print(f"report: {folder / 'report.html'}\nruns:   {folder / 'comparison.html'}")
    if failed:
        lines = "\n  ".join(failed)
        raise UserError(f"{len(failed)} of {len(runs)} runs failed:\n  {lines}")


def _print_config(settings: Any) -> None:
    import yaml

    from jaxunlearn import config_file

    print(yaml.safe_dump(config_file.dump(settings), sort_keys=False, allow_unicode=True), end="")


def _finetune(options: argparse.Namespace) -> None:
    settings = _load(options)
    from jaxunlearn import experiment

    for folder in experiment.finetune(settings):
        print(f"model: {folder}")


def _evaluate(options: argparse.Namespace) -> None:
    own = Path(options.model) / "config.yaml"
    if options.config is None and own.is_file():
        options.config = str(own)
    settings = _load(options)
    import json

    from jaxunlearn import experiment
    from jaxunlearn.runs import write_text

    model = _model(options.model)
    path = settings.model.retrained
    retrained = None if path is None else _model(path)
    logs = None if options.logs is None else Path(options.logs)
    evaluation = experiment.evaluate(model, settings, retrained, logs)
    for name, entry in evaluation.metrics.items():
        value = "-" if entry["value"] is None else f"{entry['value']:.4g}"
        print(f"{name:<34} {value:>10}   n={entry['n']}")
    if options.json:
        write_text(Path(options.json), json.dumps(evaluation.metrics, indent=2) + "\n")


def _lm_eval(options: argparse.Namespace) -> None:
    import json

    from jaxunlearn.harness import HarnessModel, run_tasks, text_table
    from jaxunlearn.runs import write_text

    results = run_tasks(
        HarnessModel(_model(options.model), batch_size=options.batch_size),
        options.tasks.split(","),
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    print(text_table(results))
    if options.json:
        results["config"]["model"] = options.model
        write_text(Path(options.json), json.dumps(results, indent=2) + "\n")


def _generate(options: argparse.Namespace) -> None:
    from jaxunlearn.data import tokens
    from jaxunlearn.models.generate import Sampling, generate
    from jaxunlearn.tables import need_tokenizer

    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed: is {options.seed}; use 0 to {2**31 - 1}")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: is {options.max_new_tokens}; use 1 or more")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    model = _model(options.model)
    tokenizer = need_tokenizer(model)
    if options.question is not None:
        template = _template(options.model)
        prompt = tokens.prompt_tokens(tokenizer, options.question, template=template)
    else:
        prompt = tokenizer(options.prompt)["input_ids"]
    (ids,) = generate(
        model.config,
        model.params,
        [prompt],
        lora=model.lora,
        max_new_tokens=options.max_new_tokens,
        stop_tokens=model.stop_tokens,
        sampling=sampling,
        seed=options.seed,
    )
    # The tokenizer may drop a leading space, so the continuation is what the whole text adds.
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
    print(whole[len(before) :])


def _template(model: str) -> str:
    """The prompt template of the run that the model comes from, else the default."""
    from jaxunlearn import config, config_file

    for folder in (Path(model), Path(model).parent):
        if (folder / "config.yaml").is_file():
            return config_file.load(folder / "config.yaml").data.template
    return config.DataConfig().template


def _convert(options: argparse.Namespace) -> None:
    from jaxunlearn.models import checkpoint_orbax
    from jaxunlearn.models.checkpoint_hf import export_model

    if not options.destination.strip():
        raise UserError("the destination is empty; give a new folder")
    source, destination = Path(options.source), Path(options.destination)
    if not 0 < options.max_shard_gb < float("inf"):
        raise UserError(f"--max-shard-gb: is {options.max_shard_gb}; use a number above 0")
    if destination.exists():
        raise UserError(f"{destination}: already there; choose another folder or remove it")
    from_orbax = checkpoint_orbax.is_orbax(source)
    if from_orbax:
        model = checkpoint_orbax.load(source, dtype=options.dtype)
    else:
        model = _model(options.source, dtype=options.dtype)
    if from_orbax or model.adapter is not None:
        export_model(model, destination, max_shard_bytes=int(options.max_shard_gb * 10**9))
        kind = "Hugging Face" if from_orbax else "Hugging Face, adapter merged"
    else:
        checkpoint_orbax.save(model, destination)
        kind = "Orbax"
    print(f"model: {destination} ({kind})")


def _report(options: argparse.Namespace) -> None:
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


def _attack(options: argparse.Namespace) -> None:
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


def _methods(options: argparse.Namespace) -> None:
    from jaxunlearn.methods import registry

    width = max(map(len, registry.METHODS))
    for name, method in registry.METHODS.items():
        settings = ", ".join(f"{k}={v}" for k, v in registry.defaults(name).items())
        print(f"{name:<{width}} {settings}; {method.summary} ({method.source})")


def _suites(options: argparse.Namespace) -> None:
    from jaxunlearn.evaluation import benchmark

    names = benchmark.built_in()
    width = max(map(len, names))
    for name in names:
        one = benchmark.load(name)
        print(f"{name:<{width}} {one.about}; {len(one.metrics)} metrics")


def _samplers(options: argparse.Namespace) -> None:
    from jaxunlearn.config import SamplingConfig
    from jaxunlearn.data.sampling import SAMPLERS

    width = max(map(len, SAMPLERS))
    for name, sampler in SAMPLERS.items():
        settings = ", ".join(f"{k}={v}" for k, v in SamplingConfig(name).options_of(name).items())
        summary = (sampler.__doc__ or "").splitlines()[0]
        print(f"{name:<{width}} {settings}{'; ' if settings else ''}{summary}")


def _families(options: argparse.Namespace) -> None:
    from jaxunlearn.models.families import FAMILIES

    for name, family in FAMILIES.items():
        print(f"{name:<12} {family.covers} ({family.architecture})")


def _model(path: str, *, dtype: str | None = None) -> Any:
    """A model folder or Hub id, or the unlearned model of a run folder."""
    from jaxunlearn.models.loading import load_model

    folder = Path(path)
    if (folder / "config.yaml").is_file():
        if not (folder / "hf").is_dir():
            raise UserError(f"{folder}: this run has not finished; run it to the end first")
        path = str(folder / "hf")
    return load_model(path, dtype=dtype)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)
