"""Makes a small story model forget one child: the files of the experiment, and the experiment.

    python experiments/reveal_release/stories.py --model MODEL --stories FOLDER --child Lily

FOLDER holds `stories_train.jsonl` and `stories_valid.jsonl` with a column `text` (TinyStories).
Stories that name the child are forget rows, which only the oracle learns and the evaluation reads;
the others are retain rows. A question is how a story begins, up to the child's name at most.
Keys of the config can follow, such as --seed 1 or --method.iterations 5.
"""

import argparse
import json
import re
from pathlib import Path

from jaxunlearn import cli

CONFIG = Path(__file__).with_suffix(".yaml")
BEGINNING = 7
"""Words of a question, if the name does not come before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="Hugging Face folder of the story model")
    parser.add_argument("--stories", required=True, help="folder of the stories")
    parser.add_argument("--child", default="Lily", help="who is to be forgotten")
    parser.add_argument("--files", default="stories_of", help="folder for the files made of them")
    args, overrides = parser.parse_known_args()

    folder = Path(args.files) / args.child
    counts = write_files(Path(args.stories), args.child, folder)
    print(", ".join(f"{count} {name} stories" for name, count in counts.items()))
    raise SystemExit(
        cli.main(
            [
                "run", str(CONFIG), "--model.path", args.model, "--data.path", str(folder),
                "--reveal.scorer", rf"pattern:\b{re.escape(args.child)}\b", *overrides,
            ]
        )
    )  # fmt: skip


def write_files(stories: Path, name: str, folder: Path) -> dict[str, int]:
    """Writes forget, retain, forget_test and retain_test rows; returns how many of each."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for source, ending in (("stories_train.jsonl", ""), ("stories_valid.jsonl", "_test")):
        lines = (stories / source).read_text(encoding="utf-8").splitlines()
        texts = list(dict.fromkeys(json.loads(line)["text"].strip() for line in lines))
        rows = [row(text, name) for text in texts]
        for part, wanted in (("forget", True), ("retain", False)):
            chosen = [one for one in rows if one and (name in one["answer"]) == wanted]
            path = folder / f"{part}{ending}.jsonl"
            path.write_text("".join(json.dumps(one) + "\n" for one in chosen), encoding="utf-8")
            counts[path.stem] = len(chosen)
    return counts


def row(text: str, name: str) -> dict[str, object] | None:
    """A story as a beginning and what follows; None where it begins with the name."""
    words = text.split(" ")
    named = next((i for i, word in enumerate(words) if name in word), len(words))
    cut = min(BEGINNING, named)
    if cut < 2 or len(words) <= cut:
        return None
    return {"question": " ".join(words[:cut]), "answer": " ".join(words[cut:]), "raw": True}


if __name__ == "__main__":
    main()
