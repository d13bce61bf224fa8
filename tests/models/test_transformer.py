"""The decoder: causality, layout of its parameters, adapters, rotary scaling, published values."""

import dataclasses
import json
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import Remat
from jaxunlearn.models import attention, head, lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig, LayerKind
from jaxunlearn.models.rope import Llama3, Rope, inverse_frequencies

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)
SCALING = Llama3(8.0, 1.0, 4.0, 32)


logits_of = jax.jit(transformer.logits, static_argnums=0)
log_probs_of = jax.jit(transformer.token_log_probs, static_argnums=0)


def params_of(config, seed=0):
    # Larger matrices than at the start of a training, so that every part has a visible effect.
    params = transformer.init_params(config, jax.random.key(seed))
    return jax.tree.map(lambda x: jnp.where(x == 1, x, x * 10), params)


def tokens_of(config, rows=2, width=12, seed=1):
    return jax.random.randint(jax.random.key(seed), (rows, width), 0, config.vocab_size)


@pytest.fixture(scope="module")
def params():
    return params_of(CONFIG)


def test_params_are_stacked_by_layer():
    config = dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True)
    params = transformer.init_params(config, jax.random.key(0))
    shapes = jax.tree.map(np.shape, params)
    assert set(shapes) == {"embed", "layers", "final_norm", "lm_head"}
    assert shapes["lm_head"] == {"kernel": (32, 61)}
    assert shapes["layers"]["attention_norm"] == {"scale": (3, 32)}
    assert shapes["layers"]["attention"]["k"] == {"kernel": (3, 32, 16), "bias": (3, 16)}
    assert shapes["layers"]["mlp"]["down"] == {"kernel": (3, 48, 32), "bias": (3, 32)}
    kernels = params["layers"]["attention"]["q"]["kernel"]
    assert not jnp.array_equal(kernels[0], kernels[1])
    np.testing.assert_allclose(jnp.std(kernels), 0.02, rtol=0.1)


def test_tied_head_has_no_kernel_of_its_own():
    params = transformer.init_params(
        dataclasses.replace(CONFIG, tie_embeddings=True), jax.random.key(0)
    )
    assert "lm_head" not in params


def test_a_later_token_has_no_effect_on_earlier_log_probs(params):
    # Token 60 stands at one place only, so that its embedding is that place's input.
    place = 7
    tokens = (tokens_of(CONFIG, rows=1) % 60).at[0, place].set(60)

    def log_probs(row):
        table = params["embed"]["embedding"].at[60].set(row)
        changed = {**params, "embed": {"embedding": table}}
        return log_probs_of(CONFIG, changed, tokens)[0]

    slopes = jnp.abs(jax.jit(jax.jacrev(log_probs))(params["embed"]["embedding"][60])).sum(-1)
    assert (slopes[: place + 1] == 0).all()
    assert (slopes[place + 1 :] > 0).all()


def test_padding_on_the_right_changes_nothing(params):
    tokens = tokens_of(CONFIG)
    padded = jnp.pad(tokens, ((0, 0), (0, 5)))
    short = log_probs_of(CONFIG, params, tokens)
    long = log_probs_of(CONFIG, params, padded)
    np.testing.assert_allclose(short, long[:, :12], atol=1e-5)


def test_log_probs_are_those_of_the_softmax(params):
    tokens = tokens_of(CONFIG)
    log_softmax = jax.nn.log_softmax(logits_of(CONFIG, params, tokens))
    expected = [
        [row[t - 1, tokens[b, t]] for t in range(1, 12)] for b, row in enumerate(log_softmax)
    ]
    log_probs = log_probs_of(CONFIG, params, tokens)
    assert (log_probs[:, 0] == 0).all()
    np.testing.assert_allclose(log_probs[:, 1:], expected, atol=1e-5)


def test_the_most_likely_token_is_the_first_of_equals():
    logits = jnp.array(
        [[[0.0, 2.0, 2.0], [1.0, 1.0, 0.0]], [[-jnp.inf, 0.0, 3.0], [5.0, 1.0, 5.0]]]
    )
    assert head.most_likely(logits).tolist() == jnp.argmax(logits, axis=-1).tolist()
    assert head.most_likely(logits[0]).tolist() == [1, 0]


