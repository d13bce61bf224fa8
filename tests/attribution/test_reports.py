"""Accuracy, calibration error and masking curve against hand-computed cases."""

import doctest
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution import reports
from jaxunlearn.attribution.responses import Responses


@dataclass(frozen=True)
class Counting:
    """Owner 0's score is the share of tokens below 10."""

    def scores(self, tokens, lengths):
        seen = jnp.arange(tokens.shape[1]) < lengths[:, None]
        share = ((tokens < 10) & seen).sum(axis=1) / lengths
        return jnp.stack([share, 1 - share], axis=1)


def test_examples():
    assert not doctest.testmod(reports).failed


def test_accuracy():
    scores = np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]])
    assert reports.accuracy(scores, np.array([0, 0, 0, 1])) == 0.5


def test_a_sure_and_right_attributor_is_calibrated():
    assert reports.expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert reports.expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


def test_confidences_at_a_border_belong_to_the_lower_bin():
    scores = np.array([[0.5, 0.5], [0.75, 0.25]])
    # Bins (0, .5] and (.5, 1]: |1 - .5| / 2 + |0 - .75| / 2.
    found = reports.expected_calibration_error(scores, np.array([0, 1]), bins=2)
    assert found == pytest.approx(0.625)


def test_masking_replaces_as_many_tokens_as_asked():
    """Half of all tokens are owner 0's words; a replaced one is such a word half of the time."""
    n = 600
    tokens = np.tile([[1, 2, 3, 4, 99]], (n, 1)).astype(np.int32)
    tokens[n // 2 :, :4] += 10
    rows = Responses(tokens, np.full(n, 4), np.repeat([0, 1], n // 2), ("a", "b"))
    curve = reports.masking_curve(Counting(), rows, (0, 1, 2, 3, 4, 9))
    assert curve[0] == 1 and curve[4] == curve[5]
    np.testing.assert_allclose(curve[:5], 1 - np.arange(5) / 8, atol=0.03)
