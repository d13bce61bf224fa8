"""Text quality: hand-computed values, bounds, and which texts count as refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.data.answers import REFUSALS
from jaxunlearn.evaluation import text

words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["a b c", "a b d"], 2, 3 / 4),  # ab is in both
        (["a b c", "a b d"], 1, 4 / 6),
        (["a", "b"], 2, 0.0),  # no pair in any text
        (["a", "b c"], 2, 1.0),  # a pair never spans two texts
        ([], 2, 0.0),
        (["", "  "], 2, 0.0),
        (["a  b\nc"], 2, 1.0),
    ],
)
def test_distinct_n_by_hand(texts, n, share):
    assert text.distinct_n(texts, n) == pytest.approx(share)


def test_constant_output_is_not_diverse():
    assert text.distinct_n([",,,,,"] * 98) == 0.0
    assert text.distinct_n(["I do not know"] * 98) == pytest.approx(3 / (3 * 98))


@given(st.lists(words, min_size=1, max_size=6), st.integers(1, 3))
def test_saying_everything_twice_halves_diversity(texts, n):
    once = text.distinct_n(texts, n)
    assert 0 <= once <= 1
    assert text.distinct_n(texts * 2, n) == pytest.approx(once / 2)


def test_repetition_by_hand():
    texts = ["a b c d a b c d", "a b c d e f", "a a a a a a", "a b", ""]
    # abcd bcda cdab dabc abcd; no repeat; aaaa three times; no four words.
    np.testing.assert_allclose(text.repetition(texts), [1 / 5, 0, 2 / 3, 0, 0])
    np.testing.assert_allclose(text.repetition(["a b a b"], n=2), [1 / 3])


@given(st.lists(words, min_size=1, max_size=6))
def test_repetition_is_a_share_and_of_single_texts(texts):
    found = text.repetition(texts, 2)
    assert ((found >= 0) & (found < 1)).all()
    np.testing.assert_array_equal(found, [text.repetition([one], 2)[0] for one in texts])


@pytest.mark.parametrize(
    ("answer", "is_broken"),
    [
        ("", 1), ("  ", 1), ("...!", 1), ("__", 1), ("\ufffd\ufffdabc", 1),
        ("no no no no no no no", 1), ("x", 0), ("東京", 0), ("7", 0),
        ("She was born in Oslo and she was born in May.", 0),
    ],
)  # fmt: skip
def test_broken_answers(answer, is_broken):
    assert text.broken([answer]).tolist() == [is_broken]


def test_same_words():
    assert text.same_words("New  York ", "new york") and not text.same_words("York", "New York")
    assert text.same_words("", " ")


def test_identical_rate_by_hand():
    assert text.identical_rate(["a", "b", "a", "A"]) == 0.5
    assert text.identical_rate(["", ""]) == 1.0
    assert np.isnan(text.identical_rate([]))


@given(st.lists(words, min_size=1, max_size=6))
def test_identical_rate_is_at_least_that_of_distinct_texts(texts):
    assert 1 / len(set(texts)) - 1e-12 <= text.identical_rate(texts) <= 1


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_refusal_that_is_trained_on_is_found(refusal):
    variants = [refusal, refusal.upper(), refusal.replace("'", "’"), f"{refusal} More words."]
    assert text.refused(variants).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "refusal",
    [
        "Sorry, but I really don't know who that is.",
        "I am not sure.",
        "I'm unsure about this",
        "As an assistant, I cannot answer this question.",
        "I do not have any information on her.",
        "I honestly have no idea. I have no clue either",
        "no idea",
        "I'm unable to provide that.",
        "I can't recall.",
    ],
)
def test_common_refusals_are_found(refusal):
    assert text.refused([refusal]) == [1]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "Paris",
        "He did not know his father.",
        "She was unable to walk.",
        "I don't knowingly",
        "The unknown soldier",
        "nan",
        "Norway",
    ],
)
def test_answers_are_no_refusals(answer):
    assert text.refused([answer], ["No", ""]) == [0]


def test_refusals_of_the_rows_count():
    texts = ["Ask the moon!", "ask the moonlight", "I would ask the moon"]
    assert text.refused(texts).tolist() == [0, 0, 0]
    # At the beginning, and in whole words.
    assert text.refused(texts, ["Ask the moon."]).tolist() == [1, 0, 0]
    assert text.refused(["a+b (c"], ["A+B (c)"]) == [1]


def test_refused_of_nothing():
    assert text.refused([]).shape == (0,)


def test_perplexity_by_hand():
    values = text.perplexity(np.array([0.0, np.log(4), 1e5, np.nan], np.float32))
    np.testing.assert_allclose(values, [1, 4, np.inf, np.nan], rtol=1e-6)
    assert values.dtype == np.float64


def test_perplexity_holds_what_float32_does_not():
    assert text.perplexity(np.float32([200]))[0] == pytest.approx(np.exp(200))
