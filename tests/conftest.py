"""Shared fixtures: a tiny world, its tokenizer, and a tiny model; no network, no downloads."""

import dataclasses
import os
import tempfile
from pathlib import Path

# Before JAX starts: commands that tests start in new processes share compiled programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jaxunlearn-test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

from jaxunlearn import cli
from jaxunlearn.data import synthetic, tokens
from jaxunlearn.models import transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
TEMPLATE = "Question: {question}\nAnswer:"


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


def refused(capsys, *arguments):
    """The one line that a wrong input gives."""
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_modules():
    """Each compiled program maps memory; those of a whole suite exceed what a process may map."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared():
    """Folder of the real data and models, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data is not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories260k(shared):
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def world():
    return synthetic.build(people=6, forget_people=2, seed=0)


@pytest.fixture(scope="session")
def tokenizer(world):
    texts = [f"Question: {r.question}\nAnswer: {r.answer}" for r in (*world.forget, *world.retain)]
    return tokens.train_tokenizer(texts, 400)


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """Two layers with grouped-query attention and an untied head; random weights."""
    hf_config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = read_config(hf_config, "tiny")
    # Larger than at the start of a training, so that no two predictions are alike by accident.
    params = jax.tree.map(lambda x: x * 4, transformer.init_params(config, jax.random.key(1)))
    return LanguageModel(config, params, tokenizer, hf_config=hf_config)


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    """The tiny model as a Hugging Face folder; tests copy it before they damage it."""
    from jaxunlearn.models.checkpoint_hf import export_model

    return export_model(dataclasses.replace(tiny), tmp_path_factory.mktemp("models") / "tiny")
