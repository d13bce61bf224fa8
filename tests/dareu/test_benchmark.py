"""The benchmark beside PyTorch: an iteration written anew comes to the same losses."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "rl.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_pytorch_comes_to_the_same_losses(tmp_path, monkeypatch, options):
    for name in ("torch", "peft"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(FILE.parent)  # of the PyTorch side
    spec = importlib.util.spec_from_file_location("rl", FILE)
    rl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rl)
    sizes = ["--hidden", "32", "--prompts", "4", "--tokens", "6", "--repeats", "1"]
    out = tmp_path / "out.jsonl"
    found = rl.main([*sizes, *options, "--output", str(out)])
    assert found["compiled_in_repeats"] == 0
    assert json.loads(out.read_text()) == found
