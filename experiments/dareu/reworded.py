"""Does what is forgotten stay forgotten when its questions are asked in other words?

python experiments/dareu/reworded.py runs/relearning/seed-*

Runs on the built-in world: it has two questions for each fact, of which a person's row has one, so
that models know both forms from others. Printed is ROUGE-L recall of the answers to the questions
as they were learned and to the other ones, of the target, the retrained model and the main method.
"""

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxunlearn.attacks import models
from jaxunlearn.attacks.case import measure
from jaxunlearn.config_file import load
from jaxunlearn.data.invented import PERSON
from jaxunlearn.data.rows import Row
from jaxunlearn.experiment import labels
from jaxunlearn.progress import Bars
from jaxunlearn.reveal.theme import load_data


def reworded(row: Row) -> Row:
    """The row with the other question for its fact.

    >>> reworded(Row("Who taught Ada?", "Bo", entity="Ada")).question
    'Who was the teacher of Ada?'
    """
    for one in PERSON:
        forms = [question.format(row.entity) for question in one.questions]
        if row.question in forms:
            (other,) = set(forms) - {row.question}
            return dataclasses.replace(row, question=other)
    raise SystemExit(f"{row.question!r} is no question of the built-in world")


def scores(run: Path) -> dict[str, list[float]]:
    """Model to its mean ROUGE: forget and retain questions as learned, then both reworded."""
    experiment = load(run / "config.yaml")
    data = load_data(experiment)
    learned = [data.evaluation[name].rows for name in ("forget", "retain")]
    asked: Sequence[Sequence[Row]] = [*learned, *([*map(reworded, rows)] for rows in learned)]
    found, main = {}, list(labels(experiment))[-1]
    with Bars() as bars, bars.stage("reworded", passing=True) as stage:
        for label, model in models.load(run, experiment, [main], bars):
            said = (measure(model, rows, experiment, stage)["rouge"] for rows in asked)
            found[label] = [float(np.mean(one)) for one in said]
    return found


def main() -> None:
    """Prints the table, means over the runs and their standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    together = defaultdict(list)
    for run in parser.parse_args().runs:
        for label, values in scores(run).items():
            together[label].append(values)
    print("| model | forget | retain | forget, reworded | retain, reworded |")
    print("|---" * 5 + "|")
    for label, values in together.items():
        table = np.array(values)
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(4)
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(table.mean(axis=0), spread, strict=True)]
        print(f"| `{label}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
