"""The update step: exact accumulation, exact masks, no recompilation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from jaxunlearn.config import MethodConfig
from jaxunlearn.methods import orthogonality, registry
from jaxunlearn.models import lora, transformer
from jaxunlearn.training import step as steps
from jaxunlearn.training.statistics import Rows, combine
from jaxunlearn.training.step import StepSpec, init_state, run_steps, update

NUMBERS = {
    "learning_rate": 1e-3, "weight_decay": 0.0, "clip_norm": 1e9, "warmup_steps": 0,
    "total_steps": 100, "run_seed": 0,
}  # fmt: skip


def rows(config, n=32, width=16, seed=0, reference=None):
    """Rows of uneven answers; every fifth row is an empty slot."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, config.vocab_size, (n, width)).astype(np.int32)
    start, end = random.integers(1, 6, n), random.integers(7, width + 1, n)
    places = np.arange(width)[None]
    mask = (places >= start[:, None]) & (places < end[:, None])
    mask[::5] = False
    batch = Rows(jnp.asarray(tokens), jnp.asarray(mask))
    if reference is not None:
        log_probs = transformer.token_log_probs(config, reference, batch.tokens)
        batch = dataclasses.replace(batch, reference_log_probs=log_probs)
    return batch


def problem(model, method="npo", micro_batches=1, hyper=None, **changes):
    """Everything an update takes: params moved off the reference, two groups of rows."""
    objective, own = registry.objective(MethodConfig(name=method, hyper=hyper or {}))
    spec = StepSpec(model.config, objective, "constant", micro_batches)
    moved = jax.tree.map(
        lambda x: x + 0.02 * jax.random.normal(jax.random.key(5), x.shape), model.params
    )
    batch = {
        "forget": rows(model.config, seed=1, reference=model.params),
        "retain": rows(model.config, seed=2),
        "alternative": rows(model.config, seed=3, reference=model.params),
    }
    batch = {group: batch[group] for group in objective.groups}
    numbers = {k: jnp.float32(v) for k, v in {**own, **NUMBERS, **changes}.items()}
    numbers["optimizer"] = {}
    reinforced = jax.tree.map(lambda x: x * 1.1, model.params)
    frozen = {"params": {}, "reference": model.params, "reinforced": reinforced}
    return spec, {"params": moved}, frozen, batch, numbers


def gradient(spec, trainable, frozen, batch, numbers):
    counts = {group: steps._counts(part.mask) for group, part in batch.items()}

    def loss(trainable, batch):
        return steps._loss(spec, trainable, batch, frozen=frozen, counts=counts, hyper=numbers)

    return steps.accumulate(loss, trainable, batch, spec.micro_batches)


@pytest.mark.parametrize(
    "method", ["grad_ascent", "grad_diff", "npo", "kl", "dpo", "rmu", "jensun"]
)
def test_accumulation_equals_the_large_batch(tiny, method):
    # Weights as they are at the start of a training: well conditioned, so that rounding is small.
    params = transformer.init_params(tiny.config, jax.random.key(1))
    model = dataclasses.replace(tiny, params=params)
    compiled = jax.jit(gradient, static_argnums=0)
    (_, whole), grads = compiled(*problem(model, method))
    norm = float(optax.tree.norm(grads))
    for parts in (4, 32):
        (_, losses), same = compiled(*problem(model, method, micro_batches=parts))
        for group in whole:
            np.testing.assert_allclose(losses[group], whole[group], rtol=1e-6, atol=1e-7)
        assert float(optax.tree.norm(optax.tree.sub(same, grads))) <= 1e-6 * norm


def test_loss_is_a_mean_over_answer_tokens(tiny):
    spec, trainable, frozen, batch, numbers = problem(tiny, "grad_diff")
    (loss, losses), _ = gradient(spec, trainable, frozen, batch, numbers)
    by_hand = {}
    for group, part in batch.items():
        log_probs = jax.nn.log_softmax(
            transformer.logits(tiny.config, trainable["params"], part.tokens)
        )
        chosen = [
            float(log_probs[b, t - 1, part.tokens[b, t]])
            for b, t in zip(*np.nonzero(np.asarray(part.mask)), strict=True)
        ]
        by_hand[group] = np.mean(chosen)
    np.testing.assert_allclose(losses["forget"], by_hand["forget"], rtol=1e-5)
    np.testing.assert_allclose(losses["retain"], -by_hand["retain"], rtol=1e-5)
    # A small difference of two numbers near 6.
    np.testing.assert_allclose(loss, by_hand["forget"] - by_hand["retain"], atol=5e-5)


