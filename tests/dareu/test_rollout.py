"""Responses: where they end, and that what is read of them is what they were drawn from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.dareu import rollout
from jaxunlearn.dareu.rollout import Prompts
from jaxunlearn.models import transformer

LIMIT = 8


def drawn(tiny, *, stop=(), temperature=0.8, counted=(True, True, True), seed=0):
    tokens = jnp.array([[0, 0, 1, 5], [0, 1, 7, 8], [1, 9, 4, 3]], jnp.int32)
    prompts = Prompts(tokens, jnp.array([2, 1, 0]), *jnp.zeros((2, 3), jnp.int32))
    return rollout.respond(
        tiny.config,
        tiny.params,
        None,
        prompts,
        jnp.array(counted),
        limit=LIMIT,
        stop_tokens=jnp.array(stop or (10**6,), jnp.int32),
        temperature=jnp.float32(temperature),
        key=jax.random.key(seed),
    )


def test_prompt_and_response_stand_side_by_side(tiny):
    found = drawn(tiny)
    prompts = [[1, 5], [1, 7, 8], [1, 9, 4, 3]]
    for row, prompt in enumerate(prompts):
        assert int(found.first[row]) == len(prompt)
        response = np.asarray(found.tokens[row])
        whole = [*prompt, *response, *[0] * (4 - len(prompt))]
        assert np.asarray(found.whole[row]).tolist() == whole
    assert bool(found.mask.all())


def test_a_response_ends_with_the_first_stop_token(tiny):
    free = drawn(tiny)
    stop = int(free.tokens[0, 2])
    found = drawn(tiny, stop=(stop,))
    for row in range(3):
        response = np.asarray(free.tokens[row])
        hits = np.flatnonzero(response == stop)
        length = int(hits[0]) + 1 if len(hits) else LIMIT
        assert int(found.lengths[row]) == length
        assert np.asarray(found.tokens[row]).tolist() == [
            *response[:length], *[0] * (LIMIT - length)
        ]  # fmt: skip


def test_an_empty_slot_says_nothing_and_changes_nothing(tiny):
    every, some = drawn(tiny), drawn(tiny, counted=(True, False, True))
    assert not some.mask[1].any()
    for row in (0, 2):
        np.testing.assert_array_equal(every.tokens[row], some.tokens[row])


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_what_is_read_is_what_a_plain_forward_pass_says(tiny, temperature):
    found = drawn(tiny, stop=(7,), temperature=temperature)
    read = rollout.read(tiny.config, tiny.params, None, found, jnp.float32(temperature))
    logits = np.asarray(transformer.logits(tiny.config, tiny.params, found.whole)) / temperature
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for row in range(3):
        for place in range(int(found.lengths[row])):
            at = int(found.first[row]) + place
            expected = log_probs[row, at - 1, int(found.whole[row, at])]
            assert read.log_probs[row, place] == pytest.approx(expected, abs=1e-4)
    outside = np.asarray(read.log_probs)[~np.asarray(found.mask)]
    assert (outside == 0).all()


def test_divergence_and_entropy_against_their_sums(tiny):
    found = drawn(tiny)
    other = jax.tree.map(lambda x: x * 1.1, tiny.params)
    t = jnp.float32(0.8)
    reads = [rollout.read(tiny.config, one, None, found, t) for one in (tiny.params, other)]
    p, q = (
        np.asarray(
            jax.nn.log_softmax(
                transformer.logits(tiny.config, one, found.whole).astype(jnp.float32) / t
            ),
            np.float64,
        )
        for one in (tiny.params, other)
    )
    far = rollout.divergences(tiny.config, (tiny.params, other), tuple(reads), found.mask, t)
    undecided = rollout.entropies(tiny.config, tiny.params, reads[0], found.mask, t)
    for row in range(3):
        at = int(found.first[row]) - 1 + np.arange(LIMIT)
        expected = (np.exp(p[row, at]) * (p[row, at] - q[row, at])).sum(-1)
        np.testing.assert_allclose(far[row], expected, rtol=1e-3, atol=1e-5)
        expected = -(np.exp(p[row, at]) * p[row, at]).sum(-1)
        np.testing.assert_allclose(undecided[row], expected, rtol=1e-4)


def test_incoherence_counts_where_it_is_asked_for():
    @dataclasses.dataclass(frozen=True)
    class Three:
        has_incoherent = True

        def scores(self, tokens, lengths):
            return self.probabilities(tokens, lengths)[..., :2]

        def probabilities(self, tokens, lengths):
            return jnp.broadcast_to(jnp.array([0.5, 0.2, 0.3]), (*lengths.shape, 3))

    tokens, lengths = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 2), jnp.int32)
    counted = jnp.array([[True, False]])
    plain = rollout.attributed(Three(), tokens, lengths, counted)
    both = rollout.attributed(Three(), tokens, lengths, counted, incoherence=True)
    np.testing.assert_allclose(plain, [[0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(both, [[0.8, 0.8]], atol=1e-6)
