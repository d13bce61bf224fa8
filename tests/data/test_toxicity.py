"""RealToxicityPrompts: what is forgotten, kept and evaluated, and the scorer learned from it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data import splits, toxicity
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "realtoxicityprompts"
NEEDS = "the tasks extra brings scikit-learn"


def line(question, score, answer, toxic, challenging=False, **changes):
    record = {
        "challenging": challenging,
        "prompt": {"text": question, "toxicity": score, "severe_toxicity": 0.0},
        "continuation": {"text": answer, "toxicity": toxic},
    }
    return json.dumps(record | changes) + "\n"


def prompts(held, count):
    """Prompts that are held out, or that are not."""
    found = (f"prompt {i}" for i in range(1000) if splits.held_out(f"prompt {i}") == held)
    return [next(found) for _ in range(count)]


(A, B, C, D), (E, F, G) = prompts(False, 4), prompts(True, 3)
LINES = (
    line(A, 0.1, " foul words ", 0.9)
    + line(B, 0.1, "foul, just so", 0.5)
    + line(C, 0.24, "nice words", 0.1)
    + line(D, 0.25, "in between", 0.1)
    + line(D, None, "a nice unknown prompt", 0.0)
    + line(C, 0.0, "of unknown foulness", None)
    + line(A, 0.9, "more foul words", 1.0, challenging=True)
    + line(A, 0.9, "a nice answer", 0.0, challenging=True)
    + line(E, 0.9, "foul again", 0.8)
    + line(F, 0.1, "nice again", 0.2)
    + line(G, 0.3, "nor this one", 0.3)
)


def read(folder, lines=LINES, **options):
    (folder / "prompts.jsonl").write_text(lines)
    return load(DataConfig(format="toxicity", path=str(folder), **options), seed=0)


def keys(rows):
    return [(row.question, row.answer) for row in rows]


def test_what_is_trained_on_and_what_is_evaluated(tmp_path):
    pytest.importorskip("sklearn", reason=NEEDS)
    data = read(tmp_path)
    assert keys(data.forget) == [(A, "foul words"), (B, "foul, just so")]
    assert keys(data.retain) == [(C, "nice words")]
    assert {row.kind for row in data.forget} == {"forget"}
    assert {row.kind for row in data.retain} == {"general"}
    assert data.forget[1].source == "prompts.jsonl:2"
    sets = data.evaluation
    assert {name: (one.role, one.temperature) for name, one in sets.items()} == {
        "challenging": ("forget", 1.0),
        "toxic": ("forget", 1.0),
        "clean": ("retain", 0.0),
    }
    assert keys(sets["challenging"].rows) == [(A, "more foul words"), (A, "a nice answer")]
    assert keys(sets["toxic"].rows) == [(E, "foul again")]
    assert keys(sets["clean"].rows) == [(F, "nice again")]
    every = [*data.forget, *data.retain, *(row for one in sets.values() for row in one.rows)]
    assert all(row.raw for row in every)
    assert sets["challenging"].scorer == sets["toxic"].scorer == data.theme.scorer
    assert sets["clean"].scorer is None
    assert read(tmp_path) == data


def test_the_scorer_learns_from_the_training_lines_alone(tmp_path):
    pytest.importorskip("sklearn", reason=NEEDS)
    data = read(tmp_path)
    assert {example for example, _ in data.theme.scorer.examples} == {
        A, B, C, D, "foul words", "foul, just so", "nice words", "in between",
        "a nice unknown prompt",
    }  # fmt: skip
    assert len(data.theme.scorer.examples) == 10  # six lines, two scores unknown
    asked = [Text("", "foul words"), Text("foul words", "nice words"), Text("", "")]
    scores = data.theme.scorer(asked)
    assert scores.shape == (3,) and ((scores >= 0) & (scores <= 1)).all()
    assert scores[0] > 0.5 > scores[1]
    np.testing.assert_array_equal(scores, data.theme.scorer(asked))
    assert "foul" not in repr(data.theme) and "foul" not in repr(data.theme.scorer)


def test_the_classifier_estimates_the_score_itself():
    pytest.importorskip("sklearn", reason=NEEDS)
    examples = [("zig zag", score) for score in (0.2, 0.3, 0.4) * 20] + [("boo hoo", 0.9)] * 60
    scores = toxicity.LearnedScorer(tuple(examples))([Text("", "zig zag"), Text("", "boo hoo")])
    np.testing.assert_allclose(scores, [0.3, 0.9], atol=0.02)


def test_the_threshold_and_another_file_of_what_is_kept(tmp_path):
    pytest.importorskip("sklearn", reason=NEEDS)
    data = read(tmp_path, threshold=0.9)
    assert keys(data.forget) == [(A, "foul words")]
    assert keys(data.retain) == [(C, "nice words"), (D, "in between")]
    assert "toxic" not in data.evaluation
    (tmp_path / "others.jsonl").write_text(line(B, 0.0, "kept", 0.0) + line(G, 0.0, "seen", 0.0))
    data = read(tmp_path, retain="others")
    assert keys(data.retain) == [(B, "kept")]
    assert keys(data.evaluation["clean"].rows) == [(G, "seen")]
    assert "kept" not in {example for example, _ in data.theme.scorer.examples}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (line(A, 0.1, "secret", 1.2), ":1: continuation.toxicity must be a number in [0, 1] or nu"),
        (line(A, "low", "secret", 0.2), "prompt.toxicity must be a number in [0, 1] or null, fo"),
        (line(A, True, "secret", 0.2), "prompt.toxicity must be a number"),
        (line(A, 0.1, " ", 0.2), "continuation.text is empty"),
        (line(A, 0.1, 7, 0.2), "continuation.text must be text, found the int 7"),
        (line(A, 0.1, "secret", 0.2, prompt="p"), "prompt must be an object with text and toxici"),
        (line(A, 0.1, "secret", 0.2, challenging="no"), "challenging must be true or false, "),
        ('{"prompt": {}, "challenging": true}', "no column 'continuation', which RealToxicityProm"),
        (line(A, 0.1, "nice", 0.2), "data.threshold: 0.5 leaves no toxic line to train on; lower"),
        (line(A, 0.1, "secret", 0.9), "data.threshold: 0.5 leaves no clean line to train on; rai"),
        (LINES + line(A, 0.1, "secret", 2), "prompts.jsonl:12: "),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path, lines, said):
    pytest.importorskip("sklearn", reason=NEEDS)
    with pytest.raises(UserError) as caught:
        read(tmp_path, lines)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'jaxunlearn\[tasks\]'$"):
        read(tmp_path)


def test_a_fifth_is_held_out_and_always_the_same():
    share = np.mean([splits.held_out(f"text {i}") for i in range(5000)])
    assert abs(share - 0.2) < 0.02
    assert [text for text in "abcdefg" if splits.held_out(text)] == ["b", "d", "e"]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/realtoxicityprompts")
def test_the_real_file():
    metrics = pytest.importorskip("sklearn.metrics", reason=NEEDS)
    path = str(REAL)
    data = load(DataConfig(format="toxicity", path=path, forget="rtp_quark_val_5000"), seed=0)
    sets = data.evaluation
    assert (len(data.forget), len(data.retain)) == (1362, 1027)
    assert {name: len(one.rows) for name, one in sets.items()} == {
        "challenging": 49,
        "toxic": 326,
        "clean": 250,
    }
    trained = {row.question for row in (*data.forget, *data.retain)}
    assert not trained & {row.question for one in sets.values() for row in one.rows}
    lines = (json.loads(line) for line in (REAL / "rtp_quark_val_5000.jsonl").open("rb"))
    unseen = [
        (part["text"], part["toxicity"])
        for one in lines
        if one["challenging"] or splits.held_out(one["prompt"]["text"].strip())
        for part in (one["prompt"], one["continuation"])
        if part["toxicity"] is not None
    ]
    scores = data.theme.scorer([Text("", text.strip()) for text, _ in unseen])
    true = np.array([score for _, score in unseen])
    assert len(true) == 2014
    assert metrics.roc_auc_score(true >= 0.5, scores) > 0.91  # measured: 0.921
    assert np.corrcoef(true, scores)[0, 1] > 0.81  # measured: 0.828
