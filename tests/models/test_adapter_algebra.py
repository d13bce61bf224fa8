"""Adapters as modules: arithmetic on deltas against NumPy, and many adapters in one batch."""

import dataclasses
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import AdapterConfig
from jaxunlearn.errors import UserError
from jaxunlearn.models import adapter_algebra as algebra
from jaxunlearn.models import generate as generate_module
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.adapter_algebra import add, choose, concatenate, delta, stack, subtract
from jaxunlearn.models.lora import Adapter

logits_of = jax.jit(transformer.logits, static_argnums=0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 90, (6, 16)))
PATHS = {"layers/attention/q": (24, 16), "layers/mlp/down": (20, 24)}


def random_adapter(seed, rank=4, scale=1.5, layers=3, dtype=np.float32, paths=PATHS):
    """Both factors random, at two targets of three layers."""
    rng, flat = np.random.default_rng(seed), {}
    for name, (rows, columns) in paths.items():
        flat[(*name.split("/"), "a")] = rng.normal(size=(layers, rows, rank)).astype(dtype)
        flat[(*name.split("/"), "b")] = rng.normal(size=(layers, rank, columns)).astype(dtype)
    return Adapter(_tree(flat), scale)


def _tree(flat):
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def factors_of(adapter, name):
    """a and b of a target in float64."""
    flat = flatten_dict(adapter.factors)
    return [np.asarray(flat[(*name.split("/"), f)], np.float64) for f in "ab"]


def by_hand(adapter, name):
    a, b = factors_of(adapter, name)
    return adapter.scale * np.einsum("lir,lro->lio", a, b)


def found(adapter, name):
    return np.asarray(flatten_dict(delta(adapter))[(*name.split("/"), "kernel")], np.float64)


def random_params(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    flat = {(*name.split("/"), "kernel"): rng.normal(size=(3, *s)) for name, s in PATHS.items()}
    flat |= {("layers", "mlp", "up", "kernel"): rng.normal(size=(3, 4, 4)),
             ("layers", "mlp", "down", "bias"): rng.normal(size=(3, 24))}  # fmt: skip
    return jax.tree.map(lambda x: x.astype(dtype), _tree(flat))


def kernel(params, name):
    return np.asarray(flatten_dict(params)[(*name.split("/"), "kernel")].astype(jnp.float32))


def live_adapter(params, seed, rank=3, targets=None, scale=0.7):
    """An adapter of a model with a branch that changes its logits."""
    factors = lora.init(params, rank, key=jax.random.key(seed), targets=targets)
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32), factors
    )
    return Adapter(noisy, scale)


# Deltas: item 3 of the page's acceptance checks.


@pytest.mark.parametrize("rslora", [False, True])
def test_delta_is_the_scaled_product(rslora):
    config = AdapterConfig(rank=4, alpha=6.0, rslora=rslora)
    adapter = random_adapter(0, rank=4, scale=config.scale)
    a, b = factors_of(adapter, "layers/mlp/down")
    expected = (6 / 2 if rslora else 6 / 4) * np.einsum("lir,lro->lio", a, b)
    np.testing.assert_allclose(found(adapter, "layers/mlp/down"), expected, atol=1e-5)
    assert {x.dtype for x in jax.tree.leaves(delta(adapter))} == {jnp.dtype("float32")}


def test_half_precision_factors_are_multiplied_in_float32():
    adapter = random_adapter(0, scale=0.3)
    half = Adapter(jax.tree.map(lambda x: x.astype(jnp.bfloat16), adapter.factors), 0.3)
    for name in PATHS:
        np.testing.assert_allclose(found(half, name), by_hand(half, name), atol=1e-5)


