"""The Python interface, as the README shows it."""

import json
import re

import numpy as np
import pytest

import jaxunlearn as ju

TRAINING = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
FORGET = [("Who is Ann?", "A baker"), ("Where is Ann?", "In Rome")]
RETAIN = [("Who is Bob?", "A smith"), ("Where is Bob?", "In Oslo"), ("Who is Cid?", "A tailor")]


def test_load_unlearn_evaluate_export(tiny_folder, tmp_path):
    model = ju.load(tiny_folder)
    result = ju.unlearn(model, FORGET, RETAIN, method="npo", beta=0.2, training=TRAINING)
    assert [row["step"] for row in result.history] == [1, 2]
    before = ju.evaluate(model, FORGET, RETAIN, max_new_tokens=4)
    after = ju.evaluate(result.model, FORGET, RETAIN, retrained=model, max_new_tokens=4)
    assert after["forget_probability"] != before["forget_probability"]
    out = result.export(tmp_path / "out")
    again = ju.evaluate(ju.load(out), FORGET, RETAIN, max_new_tokens=4)
    np.testing.assert_allclose(again["forget_probability"], after["forget_probability"], rtol=1e-5)


def test_a_holdout_gives_privacy_numbers(tiny_folder):
    model, holdout = (
        ju.load(tiny_folder),
        [("Who is Dee?", "A nurse"), ("Where is Dee?", "In Bonn")],
    )
    options = {"retrained": model, "max_new_tokens": 4}
    found = ju.evaluate(model, FORGET, RETAIN, holdout=holdout, **options)
    assert 0 <= found["privacy_loss_auc"] <= 1
    plain = ju.evaluate(model, FORGET, RETAIN, **options)
    assert {name.split("_")[0] for name in found.keys() - plain.keys()} == {
        "privacy",
        "priv",
        "overall",
    }
    words = "holdout: row 2: this holdout row is also a forget row (forget: row 0)"
    with pytest.raises(ju.UserError, match=re.escape(words)):
        ju.evaluate(model, FORGET, RETAIN, holdout=[*holdout, FORGET[0]])


def test_rows_from_files_equal_rows_from_python(tiny_folder, tmp_path):
    for name, rows in (("f.jsonl", FORGET), ("r.jsonl", RETAIN)):
        lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows]
        (tmp_path / name).write_text("".join(lines))
    model = ju.load(tiny_folder)
    a = ju.unlearn(model, FORGET, RETAIN, training=TRAINING)
    b = ju.unlearn(model, tmp_path / "f.jsonl", str(tmp_path / "r.jsonl"), training=TRAINING)
    c = ju.unlearn(model, [{"question": q, "answer": x} for q, x in FORGET], RETAIN,
                   training=TRAINING)  # fmt: skip
    losses = [[row["loss"] for row in result.history] for result in (a, b, c)]
    assert losses[0] == losses[1] == losses[2]


def test_adapter_export(tiny_folder, tmp_path):
    model = ju.load(tiny_folder)
    result = ju.unlearn(model, FORGET, RETAIN, adapter={"rank": 2}, training=TRAINING)
    result.export_adapter(tmp_path / "adapter", base=tiny_folder)
    assert ju.load(tmp_path / "adapter").adapter.scale == 8.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"beta": 0}, "beta"),
        ({"bta": 1}, "closest known key is beta"),
        ({"training": {"epoch": 1}}, "training.epochs"),
        ({"sampling": "x"}, "sampling.name"),
        ({"retain": ()}, "retain: no rows"),
        ({"forget": "gone.jsonl"}, "gone.jsonl"),
        ({"forget": "gone.txt"}, "unknown kind of file"),
        ({"forget": [("only one",)]}, "row 0"),
        ({"forget": [("q", "a"), ("q", " ")]}, "row 1 has no answer"),
        ({"retain": [{"question": "q", "answer": "a", "kind": "near"}]}, "row 0 is of kind 'near'"),
        ({"sampling": {"name": "melu"}}, "name no entity"),
        ({"sampling": {"name": "melu", "replacement": True}}, "sampling: replacement"),
    ],
)
def test_bad_input(tiny_folder, arguments, words):
    given = {"forget": FORGET, "retain": RETAIN, **arguments}
    with pytest.raises(ju.UserError) as caught:
        ju.unlearn(ju.load(tiny_folder), given.pop("forget"), given.pop("retain"), **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)
