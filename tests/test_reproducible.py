"""The same config and seed give the same numbers, bit for bit."""

import json

import jax
import yaml

from tests.conftest import run


def numbers(folder):
    """All logged and evaluated numbers, less those that tell the time."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in log:
        del row["tokens_per_second"]
    evaluations = {
        path.name: json.loads(path.read_text())
        for path in sorted((folder / "evaluations").iterdir())
    }
    return log, evaluations


def test_twice_the_same(capsys, tiny_folder, tmp_path):
    tree = {
        "data": {"people": 6, "forget_people": 2, "holdout_people": 2},
        "model": {"path": str(tiny_folder)},
        "method": {"name": "npo"},
        "adapter": {"rank": 4},
        "training": {"batch_size": 5, "epochs": 3, "learning_rate": 1e-3},
        "evaluation": {"max_new_tokens": 8, "limit": 5},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    found = []
    for name in ("one", "two"):
        status, _, err = run(capsys, "run", tmp_path / "run.yaml", "--output", tmp_path / name)
        assert status == 0, err
        found.append(numbers(tmp_path / name / "run"))
        jax.clear_caches()
    assert found[0] == found[1]
    assert found[0][0] and found[0][1]
    weights = [(tmp_path / n / "run/hf/model.safetensors").read_bytes() for n in ("one", "two")]
    assert weights[0] == weights[1]
