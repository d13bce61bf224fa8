"""DareU's table of a sweep over seeds, with what shows that ToW was not won by nonsense.

python experiments/dareu/table.py runs/world
python experiments/dareu/table.py runs/world --best    # of each method its best learning rate

Each cell is the mean over the runs of the sweep, and the standard deviation; models that not all of
them have are left out. On the built-in world
`no value` is the share of forget answers that are no possible answer to their question: not the
words that make up a town, a date, a book and so on, in their order.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from chosen import best_rates

from jaxunlearn.config_file import load
from jaxunlearn.data.invented import INVENTED, PERSON
from jaxunlearn.reveal.theme import load_data

COLUMNS = {
    "ToW*": "tow_star",
    "ToW": "tow",
    "forget ROUGE": "forget_rouge",
    "retain ROUGE": "retain_rouge",
    "test ROUGE": "test_rouge",
    "attribution": "forget_attribution",
    "held-out": "forget_attribution_held_out",
    "broken": "forget_broken_rate",
    "length": "forget_length_ratio",
    "extraction": "forget_extraction_strength",
}


def patterns() -> dict[str, re.Pattern]:
    """What each question of the world, without its name, can be answered with."""
    found = {}
    for one in PERSON:
        parts = [
            "[A-Z][a-z]+" if pool is INVENTED else f"({'|'.join(map(re.escape, pool))})"
            for pool in one.pools
        ]
        for question in one.questions:
            found[question.partition("{}")[0]] = re.compile(one.value.format(*parts))
    return found


def no_value(run: Path) -> dict[str, float]:
    """Model to the share of its forget answers that are no value; nothing in other worlds."""
    experiment = load(run / "config.yaml")
    if experiment.data.format != "synthetic" or experiment.data.world != "people":
        return {}
    known = patterns()
    rows = load_data(experiment).evaluation["forget"].rows
    allowed = [next(p for s, p in known.items() if row.question.startswith(s)) for row in rows]
    found = {}
    for path in (run / "evaluations").glob("*.json"):
        said = json.loads(path.read_text())["generations"]["forget"]
        wrong = [not p.fullmatch(text.strip()) for p, text in zip(allowed, said, strict=True)]
        found[path.stem] = float(np.mean(wrong))
    return found


def measured(run: Path) -> dict[str, dict[str, float]]:
    """Model to column to value, of one run."""
    models = json.loads((run / "summary.json").read_text())["models"]
    wrong = no_value(run)
    table = {}
    for model, metrics in models.items():
        there = {name: key for name, key in COLUMNS.items() if key in metrics}
        table[model] = {name: metrics[key]["value"] for name, key in there.items()}
        if wrong:
            table[model]["no value"] = wrong[model]
    return table


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder whose runs are put together")
    parser.add_argument(
        "--best", action="store_true", help="of NAME_RATE only the rate with the best mean ToW*"
    )
    asked = parser.parse_args()
    runs = [measured(path.parent) for path in sorted(asked.sweep.glob("*/summary.json"))]
    means = {
        model: {column: np.array([run[model][column] for run in runs], float) for column in columns}
        for model, columns in runs[0].items()
        if all(model in run for run in runs)
    }
    if asked.best:
        best = best_rates({model: values["ToW*"].mean() for model, values in means.items()})
        means = {model: values for model, values in means.items() if model in best}
    columns = list(next(iter(means.values())))
    print("| model |", " | ".join(columns), "|")
    print("|---" * (1 + len(columns)) + "|")
    for model, values in means.items():
        spread = {c: values[c].std(ddof=1) if len(runs) > 1 else 0.0 for c in columns}
        cells = [f"{values[c].mean():.2f} ± {spread[c]:.2f}" for c in columns]
        print(f"| `{model}` |", " | ".join(cells), "|")
    print(f"\n{len(runs)} runs")


if __name__ == "__main__":
    main()
