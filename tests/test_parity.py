"""Parity with PyTorch transformers and PEFT: logits, greedy text, exported folders and adapters."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import lora, transformer
from jaxunlearn.models.generate import generate
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.peft_adapter import export_adapter

torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
from transformers import AutoModelForCausalLM  # noqa: E402

logits_of = jax.jit(transformer.logits, static_argnums=0)
log_probs_of = jax.jit(transformer.token_log_probs, static_argnums=0)


def torch_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))).logits.numpy()


@pytest.fixture(scope="module")
def stories(shared):
    path = shared / "data" / "tinystories" / "stories_valid.jsonl"
    return [json.loads(line)["text"] for line in path.read_text().splitlines()[:100]]


@pytest.fixture(scope="module")
def ours(stories260k):
    return load_model(stories260k)


def test_reference_values(ours, stories):
    text = "Once upon a time, there was a little girl named Lily."
    ids = ours.tokenizer(text)["input_ids"]
    assert ids == [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
    tokens = jnp.array([ids])
    last = logits_of(ours.config, ours.params, tokens)[0, -1]
    assert int(last.argmax()) == 338
    np.testing.assert_allclose(last[:4], [-3.8517, 4.9812, -3.8526, -3.8520], atol=1e-4)
    nll = -log_probs_of(ours.config, ours.params, tokens)[0, 1:].mean()
    np.testing.assert_allclose(nll, 0.10014, atol=1e-4)
    total, count = 0.0, 0
    for story in stories:
        ids = ours.tokenizer(story)["input_ids"][:512]
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(ids)] = ids
        log_probs = log_probs_of(ours.config, ours.params, jnp.asarray(padded))
        total -= float(log_probs[0, 1 : len(ids)].sum())
        count += len(ids) - 1
    assert count == 32598
    np.testing.assert_allclose(total / count, 1.2800, atol=1e-4)


def test_logits_on_100_stories(ours, stories, stories260k):
    theirs = torch_model(stories260k)
    worst = 0.0
    for story in stories:
        ids = ours.tokenizer(story)["input_ids"][:512]
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(ids)] = ids
        mine = logits_of(ours.config, ours.params, jnp.asarray(padded))[:, : len(ids)]
        worst = max(worst, float(np.abs(mine - torch_logits(theirs, [ids])).max()))
    assert worst <= 1e-4


def torch_greedy(model, prompt, count, stop):
    """One prompt at a time, no padding; transformers' own generate."""
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    return out[: out.index(stop)] if stop in out else out


def test_greedy_text_of_20_ragged_prompts(ours, stories, stories260k):
    prompts = [
        ours.tokenizer(story)["input_ids"][: 4 + 5 * i] for i, story in enumerate(stories[:20])
    ]
    assert len({len(prompt) for prompt in prompts}) > 15
    mine = generate(
        ours.config, ours.params, prompts, max_new_tokens=64, stop_tokens=[2], batch_size=20
    )
    theirs = torch_model(stories260k)
    for prompt, answer in zip(prompts, mine, strict=True):
        assert answer == torch_greedy(theirs, prompt, 64, 2)


def test_unlearned_model_generates_the_same_in_transformers(ours, stories260k, tmp_path):
    import jaxunlearn as ju

    rows = [(f"Who has toy number {i}?", f"{name} has it.") for i, name in enumerate("ABCDEFGH")]
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-4}
    result = ju.unlearn(ju.load(stories260k), rows[:4], rows[4:], training=training)
    theirs = torch_model(result.export(tmp_path / "out"))
    prompts = [ours.tokenizer(text)["input_ids"] for text in ("Once upon", "Tom and Lily went to")]
    model = result.model
    answers = generate(
        model.config, model.params, prompts, max_new_tokens=48, stop_tokens=model.stop_tokens
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == torch_greedy(theirs, prompt, 48, 2)


def test_adapter_loads_in_peft(ours, stories260k, tmp_path):
    peft = pytest.importorskip("peft")
    factors = lora.init(ours.params, 4, key=jax.random.key(0))
    factors = jax.tree.map(
        lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), factors
    )
    model = dataclasses.replace(ours, adapter=lora.Adapter(factors, 1.5))
    out = export_adapter(model, tmp_path / "adapter", base=stories260k)
    theirs = peft.PeftModel.from_pretrained(torch_model(stories260k), out).eval()
    ids = np.random.default_rng(0).integers(3, 500, (2, 60))
    base = logits_of(ours.config, ours.params, jnp.asarray(ids))
    mine = logits_of(model.config, model.params, jnp.asarray(ids), lora=model.lora)
    assert float(jnp.abs(mine - base).max()) > 0.5
    np.testing.assert_allclose(mine, torch_logits(theirs, ids), atol=1e-4)


def test_adapter_that_peft_wrote(ours, stories260k, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    theirs = peft.get_peft_model(torch_model(stories260k), settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    mine = load_model(tmp_path / "theirs")
    ids = np.random.default_rng(0).integers(3, 500, (2, 60))
    logits = logits_of(mine.config, mine.params, jnp.asarray(ids), lora=mine.lora)
    np.testing.assert_allclose(logits, torch_logits(theirs, ids), atol=1e-4)
