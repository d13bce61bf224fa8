"""The encoder: what it sees, what it learns, and its folder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution import classifier_files
from jaxunlearn.attribution.encoder import MeanToken, train
from jaxunlearn.attribution.functions import fitted
from jaxunlearn.attribution.reports import accuracy, masking_curve
from jaxunlearn.attribution.responses import in_batches, random_prefixes
from jaxunlearn.config_attribution import EncoderSettings, FunctionConfig
from jaxunlearn.errors import UserError

SETTINGS = EncoderSettings(layers=1, width=32, heads=2, epochs=15, learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained(tiny, answers):
    """With an incoherent class."""
    settings = dataclasses.replace(SETTINGS, incoherent_rows=2)
    return train(tiny.config.vocab_size, answers, settings)[0]


@pytest.fixture(scope="module")
def untrained():
    """Large random weights, so that everything that is seen tells."""
    network = MeanToken(50, 2, 16, 2)
    return network, jax.tree.map(lambda x: x * 20, network.init(jax.random.key(0)))


def test_it_learns_the_owners_of_answers_and_of_their_beginnings(trained, answers):
    scores = in_batches(trained.scores, answers, 30)
    assert accuracy(scores, answers.owners) >= 0.95
    assert trained.has_incoherent and (scores.sum(axis=1) < 1).all()
    prefixes = in_batches(trained.scores, random_prefixes(answers, seed=5), 30)
    assert accuracy(prefixes, answers.owners) >= 0.6
    curve = masking_curve(trained, answers, (0, 1, 2, 4), batch_size=30)
    assert (np.diff(curve) < 0).all()


def test_a_state_knows_the_words_before_and_after(untrained):
    """Gradients of every token's embedding reach the state of a prefix from inside it alone."""
    network, params = untrained
    row = jnp.array([[3, 4, 5, 6, 7]])

    def first_number(table):
        embed = {**params["embed"], "embedding": table}
        return network.states({**params, "embed": embed}, {}, row, jnp.array([3]))[0, 0]

    reached = jnp.abs(jax.grad(first_number)(params["embed"]["embedding"])).sum(axis=1)
    assert (reached[jnp.array([3, 4, 5])] > 0).all()
    assert not reached[jnp.array([0, 6, 7])].any()


def test_the_order_of_words_counts(untrained):
    network, params = untrained
    rows = jnp.array([[3, 4, 5], [5, 4, 3]])
    one, other = network.states(params, {}, rows, jnp.array([3, 3]))
    assert jnp.abs(one - other).max() > 1e-3


def test_every_prefix_is_a_pass_of_its_own(untrained):
    network, params = untrained
    rows, lengths = jnp.array([[3, 4, 5, 6], [7, 8, 9, 9]]), jnp.array([[0, 1, 4], [2, 3, 3]])
    together = network.states(params, {}, rows, lengths)
    assert together.shape == (2, 3, 16) and not together[0, 0].any()
    for row in range(2):
        for place, length in enumerate(lengths[row]):
            alone = jnp.full((1, 7), 33).at[0, :length].set(rows[row, :length])
            found = network.states(params, {}, alone, length[None])[0]
            np.testing.assert_allclose(together[row, place], found, atol=1e-5)


def test_a_saved_encoder_comes_back_without_a_model(trained, answers, tmp_path):
    classifier_files.save(trained, tmp_path / "one")
    back = classifier_files.load(tmp_path / "one")
    np.testing.assert_array_equal(
        in_batches(back.scores, answers, 30), in_batches(trained.scores, answers, 30)
    )
    assert classifier_files.fingerprint(back) == classifier_files.fingerprint(trained)


def test_a_config_makes_one_and_calibrates_it(tiny, answers):
    quick = dataclasses.replace(SETTINGS, epochs=1)
    found = fitted(FunctionConfig("encoder", encoder=quick), tiny, answers)
    assert isinstance(found.network, MeanToken) and found.temperature != 1
    program = jax.jit(lambda attributor, *rows: attributor.scores(*rows).sum(axis=-1))
    rows = answers.tokens[:2], np.array([[1, 2], [2, 2]])
    np.testing.assert_allclose(program(found, *rows), 1, atol=1e-5)


def test_what_cannot_be_is_refused(answers):
    with pytest.raises(ValueError, match="even multiple of heads"):
        EncoderSettings(width=30, heads=4)
    with pytest.raises(ValueError, match="encoder means nothing for kind overlap"):
        FunctionConfig("overlap", encoder=SETTINGS)
    with pytest.raises(UserError, match="vocabulary has ids 0 to 9"):
        train(10, answers, SETTINGS)
