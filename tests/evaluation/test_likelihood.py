"""Likelihoods of texts, against the statistics of each token."""

import numpy as np

from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Text
from jaxunlearn.evaluation.forward import score
from jaxunlearn.evaluation.likelihood import mean_nll, text_nlls
from tests.conftest import TEMPLATE


def test_against_every_token(tiny, world):
    texts = [row.key for row in world.forget[:5]]
    table = tokens.encode(tiny.tokenizer, texts, template=TEMPLATE, max_length=128).table
    stats = score(tiny.config, tiny.params, table)
    by_hand = [
        -log_probs[mask] for log_probs, mask in zip(stats.log_probs, stats.mask, strict=True)
    ]
    np.testing.assert_allclose(mean_nll(tiny, table), np.concatenate(by_hand).mean(), rtol=1e-6)
    too_long = Text("what", "a word " * 1000)
    found = text_nlls(tiny, [*texts[:2], too_long, *texts[2:]], TEMPLATE)
    assert np.isnan(found[2])
    np.testing.assert_allclose(np.delete(found, 2), [one.mean() for one in by_hand], rtol=1e-5)