@pytest.mark.parametrize("method", [m for m in registry.METHODS if m not in ("rmu", "gru")])
def test_prompt_and_padding_give_no_gradient(tiny, method, monkeypatch):
    """The gradient of the loss with respect to the logits is zero where no answer is predicted."""
    spec, trainable, frozen, batch, numbers = problem(tiny, method)
    real = transformer.logits
    whole = jnp.concatenate([part.tokens for part in batch.values()])
    mask = np.concatenate([np.asarray(part.mask) for part in batch.values()])
    counts = {group: steps._counts(part.mask) for group, part in batch.items()}

    def loss(change):
        def shifted(config, params, tokens, *, lora=None):
            out = real(config, params, tokens, lora=lora)
            return out + change if tokens.shape == whole.shape else out

        def log_probs(config, params, tokens, *, targets, lora=None):
            picked = jax.nn.log_softmax(shifted(config, params, tokens))[:, :-1]
            picked = jnp.take_along_axis(picked, targets[:, 1:, None], -1)[..., 0]
            return jnp.pad(picked, ((0, 0), (1, 0)))

        monkeypatch.setattr(transformer, "logits", shifted)
        monkeypatch.setattr(transformer, "token_log_probs", log_probs)
        return steps._loss(spec, trainable, batch, frozen=frozen, counts=counts, hyper=numbers)[0]

    zero = jnp.zeros((*whole.shape, tiny.config.vocab_size))
    gradient = np.abs(np.asarray(jax.grad(loss)(zero))).max(-1)
    predicts_answer = np.zeros_like(mask)
    predicts_answer[:, :-1] = mask[:, 1:]
    assert (gradient[~predicts_answer] == 0).all()
    if method != "ceu":  # it skips the first token of each answer
        assert (gradient[predicts_answer] > 0).all()


@pytest.mark.parametrize("method", ["npo", "dpo", "rmu", "ceu", "undial"])
def test_wider_padding_changes_nothing(tiny, method):
    spec, trainable, frozen, batch, numbers = problem(tiny, method)
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 16))), batch)
    (loss, _), _ = gradient(spec, trainable, frozen, batch, numbers)
    (same, _), _ = gradient(spec, trainable, frozen, wide, numbers)
    np.testing.assert_allclose(loss, same, rtol=1e-5)


def test_npo_at_the_reference_is_gradient_ascent_on_sequence_sums(tiny):
    spec, _, frozen, batch, numbers = problem(tiny, "npo", hyper={"retain_loss": "none"}, beta=0.3)
    start = {"params": tiny.params}
    (loss, _), grads = gradient(spec, start, frozen, batch, numbers)
    np.testing.assert_allclose(loss, 2 / 0.3 * np.log(2), rtol=1e-5)
    part = batch["forget"]

    def mean_of_sums(trainable):
        log_probs = transformer.token_log_probs(tiny.config, trainable["params"], part.tokens)
        return jnp.sum(jnp.where(part.mask, log_probs, 0)) / part.mask.any(-1).sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5),
        grads,
        jax.grad(mean_of_sums)(start),
    )


def test_kl_at_the_reference_is_zero(tiny):
    spec, _, frozen, batch, numbers = problem(tiny, "kl")
    (_, losses), _ = gradient(spec, {"params": tiny.params}, frozen, batch, numbers)
    np.testing.assert_allclose(losses["retain"], 0.0, atol=1e-6)


@pytest.mark.parametrize("empty", ["forget", "retain"])
@pytest.mark.parametrize("method", ["scrub", "simnpo"])
def test_a_term_over_no_rows_is_zero_and_has_no_gradient(tiny, method, empty):
    spec, trainable, frozen, batch, numbers = problem(tiny, method)
    none = steps.gather(batch[empty], jnp.full(32, -1))
    gradients = jax.jit(steps._gradients, static_argnums=0)
    (loss, losses), grads = gradients(spec, trainable, frozen, {**batch, empty: none}, numbers)
    assert losses[empty] == 0 and np.isfinite(loss)
    (other,) = set(losses) - {empty}
    terms = tuple(term for term in spec.objective.terms if term.group == other)
    alone = dataclasses.replace(spec, objective=dataclasses.replace(spec.objective, terms=terms))
    _, same = gradients(alone, trainable, frozen, {other: batch[other]}, numbers)
    norm = float(optax.tree.norm(same))
    assert float(optax.tree.norm(optax.tree.sub(grads, same))) <= 1e-5 * norm


