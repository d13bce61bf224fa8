"""Scorers by name. What they return is checked: every fault names the key, the scorer and the row,
never the text."""

import sys

import numpy as np
import pytest

from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError
from jaxunlearn.reveal import scorers

TEXTS = tuple(Text("Who?", answer) for answer in ("fine", "secret words", "fine too"))
KEY = "reveal.scorer"
ANSWERS = ("a", "b a", "a b a", "b b b b", "", "a b b")


@pytest.fixture
def own(tmp_path):
    """Writes a file of a user's; gives a function of its as the config names it."""

    def write(body):
        path = tmp_path / "mine.py"
        path.write_text(f"import numpy as np\ndef score(texts):\n    {body}\nnumber = 3\n")
        return f"{path}:score"

    return write


@pytest.mark.parametrize(
    "body",
    [
        "return [float('w' in t) for t in texts]",
        "return np.array(['w' in t for t in texts], np.float32)",
        "assert type(texts) is list; return ['w' in t for t in texts]",
    ],
)
def test_a_scorer_of_ones_own(own, body):
    scores = scorers.load(own(body), key=KEY)(TEXTS)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, [0, 1, 0])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1 / ('w' not in t) for t in texts]", "fails on row 1 of 3 texts: ZeroDivisionE"),
        ("raise OSError('no\\nserver')", "fails on row 0 of 3 texts: OSError: no server$"),
        ("assert len(texts) < 3; return [0]", "fails on 3 texts together, on none of them alone: "),
        ("return [1.0, float('nan'), 0.0]", r"gives nan for row 1 of 3 texts; return one number"),
        ("return [1.0, 0.5, float('inf')]", "gives inf for row 2 of 3"),
        ("return [1.0, -0.01, 7.0]", r"gives -0.01 for row 1 of 3 texts"),
        ("return [1.01, 1.0, 1.0]", r"gives 1.01 for row 0 of 3 texts"),
        ("return [1.0]", r"shape \(1,\) for 3 texts; return one number in \[0, 1\] per text, "),
        ("return 0.5", r"shape \(\)"),
        ("return [[0.5]] * 3", r"shape \(3, 1\)"),
        ("return [0.5, 'high', 0.5]", "gives str for row 1; return"),
        ("return [0.5, [0.5, 0.5], 0.5]", "gives list for row 1; return"),
        ("return {'a': 1}", "gives dict; return"),
    ],
)  # fmt: skip
def test_what_a_scorer_returns_is_checked(own, body, words):
    name = own(body)
    with pytest.raises(UserError, match=words) as caught:
        scorers.load(name, key=KEY)(TEXTS)
    message = str(caught.value)
    assert message.startswith(f"reveal.scorer: {name} ")
    assert "\n" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}gone", "has no function 'gone'"),
        ("{}number", "has no function 'number'"),
        ("nowhere.py:f", "no such file"),
        ("toxicity", "found 'toxicity'; give path/to/file.py:function, pattern:REGEX or cl"),
        ("pattern:(", r"pattern:\( is no regular expression \(missing \)"),
        ("classifier:toxic", "classifier:toxic names no label; write classifier:FOLDER:LABEL"),
    ],
)
def test_scorers_that_cannot_be_loaded(own, name, words):
    file = own("return 0").removesuffix("score")
    with pytest.raises(UserError, match=words) as caught:
        scorers.load(name.format(file), key=KEY)
    assert str(caught.value).startswith("reveal.scorer: ")


@pytest.mark.parametrize(
    ("regex", "scores"), [("w", [0, 1, 0]), ("^fine", [1, 0, 1]), ("(?i)FINE$", [1, 0, 0])]
)
def test_a_pattern(regex, scores):
    found = scorers.load(f"pattern:{regex}", key=KEY)(TEXTS)
    np.testing.assert_array_equal(found, scores)


def test_nothing_to_score(own):
    for name in ("pattern:a", own("return [0.5 for t in texts]"), own("return max(texts)")):
        assert scorers.load(name, key=KEY)([]).shape == (0,)


def save_classifier(folder, kind, **changes):
    """A tiny random classifier of the words a and b; its folder, model and tokenizer."""
    torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pad = {"pad_token": "[PAD]"} if kind == "bert" else {}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **pad)
    common = {
        "vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 4, "initializer_range": 1.0,
        "pad_token_id": 0 if kind == "bert" else None,
        "id2label": {0: "clean", 1: "toxic", 2: "rude"}, "label2id": {"clean": 0, "toxic": 1,
        "rude": 2}, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**common))
    else:
        model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**common))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"problem_type": "multi_label_classification"},
        {"id2label": {0: "toxic"}, "label2id": {"toxic": 0}},
    ],
)
def test_a_classifier_of_hugging_face(tmp_path, kind, changes):
    folder, model, tokenizer = save_classifier(tmp_path / "model", kind, **changes)
    import torch

    label = model.config.label2id["toxic"]
    expected = []
    for answer in ANSWERS:
        ids = tokenizer(answer)["input_ids"]
        if not ids:
            expected.append(0.0)
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        chances = logits.softmax(-1) if len(logits) > 1 and not changes else logits.sigmoid()
        expected.append(float(chances[label]))
    found = scorers.load(f"classifier:{folder}:toxic", key=KEY)
    texts = [Text("b", answer) for answer in ANSWERS]
    np.testing.assert_allclose(found(texts), expected, atol=1e-6)
    assert len({round(one, 6) for one in expected}) >= 4
    long = [Text("", "a b b a"), Text("", "a b b a" + " b" * 50)]
    ends = found(long)
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    np.testing.assert_array_equal(found([Text("a", ""), Text("b", "")]), [0, 0])
    assert found([]).shape == (0,)


def test_without_torch_a_classifier_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs torch, which is not installed; pip install torch$"):
        scorers.load("classifier:org/name:toxic", key=KEY)


def test_classifiers_that_cannot_be_loaded(tmp_path):
    folder, model, _ = save_classifier(tmp_path / "model", "bert")

    def fails(name):
        with pytest.raises(UserError) as caught:
            scorers.load(name, key=KEY)
        assert str(caught.value).startswith("reveal.scorer: ") and "\n" not in str(caught.value)
        return str(caught.value)

    said = fails(f"classifier:{folder}:bad")
    assert said.endswith("has no label 'bad'; its labels are clean, toxic, rude")
    assert "no such folder" in fails(f"classifier:{tmp_path / 'gone'}:toxic")
    model.bert.save_pretrained(tmp_path / "headless")
    assert "holds no sequence classifier" in fails(f"classifier:{tmp_path / 'headless'}:toxic")
    (folder / "model.safetensors").unlink()
    assert f"{folder} cannot be read: " in fails(f"classifier:{folder}:toxic")


@pytest.mark.parametrize("regex", ["", "\bLily"])
def test_a_pattern_that_a_quoted_yaml_text_has_spoilt(regex):
    with pytest.raises(UserError, match=r"^reveal.scorer: pattern:.* control characters"):
        scorers.load(f"pattern:{regex}", key=KEY)


def test_a_scorer_cannot_end_the_program(own):
    with pytest.raises(UserError, match=r"SystemExit"):
        scorers.load(own("raise SystemExit(0)"), key=KEY)(TEXTS)
