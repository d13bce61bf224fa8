"""A run on a base in int8: what is measured, written and refused."""

import dataclasses
import shutil

import numpy as np
import pytest
import yaml

from jaxunlearn import config_file, experiment
from jaxunlearn.models import transformer
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.peft_adapter import export_adapter
from jaxunlearn.models.starting import base_model
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.run_modules import open_run
from tests.conftest import refused, run
from tests.models.test_lora import TOKENS, noisy

CONFIG = {
    "name": "small",
    "data": {"people": 6, "forget_people": 2},
    "adapter": {"rank": 3, "alpha": 50},
    "method": {"name": "npo"},
    "training": {"epochs": 2, "batch_size": 10, "learning_rate": 3e-3},
    "evaluation": {"max_new_tokens": 4, "limit": 6},
}


def written(folder, path, **changes):
    """The config file of a run on the model at `path`."""
    model = {"path": str(path), "quantize": "int8"}
    config = {**CONFIG, "output": str(folder / "runs"), "model": model, **changes}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.slow
def test_what_is_written_is_what_was_measured(tiny_folder, tmp_path):
    settings = config_file.load(written(tmp_path, tiny_folder))
    summary = experiment.run(settings)
    place = tmp_path / "runs" / "small"
    exported = load_model(place / "hf")
    metrics = experiment.evaluate(exported, settings).metrics
    told = summary["models"]["npo"]
    for name in ("forget_probability", "retain_probability", "forget_rouge"):
        np.testing.assert_allclose(metrics[name]["value"], told[name]["value"], rtol=1e-4)
    target = summary["models"]["target"]["forget_probability"]["value"]
    assert abs(told["forget_probability"]["value"] / target - 1) > 0.01
    # The adapter beside its base in int8, as PEFT's folder and as the run's module.
    assert (place / "adapter" / "adapter_config.json").is_file()
    modules = open_run(place)
    models = [
        exported,
        load_model(place / "adapter", quantize="int8"),
        modules.model(modules.weights({})),
    ]
    logits = [transformer.logits(m.config, m.params, TOKENS, lora=m.lora) for m in models]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-4)
    # The run's start model is the quantised one, not that of the folder.
    plain, start = load_model(tiny_folder), base_model(settings, load_data(settings))
    gap = np.abs(
        np.subtract(*(transformer.logits(m.config, m.params, TOKENS) for m in (plain, start)))
    )
    assert gap.max() > 1e-3


@pytest.fixture
def weightless(tiny_folder, tmp_path):
    """A model folder whose weights cannot be read: what is refused is refused before."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adapter": None},
            "model.quantize: weights in int8 cannot be trained; add an adapter section",
        ),
        ({"finetune": {"epochs": 1}}, "fine-tune without it (jaxunlearn finetune)"),
        ({"requests": {"size": 1}}, "requests would merge one adapter after another"),
        ({"method": {"name": "reveal_release"}}, "reveal_release would merge one adapter"),
        (
            {"attribution": {"function": {"kind": "tracin"}}},
            "weights in int8 have no gradients, and attribution.function: tracin",
        ),
        ({"training": {"train_only": "mlp"}}, "training.train_only: cannot be combined"),
        ({"model": {"quantize": "int8"}}, "quantize is for a model that is loaded; give its path"),
        ({"model": {"path": "m", "quantize": "int4"}}, "model.quantize"),
    ],
)
def test_refused(capsys, weightless, tmp_path, changes, said):
    file = written(tmp_path, weightless, **changes)
    for command in (["run", file], ["plan", file]):
        assert said in refused(capsys, *command)
    assert not (tmp_path / "runs").exists()


def test_an_adapter_is_no_base(capsys, tiny, tiny_folder, tmp_path):
    from jaxunlearn.models.lora import Adapter

    model = dataclasses.replace(tiny, adapter=Adapter(noisy(tiny.params), 0.5))
    folder = export_adapter(model, tmp_path / "adapter", base=tiny_folder)
    file = written(tmp_path, folder)
    for command in (["run", file], ["plan", file]):
        line = refused(capsys, *command)
        assert "is an adapter" in line and f"jaxunlearn convert {folder} NEW" in line
    # What it says mends it.
    merged = tmp_path / "merged"
    assert run(capsys, "convert", folder, merged)[0] == 0
    assert run(capsys, "plan", written(tmp_path, merged))[0] == 0