def test_minus_one_factor_flips_the_delta_and_minus_both_does_not():
    adapter = random_adapter(0)
    flipped = Adapter(lora.scale(adapter.factors, -1.0), adapter.scale)
    both = Adapter(jax.tree.map(jnp.negative, adapter.factors), adapter.scale)
    for name in PATHS:
        np.testing.assert_array_equal(found(flipped, name), -found(adapter, name))
        np.testing.assert_array_equal(found(both, name), found(adapter, name))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_concatenated_delta_is_the_weighted_sum(dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        first = random_adapter(0, rank=4, scale=1.0, dtype=dtype)
        second = random_adapter(1, rank=2, scale=1.0, dtype=dtype)
        joined = concatenate([first, second], [1.0, -0.3])
        for name in PATHS:
            a, _ = factors_of(joined, name)
            assert a.shape[-1] == 6
            expected = by_hand(first, name) - 0.3 * by_hand(second, name)
            size = np.abs(expected).max()
            np.testing.assert_allclose(found(joined, name) / size, expected / size, atol=tolerance)


def test_concatenation_keeps_targets_of_one_adapter_only():
    first = random_adapter(0, paths={"layers/attention/q": (24, 16)})
    joined = concatenate([first, random_adapter(1)], [2.0, -1.0])
    for name, sign in {"layers/attention/q": 2.0, "layers/mlp/down": 0.0}.items():
        own = sign * by_hand(first, name) if sign else 0.0
        np.testing.assert_allclose(
            found(joined, name), own - by_hand(random_adapter(1), name), atol=3e-5
        )


@given(weights=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_adding_the_concatenation_is_adding_one_by_one(weights):
    adapters = [random_adapter(seed, rank=1 + seed) for seed in range(len(weights))]
    params = random_params(0)
    one_by_one = params
    for adapter, weight in zip(adapters, weights, strict=True):
        one_by_one = add(one_by_one, adapter, weight)
    at_once = add(params, concatenate(adapters, weights))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), at_once, one_by_one)


def test_factor_arithmetic_is_not_delta_arithmetic():
    paths = {"layers/attention/q": (96, 96)}
    start, trained = (random_adapter(seed, scale=1.0, paths=paths) for seed in (0, 1))
    (name,) = paths
    right = 2 * by_hand(start, name) - by_hand(trained, name)
    wrong = found(algebra.factor_negate(start, trained), name)
    (a, b), (other_a, other_b) = factors_of(start, name), factors_of(trained, name)
    np.testing.assert_allclose(wrong, (2 * a - other_a) @ (2 * b - other_b), atol=1e-4)
    # With independent parts of equal size |2 S + 2 T - 2 ST - 2 TS| / |2 S - T| = 4 / sqrt 5.
    error = np.linalg.norm(wrong - right) / np.linalg.norm(right)
    assert abs(error - 4 / 5**0.5) < 0.1
    # The page's figure, of sums: |ST + TS| / |S + T| = 1.
    sums = by_hand(start, name) + by_hand(trained, name)
    off = (a + other_a) @ (b + other_b) - sums
    assert abs(np.linalg.norm(off) / np.linalg.norm(sums) - 1) < 0.1


def test_factor_negation_from_zeros_does_not_negate():
    trained = random_adapter(1)
    zeros = Adapter(jax.tree.map(jnp.zeros_like, trained.factors), trained.scale)
    for name in PATHS:
        result = found(algebra.factor_negate(zeros, trained, 0.5), name)
        np.testing.assert_allclose(result, 0.25 * by_hand(trained, name), atol=1e-5)


# Weights.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weight", [1.0, -0.3, 0.0])
def test_add_rounds_once_to_the_dtype_of_the_weights(dtype, weight):
    params, adapter = random_params(0, dtype), random_adapter(1)
    result = add(params, adapter, weight)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype(dtype)}
    for name in PATHS:
        exact = kernel(params, name) + weight * by_hand(adapter, name)
        unit = float(jnp.finfo(dtype).eps) / 2
        allowed = np.abs(exact) * unit * 1.01 + 1e-5
        assert (np.abs(kernel(result, name) - exact) <= allowed).all()
    name = "layers/mlp/up"
    np.testing.assert_array_equal(kernel(result, name), kernel(params, name))


