"""OpenUnlearning's scores by hand."""

import pytest

from jaxunlearn.evaluation.aggregates import (
    memorisation_score,
    mia_score,
    overall_score,
    privacy_score,
    utility_score,
)


def test_memorisation():
    """4 / (1 / 0.9 + 1 / 0.5 + 1 / 0.8 + 1 / 0.4)."""
    assert memorisation_score(0.1, 0.5, 0.2, 0.6) == pytest.approx(4 / (10 / 9 + 2 + 1.25 + 2.5))
    assert memorisation_score(0, 0, 0, 0) == 1
    assert memorisation_score(0, 1, 0, 0) == 0


@pytest.mark.parametrize(
    ("auc", "retrained", "score"),
    [(0.5, 0.5, 1), (0.6, 0.4, 0.5), (0.2, 0.4, 0.5), (1.0, 0.4, 0), (0.0, 0.4, 0)],
)
def test_mia(auc, retrained, score):
    assert mia_score(auc, retrained) == pytest.approx(score)


def test_mia_needs_an_auc_to_compare_with():
    with pytest.raises(ValueError, match="above 0, got 0"):
        mia_score(0.5, 0.0)


def test_privacy_pairs_attacks_by_name():
    """1 - 0.2 / 0.4 and 1 - 0.1 / 0.5: 2 / (2 + 1.25)."""
    found = privacy_score({"loss": 0.6, "zlib": 0.4}, {"zlib": 0.5, "loss": 0.4})
    assert found == pytest.approx(2 / 3.25)


def test_utility_and_overall():
    assert utility_score(0.6, 0.9) == pytest.approx(2 * 0.6 * 0.9 / 1.5)
    assert overall_score(0.5, 1.0, 0.25) == pytest.approx(3 / 7)
    assert overall_score(0.0, 1.0, 1.0) == 0
