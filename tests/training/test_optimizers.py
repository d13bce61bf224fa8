"""Optimisers: against optax's own, against the papers' formulas, and never compiled twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.training.optimizers import (
    OPTIMIZERS,
    gauss_newton_bartlett,
    hutchinson,
    perturbed,
    resolve_options,
)

RATE = 1e-2
SHAPES = {
    ("embed", "embedding"): (7, 4),
    ("layers", "dense", "kernel"): (2, 4, 6),
    ("lm_head", "kernel"): (4, 7),
}
VECTORS = {("layers", "dense", "bias"): (2, 6), ("layers", "norm", "scale"): (2, 4)}


def tree(shapes, seed=0):
    """Random parameters, nested by path."""
    random, nested = np.random.default_rng(seed), {}
    for path, shape in shapes.items():
        place = nested
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = jnp.asarray(random.normal(size=shape), jnp.float32)
    return {"params": nested}


def hyper(name, weight_decay=0.1, **options):
    numbers = {**resolve_options(name, options), "weight_decay": weight_decay}
    return {key: jnp.float32(value) for key, value in numbers.items()}


def loss(params):
    """A quartic: gradients of every size and sign, and a diagonal Hessian."""
    return sum(jnp.sum(x**2 + 0.1 * x**4 + x) for x in jax.tree.leaves(params))


def step(name, params, state, numbers, hessian=None):
    """One jitted update with the gradient of `loss`."""
    optimizer = OPTIMIZERS[name]
    if optimizer.estimate is not None and hessian is None:
        hessian = lambda: jax.tree.map(lambda x: 2 + 1.2 * x**2, params)  # noqa: E731
    return optimizer.update(
        jax.grad(loss)(params), state, params, rate=numbers["rate"], hyper=numbers, hessian=hessian
    )


def run(name, params, steps, **options):
    numbers = {**hyper(name, **options), "rate": jnp.float32(RATE)}
    state, advance = OPTIMIZERS[name].init(params), jax.jit(step, static_argnums=0)
    for _ in range(steps):
        params, state = advance(name, params, state, numbers)
    return params, state


def run_optax(optimizer, params, steps):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = jax.jit(optimizer.update)(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def close(ours, theirs, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), ours, theirs)


@pytest.mark.parametrize("name", ["adamw", "sam"])
def test_adamw_is_the_former_step_to_the_bit(name):
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)

    def former(params, state, rate, weight_decay):
        direction, state = adam.update(jax.grad(loss)(params), state)
        spared = {"embedding": True, "kernel": True, "bias": False, "scale": False}
        decays = jax.tree_util.tree_map_with_path(lambda path, _: spared[path[-1].key], params)
        params = jax.tree.map(
            lambda p, d, decayed: p - rate * (d + decayed * weight_decay * p),
            params,
            direction,
            decays,
        )
        return params, state

    start = theirs = tree({**SHAPES, **VECTORS})
    state = adam.init(theirs)
    for _ in range(5):
        theirs, state = jax.jit(former)(theirs, state, jnp.float32(RATE), jnp.float32(0.1))
    ours, our_state = run(name, start, 5)
    jax.tree.map(np.testing.assert_array_equal, (ours, our_state), (theirs, state))


def test_lion_is_optax_lion():
    theirs, _ = run_optax(optax.lion(RATE, b1=0.8, b2=0.95, weight_decay=0.1), tree(SHAPES), 5)
    close(run("lion", tree(SHAPES), 5, b1=0.8, b2=0.95)[0], theirs)


def test_muon_is_optax_muon_on_the_layers_and_nadam_elsewhere():
    factors = {("lora", "dense", "a"): (2, 6, 2), ("lora", "dense", "b"): (2, 2, 4)}
    start = tree({**SHAPES, **factors})
    dimensions = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    muon = optax.contrib.muon(
        RATE,
        beta=0.9,
        weight_decay=0.1,
        adam_weight_decay=0.1,
        consistent_rms=0.3,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: dimensions if x.ndim == 3 else None, params
        ),
    )
    theirs, _ = run_optax(muon, start, 5)
    ours, _ = run("muon", start, 5, beta=0.9, rms=0.3)
    close(ours, theirs)
    nadam, _ = run_optax(optax.nadamw(RATE, weight_decay=0.1), start, 5)
    for part in ("embed", "lm_head"):
        close(ours["params"][part], nadam["params"][part])


def test_muon_moves_matrices_as_far_as_adam_does():
    start = tree({("layers", "kernel"): (2, 24, 32), ("lora", "a"): (2, 32, 4)})
    moved, _ = run("muon", start, 1, weight_decay=0.0)
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(moved), strict=True):
        assert 0.1 < jnp.sqrt(jnp.mean((after - before) ** 2)) / RATE < 0.3


def test_schedule_free_is_optax_schedule_free_and_exports_the_average():
    whole = optax.contrib.schedule_free_adamw(RATE, b1=0.8, b2=0.99, weight_decay=0.1)
    theirs, their_state = run_optax(whole, tree(SHAPES), 5)
    ours, state = run("schedule_free", tree(SHAPES), 5, b1=0.8, b2=0.99)
    close(ours, theirs)
    final = OPTIMIZERS["schedule_free"].final(state, ours)
    close(final, optax.contrib.schedule_free_eval_params(their_state, theirs))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, final, ours)) > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_before_the_first_step_the_start_is_exported(name):
    params = tree(SHAPES)
    final = OPTIMIZERS[name].final(OPTIMIZERS[name].init(params), params)
    jax.tree.map(np.testing.assert_array_equal, final, params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_spares_scales_and_biases(name):
    start = tree({**SHAPES, **VECTORS})
    with_decay, _ = run(name, start, 1, weight_decay=0.5)
    without, _ = run(name, start, 1, weight_decay=0.0)
    for (path, a), b, p in zip(
        jax.tree_util.tree_leaves_with_path(with_decay),
        jax.tree.leaves(without),
        jax.tree.leaves(start),
        strict=True,
    ):
        decayed = 0.0 if path[-1].key in ("scale", "bias") else RATE * 0.5 * p
        np.testing.assert_allclose(b - a, decayed, atol=1e-6)


def test_sophia_by_hand():
    """Two coordinates whose step is clipped, one whose is not, one of negative curvature."""
    x, hessian = np.float32([2.0, -3.0, 0.1, 0.1]), np.float32([0.1, 0.1, 90.0, -5.0])
    options = {"b1": 0.9, "b2": 0.8, "gamma": 0.5, "rho": 0.3, "every": 1}
    numbers = hyper("sophia", **options)
    params, m, h = {"x": jnp.asarray(x)}, np.zeros(4), np.zeros(4)
    state = OPTIMIZERS["sophia"].init(params)
    for _ in range(4):
        grads = {"x": jnp.asarray(hessian * np.asarray(params["x"]))}
        m = 0.9 * m + 0.1 * hessian * x
        h = 0.8 * h + 0.2 * hessian
        whole = m / np.maximum(0.5 * h, 1e-12)
        assert (np.abs(whole) > 0.3).tolist() == [True, True, False, True]
        x = x - RATE * (np.clip(whole, -0.3, 0.3) + 0.1 * x)
        params, state = OPTIMIZERS["sophia"].update(
            grads, state, params, rate=RATE, hyper=numbers, hessian=lambda: {"x": hessian}
        )
        np.testing.assert_allclose(params["x"], x, rtol=1e-5)


def test_sophia_meets_optax_where_the_two_agree():
    """Without momentum nothing is corrected; optax's runs one estimate behind ours."""
    sophia = optax.contrib.sophia(
        1.0, b1=0.0, b2=0.9, eps=1e-12, weight_decay=0.0, gamma=0.5, clip_threshold=0.5,
        update_interval=1,
    )  # fmt: skip
    slope, params = jnp.float32([1.0, 2.0, 3.0]), {"x": jnp.float32([1.0, -2.0, 0.01])}
    quadratic = lambda p: jnp.sum(slope * p["x"] ** 2)  # noqa: E731
    hessian = lambda: hutchinson(params, jax.random.key(0), loss=quadratic)  # noqa: E731
    numbers = hyper("sophia_h", 0.0, b1=0.0, b2=0.9, gamma=0.5, rho=0.5, every=1)
    state, theirs = OPTIMIZERS["sophia_h"].init(params), sophia.init(params)
    _, theirs = sophia.update(jax.grad(quadratic)(params), theirs, params, obj_fn=quadratic)
    for _ in range(4):
        grads = jax.grad(quadratic)(params)
        updates, theirs = sophia.update(grads, theirs, params, obj_fn=quadratic)
        moved, state = OPTIMIZERS["sophia_h"].update(
            grads, state, params, rate=1.0, hyper=numbers, hessian=hessian
        )
        close(moved, optax.apply_updates(params, updates))
        params = moved


