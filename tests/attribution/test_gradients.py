"""Gradient attribution against explicit loops, exact dot products and real leave-one-out fits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import spearmanr

from jaxunlearn.attribution import gradients
from jaxunlearn.attribution.gradients import Features, fit, gradient_features, precondition, project
from jaxunlearn.attribution.reports import accuracy, masking_curve
from jaxunlearn.attribution.responses import in_batches, random_prefixes
from jaxunlearn.errors import UserError
from jaxunlearn.models import lora, transformer

ONLY = "layers/1/mlp/down"  # few parameters, so that whole gradients are small
START = 1  # the tiny tokenizer's <s>


@pytest.fixture(scope="module")
def few(answers):
    """Three answers of each owner."""
    return answers.take(np.concatenate([np.flatnonzero(answers.owners == o)[:3] for o in range(6)]))


@pytest.fixture(scope="module")
def checkpoints(tiny):
    return [tiny, dataclasses.replace(tiny, params=jax.tree.map(lambda x: 0.7 * x, tiny.params))]


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(config, params, row, length):
    """Of one answer's loss, by the chosen kernel, from logits."""

    def loss(kernel):
        mlp = {**params["layers"]["mlp"], "down": {"kernel": kernel}}
        changed = {**params, "layers": {**params["layers"], "mlp": mlp}}
        seen = jnp.concatenate([jnp.array([START]), row[:-1]])
        log_probs = jax.nn.log_softmax(transformer.logits(config, changed, seen[None])[0])
        of_tokens = log_probs[jnp.arange(len(row)), row]
        return -jnp.where(jnp.arange(len(row)) < length, of_tokens, 0).sum() / length

    return jax.grad(loss)(params["layers"]["mlp"]["down"]["kernel"])[1].ravel()


def gradients_alone(model, rows):
    """Float64 [n, P], one after the other."""
    pairs = zip(rows.tokens, rows.lengths, strict=True)
    return np.stack([gradient_of(model.config, model.params, *pair) for pair in pairs]).astype(
        float
    )


def test_scores_are_those_of_a_loop_over_examples_and_checkpoints(few, checkpoints):
    """TracIn: `sum_c eta_c mean_d <g_c(y), g_c(d)>`."""
    rates = (0.5, 2.0)
    found = fit(checkpoints, few, kind="dot", weights=rates, dim=None, only=ONLY)
    expected = np.zeros((4, 6))
    for rate, model in zip(rates, checkpoints, strict=True):
        g = gradients_alone(model, few)
        for y in range(4):
            for owner in range(6):
                own = [g[y] @ g[d] for d in np.flatnonzero(few.owners == owner)]
                expected[y, owner] += rate * np.mean(own)
    logits = found.logits(few.tokens[:4], few.lengths[:4])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_cosine_is_that_of_each_pair(tiny, few):
    found = fit([tiny], few, kind="cosine", dim=None, only=ONLY)
    g = gradients_alone(tiny, few)
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    expected = [[(g[y] @ g[few.owners == o].T).mean() for o in range(6)] for y in range(4)]
    logits = found.logits(few.tokens[:4], few.lengths[:4])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_adapter_s_gradients_are_taken_of_its_factors(tiny, few):
    factors = lora.init(tiny.params, 2, key=jax.random.key(0), targets=ONLY)
    adapter = lora.Adapter(jax.tree.map(lambda x: x + 0.01, factors), 3.0)
    found = fit([dataclasses.replace(tiny, adapter=adapter)], few, kind="dot", dim=None)

    length = int(few.lengths[0])
    row = jnp.array([[START, *few.tokens[0, :length]]])

    @jax.grad
    def gradient(factors):
        scaled = lora.scale(factors, 3.0)
        return -transformer.token_log_probs(tiny.config, tiny.params, row, lora=scaled)[
            0, 1:
        ].mean()

    features = gradient_features(
        found.features, *found.checkpoints[0], few.tokens[:1], few.lengths[:1], found.keys[0]
    )
    expected = ravel_pytree(gradient(adapter.factors))[0]
    np.testing.assert_allclose(features[0], expected, rtol=1e-4, atol=1e-5)


def test_padding_and_rows_at_once_change_nothing(tiny, few):
    found = fit([tiny], few, kind="dot", dim=64, only=ONLY)
    tokens = np.pad(few.tokens[:3], ((0, 0), (0, 4)), constant_values=9)
    other = dataclasses.replace(found, features=dataclasses.replace(found.features, rows_at_once=2))
    expected = found.logits(few.tokens[:3], few.lengths[:3])
    np.testing.assert_allclose(other.logits(tokens, few.lengths[:3]), expected, rtol=1e-4)