def test_gradient_of_log_probs_is_that_of_autodiff(params):
    tokens, weights = tokens_of(CONFIG), jax.random.normal(jax.random.key(3), (2, 12))

    def ours(params):
        return jnp.sum(weights * log_probs_of(CONFIG, params, tokens))

    def plain(params):
        log_softmax = jax.nn.log_softmax(logits_of(CONFIG, params, tokens)[:, :-1])
        chosen = jnp.take_along_axis(log_softmax, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(weights[:, 1:] * chosen)

    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours))(params), jax.jit(jax.grad(plain))(params), atol=2e-4
    )


def test_log_probs_in_parts_are_the_same(params, monkeypatch):
    tokens = tokens_of(CONFIG)

    def compiled():
        def total(params):
            log_probs = transformer.token_log_probs(CONFIG, params, tokens)
            return jnp.sum(log_probs), log_probs

        return jax.jit(jax.value_and_grad(total, has_aux=True)).lower(params).compile()

    whole = compiled()
    monkeypatch.setattr(head, "MOST_LOGITS", 5 * tokens.shape[0] * CONFIG.vocab_size)
    parts = compiled()
    assert ("[24,61]" in whole.as_text(), "[24,61]" in parts.as_text()) == (True, False)
    chex.assert_trees_all_close(parts(params), whole(params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [64, 96, 600])
def test_attention_in_parts_is_attention(width):
    """One part, two uneven ones, eight; a window, a soft-cap, and heads that share keys."""
    keys = jax.random.split(jax.random.key(0), 3)
    q_BNTH = 3 * jax.random.normal(keys[0], (2, 4, width, 8))
    k_BKTH, v_BKTH = (jax.random.normal(key, (2, 2, width, 8)) for key in keys[1:])
    ago_TT = np.arange(width)[:, None] - np.arange(width)
    mask_BTT = np.stack([ago_TT >= 0, (ago_TT >= 0) & (ago_TT < 20)])
    found, whole = (
        jax.jit(function)(q_BNTH, k_BKTH, v_BKTH, mask_BTT, 5.0)
        for function in (attention.attend_in_parts, attention.attend)
    )
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_a_forward_pass_alone_gives_the_same_logits(params):
    """Layers in a loop, attention in parts; two kinds of layers and a window."""
    kinds = (LayerKind(Rope(500.0)), LayerKind(window=16))
    config = dataclasses.replace(CONFIG, kinds=kinds, kind_of_layer=(1, 0, 1), max_positions=128)
    tokens = tokens_of(config, width=100)
    plain = logits_of(config, params, tokens)
    forward_only = jax.jit(lambda: transformer.logits(config, params, tokens, forward_only=True))
    np.testing.assert_allclose(forward_only(), plain, atol=1e-5)


@pytest.mark.parametrize("policy", get_args(Remat))
@pytest.mark.parametrize("trained", ["params", "adapter"])
def test_rematerialisation_changes_no_gradient(params, policy, trained):
    tokens = tokens_of(CONFIG)
    factors = jax.tree.map(lambda x: x + 0.05, lora.init(params, 4, key=jax.random.key(2)))

    def gradient(config):
        def total(tree):
            params_, lora_ = (tree, None) if trained == "params" else (params, tree)
            return log_probs_of(config, params_, tokens, lora=lora_).sum()

        return jax.jit(jax.grad(total))(params if trained == "params" else factors)

    again = dataclasses.replace(CONFIG, remat=policy)
    chex.assert_trees_all_close(gradient(CONFIG), gradient(again), rtol=1e-4, atol=1e-4)


def test_rematerialisation_stores_less():
    config = dataclasses.replace(CONFIG, num_layers=12, max_positions=256)
    shapes = jax.eval_shape(lambda: (params_of(config), tokens_of(config, rows=8, width=256)))

    def temporary(policy):
        changed = dataclasses.replace(config, remat=policy)
        loss = jax.grad(lambda p, t: transformer.token_log_probs(changed, p, t).sum())
        return jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = map(temporary, ("none", "dots", "full"))
    assert full < dots < none / 3


def test_a_fresh_adapter_changes_nothing(params):
    tokens = tokens_of(CONFIG)
    factors = lora.init(params, 4, key=jax.random.key(2))
    np.testing.assert_array_equal(
        logits_of(CONFIG, params, tokens, lora=factors),
        logits_of(CONFIG, params, tokens),
    )


@pytest.mark.parametrize("kept", ["all", "q and down"])
def test_an_adapter_beside_the_kernels_equals_merged_kernels(params, kept):
    tokens = tokens_of(CONFIG)
    factors = lora.init(params, 4, key=jax.random.key(2))
    factors = jax.tree.map(lambda x: x + 0.05, factors)
    if kept != "all":
        layers = factors["layers"]
        factors = {"layers": {"attention": {"q": layers["attention"]["q"]},
                              "mlp": {"down": layers["mlp"]["down"]}}}  # fmt: skip
    beside = log_probs_of(CONFIG, params, tokens, lora=factors)
    merged = log_probs_of(CONFIG, lora.merge(params, factors), tokens)
    assert not np.allclose(beside, log_probs_of(CONFIG, params, tokens), atol=1e-2)
    np.testing.assert_allclose(beside, merged, atol=2e-5)


def test_vmap_over_adapters_equals_one_at_a_time(params):
    tokens = tokens_of(CONFIG)
    one = lora.init(params, 2, key=jax.random.key(2))
    several = jax.tree.map(lambda x: jnp.stack([x + 0.01, x + 0.05]), one)

    def run(factors):
        return log_probs_of(CONFIG, params, tokens, lora=factors)

    alone = [run(jax.tree.map(lambda x, i=i: x[i], several)) for i in range(2)]
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(several), jnp.stack(alone), atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens = tokens_of(CONFIG)
    hidden = transformer.hidden_states(config, params, tokens)
    logits = logits_of(config, params, tokens)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    exact = logits_of(CONFIG, params, tokens)
    assert jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_rope_scaling_slows_only_low_frequencies():
    plain, _ = inverse_frequencies(Rope(), 32, 64)
    scaled, _ = inverse_frequencies(Rope(scaling=SCALING), 32, 64)
    # The released code's three cases, one frequency at a time.
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * np.pi / before
        if wavelength < 32 / 4.0:
            expected = before
        elif wavelength > 32 / 1.0:
            expected = before / 8.0
        else:
            smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * before / 8.0 + smooth * before
        np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert scaled[0] == plain[0] and scaled[-1] < plain[-1] / 7


def test_published_values_of_stories260k(stories260k, shared):
    from jaxunlearn.models.loading import load_model

    model = load_model(stories260k)
    tokens = np.array(
        [[1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]]
    )
    log_probs = log_probs_of(model.config, model.params, tokens)
    logits = logits_of(model.config, model.params, tokens)[0, -1]
    np.testing.assert_allclose(-log_probs[:, 1:].mean(), 0.10014, atol=2e-5)
    np.testing.assert_allclose(logits[:4], [-3.8517, 4.9812, -3.8526, -3.8520], atol=2e-4)
    assert logits.argmax() == 338


@pytest.mark.slow
def test_mean_nll_of_stories260k_on_its_own_data(stories260k, shared):
    from jaxunlearn.models.loading import load_model

    model = load_model(stories260k)
    lines = (shared / "data/tinystories/stories_valid.jsonl").read_text().splitlines()[:100]
    texts = [json.loads(line)["text"] for line in lines]
    rows = [[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    table = np.zeros((100, 512), np.int32)
    mask = np.zeros((100, 512), bool)
    for i, row in enumerate(rows):
        row = row[:512]
        table[i, : len(row)], mask[i, 1 : len(row)] = row, True
    log_probs = np.concatenate(
        [log_probs_of(model.config, model.params, part) for part in np.split(table, 4)]
    )
    assert mask.sum() == 32598
    np.testing.assert_allclose(-log_probs[mask].mean(), 1.2800, atol=1e-4)
