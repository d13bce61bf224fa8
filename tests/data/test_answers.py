import pytest

from jaxunlearn.data.answers import REFUSALS, refusals
from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError

ROWS = [Row("q", str(i), source=f"f.jsonl:{i}") for i in range(20)]


def test_own_refusals_leave_the_others_draws_as_they_are():
    drawn = refusals(ROWS, 1)
    assert set(drawn) <= set(REFUSALS)
    own = [*ROWS[:5], Row("q", "5", refusal="Ask Ann."), *ROWS[6:]]
    assert refusals(own, 1) == (*drawn[:5], "Ask Ann.", *drawn[6:])


def test_a_row_that_should_have_a_refusal_is_named():
    with pytest.raises(UserError, match=r"^f.csv:7: has no refusal") as caught:
        refusals([*ROWS, Row("q", "a", source="f.csv:7", refusal="")], 1)
    assert "\n" not in str(caught.value)
