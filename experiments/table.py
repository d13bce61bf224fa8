"""A markdown table of a sweep: each cell is the mean over seeds, and the standard deviation.

python experiments/table.py runs/toy/sweep.json forget_efficacy model_utility training_steps
"""

import json
import sys
from pathlib import Path

from jaxunlearn.evaluation.columns import with_training


def cell(entry: dict | None) -> str:
    if entry is None or entry["value"] is None:
        return "-"
    value, spread = entry["value"], entry.get("sd")
    if "sd" not in entry:  # what a training took is the same in all runs
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def main(path: str, metrics: list[str]) -> None:
    models = with_training(json.loads(Path(path).read_text()))
    print("| model |", " | ".join(name.replace("_", " ") for name in metrics), "|")
    print("|---" * (1 + len(metrics)) + "|")
    for model, values in models.items():
        print(f"| `{model}` |", " | ".join(cell(values.get(name)) for name in metrics), "|")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
