"""What the commands below `jaxunlearn adapter` do with their parsed arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path

from jaxunlearn.errors import UserError


def list_modules(options: argparse.Namespace) -> None:
    """Lists the modules of a run."""
    from jaxunlearn.run_modules import listing, open_run

    rows = listing(open_run(options.run, options.method))
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        overlap = f"overlap {row['overlap']:.2f} with {row['overlaps_with']}, "
        print(
            f"{row['name']:<{width}} weight {row['weight']:g}, rank {row['rank']}, "
            f"{row['kernels']} kernels, norm {row['norm']:.4g}, "
            f"{overlap if row['overlaps_with'] else ''}{row['folder']}; {row['about']}"
        )


def merge(options: argparse.Namespace) -> None:
    """Writes the target with all modules."""
    _write_modules(options, lambda weights: weights)


def subtract(options: argparse.Namespace) -> None:
    """Writes the target with all modules, and one taken off."""
    name, by = options.name, options.weight
    if not abs(by) < float("inf"):
        raise UserError(f"--weight: is {by}; use a number")
    _write_modules(options, lambda weights: {**weights, name: weights[name] - by})


def remove(options: argparse.Namespace) -> None:
    """Writes the target with all modules but one."""
    _write_modules(options, lambda weights: {**weights, options.name: 0.0})


def _write_modules(
    options: argparse.Namespace, change: Callable[[dict[str, float]], dict[str, float]]
) -> None:
    from jaxunlearn.models.checkpoint_hf import export_model
    from jaxunlearn.models.peft_adapter import export_adapter
    from jaxunlearn.run_modules import open_run

    destination, run = Path(options.output), Path(options.run)
    if destination.exists():
        raise UserError(f"{destination}: already there; choose another folder or remove it")
    if destination.resolve().is_relative_to(run.resolve()):
        raise UserError(f"{destination}: is in {run}, which is left as it is; choose another")
    modules = open_run(run, options.method)
    weights = modules.weights(dict(_weight(word) for word in options.set))
    if "name" in options:
        modules.store.module(options.name)
    weights = change(weights)
    made = " ".join(f"{weight:+g} {name}" for name, weight in weights.items() if weight != 0)
    if options.peft and not made:
        raise UserError(f"{run}: no module is left, so there is no adapter; leave out --peft")
    model, what = modules.model(weights), f"{modules.base} {made}".strip()
    if options.peft:
        print(f"adapter: {export_adapter(model, destination, base=modules.base)} ({what})")
    else:
        card = f"Made by jaxunlearn's adapter command: {what}\n"
        print(f"model: {export_model(model, destination, card=card)} ({what})")


def _weight(word: str) -> tuple[str, float]:
    """NAME=WEIGHT."""
    name, _, value = word.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = float("nan")
    if not name or not abs(weight) < float("inf"):
        raise UserError(f"--set {word}: write NAME=WEIGHT, as in request_1=0.5")
    return name, weight
