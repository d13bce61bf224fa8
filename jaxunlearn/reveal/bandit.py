"""Which arm to pull next: NeuralUCB and its rivals, as pure functions of settings and state.

An arm is a candidate instruction, known by a context vector; a pull costs generations and brings a
reward in [0, 1]. The loop is the caller's:

    state = init(settings, contexts, capacity=60, key=key)
    state = observe(settings, state, contexts, arms, rewards)     # the initial pulls
    arm = select(settings, state, contexts)
    state = observe(settings, state, contexts, [arm], [reward])   # and again

The state is a tuple of arrays. Nothing else is remembered, so a saved state goes on as if it had
never been interrupted, and `select` names the same arm until its reward is observed.

References:
  Zhou et al., Neural Contextual Bandits with UCB-based Exploration, arXiv 1911.04462 (NeuralUCB);
  Zhang et al., Neural Thompson Sampling, arXiv 2010.00827; Li et al., A Contextual-Bandit Approach
  to Personalized News Article Recommendation, arXiv 1003.0146 (LinUCB); Lin et al., Use Your
  INSTINCT, arXiv 2310.02905 (NeuralUCB over instructions); Xie et al., Reveal and Release, arXiv
  2509.14624, which searches with NeuralUCB, as summaries of it say. Its settings are not known to
  us: the defaults of `Bandit` are ours, chosen on the fixtures of the tests; `INSTINCT` holds those
  of that paper's code.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxunlearn.config_reveal import Bandit
from jaxunlearn.reveal.reward_models import LINEAR, NETWORK, NOTHING, Model, Params

_CHUNK = 128  # arms whose gradients are in memory at a time


class State(NamedTuple):
    """What a bandit knows; C is the capacity, D the contexts' size, P the number of weights."""

    seed: jax.Array
    """Data of a random key; what is random in a round follows from it and from `count`."""
    params: Params
    """Weights of the last fit."""
    design: jax.Array
    """U, [P] or [P, P]."""
    centre: jax.Array
    """[D], subtracted from contexts."""
    spread: jax.Array
    """[D], what they are then divided by."""
    arms: jax.Array
    """int32 [C], in the order of the pulls; 0 after the first `count`."""
    rewards: jax.Array
    """float32 [C], likewise."""
    count: jax.Array
    """int32, pulls so far."""


def init(settings: Bandit, contexts: jax.Array, *, capacity: int, key: jax.Array) -> State:
    """A bandit that has seen nothing.

    Args:
      settings: all of it.
      contexts: [N, D], one row per arm; on the device, or every call moves them there.
      capacity: pulls at most, the initial ones included; the shape of every later program.
      key: decides initial weights, sub-pools and samples.

    Returns:
      A state with U = lam * 1.
    """
    chex.assert_rank(contexts, 2)
    dim = contexts.shape[1]
    seed = jax.random.key_data(key)
    params = _initial(settings, seed, dim)
    size = ravel_pytree(params)[0].size
    shift = (jnp.zeros(dim), jnp.ones(dim))
    if settings.standardise == "pool":
        shift = _moments(jnp.asarray(contexts, jnp.float32), jnp.ones(len(contexts), bool))
    return State(
        seed=seed,
        params=params,
        design=_ridge(settings, size),
        centre=shift[0],
        spread=shift[1],
        arms=jnp.zeros(capacity, jnp.int32),
        rewards=jnp.zeros(capacity, jnp.float32),
        count=jnp.zeros((), jnp.int32),
    )


def select(settings: Bandit, state: State, contexts: jax.Array) -> int:
    """The arm to pull next: the best score on a random sub-pool of arms that were not pulled yet.

    With f_a the prediction and s_a the deviation of `estimate`, the score of arm a is

        ucb, linucb:  f_a + bonus * s_a            thompson:  ~ N(f_a, (bonus * s_a)^2)
        greedy:       f_a                          random:    the same for all

    The bonus stands outside the root of s_a. INSTINCT's nu stands inside,
    `f + sqrt(sum lam * nu * g^2 / U)`: bonus = sqrt(nu).

    Args:
      settings: all of it.
      state: before this pull; `select` does not change it.
      contexts: [N, D], the same for the whole life of a state.

    Returns:
      An index in 0..N-1.

    Raises:
      ValueError: every arm was pulled.
    """
    arm = int(_select(settings, state, contexts))
    if arm < 0:
        raise ValueError(f"each of the {len(contexts)} arms was pulled; give a larger pool")
    return arm


