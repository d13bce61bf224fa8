"""Soft prompts: like the `inputs_embeds` of transformers, batched, and never what the head says."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.models import decoding, lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.soft import with_soft_prompts

TIED = DecoderConfig(
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
CONFIGS = {
    "tied": TIED,
    "untied": dataclasses.replace(TIED, tie_embeddings=False),
    "learned positions": dataclasses.replace(TIED, learned_positions=True),
}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2] * 19, [6, 5, 3, 5]]
LENGTH = 3


def random_model(config):
    params = transformer.init_params(config, jax.random.key(0))
    return LanguageModel(config, jax.tree.map(lambda x: jnp.where(x == 1, x, x * 12), params))


@pytest.fixture(scope="module")
def model():
    return random_model(TIED)


def softs(model, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, LENGTH, model.config.hidden_size)).astype(np.float32)


def continued(model, prompts, **options):
    return generate(
        model.config, model.params, prompts, max_new_tokens=8, stop_tokens=[], **options
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_of_the_table_as_soft_prompts_change_nothing(name):
    model = random_model(CONFIGS[name])
    before = [[7, 8, 9], [1, 60, 1], [0, 0, 0], [11, 12, 13]]
    table = np.asarray(model.params["embed"]["embedding"])
    softened, ids = with_soft_prompts(model, table[np.array(before)])
    as_tokens = continued(model, [b + p for b, p in zip(before, PROMPTS, strict=True)])
    assert continued(softened, [i + p for i, p in zip(ids, PROMPTS, strict=True)]) == as_tokens
    assert len(set(map(tuple, as_tokens))) > 1
    tokens, mixed = (np.array([head[0] + PROMPTS[0]]) for head in (before, ids))
    logits = [
        transformer.logits(m.config, m.params, t)
        for m, t in ((model, tokens), (softened, mixed))
    ]  # fmt: skip
    assert logits[1].shape == (1, LENGTH + 5, model.config.vocab_size)
    np.testing.assert_array_equal(*logits)


def test_each_row_has_its_own(model):
    vectors = softs(model, 4)
    softened, ids = with_soft_prompts(model, vectors)
    prompts = [i + p for i, p in zip(ids, PROMPTS, strict=True)]
    together = continued(softened, prompts)
    for row, prompt in enumerate(PROMPTS):
        alone, (own,) = with_soft_prompts(model, vectors[row : row + 1])
        assert continued(alone, [own + prompt]) == [together[row]]
    sampled = continued(softened, prompts, sampling=Sampling(5.0), seed=3)
    assert continued(softened, prompts, sampling=Sampling(5.0), seed=3, batch_size=2) == sampled
    assert max(map(max, sampled)) < model.config.vocab_size


def test_an_adapter_takes_part(model):
    fresh = lora.init(model.params, 4, key=jax.random.key(1))
    factors = jax.tree.map(lambda x: x + 0.1, fresh)
    merged = dataclasses.replace(model, params=lora.merge(model.params, factors))
    results = []
    for there, options in ((model, {"lora": factors}), (merged, {}), (model, {})):
        softened, ids = with_soft_prompts(there, softs(model, 4))
        prompts = [i + p for i, p in zip(ids, PROMPTS, strict=True)]
        results.append(continued(softened, prompts, **options))
    assert results[0] == results[1] != results[2]


def test_other_vectors_use_the_same_program(model):
    programs = []
    for seed in range(2):
        softened, ids = with_soft_prompts(model, softs(model, 2, seed))
        continued(softened, [[*i, 5] for i in ids])
        programs.append(decoding.decode._cache_size())
    assert programs[0] == programs[1]


def test_ids_beyond_the_soft_ones_are_refused(model):
    softened, ids = with_soft_prompts(model, softs(model, 2))
    assert ids == [[61, 62, 63], [64, 65, 66]]
    with pytest.raises(UserError, match="vocabulary has ids 0 to 66"):
        continued(softened, [[67]])


def test_vectors_of_another_size_are_refused(model):
    with pytest.raises(ValueError, match=r"hidden size 32 with 0 soft rows"):
        with_soft_prompts(model, np.zeros((1, 2, 31)))
    with pytest.raises(ValueError, match="with 3 soft rows"):
        with_soft_prompts(with_soft_prompts(model, softs(model, 1))[0], softs(model, 1))


ON_DEVICES = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("here", sys.argv[1])
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
assert here.jax.device_count() == 4
print(json.dumps(here.softly_continued(here.random_model(here.TIED))))
"""


def softly_continued(model):
    softened, ids = with_soft_prompts(model, softs(model, 4))
    prompts = [i + p for i, p in zip(ids, PROMPTS, strict=True)]
    return continued(softened, prompts, sampling=Sampling(1.0), seed=1)


@pytest.mark.slow
def test_several_devices_give_the_same(model):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", ON_DEVICES, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == softly_continued(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2_untied", "gemma", "gemma3_text"])
def test_equals_inputs_embeds_of_transformers(name, tmp_path):
    torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11")
    from jaxunlearn.models.loading import load_model

    spec = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    theirs = zoo.make(name)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    vectors, tokens = softs(model, 2), zoo.random_tokens(2, 9)
    with torch.no_grad():
        embedded = theirs.get_input_embeddings()(torch.from_numpy(tokens).long())
        found = theirs(
            inputs_embeds=torch.cat([torch.from_numpy(vectors), embedded], dim=1),
            output_hidden_states=True,
        )
    softened, ids = with_soft_prompts(model, vectors)
    rows = np.hstack([ids, tokens])
    hidden = transformer.hidden_states(softened.config, softened.params, rows)
    logits = transformer.logits(softened.config, softened.params, rows)
    np.testing.assert_allclose(hidden, found.hidden_states[-1].numpy(), atol=2e-5)
    np.testing.assert_allclose(logits, found.logits.numpy(), atol=2e-5)