def test_prefixes_together_are_the_prefixes_by_themselves(tiny, few):
    found = fit([tiny], few, dim=64, only=ONLY)
    lengths = np.array([[0, 1, 3], [2, 4, 4]])
    together = found.scores(few.tokens[:2], lengths)
    assert together.shape == (2, 3, 6)
    program = jax.jit(lambda attributor, *rows: attributor.scores(*rows))
    np.testing.assert_allclose(program(found, few.tokens[:2], lengths), together, rtol=1e-4)
    np.testing.assert_allclose(together.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(together[0, 0], 1 / 6, atol=1e-6)  # nothing seen, nothing told
    for place in range(3):
        alone = found.scores(few.tokens[:2], lengths[:, place])
        np.testing.assert_allclose(together[:, place], alone, rtol=1e-4)


def test_a_projection_keeps_the_dot_products_of_unit_vectors():
    """Two leaves, one of more than SPAN entries; cosines all over [-1, 1]."""
    rng = np.random.default_rng(0)
    size = gradients.SPAN + 900
    plane = np.linalg.qr(rng.normal(size=(size, 2)))[0].T
    angles = rng.uniform(0, 2 * np.pi, 40)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane
    tree = {
        "a": jnp.asarray(vectors[:, :800]).reshape(40, 8, 100),
        "b": jnp.asarray(vectors[:, 800:]),
    }
    projected = jax.vmap(lambda t: project(t, 512, key=jax.random.key(0)))(tree)
    pairs = np.triu_indices(40, k=1)
    exact, found = (np.asarray(v @ v.T)[pairs] for v in (vectors, projected))
    assert np.corrcoef(exact, found)[0, 1] > 0.95
    # Its length is kept in the mean: chi-square of 512, one draw for two dimensions.
    assert np.linalg.norm(projected, axis=1).mean() == pytest.approx(1, abs=0.1)


def test_no_two_entries_share_their_signs():
    """The projections of single entries of one tree are as good as orthogonal to each other."""
    tree = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(5000)}
    flat, back = ravel_pytree(tree)
    chosen = [0, 1, 5, 6, 7, 6 + 4095, 6 + 4096, 6 + 4097, 6 + 4999]
    rows = jnp.stack([
        project(back(flat.at[i].set(1.0)), 1024, key=jax.random.key(3)) for i in chosen
    ])  # fmt: skip
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(chosen)), atol=5 / 32)


def test_projected_gradients_agree_with_whole_ones(tiny, few):
    whole, small = (Features(tiny.config, START, dim, 16) for dim in (None, 512))
    trainable, frozen = gradients.split_params(tiny, ONLY, None, 0)

    def cosines(features):
        """Of every random prefix with every answer."""
        a, b = (
            gradients.unit(
                gradient_features(
                    features, trainable, frozen, few.tokens, rows.lengths, jax.random.key(0)
                )
            )
            for rows in (few, random_prefixes(few, seed=0))
        )
        return np.asarray(a @ b.T).ravel()

    exact, found = cosines(whole), cosines(small)
    assert exact.std() < 0.3  # or it would be easy
    assert np.corrcoef(exact, found)[0, 1] > 0.95


def test_influence_on_a_ridge_regression_is_what_leaving_out_does():
    rng = np.random.default_rng(2)
    x, new = rng.normal(size=(40, 6)), rng.normal(size=6)
    y, strength = x @ rng.normal(size=6) + rng.normal(size=40), 0.1
    gram = x.T @ x
    penalty = strength * np.trace(gram) / 6 * np.eye(6)
    weights = np.linalg.solve(gram + penalty, x.T @ y)
    told = precondition(x, x, strength) @ new * (y - x @ weights)
    true = []
    for row in range(40):
        rest = np.arange(40) != row
        without = np.linalg.solve(x[rest].T @ x[rest] + penalty, x[rest].T @ y[rest])
        true.append(new @ (weights - without))
    assert spearmanr(told, true).statistic > 0.95


def test_trak_weighs_by_the_inverse_of_all_features(tiny, few):
    found = fit([tiny], few, kind="trak", dim=32, only=ONLY, ridge=0.2)
    phi = in_batches(
        lambda *rows: gradient_features(
            found.features, *found.checkpoints[0], *map(jnp.asarray, rows), found.keys[0]
        ),
        few,
        18,
    ).astype(np.float64)
    gram = phi.T @ phi
    inverse = np.linalg.inv(gram + 0.2 * np.trace(gram) / 32 * np.eye(32))
    means = np.stack([phi[few.owners == owner].mean(axis=0) for owner in range(6)])
    logits = in_batches(found.logits, few, 18)
    np.testing.assert_allclose(logits, phi @ inverse @ means.T, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("cosine", 0.8), ("trak", 0.95)])
def test_owners_of_known_answers_are_found_and_masked_words_lower_the_score(
    tiny, answers, kind, least
):
    found = fit([tiny], answers, kind=kind, dim=256, only="layers")
    scores = in_batches(found.scores, answers, 60)
    assert accuracy(scores, answers.owners) >= least
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    curve = masking_curve(found, answers, (0, 2, 4), batch_size=60)
    assert (np.diff(curve) < 0).all() and curve[0] > 2 / 6


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"kind": "trak", "dim": None}, "needs a projection"), ({"weights": [1, 2]}, "2 weights")],
)
def test_settings_that_do_not_fit_are_refused(tiny, few, settings, fault):
    with pytest.raises(ValueError, match=fault):
        fit([tiny], few, **settings)


def test_responses_that_the_model_cannot_read_are_refused(tiny, few):
    with pytest.raises(UserError, match="token id"):
        fit([tiny], dataclasses.replace(few, tokens=few.tokens + 10**4))
