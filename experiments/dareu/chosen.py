"""The methods of a run at their best learning rates, on further seeds.

    jaxunlearn sweep experiments/dareu/arxiv.yaml --grid seed=0
    python experiments/dareu/chosen.py runs/arxiv/seed-0 --seeds 1,2
    python experiments/dareu/table.py runs/arxiv

Of labels that differ in a rate at their end alone, as npo_1e-3 and npo_3e-3, the one with the best
ToW* in the run is kept. The further runs stand beside it, with its config otherwise; the table has
the models that all of them have.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxunlearn import experiment
from jaxunlearn.config import Experiment
from jaxunlearn.config_file import load


def bare(label: str) -> str:
    """Without its rate.

    >>> bare("kl_0.5_3e-3"), bare("target")
    ('kl_0.5', 'target')
    """
    return re.sub(r"_\d+e-\d+$", "", label)


def best_rates(values: Mapping[str, float]) -> set[str]:
    """Of NAME_RATE labels the best of each name, and all others.

    >>> sorted(best_rates({"target": 0.1, "npo_1e-3": 0.5, "npo_1e-2": 0.7, "grpo_1e-3": 0.2}))
    ['grpo_1e-3', 'npo_1e-2', 'target']
    """
    groups: dict[str, list[str]] = {}
    for label in values:
        groups.setdefault(bare(label), []).append(label)
    return {max(group, key=lambda label: values[label]) for group in groups.values()}


def further(run: Path, seeds: Iterable[int], without: Iterable[str] = ()) -> list[Experiment]:
    """The experiments with the best methods of a run, but for those of the names `without`."""
    found = load(run / "config.yaml")
    models = json.loads((run / "summary.json").read_text())["models"]
    best = best_rates({label: one["tow_star"]["value"] or 0.0 for label, one in models.items()})
    labels = experiment.labels(found)
    kept = [name for name in labels if name in best and bare(name) not in without]
    *baselines, method = [labels[name] for name in kept]
    chosen = dataclasses.replace(found, baselines=tuple(baselines), method=method)
    return [dataclasses.replace(chosen, seed=seed, name=f"seed-{seed}") for seed in seeds]


def main() -> None:
    """Runs them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="finished run of all rates")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--without", default="", help="names of methods that one seed is enough of")
    asked = parser.parse_args()
    without = asked.without.split(",")
    for one in further(asked.run, map(int, asked.seeds.split(",")), without):
        print(f"{one.output}/{one.name}: {', '.join(experiment.labels(one))}", flush=True)
        experiment.run(one)


if __name__ == "__main__":
    main()