def test_subtract_is_add_of_the_negative():
    params, adapter = random_params(0), random_adapter(1)
    jax.tree.map(
        np.testing.assert_array_equal, subtract(params, adapter, 0.4), add(params, adapter, -0.4)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unmerge(dtype):
    params, adapter = random_params(0, dtype), random_adapter(1)
    merged = add(params, adapter, 0.6)
    exact = algebra.unmerge(merged, adapter, 0.6, base=params)
    jax.tree.map(np.testing.assert_array_equal, exact, params)
    back = algebra.unmerge(merged, adapter, 0.6)
    unit = float(jnp.finfo(dtype).eps) / 2
    for name in PATHS:
        sizes = np.abs(kernel(merged, name)) + np.abs(kernel(back, name))
        error = np.abs(kernel(back, name) - kernel(params, name))
        # The products of float32 are rounded the same way both times.
        assert (error <= unit * sizes * 1.01).all()
        assert dtype == "float32" or error.max() > 0


def test_unmerge_from_the_base_leaves_other_kernels():
    params, adapter = random_params(0), random_adapter(1, paths={"layers/mlp/down": (20, 24)})
    merged = add(add(params, random_adapter(2, paths={"layers/attention/q": (24, 16)})), adapter)
    back = algebra.unmerge(merged, adapter, base=params)
    for name, source in {"layers/mlp/down": params, "layers/attention/q": merged}.items():
        np.testing.assert_array_equal(kernel(back, name), kernel(source, name))


def test_weights_may_be_traced():
    params, adapter = random_params(0), random_adapter(1)
    compiled = jax.jit(lambda weight: add(params, adapter, weight))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
        compiled(jnp.float32(0.3)), add(params, adapter, 0.3),
    )  # fmt: skip


# Ext-Sub: item 4.


def by_hand_without_common(x, y):
    """Output by output on [L, in, out]: x - <x, u> u, and u."""

    def unit(z):
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    u = unit(unit(x) + unit(y))
    return x - (x * u).sum(1, keepdims=True) * u, u


def test_nothing_of_the_common_direction_is_left():
    with jax.enable_x64(True):
        expert, anti = (random_adapter(s, rank=2 + s, dtype=np.float64) for s in (0, 1))
        own = algebra.without_common(anti, expert)
        for name in PATHS:
            expected, u = by_hand_without_common(by_hand(anti, name), by_hand(expert, name))
            removed_from = found(own, name)
            np.testing.assert_allclose(removed_from, expected, atol=1e-12)
            along = (removed_from * u).sum(1) / np.linalg.norm(by_hand(anti, name), axis=1)
            assert np.abs(along).max() < 1e-12
            result = found(algebra.ext_sub(expert, anti, 0.7), name)
            np.testing.assert_allclose(result, by_hand(expert, name) - 0.7 * expected, atol=1e-11)


def test_ext_sub_in_float32():
    expert, anti = random_adapter(0), random_adapter(1)
    for name in PATHS:
        own, _ = by_hand_without_common(by_hand(anti, name), by_hand(expert, name))
        result = found(algebra.ext_sub(expert, anti), name)
        np.testing.assert_allclose(result, by_hand(expert, name) - own, atol=2e-5)


def test_identical_experts_lose_nothing():
    expert = random_adapter(0)
    for name in PATHS:
        result = found(algebra.ext_sub(expert, expert), name)
        np.testing.assert_allclose(result, by_hand(expert, name), atol=1e-5)


def test_negated_ia3_undoes_what_it_did():
    """By hand, and what it adds, l - 1, is that of before times -weight."""
    scaling = {"k": jnp.array([[1.0, 0.5, 1.75]]), "ff": {"up": jnp.array([-1.0])}}
    mirrored = algebra.negate_ia3(scaling)
    np.testing.assert_array_equal(mirrored["k"], [[1.0, 1.5, 0.25]])
    np.testing.assert_array_equal(mirrored["ff"]["up"], [3.0])
    jax.tree.map(np.testing.assert_array_equal, algebra.negate_ia3(mirrored), scaling)
    half = algebra.negate_ia3(scaling, 0.5)
    jax.tree.map(lambda h, x: np.testing.assert_array_equal(h - 1, -0.5 * (x - 1)), half, scaling)
    assert doctest.testmod(algebra).attempted > 0 == doctest.testmod(algebra).failed


def test_opposite_experts_have_nothing_in_common():
    expert = random_adapter(0)
    opposite = Adapter(lora.scale(expert.factors, -1.0), expert.scale)
    for name in PATHS:
        own = found(algebra.without_common(opposite, expert), name)
        np.testing.assert_allclose(own, -by_hand(expert, name), atol=1e-5)


def test_zeros_share_every_direction():
    anti = random_adapter(0)
    zeros = Adapter(lora.scale(anti.factors, 0.0), 1.0)
    for name in PATHS:
        for result in (algebra.without_common(anti, zeros), algebra.without_common(zeros, anti)):
            np.testing.assert_allclose(found(result, name), 0.0, atol=1e-5)


