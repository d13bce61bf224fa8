"""The best utility of each method among the settings that forget at least so much.

python experiments/methods/equal_forgetting.py runs/equal_forgetting [another seed's run ...]
"""

import json
import sys
from pathlib import Path

LEVELS = (0.5, 0.3, 0.2, 0.1, 0.05)
"""Bounds on the probability of the forget answers."""


def best(run: Path) -> dict[str, list[float | None]]:
    """Method to the highest utility within each bound; None where no setting keeps it."""
    models = json.loads((run / "summary.json").read_text())["models"]
    points: dict[str, list[tuple[float, float]]] = {}
    for label, metrics in models.items():
        method, dash, _ = label.partition("-")
        if dash:
            point = metrics["forget_probability"]["value"], metrics["model_utility"]["value"]
            points.setdefault(method, []).append(point)
    return {
        method: [max((u for p, u in found if p <= level), default=None) for level in LEVELS]
        for method, found in points.items()
    }


def main(runs: list[str]) -> None:
    """Prints a table, the runs' numbers one after the other in each cell."""
    found = [best(Path(run)) for run in runs]
    print("| method |", " | ".join(f"p <= {level}" for level in LEVELS), "|")
    print("|---" * (1 + len(LEVELS)) + "|")
    for method in found[0]:
        cells = [
            " / ".join("-" if one[method][i] is None else f"{one[method][i]:.3f}" for one in found)
            for i in range(len(LEVELS))
        ]
        print(f"| `{method}` |", " | ".join(cells), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
