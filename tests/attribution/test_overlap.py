"""BM25 against its formula in plain Python."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.attribution.overlap import buckets, fit
from jaxunlearn.attribution.reports import accuracy, masking_curve
from jaxunlearn.attribution.responses import Responses, in_batches, random_prefixes

SIZES = (1, 2)


def rows_of(texts, owners):
    lengths = np.array([len(text) for text in texts], np.int32)
    tokens = np.zeros((len(texts), lengths.max()), np.int32)
    for i, text in enumerate(texts):
        tokens[i, : len(text)] = text
    return Responses(tokens, lengths, np.array(owners, np.int32), ("al", "bo", "cy"))


def grams(text, sizes=SIZES):
    return [tuple(text[i : i + n]) for n in sizes for i in range(len(text) - n + 1)]


def bm25(response, texts, owners, k1=1.2, b=0.75):
    documents = [Counter() for _ in range(3)]
    for text, owner in zip(texts, owners, strict=True):
        documents[owner].update(grams(text))
    mean = sum(d.total() for d in documents) / 3
    scores = []
    for document in documents:
        score = 0.0
        for gram in set(grams(response)):
            df = sum(gram in d for d in documents)
            tf = document[gram]
            bound = k1 * (1 - b + b * document.total() / mean)
            score += math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf * (k1 + 1) / (tf + bound)
        scores.append(score)
    return scores


TEXTS, OWNERS = [[5, 6, 7], [5, 5, 8, 9, 3], [7, 6], [4, 5, 6, 4]], [0, 1, 2, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 10), min_size=1, max_size=6))
def test_scores_are_those_of_the_formula(response):
    found = fit(rows_of(TEXTS, OWNERS), sizes=SIZES)
    padded = np.array([response + [5] * (6 - len(response))])
    logits = found.logits(padded, np.array([len(response)]))
    np.testing.assert_allclose(logits[0], bm25(response, TEXTS, OWNERS), rtol=1e-5)


def test_prefixes_together_are_the_prefixes_by_themselves():
    found = fit(rows_of(TEXTS, OWNERS), sizes=SIZES)
    response = [5, 6, 5, 6, 7]
    together = found.logits(np.array([response]), np.arange(6)[None])[0]
    expected = [bm25(response[:n], TEXTS, OWNERS) for n in range(6)]
    np.testing.assert_allclose(together, expected, rtol=1e-5)
    program = jax.jit(lambda attributor, *rows: attributor.scores(*rows))
    rows = np.array([response]), np.arange(6)[None]
    np.testing.assert_allclose(program(found, *rows), found.scores(*rows), rtol=1e-5)


def test_nothing_in_common_with_anyone_is_told_as_such():
    found = fit(rows_of(TEXTS, OWNERS))
    np.testing.assert_allclose(found.scores(np.array([[11, 12]]), np.array([2])), 1 / 3, rtol=1e-6)


def test_n_grams_have_their_own_buckets():
    """Of 4096 pairs in 2^20 buckets, as many meet as of random ones: 8, up to 4 deviations."""
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(64), jnp.arange(64)), axis=-1).reshape(-1, 2)
    found = np.asarray(buckets(pairs, 2, 2**20))[:, 1]
    assert len(np.unique(found)) >= 4096 - 8 - 4 * 3


def test_owners_of_the_built_in_world_are_found(answers):
    found = fit(answers)
    scores = in_batches(found.scores, answers, 60)
    assert accuracy(scores, answers.owners) >= 0.95
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    curve = masking_curve(found, answers, (0, 2, 4), batch_size=60)
    assert (np.diff(curve) < 0).all()
    prefixes = random_prefixes(answers, seed=4)
    assert accuracy(in_batches(found.scores, prefixes, 60), answers.owners) >= 0.8
