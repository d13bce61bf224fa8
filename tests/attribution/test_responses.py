"""What attributors read, and the temperature that makes their scores mean what they say."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution.responses import (
    Responses,
    at_lengths,
    calibrated,
    from_table,
    in_batches,
    random_prefixes,
    start_token,
)
from jaxunlearn.data.tokens import make_table
from jaxunlearn.errors import UserError


@dataclasses.dataclass(frozen=True)
class Known:
    """Its logits are a function of a response's first token."""

    table: np.ndarray
    temperature: float = 1.0

    def logits(self, tokens, lengths):
        return jnp.asarray(self.table)[tokens[:, 0]]


def test_a_response_is_an_answer_without_its_prompt():
    table = make_table([([1, 5, 6], [7, 2]), ([1, 5], [8, 9, 2])], 6)
    found = from_table(table, ["bo", "al"])
    np.testing.assert_array_equal(found.tokens, [[7, 2, 0], [8, 9, 2]])
    np.testing.assert_array_equal(found.lengths, [2, 3])
    assert found.names == ("bo", "al") and found.owners.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("owners", "answer", "fault"),
    [
        (["al", ""], [7], r"row 2 lacks an owner \(its entity\)"),
        (["al", "bo"], [], "row 2 lacks an answer token"),
        (["al", "al"], [7], "at least 2 owners, got 1"),
    ],
)
def test_rows_that_cannot_be_attributed_are_refused(owners, answer, fault):
    table = make_table([([1], [7]), ([1], answer)], 3)
    with pytest.raises(UserError, match=fault):
        from_table(table, owners)


def test_a_text_starts_with_what_begins_or_ends_one():
    assert start_token(SimpleNamespace(bos_token_id=0, eos_token_id=2)) == 0
    assert start_token(SimpleNamespace(bos_token_id=None, eos_token_id=2)) == 2
    with pytest.raises(UserError, match="neither bos_token nor eos_token"):
        start_token(SimpleNamespace(bos_token_id=None, eos_token_id=None))


def test_prefix_lengths_are_uniform():
    many = Responses(
        np.zeros((3000, 4), np.int32), np.full(3000, 3), np.zeros(3000, np.int32), ("a", "b")
    )
    lengths = random_prefixes(many, seed=0).lengths
    counts = np.bincount(lengths, minlength=5)
    # 1000 each, up to 4 standard errors of 26.
    assert counts[0] == counts[4] == 0 and np.abs(counts[1:4] - 1000).max() < 4 * 26


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_batches_give_what_all_at_once_gives(batch_size):
    rng = np.random.default_rng(0)
    rows = Responses(
        rng.integers(0, 9, (5, 3)).astype(np.int32), np.ones(5, np.int32), np.zeros(5), ("a",)
    )
    known = Known(rng.normal(size=(9, 2)))
    expected = known.logits(rows.tokens, rows.lengths)
    np.testing.assert_array_equal(in_batches(known.logits, rows, batch_size), expected)


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_the_temperature_of_a_known_distribution_is_found(temperature):
    """Owners drawn from softmax(logits / T) give that T."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 3)) * 2 * temperature
    owners = np.array(jax.random.categorical(jax.random.key(0), logits / temperature))
    rows = Responses(
        np.arange(4000, dtype=np.int32)[:, None], np.ones(4000, np.int32), owners, tuple("abc")
    )
    found = calibrated(Known(logits.astype(np.float32)), rows, batch_size=512).temperature
    assert found == pytest.approx(temperature, rel=0.08)


def test_logits_that_tell_nothing_keep_finite_temperature():
    rows = Responses(np.zeros((4, 1), np.int32), np.ones(4), np.array([0, 1, 0, 1]), ("a", "b"))
    assert np.isfinite(calibrated(Known(np.zeros((1, 2), np.float32)), rows).temperature)


def test_values_at_lengths():
    values = jnp.arange(24.0).reshape(2, 4, 3)
    one = at_lengths(values, jnp.array([0, 3]))
    np.testing.assert_array_equal(one, [[0, 1, 2], [21, 22, 23]])
    two = at_lengths(values, jnp.array([[0, 1], [3, 3]]))
    np.testing.assert_array_equal(two, [[[0, 1, 2], [3, 4, 5]], [[21, 22, 23]] * 2])
