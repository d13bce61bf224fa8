"""Filters: what is kept is within every bound, in order, and stays when filtered again."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.config_reveal import Filters
from jaxunlearn.reveal.filters import grams, jaccard, keep

LOOSE = Filters(min_score=0.0, max_repetition=1.0)
REPEATING = "so it goes and so it goes and so it goes and so it goes"

words = st.lists(st.sampled_from("a b c D d e".split()), max_size=9).map(" ".join)


def kept(texts, filters=LOOSE, scores=None, **others):
    return keep(texts, np.ones(len(texts)) if scores is None else scores, filters, **others)


def test_each_reason_by_hand():
    texts = ["low score here", "", "one two three four", REPEATING, "a b", " A  b ", "odd one"]
    filters = Filters(min_words=1, max_words=16, max_perplexity=50.0)
    ppl = np.array([1, 1, 50, 1, 1, 1, np.nan])
    found = kept(texts, filters, scores=np.array([0.49, 1, 0.5, 1, 1, 1, 1]), perplexities=ppl)
    assert found.rows.tolist() == [2, 4]
    assert found.reasons == {
        0: "score", 1: "length", 3: "repetition", 6: "perplexity", 5: "duplicate"
    }  # fmt: skip
    assert found.fractions == pytest.approx(
        {
            "score": 6 / 7, "length": 5 / 6, "repetition": 4 / 5, "perplexity": 3 / 4,
            "duplicate": 2 / 3, "near_duplicate": 1.0,
        }
    )  # fmt: skip


def test_length_bounds_are_inclusive():
    texts = ["a", "a b", "a b c", "a b c d"]
    filters = dataclasses.replace(LOOSE, min_words=2, max_words=3)
    assert kept(texts, filters).rows.tolist() == [1, 2]


def test_near_duplicates_at_the_bound():
    # 10 words have 8 grams; another last word changes one: 7 / 9 < 0.8. With 11 words 8 / 10.
    ten, eleven = "a b c d e f g h i j", "a b c d e f g h i j k"
    assert kept([ten, ten[:-1] + "z"]).rows.tolist() == [0, 1]
    assert kept([eleven, eleven[:-1] + "z"]).reasons == {1: "near_duplicate"}


def test_a_near_duplicate_of_a_dropped_text_stays():
    # The second is near the first and the third; the first and the third are not near each other.
    middle = "a b c d e f g h i j k".split()
    texts = [" ".join(["x", *middle[1:]]), " ".join(middle), " ".join([*middle[:-1], "y"])]
    sets = [grams(t.split(), 3) for t in texts]
    assert jaccard(sets[0], sets[1]) == jaccard(sets[1], sets[2]) == 0.8
    assert kept(texts).rows.tolist() == [0, 2]


def test_texts_shorter_than_a_gram_are_compared_as_wholes():
    assert kept(["a b", "a", "b a", "A B"]).reasons == {3: "duplicate"}
    assert grams(["a", "b"], 3) == {("a", "b")} and grams([], 3) == {()}


@given(st.lists(words, max_size=25), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 3))
def test_near_duplicates_are_those_of_all_pairs(texts, bound, n):
    filters = dataclasses.replace(LOOSE, min_words=0, similarity=bound, gram=n)
    sets = [grams(text.casefold().split(), n) for text in texts]
    expected = []
    for row, text in enumerate(texts):
        same = any(text.casefold().split() == texts[j].casefold().split() for j in range(row))
        if not same and all(jaccard(sets[row], sets[j]) < bound for j in expected):
            expected.append(row)
    assert kept(texts, filters).rows.tolist() == expected


@given(st.data())
def test_kept_and_dropped_are_a_partition_within_the_bounds(data):
    rows = data.draw(st.lists(st.tuples(words, st.floats(0, 1), st.floats(1, 100)), max_size=25))
    texts, scores, ppl = [row[0] for row in rows], *np.array([r[1:] for r in rows]).reshape(-1, 2).T
    filters = Filters(min_words=1, max_words=7, max_perplexity=60.0)
    found = keep(texts, scores, filters, perplexities=ppl)
    assert (np.diff(found.rows) > 0).all()
    assert sorted([*found.rows, *found.reasons]) == list(range(len(texts)))
    share = len(found.rows) / len(texts) if texts else 1.0
    assert np.prod(list(found.fractions.values())) == pytest.approx(share)
    assert (scores[found.rows] >= 0.5).all() and (ppl[found.rows] <= 60).all()
    again = keep(
        [texts[i] for i in found.rows], scores[found.rows], filters, perplexities=ppl[found.rows]
    )
    assert again.rows.tolist() == list(range(len(found.rows))) and not again.reasons


def test_thousands_of_texts_with_common_words_are_quick():
    rng = np.random.default_rng(0)
    texts = ["once upon a time there was " + " ".join(rng.choice(list("abcdefgh"), 20))
             for _ in range(3000)]  # fmt: skip
    copies = [text + " end" for text in texts[::10]]
    found = kept(texts + copies)
    assert set(found.reasons) >= set(range(3000, 3300))


def test_scores_and_perplexities_must_be_there():
    with pytest.raises(ValueError, match="scores have the shape"):
        keep(["a", "b"], np.ones(1), Filters())
    with pytest.raises(ValueError, match="perplexities have the shape"):
        keep(["a"], np.ones(1), Filters(max_perplexity=9.0))