def observe(
    settings: Bandit,
    state: State,
    contexts: jax.Array,
    arms: Sequence[int],
    rewards: Sequence[float],
) -> State:
    """Adds pulls, and fits the model to all pulls so far, from its initial weights.

    The network minimises, by Adam on all t pulls at once,

        sum_{s<=t} (f(x_s) - r_s)^2 / t + lam / (2 t) * ||weights||^2

    which is INSTINCT's loss (NeuralUCB's pulls the weights to the initial ones instead). The linear
    model of linucb is solved for: `A^-1 sum_s r_s x_s` with `A = lam * 1 + sum_s x_s x_s^T` and
    x_s extended by 1.

    Args:
      settings: all of it.
      state: before these pulls.
      contexts: [N, D], the same for the whole life of a state.
      arms: k indices in 0..N-1; the first call brings the initial pulls.
      rewards: k finite numbers, about in [0, 1].

    Raises:
      ValueError: an arm or a reward that cannot be, or more pulls than the capacity.
    """
    chex.assert_shape(contexts, (None, len(state.centre)))
    start, k = int(state.count), len(arms)
    chosen, brought = np.asarray(arms, np.int32), np.asarray(rewards, np.float32)
    if chosen.shape != (k,) or brought.shape != (k,) or not k:
        raise ValueError(f"found {k} arms and {brought.size} rewards; give as many, at least one")
    if chosen.min() < 0 or chosen.max() >= len(contexts):
        raise ValueError(f"an arm is not in 0..{len(contexts) - 1}: {chosen.tolist()}")
    if not np.isfinite(brought).all():
        raise ValueError(f"a reward is not finite: {brought.tolist()}")
    if start + k > len(state.arms):
        raise ValueError(f"{start + k} pulls do not fit into a capacity of {len(state.arms)}")
    state = state._replace(
        arms=state.arms.at[start : start + k].set(chosen),
        rewards=state.rewards.at[start : start + k].set(brought),
        count=state.count + k,
    )
    first = start == 0
    if not first and settings.design_points != "recomputed":
        state = _accumulate(settings, state, contexts, start)
    if not first or settings.fit_initial:
        state = _fit(settings, state, contexts)
    if first and settings.design_points == "accumulated":
        state = _accumulate(settings, state, contexts, start)
    return state


