"""The command line: its words and options; `commands` and its like do what they say."""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from jaxunlearn import __version__, commands, commands_adapter, commands_model, compile_cache
from jaxunlearn.errors import UserError

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75
_WITH_CONFIG = ("run", "sweep", "plan", "finetune", "evaluate", "attribute")
_OWN_OPTIONS = (
    "--help", "--print-config", "--json", "--logs", "--grid", "--search", "--samples",
    "--sampler", "--halving", "--halving-by", "--vectorize", "--text", "--file", "--kinds", "--top",
    "--no-compile-cache", "--devices", "--device-memory", "--profile", "--distributed",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 2 bad input, 75 asked to leave and to be
    started again, 1 anything else."""
    # transformers says at every start that there is no PyTorch; none is needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        overrides = _take_overrides(words) if words and words[0] in _WITH_CONFIG else {}
        options = _parser().parse_args(words)
        options.overrides = overrides
        if "no_compile_cache" in options:
            note = compile_cache.use_cache(not options.no_compile_cache)
            if note is not None:
                print(f"note: {note}", file=sys.stderr)
        options.command(options)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # Who reads has seen enough, as `head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BaseException as error:
        # Named, not imported: their modules are heavy.
        status = {"DivergedError": 1, "PreemptedError": EXIT_PREEMPTED}.get(type(error).__name__)
        if status is None:
            raise
        print(f"error: {error}" if status == 1 else error, file=sys.stderr)
        return status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxunlearn",
        description="Make a language model forget, and prove that it did.",
        epilog="Every config key can be set on the command line: --training.epochs 3",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, text: str, *, compiles: bool = True, of: ModuleType = commands
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=getattr(of, name.replace("-", "_")))
        if compiles:
            cache_help = "keep no compiled programs for the next command, and use none"
            sub.add_argument("--no-compile-cache", action="store_true", help=cache_help)
        return sub

    config_help = "YAML file; left out: the built-in quickstart"
    model_help = "Hugging Face folder, Hub id (org/name), PEFT adapter folder, or run folder"
    sub = command("run", "prepare, unlearn, evaluate, report, export")
    sub.add_argument("config", nargs="?", help=config_help)
    profile_help = "trace N steps of each training, into the run folder's traces/"
    sub.add_argument("--profile", type=int, metavar="N", help=profile_help)
    sub.add_argument("--print-config", action="store_true", help="show the resolved config; stop")
    hosts = {"nargs": "?", "const": "auto", "metavar": "HOST:PORT,N,I"}
    hosts |= {"help": "one of several processes; the address only where JAX does not know it"}
    sub.add_argument("--distributed", **hosts)

    about = "run a config with several values of some keys, also by several processes at once"
    sub = command("sweep", about)
    sub.add_argument("config", nargs="?", help=config_help)
    many = {"action": "append", "default": []}
    grid_help = "every combination of these; may be repeated"
    sub.add_argument("--grid", **many, metavar="KEY=VALUE,VALUE", help=grid_help)
    search_help = "drawn from a range, integers if both ends are; may be repeated"
    sub.add_argument("--search", **many, metavar="KEY=LOW:HIGH[:log]", help=search_help)
    samples_help = "points drawn from the ranges; default 16"
    sub.add_argument("--samples", type=int, metavar="N", help=samples_help)
    sampler_help = "how they are drawn, by the config's seed; default sobol"
    sub.add_argument("--sampler", choices=("sobol", "random"), help=sampler_help)
    halving_help = "train all with few epochs first; one in N goes on to N times as many, and so on"
    sub.add_argument("--halving", type=int, metavar="N", help=halving_help)
    by_help = "metric that tells who goes on; default: forgetting and model utility"
    sub.add_argument("--halving-by", metavar="METRIC", help=by_help)
    vectorize_help = "train so many adapters side by side, on all devices; default 1"
    sub.add_argument("--vectorize", type=int, default=1, metavar="N", help=vectorize_help)

    sub = command("plan", "tell what a run needs on each device, from shapes alone", compiles=False)
    sub.add_argument("config", nargs="?", help=config_help)
    sub.add_argument("--devices", type=int, default=1, metavar="N", help="default 1")
    memory_help = "of each, such as 16GiB (default) or 80GB"
    sub.add_argument("--device-memory", default="16GiB", metavar="SIZE", help=memory_help)

    sub = command("finetune", "train the target model and the retrained reference")
    sub.add_argument("config", nargs="?", help=config_help)
    sub.add_argument("--distributed", **hosts)

    sub = command("evaluate", "score a model on a config's data")
    sub.add_argument("model", help=model_help)
    own_help = "YAML file; left out: the run folder's own config, else the built-in quickstart"
    sub.add_argument("config", nargs="?", help=own_help)
    sub.add_argument("--json", metavar="FILE", help="write the numbers to a file")
    logs_help = "write TOFU_EVAL.json and TOFU_SUMMARY.json as open-unlearning does"
    sub.add_argument("--logs", metavar="FOLDER", help=logs_help)

    sub = command("attribute", "tell whose training answers texts come from")
    sub.add_argument("model", help=model_help)
    sub.add_argument("config", nargs="?", help=own_help)
    text_help = "an answer, without its question; may be repeated"
    sub.add_argument("--text", action="append", default=[], help=text_help)
    sub.add_argument("--file", metavar="FILE", help="of answers, one in each line")
    kinds_help = "functions; default: those that need no backward pass to score a text"
    sub.add_argument("--kinds", metavar="NAME,NAME", help=kinds_help)
    sub.add_argument("--top", type=int, default=5, metavar="N", help="owners shown; default 5")
    sub.add_argument("--json", metavar="FILE", help="write all scores to a file")

    sub = command("lm-eval", "run tasks of EleutherAI's lm-evaluation-harness", of=commands_model)
    sub.add_argument("model", help=model_help)
    sub.add_argument("--tasks", required=True, metavar="NAME,NAME", help="* stands for anything")
    sub.add_argument("--include-path", metavar="DIR", help="task files of your own")
    sub.add_argument("--limit", type=int, metavar="N", help="documents of each task; default: all")
    sub.add_argument("--num-fewshot", type=int, metavar="N", help="default: as the task says")
    sub.add_argument("--batch-size", type=int, default=8, metavar="N", help="default 8")
    sub.add_argument("--apply-chat-template", action="store_true", help="the tokenizer's own")
    sub.add_argument("--json", metavar="FILE", help="write the harness's results to a file")

    sub = command("generate", "continue a prompt", of=commands_model)
    sub.add_argument("model", help=model_help)
    text = sub.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", help="text to continue")
    text.add_argument("--question", help="question to answer, put into the model's prompt template")
    sub.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    sub.add_argument("--top-k", type=int, default=0, metavar="K", help="0 (default): all tokens")
    sub.add_argument("--top-p", type=float, default=1.0, metavar="P")
    sub.add_argument("--seed", type=int, default=0)
    modules_help = "of the run: its target with these adapter modules only, or with none"
    sub.add_argument("--modules", metavar="NAME,NAME", help=modules_help)

    sub = command(
        "convert", "Hugging Face folder to Orbax and back; adapters are merged", of=commands_model
    )
    sub.add_argument("source", help=f"{model_help}, or Orbax folder")
    sub.add_argument("destination", help="new folder")
    dtypes = ("float32", "bfloat16", "float16")
    sub.add_argument("--dtype", choices=dtypes, help="of the weights; default: as they are")
    sub.add_argument("--max-shard-gb", type=float, default=5.0, metavar="GB", help="default 5")

    sub = command("report", "compare finished runs on one page", compiles=False)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    sub.add_argument("--output", default="comparison.html", metavar="FILE")

    sub = command("attack", "try to bring back what a finished run forgot")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
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

    about = "list a run's requests to forget, each an adapter module, and put them together anew"
    group = subparsers.add_parser("adapter", help=about, description=about)
    group = group.add_subparsers(required=True, metavar="COMMAND")
    kinds = {
        "list": (commands_adapter.list_modules, "weight, rank, size and overlap of each module"),
        "merge": (commands_adapter.merge, "the target with all modules"),
        "subtract": (commands_adapter.subtract, "the target with all modules, less W times one"),
        "remove": (commands_adapter.remove, "the target with all modules but one"),
    }
    for kind, (function, text) in kinds.items():
        sub = group.add_parser(kind, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        sub.add_argument("run", metavar="RUN", help="run folder; it is left as it is")
        if kind in ("subtract", "remove"):
            sub.add_argument("name", metavar="NAME", help="module, as `adapter list` has it")
        sub.add_argument("--method", metavar="LABEL", help="of the run; default: its main one")
        if kind == "list":
            continue
        sub.add_argument("-o", "--output", required=True, metavar="DIR", help="new folder")
        if kind == "subtract":
            sub.add_argument("--weight", type=float, default=1.0, metavar="W", help="default 1")
        sub.add_argument("--set", **many, metavar="NAME=WEIGHT", help="another weight; repeatable")
        peft_help = "write one PEFT adapter beside the target instead of a merged model"
        sub.add_argument("--peft", action="store_true", help=peft_help)

    command("methods", "list methods, their hyper-parameters and sources", compiles=False)
    command("samplers", "list samplers", compiles=False)
    command("suites", "list what can be measured; evaluation.suite names one", compiles=False)
    command("families", "list model families by the model_type of config.json", compiles=False)
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