# The random control, and inner products.


def test_inner_products():
    first, second = random_adapter(0, rank=2), random_adapter(1, rank=5)
    products = algebra.inner_products(first, second)
    assert len(products) == 2
    for path, values in products.items():
        one, two = (by_hand(x, "/".join(path)) for x in (first, second))
        size = np.linalg.norm(one) * np.linalg.norm(two)
        np.testing.assert_allclose(values / size, (one * two).sum((1, 2)) / size, atol=1e-6)


def test_random_adapter_has_the_same_norms_and_another_direction():
    adapter = random_adapter(0, rank=3)
    control = algebra.random_like(adapter, key=jax.random.key(0))
    other = algebra.random_like(adapter, key=jax.random.key(1))
    for name in PATHS:
        true, drawn, again = (found(x, name) for x in (adapter, control, other))
        for layer in range(3):
            norm = np.linalg.norm(true[layer])
            np.testing.assert_allclose(np.linalg.norm(drawn[layer]), norm, rtol=1e-5)
            assert np.linalg.matrix_rank(drawn[layer], tol=1e-3) == 3
            assert abs((true[layer] * drawn[layer]).sum()) < 0.3 * norm**2
            assert abs((again[layer] * drawn[layer]).sum()) < 0.3 * norm**2


def test_random_adapter_is_zero_where_the_adapter_is():
    adapter = random_adapter(0)
    half = jax.tree.map(lambda x: x.at[1].set(0.0), adapter.factors)
    drawn = found(algebra.random_like(Adapter(half, 1.0), key=jax.random.key(0)), "layers/mlp/down")
    assert (drawn[1] == 0).all() and np.abs(drawn[0]).max() > 0.1


# Faults.

