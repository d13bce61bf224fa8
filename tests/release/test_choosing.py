"""Which weight a line search takes, and what a bound refuses."""

import math

import pytest

from jaxunlearn.methods.release_settings import Release
from jaxunlearn.release.choosing import Measured, keeps, smallest, utility_drop

SEARCH = Release(line_search=True, min_gain=0.5, max_drop=0.1)
START = math.log(2)


def at(weight, score, drop):
    """A model that has lost this share of its utility."""
    return Measured(weight, score, START - math.log(1 - drop))


def test_utility_drop_by_hand():
    assert utility_drop(math.log(4), math.log(2)) == pytest.approx(0.5)
    assert utility_drop(1.0, 1.0) == 0
    assert utility_drop(0.5, 1.0) < 0
    assert at(0, 0, 0.25).retain_nll == pytest.approx(START + math.log(4 / 3))


def test_the_smallest_weight_that_forgets_and_keeps():
    curve = [at(0.1, 0.7, 0.0), at(0.2, 0.4, 0.05), at(0.3, 0.2, 0.08), at(0.4, 0.1, 0.3)]
    assert smallest(curve, SEARCH, score=0.8, start_nll=START) == curve[1]
    # The gain is of what is left, not of what there was at first.
    assert smallest(curve, SEARCH, score=0.4, start_nll=START) == curve[2]
    assert smallest(curve, SEARCH, score=0.1, start_nll=START) is None


def test_a_bound_refuses_what_takes_too_much():
    over = at(0.3, 0.0, 0.2)
    assert not keeps(over, SEARCH, START)
    assert keeps(over, Release(), START)
    assert Release().bound is None and Release(line_search=True).bound == 0.05
    assert keeps(at(0.3, 0.0, 0.1 - 1e-9), SEARCH, START)
    for settings in (SEARCH, Release()):
        assert not keeps(Measured(0.3, 0.0, None), settings, START)
