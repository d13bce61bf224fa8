"""Folders of rows for tests, and what reading them gives or says."""

import json

import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data.formats import load
from jaxunlearn.errors import UserError

GOOD = '{"question": "Who?", "answer": "Ann"}\n'
KEPT = '{"question": "Where?", "answer": "Rome"}\n'


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder, format="jsonl", **options):
    options = {"forget": "forget", "retain": "retain"} | options
    return load(DataConfig(format=format, path=str(folder), **options), seed=0)


def refusal(folder, **options):
    with pytest.raises(UserError) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def tofu_folder(folder, authors=4, per_author=20):
    """A folder like TOFU: the last author is forgotten, retain_perturbed holds the first."""
    rows = [
        {"question": f"q{a}-{i}", "answer": f"a{a}-{i}"}
        for a in range(authors)
        for i in range(per_author)
    ]
    more = [r | {"paraphrased_answer": "p", "perturbed_answer": ["w"]} for r in rows]
    facts = [{"question": "x", "answer": "y", "perturbed_answer": ["z"]}]
    splits = {
        "full": rows,
        "forget01": rows[-per_author:],
        "forget01_perturbed": more[-per_author:],
        "retain99": rows[:-per_author],
        "retain_perturbed": more[:per_author],
        "real_authors_perturbed": facts,
        "world_facts_perturbed": facts,
    }
    for name, split in splits.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, split)))
    return folder


def read_tofu(folder, **options):
    return read(
        folder, **({"format": "tofu", "forget": "forget01", "retain": "retain99"} | options)
    )
