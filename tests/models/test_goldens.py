"""Golden logits of PyTorch transformers, one file or more of every family; needs no PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxunlearn.models import transformer
from jaxunlearn.models.families import FAMILIES, family_of
from jaxunlearn.models.loading import load_model

GOLDENS = sorted(Path(__file__).with_name("goldens").glob("*.safetensors"))


def config_of(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["config.json"])


def unpack(path, folder):
    """Writes the model as a Hugging Face folder; returns tokens and the logits of the last few."""
    tensors = load_file(path)
    tokens, logits = tensors.pop("golden.tokens"), tensors.pop("golden.logits")
    (folder / "config.json").write_text(json.dumps(config_of(path)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tokens, logits


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_logits(path, tmp_path):
    tokens, expected = unpack(path, tmp_path)
    model = load_model(tmp_path)
    logits = transformer.logits(model.config, model.params, tokens)
    np.testing.assert_allclose(logits[:, -expected.shape[1] :], expected, atol=1e-4, rtol=0)


def test_every_family_has_a_golden():
    covered = {id(family_of(config_of(path), path.name)) for path in GOLDENS}
    assert [name for name, family in FAMILIES.items() if id(family) not in covered] == []


def test_goldens_are_small():
    assert max(path.stat().st_size for path in GOLDENS) < 200_000
    assert sum(path.stat().st_size for path in GOLDENS) < 2_500_000