def test_hyper_parameters_do_not_recompile(tiny):
    spec, trainable, frozen, batch, numbers = problem(tiny)
    schedule = {group: jnp.tile(jnp.arange(4), (3, 1)) for group in batch}
    steps.steps_in_jit.clear_cache()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(state, hyper, count):
        return steps.steps_in_jit.__wrapped__(spec, state, frozen, batch, schedule, count, hyper)

    losses = set()
    for name, value in [
        ("beta", 0.1), ("beta", 0.5), ("learning_rate", 1e-4), ("retain_weight", 3.0),
        ("weight_decay", 0.1), ("warmup_steps", 7), ("total_steps", 9), ("clip_norm", 0.1),
    ]:  # fmt: skip
        changed = {**numbers, name: jnp.float32(value)}
        _, log = traced(init_state(trainable), changed, np.int32(len(losses) % 2 + 2))
        run_steps(spec, init_state(trainable), frozen, batch, schedule, np.int32(2), changed)
        losses.add(float(log["loss"][1]))
    assert steps.steps_in_jit._cache_size() == 1
    assert len(losses) >= 5  # the changes did change something


def test_one_adamw_step_by_hand(tiny):
    spec, trainable, frozen, batch, numbers = problem(
        tiny, "grad_diff", weight_decay=0.1, clip_norm=0.5, learning_rate=0.01
    )
    (_, _), grads = gradient(spec, trainable, frozen, batch, numbers)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert norm > 0.5
    state, metrics = update(spec, init_state(trainable), frozen, batch, numbers)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    new = state.trainable["params"]
    g = grads["params"]["layers"]["mlp"]["up"]["kernel"] * 0.5 / norm
    # At the first step Adam's direction is g / (|g| + eps).
    kernel = trainable["params"]["layers"]["mlp"]["up"]["kernel"]
    expected = kernel - 0.01 * (g / (jnp.abs(g) + 1e-8) + 0.1 * kernel)
    np.testing.assert_allclose(new["layers"]["mlp"]["up"]["kernel"], expected, atol=2e-5)
    g = grads["params"]["final_norm"]["scale"] * 0.5 / norm
    scale = trainable["params"]["final_norm"]["scale"]
    expected = scale - 0.01 * g / (jnp.abs(g) + 1e-8)  # no decay on norm scales
    np.testing.assert_allclose(new["final_norm"]["scale"], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("constant", [0.5, 1, 1, 1, 1, 1])],
)
def test_learning_rate(decay, expected):
    hyper = {"learning_rate": 1.0, "warmup_steps": 2, "total_steps": 6}
    rates = [float(steps.learning_rate(jnp.int32(i), hyper, decay)) for i in range(6)]
    np.testing.assert_allclose(rates, expected)


def test_cosine_ends_near_zero():
    hyper = {"learning_rate": 1.0, "warmup_steps": 0, "total_steps": 100}
    rates = [float(steps.learning_rate(jnp.int32(i), hyper, "cosine")) for i in (0, 50, 99)]
    np.testing.assert_allclose(rates, [1.0, 0.5, 0.5 * (1 - np.cos(np.pi / 100))], atol=1e-6)


def test_rectified_steps_do_not_raise_the_retain_loss(tiny):
    spec, trainable, frozen, batch, numbers = problem(tiny, "gru")
    # Mostly the same rows: what forgets the ones forgets the others.
    tokens = batch["forget"].tokens.at[:8].set(batch["retain"].tokens[:8])
    batch["retain"] = dataclasses.replace(batch["forget"], tokens=tokens, reference_log_probs=None)
    ascent = StepSpec(tiny.config, registry.objective(MethodConfig("grad_ascent"))[0])
    plain = StepSpec(tiny.config, dataclasses.replace(spec.objective, rectify=None))
    _, forget = steps._gradients(ascent, trainable, frozen, {"forget": batch["forget"]}, numbers)
    only_retain = {**numbers, "forget_weight": jnp.float32(0), "retain_weight": jnp.float32(1)}
    _, retain = steps._gradients(plain, trainable, frozen, batch, only_retain)
    (loss, losses), rectified = steps._gradients(spec, trainable, frozen, batch, numbers)
    assert float(optax.tree.vdot(forget, retain)) < 0
    scale = float(optax.tree.norm(rectified) * optax.tree.norm(retain))
    assert float(optax.tree.vdot(rectified, retain)) >= -1e-5 * scale
    assert float(optax.tree.vdot(rectified, forget)) > 0
    np.testing.assert_allclose(loss, losses["forget"])  # the default retain weight is 0