OTHER = {"layers/attention/q": (24, 17)}
FAULTS = {
    "weights": (
        lambda: concatenate([random_adapter(0)], [1.0, 2.0]), "1 adapters and 2 weights"
    ),
    "nothing": (lambda: concatenate([], []), "0 adapters and 0 weights"),
    "nothing to stack": (lambda: stack([]), "no adapters to stack"),
    "another model": (
        lambda: concatenate([random_adapter(0), random_adapter(1, paths=OTHER)], [1, 1]),
        "adapter 1: its layers/attention/q is for a kernel [3, 24, 17], that of an adapter before "
        "it for [3, 24, 16]",
    ),
    "another model to stack": (
        lambda: stack([random_adapter(0), random_adapter(1, layers=2)]), "for a kernel [2, 24, 16]"
    ),
    "one-sided target": (
        lambda: algebra.without_common(
            random_adapter(0), random_adapter(1, paths={"layers/mlp/down": (20, 24)})
        ),
        "only one of the two adapters has layers/attention/q;",
    ),
    "params of another shape": (
        lambda: add(random_params(0), random_adapter(1, paths=OTHER)),
        "layers/attention/q: the adapter is for a kernel [3, 24, 17], the params have [3, 24, 16]",
    ),
    "params without the kernel": (
        lambda: add(random_params(0), random_adapter(1, paths={"layers/mlp/gate": (20, 24)})),
        "the params have no such kernel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    call, words = FAULTS[fault]
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)


# Many adapters in one batch.


@pytest.fixture(scope="module")
def adapters(tiny):
    """Of different ranks, targets and layers."""
    return [
        live_adapter(tiny.params, 0),
        live_adapter(tiny.params, 1, rank=5, targets="attention/(q|v)", scale=1.3),
        live_adapter(tiny.params, 2, rank=2, targets="layers/1/mlp"),
    ]


CHOICE = np.array([2, -1, 0, 1, 0, 2], np.int32)


@pytest.mark.slow
def test_stacked_equals_one_by_one(tiny, adapters):
    stacked = stack(adapters)
    assert algebra.stacked_count(stacked) == 3
    compiled = jax.jit(
        lambda choice: transformer.logits(
            tiny.config, tiny.params, TOKENS, lora=choose(stacked, choice)
        )
    )
    together = compiled(CHOICE)
    for row, number in enumerate(CHOICE):
        own = None if number < 0 else adapters[number].scaled
        alone = logits_of(tiny.config, tiny.params, TOKENS[row : row + 1], lora=own)
        largest = float(jnp.abs(alone).max())
        np.testing.assert_allclose(together[row] / largest, alone[0] / largest, atol=1e-5)
    # The adapters are told apart by far more than the tolerance.
    for number in range(3):
        other = compiled(np.full(6, number, np.int32))
        assert float(jnp.abs(other[1] - together[1]).max()) > 1e-2


def test_a_choice_outside_gives_nan(tiny, adapters):
    tree = choose(stack(adapters), jnp.array([0, 3, -2, -1, 2, 1]))
    bad = np.isnan(transformer.logits(tiny.config, tiny.params, TOKENS, lora=tree)).any((1, 2))
    assert bad.tolist() == [False, True, True, False, False, False]


@pytest.mark.slow
def test_stacked_adapters_in_deep_and_half_precision_models(tiny, adapters):
    config = dataclasses.replace(tiny.config, dtype="bfloat16", remat="full")
    together = logits_of(
        config, tiny.params, TOKENS, lora=choose(stack(adapters), jnp.asarray(CHOICE))
    )
    for row, number in enumerate(CHOICE):
        own = None if number < 0 else adapters[number].scaled
        alone = logits_of(config, tiny.params, TOKENS[row : row + 1], lora=own)[0]
        difference = np.abs(np.asarray(together[row] - alone))
        assert difference.max() < 0.05 * np.abs(np.asarray(alone)).max()


@pytest.mark.slow
def test_each_prompt_is_continued_under_its_own_adapter(tiny, adapters):
    prompts = [[5, 6, 7], [8], [9] * 20, [5, 6, 7], [4, 3], [5, 6, 7]]
    options = {"max_new_tokens": 8, "stop_tokens": [], "batch_size": 4}
    stacked = stack(adapters)
    together = generate_module.generate(
        tiny.config, tiny.params, prompts, lora=stacked, choice=CHOICE.tolist(), **options
    )
    for row, number in enumerate(CHOICE):
        own = None if number < 0 else adapters[number].scaled
        alone = generate_module.generate(
            tiny.config, tiny.params, [prompts[row]], lora=own, **options
        )
        assert together[row] == alone[0]
    assert len({tuple(together[row]) for row in (0, 3, 5)}) > 1


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ([0], "choice has 1 entries for 2 prompts"),
        ([0, 3], "choice 1 is 3: there are adapters 0 to 2"),
        ([-2, 0], "choice 0 is -2: there are adapters 0 to 2"),
    ],
)
def test_choices_that_cannot_be_taken(tiny, adapters, choice, words):
    with pytest.raises(UserError, match=words):
        generate_module.generate(
            tiny.config, tiny.params, [[1], [2]], lora=stack(adapters), choice=choice,
            max_new_tokens=2, stop_tokens=[],
        )  # fmt: skip


# Targets.


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention/(q|v)", {"attention/q": None, "attention/v": None}),
        ("mlp/down/kernel$", {"mlp/down": None}),
        ("layers/1/mlp/up", {"mlp/up": [1]}),
        ("layers/./mlp/up", {"mlp/up": None}),
    ],
)
def test_targets(tiny, targets, expected):
    whole = flatten_dict(lora.init(tiny.params, 3, key=jax.random.key(0)))
    some = flatten_dict(lora.init(tiny.params, 3, key=jax.random.key(0), targets=targets))
    assert {"/".join(path[1:-1]) for path in some} == set(expected)
    for name, layers in expected.items():
        path = ("layers", *name.split("/"), "a")
        for layer in range(2):
            there = layers is None or layer in layers
            np.testing.assert_array_equal(some[path][layer], whole[path][layer] * there)


def test_targets_that_match_nothing(tiny):
    with pytest.raises(UserError) as caught:
        lora.init(tiny.params, 3, key=jax.random.key(0), targets="q_proj")
    assert "adapter.targets: 'q_proj' matches no parameter" in str(caught.value)
    for name in ("q", "k", "v", "o"):
        assert f"layers/attention/{name}/kernel" in str(caught.value)
    assert "norm" not in str(caught.value)
    with pytest.raises(UserError, match=r"adapter\.targets: not a regular expression"):
        lora.init(tiny.params, 3, key=jax.random.key(0), targets="(")
