"""Generation: cached decoding is the full forward pass, rows are independent, draws are fair."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxunlearn.errors import UserError
from jaxunlearn.models import decoding, lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.head import head_logits

CONFIG = DecoderConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    tie_embeddings=True,
)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2] * 19, [6, 5, 3, 5], [8, 9, 7, 9, 3, 2]]
NEW = 10


@pytest.fixture(scope="module")
def params():
    params = transformer.init_params(CONFIG, jax.random.key(0))
    # Larger matrices than at the start of a training, so that continuations vary.
    return jax.tree.map(lambda x: jnp.where(x == 1, x, x * 12), params)


@pytest.fixture(scope="module")
def factors(params):
    fresh = lora.init(params, 4, key=jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.1, fresh)


@pytest.fixture(scope="module")
def greedy(params):
    return run(params)


def run(params, prompts=PROMPTS, **options):
    options = {"max_new_tokens": NEW, "stop_tokens": [], **options}
    return generate(CONFIG, params, prompts, **options)


def without_cache(params, prompt, new=NEW, factors=None):
    """Greedy continuation by a whole forward pass per token, padded to one compiled width."""
    forward = jax.jit(transformer.logits, static_argnums=0)
    row = np.zeros((1, 32), np.int32)
    row[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + new):
        row[0, end] = int(forward(CONFIG, params, row, lora=factors)[0, end - 1].argmax())
    return row[0, len(prompt) : len(prompt) + new].tolist()


def test_greedy_equals_whole_forward_passes(params, greedy):
    assert greedy == [without_cache(params, prompt) for prompt in PROMPTS]
    assert len({tuple(row) for row in greedy}) == len(PROMPTS)


def test_an_adapter_takes_part(params, factors, greedy):
    adapted = run(params, lora=factors)
    assert adapted == [without_cache(params, prompt, factors=factors) for prompt in PROMPTS]
    assert adapted != greedy


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.5, 20, 0.9)])
def test_a_row_does_not_depend_on_its_batch(params, sampling):
    together = run(params, sampling=sampling, seed=5)
    assert run(params, sampling=sampling, seed=5, batch_size=1) == together


def test_seeds_and_rows_draw_differently(params):
    same = [[1, 2, 3]] * 4
    rows = run(params, same, sampling=Sampling(2.0), seed=0)
    assert len({tuple(row) for row in rows}) == 4
    assert run(params, same, sampling=Sampling(2.0), seed=0) == rows
    assert run(params, same, sampling=Sampling(2.0), seed=1) != rows


@pytest.mark.parametrize("sampling", [Sampling(3.0, top_k=1), Sampling(3.0, top_p=1e-6)])
def test_the_narrowest_filters_are_greedy(params, greedy, sampling):
    assert run(params, sampling=sampling) == greedy


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(0.7), 61),
        (Sampling(2.0, top_k=5), 5),
        (Sampling(2.0, top_k=8, top_p=0.6), None),
    ],
)
def test_draws_follow_the_filtered_distribution(params, sampling, kept):
    prompt, draws = [3, 1, 4], 4000
    logits = np.asarray(transformer.logits(CONFIG, params, np.array([prompt]))[0, -1], np.float64)
    expected = nucleus(np.exp(logits / sampling.temperature), sampling)
    assert kept is None or (expected > 0).sum() == kept
    rows = run(params, [prompt] * draws, max_new_tokens=1, sampling=sampling, batch_size=draws)
    found = np.bincount([row[0] for row in rows], minlength=61) / draws
    assert not found[expected == 0].any()
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / draws))


def test_a_draw_follows_what_was_drawn_before_it(params):
    """Chi-square of second tokens given the first, by whole forward passes, at temperature 0.8."""
    prompt, draws = [3, 1, 4], 8000
    options = {"max_new_tokens": 2, "sampling": Sampling(0.8), "batch_size": draws, "seed": 11}
    rows = np.array(run(params, [prompt] * draws, **options))
    first = np.bincount(rows[:, 0], minlength=61).argmax()
    second = rows[rows[:, 0] == first, 1]
    for seen, drawn in ((prompt, rows[:, 0]), ([*prompt, first], second)):
        logits = transformer.logits(CONFIG, params, np.array([seen]))[0, -1]
        expected = np.asarray(jax.nn.softmax(logits / 0.8), np.float64) * len(drawn)
        found, rare = np.bincount(drawn, minlength=61), expected < 5
        # Rare tokens are taken together: chi-square needs five of each expected.
        found, expected = (np.append(v[~rare], v[rare].sum()) for v in (found, expected))
        assert len(expected) > 10 and expected.min() >= 5
        expected *= found.sum() / expected.sum()
        assert chisquare(found, expected).pvalue > 0.001
        # The same draws are not fair at another temperature.
        other = np.asarray(jax.nn.softmax(logits), np.float64) * len(drawn)
        other = np.append(other[~rare], other[rare].sum())
        assert chisquare(found, other * found.sum() / other.sum()).pvalue < 0.001


def test_cached_log_probs_are_those_of_the_whole_text(params, greedy):
    """Each step of cached decoding, of rows padded on the left, against one teacher-forced pass."""
    texts = [prompt + new for prompt, new in zip(PROMPTS, greedy, strict=True)]
    width = max(map(len, PROMPTS))
    starts = np.array([width - len(prompt) for prompt in PROMPTS])
    padded = np.zeros((len(texts), width + NEW), np.int32)
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        padded[row, start:] = text
    layers = zip(*(decoding.unstack_layers(t, 2) for t in (params, None)), strict=True)
    step = jax.jit(partial(decoding.forward_cached, CONFIG, params, list(layers), starts=starts))
    hidden, cache = step(
        padded[:, :width],
        decoding.empty_cache(CONFIG, len(texts), width + NEW),
        slot=jnp.int32(0),
    )
    kernel, found = transformer.head_kernel(CONFIG, params), []
    for slot in range(width, width + NEW):
        log_probs = jax.nn.log_softmax(head_logits(hidden[:, -1], kernel, None))
        found.append(log_probs[jnp.arange(len(texts)), padded[:, slot]])
        hidden, cache = step(padded[:, slot, None], cache, slot=jnp.int32(slot))
    whole = np.stack([np.pad(text, (0, padded.shape[1] - len(text))) for text in texts])
    forced = jax.jit(transformer.token_log_probs, static_argnums=0)(CONFIG, params, whole)
    for row, prompt in enumerate(PROMPTS):
        expected = forced[row, len(prompt) : len(prompt) + NEW]
        np.testing.assert_allclose(np.stack(found, 1)[row], expected, rtol=0, atol=1e-4)


def nucleus(weights, sampling):
    """The distribution after top-k, then top-p, one token at a time."""
    order = np.argsort(-weights)[: sampling.top_k or None]
    total, kept, result = weights[order].sum(), 0.0, np.zeros_like(weights)
    for token in order:
        if kept / total < sampling.top_p:
            result[token] = weights[token]
        kept += weights[token]
    return result / result.sum()


def test_a_stop_token_ends_a_row_and_is_left_out(params, greedy):
    stops = [greedy[0][3], greedy[2][0]]
    expected = [
        row[: min((row.index(stop) for stop in stops if stop in row), default=NEW)]
        for row in greedy
    ]
    assert expected[2] == [] and len(expected[0]) <= 3
    assert run(params, stop_tokens=stops) == expected


def test_lengths(params, greedy):
    assert run(params, []) == []
    assert run(params, max_new_tokens=0) == [[]] * len(PROMPTS)
    assert run(params, max_new_tokens=3) == [row[:3] for row in greedy]
    assert [row[:NEW] for row in run(params, max_new_tokens=20)] == greedy


def test_a_prompt_may_fill_the_positions(params):
    prompt = np.arange(54).tolist()
    assert len(run(params, [prompt])[0]) == NEW


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [2] * 55], r"prompt 1 has 55 tokens.*max_new_tokens=10.*64 positions.*54"),
        ([[1], []], "prompt 1 is empty"),
        ([[1, 61]], "prompt 0 holds token ids from 1 to 61.*0 to 60"),
    ],
)
def test_unusable_prompts_are_refused(params, prompts, message):
    with pytest.raises(UserError, match=message):
        run(params, prompts)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_unusable_sampling_is_refused(options):
    with pytest.raises(UserError, match=f"sampling.{next(iter(options))}"):
        Sampling(**options)


def test_changing_numbers_does_not_compile(params):
    run(params, sampling=Sampling(1.0, 3, 0.9), stop_tokens=[0])
    before = decoding.decode._cache_size()
    run(params, sampling=Sampling(0.5, 7, 0.5), stop_tokens=[5], seed=3, max_new_tokens=7)
    run(params, [[1]] * 5, sampling=Sampling(2.0, 0, 0.5), stop_tokens=[7])
    assert decoding.decode._cache_size() == before + 1  # the narrower prompts


def test_stories260k_continues_as_published(stories260k):
    from jaxunlearn.models.loading import load_model

    model = load_model(stories260k)
    text = "Once upon a time, there was a little girl named Lily."
    ids = [1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    new = generate(model.config, model.params, [ids], max_new_tokens=40, stop_tokens=[2])[0]
    published = " She loved to play outside in the park. One day, she saw a big, red ball."
    assert model.tokenizer.decode(ids + new).split("Lily.", 1)[1].startswith(published)


def test_progress_counts_every_prompt_once(params):
    done = []
    run(params, [[1]] * 5, batch_size=2, on_rows=done.append)
    assert sum(done) == 5 and len(done) == 3