def test_hutchinson_is_exact_where_the_hessian_is_diagonal():
    params = tree(SHAPES)
    found = hutchinson(params, jax.random.key(3), loss=loss, sampled_loss=None)
    close(found, jax.tree.map(lambda x: 2 + 1.2 * x**2, params), atol=1e-5)


def test_gauss_newton_bartlett_is_unbiased():
    """On softmax regression the diagonal is mean(x_i^2 p_j (1 - p_j))."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(6, 3)), jnp.float32)
    params = {"kernel": jnp.asarray(random.normal(size=(3, 4)), jnp.float32)}

    def sampled_loss(params, key):
        logits = x @ params["kernel"]
        labels = jax.random.categorical(key, logits)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
        return -log_probs.mean(), len(x)

    def estimate(key):
        return gauss_newton_bartlett(params, key, loss=None, sampled_loss=sampled_loss)["kernel"]

    found = jax.vmap(estimate)(jax.random.split(jax.random.key(1), 4000))
    probs = jax.nn.softmax(x @ params["kernel"])
    exact = jnp.einsum("bi,bj->ij", x**2, probs * (1 - probs)) / len(x)
    error = found.std(0) / len(found) ** 0.5
    assert jnp.all(jnp.abs(found.mean(0) - exact) < 4 * error)
    assert jnp.all(4 * error < 0.15 * exact)


@pytest.mark.parametrize("every", [1, 3])
def test_the_hessian_is_estimated_every_few_steps(every):
    calls = []

    def estimate():
        jax.debug.callback(lambda: calls.append(len(steps)))
        return jax.tree.map(jnp.ones_like, params)

    params, steps = tree(SHAPES), []
    numbers = {**hyper("sophia", every=every), "rate": jnp.float32(RATE)}
    state = OPTIMIZERS["sophia"].init(params)
    advance = jax.jit(lambda p, s, n: step("sophia", p, s, n, estimate))
    for number in range(7):
        params, after = advance(params, state, numbers)
        jax.effects_barrier()
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state.h, after.h)
        assert all(jax.tree.leaves(same)) == (number % every != 0)
        steps.append(number)
        state = after
    assert calls == list(range(0, 7, every))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_number_compiles_anew_and_every_number_counts(name):
    @jax.jit
    def advance(params, state, numbers):
        # A loop, as the training step has: the state must keep its types.
        body = lambda _, carry: step(name, *carry, numbers)  # noqa: E731
        return jax.lax.fori_loop(0, 4, body, (params, state))

    start = tree({**SHAPES, **VECTORS})
    state = OPTIMIZERS[name].init(start)
    numbers = {**hyper(name), "rate": jnp.float32(0.3)}
    if "gamma" in numbers:
        numbers["gamma"] = jnp.float32(3)  # Sophia clips some entries, not all
    base = advance(start, state, numbers)
    for key, value in numbers.items():
        changed = {**numbers, key: jnp.float32(1) if key == "every" else value * jnp.float32(0.7)}
        params, after = advance(start, state, changed)
        if key != "radius":  # of the perturbation, which is the step's
            assert jnp.isfinite(optax.tree.norm(params))
            leaves = zip(*map(jax.tree.leaves, ((params, after), base)), strict=True)
            assert any(bool(jnp.any(a != b)) for a, b in leaves), key
    assert advance._cache_size() == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_arrays_and_can_be_saved(name, tmp_path):
    params, state = run(name, tree({**SHAPES, **VECTORS}), 2)
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert jax.tree.structure(OPTIMIZERS[name].init(params)) == structure
    with ocp.StandardCheckpointer() as store:
        store.save(tmp_path / "state", state)
        store.wait_until_finished()
        restored = store.restore(tmp_path / "state", OPTIMIZERS[name].init(params))
    assert jax.tree.structure(restored) == structure
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    start = tree({**SHAPES, **VECTORS})
    trained, state = run(name, start, 50, weight_decay=0.0)
    assert loss(OPTIMIZERS[name].final(state, trained)) < 0.9 * loss(start)


def test_sam_looks_uphill_at_its_radius():
    params = tree(SHAPES)
    grads = jax.grad(loss)(params)
    there = perturbed(params, grads, jnp.float32(0.05))
    offset = jax.tree.map(jnp.subtract, there, params)
    np.testing.assert_allclose(optax.tree.norm(offset), 0.05, rtol=1e-3)
    cosine = optax.tree.vdot(offset, grads) / (0.05 * optax.tree.norm(grads))
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-3)
    assert loss(there) > loss(params)
    nowhere = perturbed(params, jax.tree.map(jnp.zeros_like, grads), jnp.float32(0.05))
    jax.tree.map(np.testing.assert_array_equal, nowhere, params)


def test_options():
    assert resolve_options("adamw", {}) == {}
    assert resolve_options("sam", {}) == {"radius": 0.01}
    assert resolve_options("sophia", {"rho": 2}) == {
        "b1": 0.96, "b2": 0.99, "gamma": 0.05, "rho": 2.0, "every": 10,
    }  # fmt: skip
    assert resolve_options("sophia_h", {})["gamma"] == 0.01


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {}, "optimizer: there is no 'sgd'; there are: adamw, lion"),
        ("adamw", {"b1": 0.5}, "optimizer adamw: unknown key b1; it has no options"),
        ("sophia", {"gama": 0.5}, "unknown key gama; the closest known key is gamma"),
        ("sophia", {"every": 0}, "every: input should be greater than or equal to 1, found 0"),
        ("lion", {"b2": 1.0}, "b2: input should be less than 1, found 1.0"),
        ("schedule_free", {"b1": 0.0}, "b1: input should be greater than 0, found 0.0"),
        ("sam", {"radius": "far"}, "radius: input should be a valid number"),
        ("muon", {"rms": float("nan")}, "rms: "),
    ],
)
def test_wrong_options_are_one_line(name, options, message):
    with pytest.raises(UserError) as error:
        resolve_options(name, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_without_a_gradient_stay_zeros(name):
    """What holds the layers that an adapter's `targets` leave out."""
    params = {"params": {"a": jnp.zeros((2, 4, 3)).at[0].set(1.0).at[0, 0].set(-2.0)}}
    optimizer, numbers = OPTIMIZERS[name], hyper(name)
    state = optimizer.init(params)
    for _ in range(3):
        slope = jax.tree.map(lambda x: 2 * x, params)
        params, state = optimizer.update(
            slope, state, params, rate=RATE, hyper=numbers, hessian=lambda slope=slope: slope
        )
    found = optimizer.final(state, params)["params"]["a"]
    assert not np.asarray(found[1]).any() and np.asarray(found[0]).any()
