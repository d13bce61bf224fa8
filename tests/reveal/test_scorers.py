"""A user's scorer is checked: every fault names the key, the scorer and the row, never the text."""

import numpy as np
import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.reveal import scorers

TEXTS = ("fine", "secret words", "fine too")


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
    scores = scorers.load(own(body), key="reveal.scorer")(TEXTS)
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
        scorers.load(name, key="reveal.scorer")(TEXTS)
    message = str(caught.value)
    assert message.startswith(f"reveal.scorer: {name} ")
    assert "\n" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}gone", "has no function 'gone'"),
        ("{}number", "has no function 'number'"),
        ("nowhere.py:f", "no such file"),
        ("toxicity", "name a function as path/to/file.py:function"),
    ],
)
def test_scorers_that_cannot_be_loaded(own, name, words):
    file = own("return 0").removesuffix("score")
    with pytest.raises(UserError, match=words) as caught:
        scorers.load(name.format(file), key="reveal.scorer")
    assert str(caught.value).startswith("reveal.scorer: ")
