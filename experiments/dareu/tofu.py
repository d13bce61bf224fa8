"""Writes the short rows of a few TOFU authors: files of the experiment with a small model.

    python experiments/dareu/tofu.py --data tofu --model stories260K --files short_tofu

Rows of more tokens than --most, by the model's tokenizer, are left out: its tokens are short. Test
rows are of the real authors and the world facts.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from jaxunlearn.config_data import DataConfig
from jaxunlearn.data import formats, tokens
from jaxunlearn.data.rows import Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of TOFU")
    parser.add_argument("--model", required=True, type=Path, help="whose tokenizer it is")
    parser.add_argument("--files", default="short_tofu", type=Path, help="folder to write")
    parser.add_argument("--authors", type=int, default=6, help="two of them are to be forgotten")
    parser.add_argument("--most", type=int, default=160, help="tokens of a row")
    parser.add_argument("--test", type=int, default=20, help="test rows")
    asked = parser.parse_args()
    config = DataConfig("tofu", asked.data, "forget01", "retain99", authors=asked.authors)
    data, tokenizer = formats.load(config, seed=0), tokens.load_tokenizer(asked.model)

    def short(row: Row) -> bool:
        found = tokens.encode(tokenizer, [row.key], template=config.template, max_length=asked.most)
        return bool(found.kept)

    general = [
        row for name in ("real_authors", "world_facts") for row in data.evaluation[name].rows
    ]
    test = general[:: len(general) // asked.test][: asked.test]
    asked.files.mkdir(parents=True, exist_ok=True)
    for name, rows in (("forget", data.forget), ("retain", data.retain), ("test", test)):
        kept = [row for row in rows if short(row)]
        lines = [
            json.dumps({"question": row.question, "answer": row.answer, "entity": row.entity})
            for row in kept
        ]
        (asked.files / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(kept)} of {len(rows)} rows, {dict(Counter(r.entity for r in kept))}")


if __name__ == "__main__":
    main()
