"""The bandit against its formulas in NumPy, its memory, and the gates on two made-up problems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxunlearn.config_reveal import INSTINCT, Bandit
from jaxunlearn.reveal import bandit
from jaxunlearn.reveal.bandit import estimate, init, observe, select, sub_pool
from jaxunlearn.reveal.reward_models import NETWORK

QUICK = Bandit(width=8, steps=30, sub_pool=12)
ARMS, REWARDS = [3, 17, 5, 29, 11], [0.1, 0.9, 0.4, 0.3, 0.7]


def changed(settings=QUICK, **fields):
    return dataclasses.replace(settings, **fields)


@pytest.fixture(scope="module")
def contexts():
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1, 10, 0.1] + [5, 0, -1]
    return jnp.asarray(x, jnp.float32)


def seen(settings, contexts, arms=ARMS, rewards=REWARDS, *, capacity=16, seed=0):
    state = init(settings, contexts, capacity=capacity, key=jax.random.key(seed))
    return observe(settings, state, contexts, arms, rewards)


def z_scores(contexts, rows=slice(None)):
    x, among = np.asarray(contexts, np.float64), np.asarray(contexts, np.float64)[rows]
    return (x - among.mean(axis=0)) / among.std(axis=0)


def gradients_by_hand(params, x_ND):
    """Of w2 . relu(x w1 + b1) + b2 by b1, b2, w1, w2 in this order."""
    w1, b1, w2 = (np.asarray(params[name], np.float64) for name in ("w1", "b1", "w2"))
    rows = []
    for x in x_ND:
        hidden = x @ w1 + b1
        by_hidden = w2 * (hidden > 0)
        rows.append([*by_hidden, 1.0, *np.outer(x, by_hidden).ravel(), *np.maximum(hidden, 0)])
    return np.array(rows)


def test_gradients_are_those_of_each_arm_alone(contexts):
    state, x = seen(QUICK, contexts), z_scores(contexts)
    found = bandit.gradients(QUICK, state.params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, gradients_by_hand(state.params, x), atol=1e-5)
    loop = [
        ravel_pytree(jax.grad(NETWORK.predict)(state.params, row))[0]
        for row in jnp.asarray(x, jnp.float32)
    ]
    np.testing.assert_allclose(found, jnp.stack(loop), atol=1e-6)


def test_diagonal_equals_full_for_one_hot_gradients():
    g = jnp.eye(5)[np.array([0, 2, 2, 4, 2])] * jnp.arange(1.0, 6)[:, None]
    diagonal = bandit.add_points(0.1 * jnp.ones(5), g)
    full = bandit.add_points(0.1 * jnp.eye(5), g)
    np.testing.assert_allclose(full, np.diag(diagonal))
    for row in (*g, *jnp.eye(5)):
        one = bandit.deviation(diagonal**0.5, row, 0.1)
        np.testing.assert_allclose(
            one, bandit.deviation(jnp.linalg.cholesky(full), row, 0.1), rtol=1e-6
        )
    # By hand: the third was pulled with 2, 3 and 5: sqrt(.1 / (.1 + 38)).
    assert bandit.deviation(diagonal**0.5, jnp.eye(5)[2], 0.1) == pytest.approx((0.1 / 38.1) ** 0.5)


def test_diagonal_differs_from_full_otherwise(contexts):
    one, other = (
        estimate(s, seen(s, contexts), contexts)[1] for s in (QUICK, changed(design="full"))
    )
    assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize("design", ["diagonal", "full"])
@pytest.mark.parametrize("points", ["recomputed", "accumulated", "selected"])
def test_deviation_and_what_the_design_matrix_holds(contexts, design, points):
    settings = changed(design=design, design_points=points, lam=0.5)
    before = seen(settings, contexts)
    after = observe(settings, before, contexts, [7], [0.2])
    x = z_scores(contexts)
    first = gradients_by_hand(before.params, x[ARMS])
    g = {
        "recomputed": gradients_by_hand(after.params, x[[*ARMS, 7]]),
        "accumulated": np.concatenate([first, gradients_by_hand(before.params, x[[7]])]),
        "selected": gradients_by_hand(before.params, x[[7]]),
    }[points]
    expected = 0.5 * np.eye(g.shape[1]) + g.T @ g
    if design == "diagonal":
        expected = np.diag(np.diag(expected))
        np.testing.assert_allclose(after.design, np.diag(expected), rtol=1e-4)
    else:
        np.testing.assert_allclose(after.design, expected, atol=1e-4)
    f, s = estimate(settings, after, contexts)
    g = gradients_by_hand(after.params, x)
    q = np.einsum("np,pq,nq->n", g, np.linalg.inv(expected), g)
    np.testing.assert_allclose(s, np.sqrt(0.5 * q), rtol=1e-3)
    hidden = np.maximum(x @ np.asarray(after.params["w1"]) + np.asarray(after.params["b1"]), 0)
    by_hand = hidden @ np.asarray(after.params["w2"]) + float(after.params["b2"])
    np.testing.assert_allclose(f, by_hand, atol=1e-5)


def test_linucb_is_ridge_regression_by_hand(contexts):
    settings = changed(mode="linucb", lam=0.3)
    x = np.hstack([np.ones((40, 1)), z_scores(contexts)])
    a = 0.3 * np.eye(4) + x[ARMS].T @ x[ARMS]
    f, s = estimate(settings, seen(settings, contexts), contexts)
    np.testing.assert_allclose(f, x @ np.linalg.solve(a, x[ARMS].T @ REWARDS), atol=1e-5)
    q = np.einsum("np,pq,nq->n", x, np.linalg.inv(a), x)
    np.testing.assert_allclose(s, np.sqrt(0.3 * q), rtol=1e-4)


def test_one_step_of_the_fit_is_adams_on_the_loss(contexts):
    settings, x = changed(steps=1, lam=0.7), jnp.asarray(z_scores(contexts), jnp.float32)

    def loss(params):
        error = jax.vmap(NETWORK.predict, (None, 0))(params, x[np.array(ARMS)])
        squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return jnp.mean((error - jnp.array(REWARDS)) ** 2) + 0.7 / (2 * 5) * squares

    start = init(settings, contexts, capacity=16, key=jax.random.key(0)).params
    expected = jax.tree.map(
        lambda w, g: w - settings.rate * g / (jnp.abs(g) + 1e-8), start, jax.grad(loss)(start)
    )
    found = seen(settings, contexts).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_each_fit_starts_from_the_initial_weights(contexts):
    at_once = seen(QUICK, contexts)
    one_by_one = seen(QUICK, contexts, ARMS[:1], REWARDS[:1])
    for arm, reward in zip(ARMS[1:], REWARDS[1:], strict=True):
        one_by_one = observe(QUICK, one_by_one, contexts, [arm], [reward])
    jax.tree.map(np.testing.assert_array_equal, at_once.params, one_by_one.params)


@pytest.mark.parametrize("mode", ["ucb", "linucb"])
def test_room_for_more_pulls_changes_nothing(contexts, mode):
    settings = changed(mode=mode)
    states = [seen(settings, contexts, capacity=capacity) for capacity in (5, 64)]
    (f, s), (g, t) = (estimate(settings, state, contexts) for state in states)
    np.testing.assert_allclose(f, g, atol=1e-5)
    np.testing.assert_allclose(s, t, rtol=1e-4)


@pytest.mark.parametrize("mode", ["ucb", "greedy", "linucb"])
def test_the_best_score_of_the_sub_pool_is_selected(contexts, mode):
    settings = changed(mode=mode, bonus=0.7)
    state = seen(settings, contexts)
    f, s = estimate(settings, state, contexts)
    score = np.asarray(f if mode == "greedy" else f + 0.7 * s)
    among = np.asarray(sub_pool(settings, state, 40)[0])
    assert len(set(among.tolist())) == 12 and not set(among.tolist()) & set(ARMS)
    arm = select(settings, state, contexts)
    assert arm == among[score[among].argmax()] == select(settings, state, contexts)


def test_thompson_samples_around_the_prediction(contexts):
    settings = changed(mode="thompson", bonus=0.5, sub_pool=5)
    few = contexts[:6]
    state = seen(settings, few, [5], [0.5])
    f, s = (np.asarray(part)[:5] for part in estimate(settings, state, few))
    picks = [
        select(settings, state._replace(seed=jax.random.key_data(jax.random.key(i))), few)
        for i in range(600)
    ]
    normal = np.random.default_rng(0).normal(size=(100_000, 5))
    expected = np.bincount((f + 0.5 * s * normal).argmax(axis=1), minlength=5) / 100_000
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(np.bincount(picks, minlength=5) / 600, expected, atol=0.07)


def test_random_takes_every_free_arm_as_often(contexts):
    settings = changed(mode="random", sub_pool=2)
    few = contexts[:6]
    state = seen(settings, few, [5], [0.5])
    picks = [
        select(settings, state._replace(seed=jax.random.key_data(jax.random.key(i))), few)
        for i in range(600)
    ]
    np.testing.assert_allclose(np.bincount(picks, minlength=5) / 600, 0.2, atol=0.06)


@pytest.mark.parametrize("mode", ["ucb", "thompson", "greedy", "random", "linucb"])
def test_no_arm_is_pulled_twice_and_all_can_be(contexts, mode):
    settings, few = changed(mode=mode, sub_pool=4), contexts[:9]
    state = seen(settings, few, [2, 4], [0.5, 0.1], capacity=9)
    for _ in range(7):
        state = observe(settings, state, few, [select(settings, state, few)], [0.3])
    assert sorted(state.arms.tolist()) == list(range(9))
    with pytest.raises(ValueError, match="each of the 9 arms was pulled"):
        select(settings, state, few)


def test_contexts_are_standardised_over_the_pool(contexts):
    constant = jnp.hstack([contexts, jnp.full((40, 1), 7.3)])
    state = seen(QUICK, constant)
    np.testing.assert_allclose(
        (constant - state.centre) / state.spread,
        np.hstack([z_scores(contexts), np.zeros((40, 1))]), atol=1e-4,
    )  # fmt: skip
    f, s = estimate(QUICK, state, constant)
    assert np.isfinite(f).all() and np.isfinite(s).all()
    # Other units of the contexts change nothing.
    again = estimate(QUICK, seen(QUICK, contexts * 100 - 3), contexts * 100 - 3)
    np.testing.assert_allclose(again[0], estimate(QUICK, seen(QUICK, contexts), contexts)[0],
                               atol=1e-3)  # fmt: skip


def test_initial_weights():
    wide = jnp.zeros((2, 50))
    expected = {
        "mean_field": (0.2, 0, 1 / 4000), "he": (0.2, 0, (2 / 4000) ** 0.5), "normal": (1, 1, 1)
    }  # fmt: skip
    for kind, sizes in expected.items():
        settings = changed(init=kind, width=4000)
        params = init(settings, wide, capacity=1, key=jax.random.key(3)).params
        for name, size in zip(("w1", "b1", "w2"), sizes, strict=True):
            assert np.std(params[name]) == pytest.approx(size, rel=0.05)
        assert (params["b2"] == 0) == (kind != "normal")


def test_instinct_and_its_quirks(contexts):
    settings = changed(INSTINCT, width=8, steps=30)
    start = init(settings, contexts, capacity=16, key=jax.random.key(0))
    state = observe(settings, start, contexts, ARMS, REWARDS)
    # The initial pulls neither train the network, nor enter U, nor standardise.
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)
    np.testing.assert_array_equal(state.design, np.full(start.design.shape, 0.1, np.float32))
    g, nu = gradients_by_hand(start.params, np.asarray(contexts)), 4.0
    hidden = np.maximum(contexts @ start.params["w1"] + start.params["b1"], 0)
    f = np.asarray(hidden @ start.params["w2"] + start.params["b2"])
    score = f + np.sqrt((0.1 * nu * g**2 / np.asarray(state.design)).sum(axis=1))
    arm = select(changed(settings, bonus=nu**0.5), state, contexts)
    assert arm == score.argmax()
    # An arm may be pulled again; then everything is fitted, U has the gradient before it.
    state = observe(settings, state, contexts, [ARMS[0]], [0.2])
    x = np.asarray(contexts)[[*ARMS, ARMS[0]]]
    np.testing.assert_allclose(state.centre, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(state.spread, x.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(state.design, 0.1 + g[ARMS[0]] ** 2, rtol=1e-4)
    assert np.abs(state.params["w1"] - start.params["w1"]).max() > 1e-3
    among, free = sub_pool(settings, state, 40)
    assert sorted(among.tolist()) == list(range(40)) and free.all()


def pulls(settings, contexts, rounds, state=None, seed=0):
    reward = np.cos(np.arange(40)) / 2 + 0.5
    state = seen(settings, contexts, seed=seed) if state is None else state
    for _ in range(rounds):
        arm = select(settings, state, contexts)
        state = observe(settings, state, contexts, [arm], [reward[arm]])
    return state


@pytest.mark.parametrize("mode", ["ucb", "thompson", "random"])
def test_a_saved_state_goes_on_as_if_nothing_had_been(contexts, tmp_path, mode):
    settings = changed(mode=mode)
    whole = pulls(settings, contexts, 8)
    jax.tree.map(np.testing.assert_array_equal, whole, pulls(settings, contexts, 8))
    half = pulls(settings, contexts, 3)
    np.savez(tmp_path / "state.npz", *jax.tree.leaves(half))
    with np.load(tmp_path / "state.npz") as saved:
        leaves = [jnp.asarray(saved[name]) for name in saved.files]
    resumed = pulls(settings, contexts, 5, jax.tree.unflatten(jax.tree.structure(half), leaves))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert pulls(settings, contexts, 8, seed=1).arms.tolist() != whole.arms.tolist()


def test_one_compilation_serves_all_rounds_and_seeds(contexts):
    settings = changed(width=9)  # as no other test has it
    programs = (bandit._select, bandit._fit, bandit._accumulate)
    before = [program._cache_size() for program in programs]
    for seed in range(2):
        pulls(settings, contexts, 5, seed=seed)
    assert [program._cache_size() for program in programs] == [n + 1 for n in before]


@pytest.mark.parametrize(
    ("arms", "rewards", "words"),
    [
        ([1, 2], [0.5], "found 2 arms and 1 rewards"),
        ([], [], "at least one"),
        ([40], [0.5], r"not in 0..39: \[40\]"),
        ([-1], [0.5], r"not in 0..39: \[-1\]"),
        ([1, 2], [0.5, float("nan")], "a reward is not finite"),
        ([1] * 17, [0.5] * 17, "17 pulls do not fit into a capacity of 16"),
    ],
)
def test_pulls_that_cannot_be(contexts, arms, rewards, words):
    with pytest.raises(ValueError, match=words):
        seen(QUICK, contexts, arms, rewards)
