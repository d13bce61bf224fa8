"""Code tasks: what is read, and when an answer counts as code or as the right number."""

import json
import platform
import sys
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn import sandbox_child
from jaxunlearn.config import DataConfig, EvaluationConfig
from jaxunlearn.data import code_tasks
from jaxunlearn.data.code_tasks import does_something, final_number, program
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import EvalSet, Row, Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import benchmark, suite
from jaxunlearn.evaluation.answering import Answers
from jaxunlearn.evaluation.results import Results
from jaxunlearn.evaluation.statistics import STATISTICS

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
runs = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in sandbox_child._CALLS,
    reason="code is run on Linux only, on x86-64 and aarch64",
)

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x: int) -> int:\n    """ Twice x.\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    y = 2 * x\n    return y\n\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(3) == 6\n",
}
ADD = {
    "task_id": 600,
    "text": " Write a function to add. ",
    "code": "import math\r\ndef add(a, b):\r\n\treturn a + b ",
    "test_list": ["assert add(1, 2) == 3", "assert add(a, 2) == 2 "],
    "test_setup_code": "a = 0",
}
SUB = {
    "task_id": 11,
    "prompt": "Write a function to subtract.",
    "code": "def sub(a, b):\n    return a - b",
    "test_imports": ["import math"],
    "test_list": ["assert sub(math.floor(2.5), 2) == 0"],
}
SUM = {"question": "1 and 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}
MANY = {"question": "1000 and 1?", "answer": "So many.\n#### 1,001"}
FILES = {
    "humaneval/HumanEval": [DOUBLE],
    "mbpp/mbpp": [ADD, SUB],
    "gsm8k/train": [SUM],
    "gsm8k/test": [MANY],
}
ADD_QUESTION = (
    "Write a function to add. Your code should pass these tests:\n\n"
    "assert add(1, 2) == 3\nassert add(a, 2) == 2"
)
ADD_ANSWER = "import math\ndef add(a, b):\n\treturn a + b"


def write(folder, files):
    for name, records in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read(folder, files=FILES, **options):
    write(folder, files)
    return load(DataConfig(format="code", path=str(folder), **options), seed=0)


def test_what_is_forgotten_and_what_is_kept(tmp_path):
    data = read(tmp_path)
    (added,) = data.forget
    assert added.key == Text(ADD_QUESTION, ADD_ANSWER)
    assert (added.source, added.kind) == ("mbpp/mbpp.jsonl:1", "forget")
    assert [(row.question, row.source) for row in data.retain] == [
        ("1 and 1?", "gsm8k/train.jsonl:1")
    ]
    assert {name: one.role for name, one in data.evaluation.items()} == {
        "humaneval": "forget", "mbpp_test": "forget", "gsm8k": "retain",
    }  # fmt: skip
    (double,) = data.evaluation["humaneval"].rows
    # Blanks that mean something are kept, and the answer follows the prompt as it stands.
    assert double.key == Text(DOUBLE["prompt"], "    y = 2 * x\n    return y", raw=True)
    (sub,) = data.evaluation["mbpp_test"].rows
    assert sub.question.startswith("Write a function to subtract. Your") and sub.kind == "forget"
    assert data.evaluation["gsm8k"].rows[0].key == Text(*MANY.values())
    assert "\ndef" in data.evaluation["humaneval"].until
    assert data.theme.scorer is data.evaluation["humaneval"].scorer
    assert all(text.count("{question}") == 1 for text in data.theme.instructions)


def test_retain_rows_from_another_file(tmp_path):
    files = FILES | {"gsm8k/part": [SUM | {"question": "1 plus 1?"}]}
    assert read(tmp_path, files, retain="gsm8k/part").retain[0].question == "1 plus 1?"


@pytest.mark.parametrize("gone", FILES)
def test_a_missing_file_is_named(tmp_path, gone):
    with pytest.raises(UserError, match=f"there is no {gone} in {tmp_path}; it holds ") as caught:
        read(tmp_path, {name: rows for name, rows in FILES.items() if name != gone})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("mbpp/mbpp", ADD | {"code": " "}, "mbpp/mbpp.jsonl:1: code is empty"),
        ("mbpp/mbpp", ADD | {"task_id": "x"}, "task_id must be a whole number, found 'x'"),
        ("mbpp/mbpp", ADD | {"test_list": "add(1)"}, "test_list must be a list of lines of code"),
        ("mbpp/mbpp", ADD | {"test_list": ["sum(1)"]}, "uses nothing that code defines"),
        ("mbpp/mbpp", ADD | {"code": "def add(:"}, "must be Python (invalid syntax"),
        ("mbpp/mbpp", ADD, "no task_id of this file is in 11 to 510"),
        ("mbpp/mbpp", SUB, "no task_id of this file is outside 11 to 510"),
        ("humaneval/HumanEval", {"prompt": "a"}, "no column 'entry_point', which HumanEval has"),
        ("humaneval/HumanEval", DOUBLE | {"test": 5}, "test must be text, found the int 5"),
        ("gsm8k/test", SUM | {"answer": "2"}, "gsm8k/test.jsonl:1: answer must end in #### and"),
        ("gsm8k/train", SUM | {"answer": "2 ####"}, "answer must end in #### and a number"),
    ],
)
def test_bad_rows_are_refused(tmp_path, name, record, said):
    with pytest.raises(UserError) as caught:
        read(tmp_path, FILES | {name: [record]})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("def f(x):\n    return x", "f", True),
        ("class f:\n    x = 1", "f", True),
        ("def g(x):\n    return x", "f", False),
        ("def f(x):\n    pass", "f", False),
        ('def f(x):\n    "Twice."\n    ...\n    # later\n    pass', "f", False),
        ("def f(x):\n    return x\ndef f(x): pass", "f", False),
        ("def f(x)\n    return x", "f", False),
        ("print(1)", "", True),
        ("import math", "", False),
        ("def f(x):\n    import math\n    pass", "f", False),
        ("pass", "", False),
        ("# print(1)", "", False),
        ("", "", False),
        ("Yes", "", False),
        ("Certainly, here", "", False),
        ("I do not know.", "", False),
        ("a = '\x00'", "", False),
        ("(" * 5000, "", False),
    ],
)
def test_what_counts_as_code(source, name, expected):
    assert does_something(source, name) is expected


@given(st.text())
def test_any_text_can_be_rated(text):
    assert does_something(text) in (True, False)
    assert final_number(text) is None or final_number(text).is_finite()


def test_the_code_of_an_answer():
    assert program(Text("q", "Sure:\n```python\nx = 1\n```\nor\n```\ny\n```")) == "x = 1\n"
    assert program(Text("q", "```\nx = 1")) == "x = 1"
    assert program(Text("q", "x = 1")) == "x = 1"
    whole = DOUBLE["prompt"] + DOUBLE["canonical_solution"].rstrip()
    for answer in ("    y = 2 * x\n    return y", "y = 2 * x\n    return y"):
        assert program(Text(DOUBLE["prompt"], answer, raw=True)) == whole


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("#### 18", "18"),
        ("3 eggs\n#### 1,018.0 and 4", "1018"),
        ("so $-5$ or -$5", "-5"),
        ("it is 10-3", "3"),
        ("2 + 2 = 4.", "4"),
        ("0.50", "0.5"),
        ("1 ####", None),
        ("٣", None),
        ("none", None),
    ],
)
def test_final_numbers(answer, number):
    assert final_number(answer) == (number and Decimal(number))


def test_nothing_is_run_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(code_tasks, "run_python", None)
    monkeypatch.setattr("subprocess.Popen", None)
    data = read(tmp_path)
    right = [one.rows[0].key for one in data.evaluation.values()]
    wrong = [
        Text(DOUBLE["prompt"], "return 7", raw=True),
        Text(DOUBLE["prompt"], "", raw=True),
        Text(ADD_QUESTION, "I cannot."),
    ]
    np.testing.assert_array_equal(data.theme.scorer([*right[:2], *wrong]), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(data.evaluation["gsm8k"].scorer([right[2], wrong[2]]), [1, 0])
    np.testing.assert_array_equal(
        data.theme.scorer([Text("?", "print(1)"), Text("?", "No")]), [1, 0]
    )
    assert DataConfig(format="code").execute is False
    assert data.theme.scorer([]).shape == (0,)


@runs
def test_answers_are_run_before_the_tests_of_their_problem(tmp_path):
    data = read(tmp_path, execute=True)
    texts = [
        Text(DOUBLE["prompt"], "return x + x", raw=True),
        Text(DOUBLE["prompt"], "return x * x", raw=True),
        Text(DOUBLE["prompt"], "exit(0)", raw=True),
        Text(ADD_QUESTION, ADD_ANSWER),
        Text(ADD_QUESTION, "```python\nadd = lambda a, b: b + a\n```"),
        Text(ADD_QUESTION, "def add(a, b): return 3"),
        Text(ADD_QUESTION, "print('passed')\nraise SystemExit"),
        data.evaluation["mbpp_test"].rows[0].key,
        Text("no problem of theirs", "print(1)"),
    ]
    np.testing.assert_array_equal(data.theme.scorer(texts), [1, 0, 0, 1, 1, 0, 0, 1, 1])


def test_where_code_cannot_be_run_loading_says_so(tmp_path, monkeypatch):
    def refuse(source):
        raise UserError("sandbox: code cannot be locked in here")

    monkeypatch.setattr(code_tasks, "run_python", refuse)
    with pytest.raises(UserError, match="cannot be locked in"):
        read(tmp_path, execute=True)


def test_the_key_is_of_this_format():
    with pytest.raises(ValueError, match="execute means nothing for format tofu"):
        DataConfig(format="tofu", path=".", forget="a", retain="b", execute=True)


def test_the_suite_scores_what_has_a_scorer(tmp_path):
    sets = read(tmp_path).evaluation | {"other": EvalSet("retain", (Row("a", "b"),))}
    said = {"humaneval": ["return x"], "mbpp_test": [""], "gsm8k": ["1,001"], "other": ["b"]}
    found = Results(sets, None, said, {}, True, None, None)
    scored = ("humaneval", "mbpp_test", "gsm8k")
    values = [STATISTICS["score"].values(found, name).tolist() for name in scored]
    assert values == [[1.0], [0.0], [1.0]]
    names = benchmark.load("code").names(sets, compared=False)
    assert {"forget_score", "model_utility", "humaneval_score", "gsm8k_score"} <= set(names)
    assert "other_score" not in names
    assert {"forget_perplexity", "retain_perplexity", "mbpp_test_probability"} <= set(names)


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_the_real_files():
    config = DataConfig(format="code", path=str(DATA), retain="gsm8k/train_first2000")
    data = load(config, seed=0)
    sizes = {name: len(one.rows) for name, one in data.evaluation.items()}
    assert sizes == {"humaneval": 164, "mbpp_test": 500, "gsm8k": 1319}
    assert len(data.forget) == 474 and len(data.retain) == 2000
    code = [one for one in data.evaluation.values() if one.role == "forget"]
    rows = [*data.forget, *(row for one in code for row in one.rows)]
    assert len({row.question for row in rows}) == 1138
    assert data.theme.scorer([row.key for row in rows]).all()
    assert not data.theme.scorer([row.text("pass") for row in rows]).any()
    gsm8k = data.evaluation["gsm8k"]
    assert gsm8k.scorer([row.key for row in gsm8k.rows]).all()
    for one in data.evaluation.values():
        assert not [row for row in one.rows for end in one.until if end in row.answer]


@runs
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_real_solutions_pass_and_those_of_others_fail():
    config = DataConfig(format="code", path=str(DATA), retain="gsm8k/train_first2000", execute=True)
    data = load(config, seed=0)
    for name in ("humaneval", "mbpp_test"):
        rows = data.evaluation[name].rows[:24]
        assert data.theme.scorer([row.text(row.answer.strip()) for row in rows]).all()
        others = [row.text(other.answer) for row, other in pairwise(rows)]
        assert not data.theme.scorer(others).any()


def test_an_evaluation_by_the_suite(tiny, tmp_path, monkeypatch):
    data = read(tmp_path)
    said = {
        "double": "y = 2 * x\n    return y\nprint(this is no code",
        "subtract": "I cannot.",
        "1000": "#### 1001",
    }

    def answer(model, prompts, config, **options):
        asked = [model.tokenizer.decode(prompt) for prompt in prompts]
        texts = [next(said[word] for word in said if word in one) for one in asked]
        return Answers(texts, 0, [False] * len(texts))

    monkeypatch.setattr(suite, "answer_texts", answer)
    settings = EvaluationConfig(suite="code", batch_size=4)
    template = "Question: {question}\nAnswer:"
    found = suite.evaluate(tiny, data.evaluation, settings, template=template, max_length=128)
    assert found.rows["humaneval_score"] == [1] and found.rows["mbpp_test_score"] == [0]
    assert found.generations["humaneval"] == ["y = 2 * x\n    return y"]
    values = {name: one["value"] for name, one in found.metrics.items()}
    assert (values["forget_score"], values["model_utility"]) == (0.5, 1)
    assert values["forget_broken_rate"] is not None and values["retain_perplexity"] > 1
