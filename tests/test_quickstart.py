"""The built-in quickstart keeps its promises: who knows what, before and after."""

import pytest

from jaxunlearn import config_file, experiment


@pytest.mark.slow
def test_quickstart(tmp_path):
    settings = config_file.load(None, {"output": str(tmp_path)})
    models = experiment.run(settings)["models"]

    def value(model, metric):
        return models[model][metric]["value"]

    assert list(models) == ["target", "retrained", "grad_diff", "npo"]
    assert value("target", "forget_probability") >= 0.8
    assert value("target", "forget_rouge") >= 0.8
    assert value("retrained", "forget_rouge") <= 0.6 * value("target", "forget_rouge")
    assert value("npo", "forget_rouge") <= value("retrained", "forget_rouge") + 0.15
    assert value("npo", "model_utility") >= 0.9 * value("target", "model_utility")
    assert value("npo", "forget_quality") > value("target", "forget_quality")
    assert (tmp_path / "quickstart" / "hf" / "model.safetensors").exists()
    assert (tmp_path / "quickstart" / "report.html").exists()