def test_the_dual_variable_follows_the_retain_loss(tiny):
    spec, trainable, frozen, batch, numbers = problem(tiny, "pdu", tolerance=1.0, dual_rate=2.0)
    state, metrics = update(spec, init_state(trainable, retain_weight=3.0), frozen, batch, numbers)
    expected = 3.0 + 2.0 * (float(metrics["retain_loss"]) - 1.0)
    np.testing.assert_allclose(state.dual, expected, rtol=1e-5)
    weighted = metrics["forget_loss"] + 3.0 * metrics["retain_loss"]
    np.testing.assert_allclose(metrics["loss"], weighted, rtol=1e-5)


def test_compat_counts_all_positions_of_real_rows(tiny):
    hyper = {"compat": "open-unlearning"}
    spec, trainable, frozen, batch, numbers = problem(tiny, "kl", hyper=hyper)
    (_, losses), _ = gradient(spec, trainable, frozen, batch, numbers)
    part, total = batch["retain"], 0.0
    real = np.asarray(part.mask).any(-1)
    log_p, log_q = (
        jax.nn.log_softmax(transformer.logits(tiny.config, params, part.tokens))
        for params in (tiny.params, trainable["params"])
    )
    total = np.sum(np.asarray(jnp.exp(log_p) * (log_p - log_q))[real])
    np.testing.assert_allclose(losses["retain"], total / (real.sum() * 16), rtol=1e-4)


def test_some_layers_of_a_leaf(tiny):
    kernel = tiny.params["layers"]["mlp"]["up"]["kernel"]
    path = {"params": {"layers": {"mlp": {"up": {"kernel": kernel[jnp.array([1])] + 1}}}}}
    frozen = {"params": tiny.params}
    frozen["layers"] = {"params": {"layers": {"mlp": {"up": {"kernel": jnp.array([1])}}}}}
    params, _ = combine(path, frozen)
    new = params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(new[0], kernel[0])
    np.testing.assert_array_equal(new[1], kernel[1] + 1)


def test_gather_empties_unused_slots(tiny):
    table = rows(tiny.config, n=6)
    batch = steps.gather(table, jnp.array([3, -1, 1]))
    np.testing.assert_array_equal(batch.tokens[0], table.tokens[3])
    np.testing.assert_array_equal(batch.mask[2], table.mask[1])
    assert not batch.mask[1].any()


def test_combine_scales_the_adapter(tiny):
    factors = lora.init(tiny.params, 2, key=jax.random.key(0))
    factors = jax.tree.map(lambda x: x + 1.0, factors)
    frozen = {"params": tiny.params, "lora_scale": jnp.float32(3.0)}
    params, scaled = combine({"lora": factors}, frozen)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, tiny.params))
    np.testing.assert_allclose(scaled["layers"]["mlp"]["up"]["b"], 3.0)
    np.testing.assert_array_equal(
        scaled["layers"]["mlp"]["up"]["a"], factors["layers"]["mlp"]["up"]["a"]
    )


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("form", ["abs_sum", "sq_sum", "abs_mean"])
def test_the_penalty_is_added_once_and_reaches_only_the_trained_a(tiny, form, micro_batches):
    """With learning rate r and plain gradients by hand: loss, metric and gradient of the sum."""
    objective = dataclasses.replace(registry.FINETUNE, orthogonality=form)
    spec = StepSpec(tiny.config, objective, "constant", micro_batches)
    plain = dataclasses.replace(spec, objective=registry.FINETUNE)
    other, own = (lora.init(tiny.params, 2, key=jax.random.key(seed)) for seed in (0, 1))
    own = jax.tree.map(lambda x: x + 0.1, own)
    trainable, frozen = {"lora": own}, {"params": tiny.params, "lora_scale": jnp.float32(2.0)}
    apart = {**frozen, "apart_from": other}
    batch = {"train": rows(tiny.config, seed=1)}
    numbers = {**NUMBERS, "orthogonality_weight": jnp.float32(0.3), "optimizer": {}}
    (loss, losses), grads = steps._gradients(spec, trainable, apart, batch, numbers)
    (base, _), without = steps._gradients(plain, trainable, frozen, batch, numbers)
    value, slope = jax.value_and_grad(
        lambda factors: orthogonality.orthogonality_penalty(other, factors, form=form)
    )(own)
    assert value > 0
    np.testing.assert_allclose(losses["orthogonality"], value, rtol=1e-6)
    np.testing.assert_allclose(loss, base + 0.3 * value, rtol=1e-6)
    chex.assert_trees_all_close(
        grads["lora"],
        jax.tree.map(lambda g, s: g + 0.3 * s, without["lora"], slope),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    for path, leaf in flatten_dict(slope).items():
        assert (path[-1] == "a") == bool(jnp.abs(leaf).sum() > 0)