@partial(jax.jit, static_argnames="settings")
def estimate(settings: Bandit, state: State, contexts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Predicted rewards and how uncertain they are.

    `s = sqrt(lam * sum_p g_p^2 / U_p)` with the diagonal U = lam * 1 + sum of g^2 over pulls, or
    `s = sqrt(lam * g^T U^-1 g)` with the full U = lam * 1 + sum of g g^T, where g is the gradient
    of the prediction by all weights. With no pull, s = |g|. NeuralUCB divides g by the root of the
    width; here, as in INSTINCT, lam and the bonus take that up.

    Args:
      settings: all of it.
      state: after any number of pulls.
      contexts: [n, D], as given, not standardised.

    Returns:
      f and s, each [n].
    """
    model = _MODES[settings.mode].model
    root = jnp.linalg.cholesky(state.design) if state.design.ndim == 2 else state.design**0.5

    def one(x_D: jax.Array) -> tuple[jax.Array, jax.Array]:
        f, grads = jax.value_and_grad(model.predict)(state.params, x_D)
        g_P = ravel_pytree(grads)[0]
        return f, deviation(root, g_P, settings.lam)

    return jax.lax.map(one, _standardised(state, contexts), batch_size=_CHUNK)


def deviation(root: jax.Array, g_P: jax.Array, lam: float) -> jax.Array:
    """`sqrt(lam * g^T U^-1 g)`.

    Args:
      root: of U; [P], or the lower triangular [P, P] with root root^T = U.
      g_P: one gradient.
      lam: U's ridge.
    """
    if root.ndim == 1:
        scaled_P = g_P / root
    else:
        scaled_P = jax.scipy.linalg.solve_triangular(root, g_P, lower=True)
    return lam**0.5 * jnp.sqrt(jnp.sum(scaled_P**2))


def gradients(settings: Bandit, params: Params, x_ND: jax.Array) -> jax.Array:
    """Of each prediction by all weights, flattened: [N, P] for standardised contexts [N, D]."""
    predict = _MODES[settings.mode].model.predict
    return jax.vmap(lambda x_D: ravel_pytree(jax.grad(predict)(params, x_D))[0])(x_ND)


def add_points(design: jax.Array, g_NP: jax.Array) -> jax.Array:
    """U + sum of g^2 for U [P], U + sum of g g^T for U [P, P]."""
    return design + ((g_NP**2).sum(axis=0) if design.ndim == 1 else g_NP.T @ g_NP)


@partial(jax.jit, static_argnames=("settings", "n"))
def sub_pool(settings: Bandit, state: State, n: int) -> tuple[jax.Array, jax.Array]:
    """Among which arms the next one is selected.

    Returns:
      min(sub_pool, n) different arms of 0..n-1, drawn uniformly among those that may be pulled, and
      bool of the same shape: False for arms that fill up because fewer are left.
    """
    done = jnp.zeros(n, bool).at[state.arms].max(_pulled(state))
    free = jnp.ones_like(done) if settings.repeat_arms else ~done
    luck = jnp.where(free, jax.random.uniform(_round_keys(state)[0], (n,)), -1.0)
    found, among = jax.lax.top_k(luck, min(settings.sub_pool, n))
    return among, found >= 0


@partial(jax.jit, static_argnames="settings")
def _select(settings: Bandit, state: State, contexts: jax.Array) -> jax.Array:
    """-1 when no arm is left."""
    among, free = sub_pool(settings, state, len(contexts))
    f, s = estimate(settings, state, contexts[among])
    score = _MODES[settings.mode].score(f, settings.bonus * s, _round_keys(state)[1])
    best = jnp.argmax(jnp.where(free, score, -jnp.inf))
    return jnp.where(free[best], among[best], -1)


def _round_keys(state: State) -> jax.Array:
    """Of the sub-pool and of the scores."""
    _, key = jax.random.split(jax.random.wrap_key_data(state.seed))
    return jax.random.split(jax.random.fold_in(key, state.count))


@partial(jax.jit, static_argnames="settings")
def _fit(settings: Bandit, state: State, contexts: jax.Array) -> State:
    mask = _pulled(state)
    mine = jnp.asarray(contexts, jnp.float32)[state.arms]
    if settings.standardise == "pulled":
        centre, spread = _moments(mine, mask)
        state = state._replace(centre=centre, spread=spread)
    x_CD = _standardised(state, mine)
    start = _initial(settings, state.seed, contexts.shape[1])
    params = _MODES[settings.mode].model.fit(settings, start, x_CD, state.rewards, mask)
    state = state._replace(params=params)
    if settings.design_points == "recomputed":
        start = _ridge(settings, ravel_pytree(params)[0].size)
        state = state._replace(design=_with_points(settings, start, params, x_CD, mask))
    return state


@partial(jax.jit, static_argnames="settings")
def _accumulate(
    settings: Bandit, state: State, contexts: jax.Array, since: int | jax.Array
) -> State:
    """U with the pulls from `since` on, at the present weights."""
    new = _pulled(state) & (jnp.arange(len(state.arms)) >= since)
    x_CD = _standardised(state, contexts[state.arms])
    design = _with_points(settings, state.design, state.params, x_CD, new)
    return state._replace(design=design)


def _with_points(
    settings: Bandit, design: jax.Array, params: Params, x_CD: jax.Array, mask: jax.Array
) -> jax.Array:
    def add(design: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_D, counts = point
        g_1P = jnp.where(counts, gradients(settings, params, x_D[None]), 0.0)
        return add_points(design, g_1P), None

    return jax.lax.scan(add, design, (x_CD, mask))[0]


def _initial(settings: Bandit, seed: jax.Array, dim: int) -> Params:
    key, _ = jax.random.split(jax.random.wrap_key_data(seed))
    return _MODES[settings.mode].model.init(settings, key, dim)


def _ridge(settings: Bandit, size: int) -> jax.Array:
    full = settings.design == "full" or settings.mode == "linucb"
    return settings.lam * (jnp.eye(size) if full else jnp.ones(size))


def _pulled(state: State) -> jax.Array:
    """Which places of the buffer hold a pull, bool [C]."""
    return jnp.arange(len(state.arms)) < state.count


def _standardised(state: State, contexts: jax.Array) -> jax.Array:
    return (jnp.asarray(contexts, jnp.float32) - state.centre) / state.spread


def _moments(x_ND: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation [D] of the masked rows; 1 where nothing varies."""
    n, rows = mask.sum(), mask[:, None]
    mean = jnp.where(rows, x_ND, 0.0).sum(axis=0) / n
    spread = jnp.sqrt(jnp.where(rows, (x_ND - mean) ** 2, 0.0).sum(axis=0) / n)
    return mean, jnp.where(spread > 1e-6 * (1 + jnp.abs(mean)), spread, 1.0)


class _Mode(NamedTuple):
    model: Model
    score: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """Of predictions [n], weighted deviations [n] and a key."""


_MODES = {
    "ucb": _Mode(NETWORK, lambda f, s, key: f + s),
    "thompson": _Mode(NETWORK, lambda f, s, key: f + s * jax.random.normal(key, f.shape)),
    "greedy": _Mode(NETWORK, lambda f, s, key: f),
    "random": _Mode(NOTHING, lambda f, s, key: jax.random.uniform(key, f.shape)),
    "linucb": _Mode(LINEAR, lambda f, s, key: f + s),
}
