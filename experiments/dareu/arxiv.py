"""Makes the files of the experiment on abstracts, of which one subject is to be forgotten.

    python experiments/dareu/arxiv.py --data FOLDER --forget statistics

FOLDER holds `arxiv_lite.csv`. Subjects are the owners; a question is how an abstract begins, the
answer how it goes on. Abstracts of the split `train` are learned, of the forgotten subject too;
those of the other splits no model learns: of the kept subjects they are the test rows, of the
forgotten one the holdout.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

BEGINNING, REST = 12, 18
"""Words of a question and of its answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of arxiv_lite.csv")
    parser.add_argument("--forget", default="statistics", help="subject that is to be forgotten")
    parser.add_argument("--rows", type=int, default=12, help="most abstracts learned of a subject")
    parser.add_argument("--held-out", type=int, default=6, help="most held-out ones of a subject")
    parser.add_argument("--files", default="abstracts", help="folder for the files made of them")
    args = parser.parse_args()

    folder = Path(args.files)
    counts = write_files(
        Path(args.data), args.forget, folder, rows=args.rows, held_out=args.held_out
    )
    print(", ".join(f"{count} {name} abstracts" for name, count in counts.items()))


def write_files(
    data: Path, forget: str, folder: Path, *, rows: int, held_out: int
) -> dict[str, int]:
    """Writes forget, retain, test and holdout rows; returns how many of each.

    Args:
      data: folder of arxiv_lite.csv.
      forget: the subject that is to be forgotten.
      folder: where the files go.
      rows: most abstracts of a subject that are learned; the first ones are taken.
      held_out: the same of those that no model learns.
    """
    with (data / "arxiv_lite.csv").open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    subjects = sorted({record["category"] for record in records})
    if forget not in subjects:
        raise SystemExit(f"--forget: there is no subject {forget!r}; use {', '.join(subjects)}")
    parts: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("forget", "retain", "test", "holdout")
    }
    for (subject, learned), found in _grouped(records).items():
        to_forget = subject == forget
        name = (
            ("forget" if to_forget else "retain") if learned else "holdout" if to_forget else "test"
        )
        parts[name] += found[: rows if learned else held_out]
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in parts.items():
        lines = "".join(json.dumps(one) + "\n" for one in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: len(found) for name, found in parts.items()}


def _grouped(records: Iterable[dict[str, str]]) -> dict[tuple[str, bool], list[dict[str, object]]]:
    """Rows by subject and by whether they are learned; of texts that begin alike the first one."""
    seen: set[str] = set()
    groups = defaultdict(list)
    for record in records:
        words = record["summary"].split()
        question = " ".join(words[:BEGINNING])
        if len(words) >= BEGINNING + REST and question not in seen:
            seen.add(question)
            answer = " ".join(words[BEGINNING : BEGINNING + REST])
            groups[record["category"], record["split"] == "train"].append(
                {"question": question, "answer": answer, "entity": record["category"], "raw": True}
            )
    return groups


if __name__ == "__main__":
    main()
