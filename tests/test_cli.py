"""The command line as a user meets it: exit codes, one-line errors, and nothing overwritten."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from jaxunlearn import config, config_data
from jaxunlearn.data import formats
from jaxunlearn.runs import RunFolder
from tests.conftest import refused, run

SMALL = {
    "data": {"people": 6, "forget_people": 2, "holdout_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 2, "learning_rate": 3e-3},
    "training": {"epochs": 2, "batch_size": 10},
    "evaluation": {"max_new_tokens": 4, "limit": 6},
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "runs")}))
    return path


def edited(path, **changes):
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def test_lists(capsys):
    firsts = {"methods": "grad_ascent", "samplers": "sequential", "families": "llama"}
    for command, first in firsts.items():
        status, out, _ = run(capsys, command)
        assert status == 0 and out.split()[0] == first
    assert "beta=0.1" in run(capsys, "methods")[1]


def test_a_reader_may_close_the_pipe():
    code = "from jaxunlearn.cli import main; raise SystemExit(main(['methods']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_print_config_is_resolved_and_can_be_loaded(capsys, small, tmp_path):
    status, out, _ = run(capsys, "run", small, "--print-config", "--training.epochs", "7")
    assert status == 0
    settings = yaml.safe_load(out)
    assert settings["training"]["epochs"] == 7 and settings["method"]["beta"] == 0.1
    assert not (tmp_path / "runs").exists()
    small.write_text(out)
    assert yaml.safe_load(run(capsys, "run", small, "--print-config")[1]) == settings


def test_overrides_need_no_config_file(capsys):
    """A value after an override is not taken for the config file."""
    for words in (["--training.epochs", "3"], ["--training.epochs=3"]):
        status, out, _ = run(capsys, "run", *words, "--print-config", "--name", "other")
        settings = yaml.safe_load(out)
        assert status == 0
        assert settings["training"]["epochs"] == 3 and settings["name"] == "other"


def test_generate_continues_a_prompt(capsys, tiny_folder):
    status, out, _ = run(capsys, "generate", tiny_folder, "--prompt", "Who", "--max-new-tokens", 5)
    assert status == 0
    again = run(capsys, "generate", tiny_folder, "--prompt", "Who", "--max-new-tokens", 5)[1]
    assert out == again
    assert run(capsys, "generate", tiny_folder, "--question", "Who?", "--temperature", 1)[0] == 0


def test_convert_both_ways_keeps_every_bit(capsys, tiny_folder, tmp_path):
    assert run(capsys, "convert", tiny_folder, tmp_path / "orbax")[0] == 0
    assert run(capsys, "convert", tmp_path / "orbax", tmp_path / "hf")[0] == 0
    ours = (tmp_path / "hf" / "model.safetensors").read_bytes()
    assert ours == (tiny_folder / "model.safetensors").read_bytes()
    assert "already there" in refused(capsys, "convert", tiny_folder, tmp_path / "hf")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainig.epochs", "3"], ["unknown key trainig", "training"]),
        (["--training.epochs"], ["--training.epochs", "needs a value"]),
        (["--method.beta", "0"], ["method npo", "beta", "greater than 0"]),
        (["--method.beta", "-1"], ["beta"]),
        (["--method.name", "magic"], ["no method 'magic'", "npo"]),
        (["--model.path", "/nowhere/model"], ["/nowhere/model", "no such folder"]),
        (["--method", "npo"], ["method: expected a section of keys"]),
        (["--training.train_only", "nothing"], ["train_only", "matches no parameter"]),
        (["--finetune", "null"], ["model.path", "finetune"]),
        (["--name", "../escape"], ["../escape", "plain folder name"]),
        (["--data.max_length", "5"], ["forget", "longer than 5 tokens"]),
        (["--evaluation.max_new_tokens", "256"], ["max_new_tokens", "no room", "256 positions"]),
    ],
)
def test_bad_settings_stop_before_anything_is_written(capsys, small, tmp_path, arguments, words):
    message = refused(capsys, "run", small, *arguments)
    for word in words:
        assert word in message
    assert not list(tmp_path.glob("runs/*/checkpoints/*/[0-9]*"))


def test_bad_model_folders(capsys, small, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(capsys, "run", small, "--model.path", folder)
    assert "pickle" in message and str(folder) in message
    assert "no such folder" in refused(capsys, "generate", tmp_path / "gone", "--prompt", "a")


def test_malformed_rows_name_file_and_line(capsys, small, tmp_path):
    (tmp_path / "f.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c"\n')
    (tmp_path / "r.jsonl").write_text('{"question": "d", "answer": "e"}\n')
    data = {"format": "jsonl", "path": str(tmp_path), "forget": "f.jsonl", "retain": "r.jsonl"}
    message = refused(capsys, "run", edited(small, data=data))
    assert "f.jsonl:2" in message


def test_a_forget_row_in_retain_is_refused(capsys, small, tmp_path):
    row = '{"question": "a", "answer": "b"}\n'
    (tmp_path / "f.jsonl").write_text(row)
    (tmp_path / "r.jsonl").write_text('{"question": "d", "answer": "e"}\n' + row)
    data = {"format": "jsonl", "path": str(tmp_path), "forget": "f.jsonl", "retain": "r.jsonl"}
    message = refused(capsys, "run", edited(small, data=data))
    assert "f.jsonl:1" in message and "r.jsonl:2" in message


def test_a_folder_in_use_is_refused_and_left_alone(capsys, small, tmp_path):
    place = tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    (place / "precious").write_text("mine")
    assert "not a run folder" in refused(capsys, "run", small)
    assert [entry.name for entry in place.iterdir()] == ["precious"]


def test_an_output_that_is_a_file_is_refused(capsys, small, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, "run", small, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_run_files_are_named(capsys, small, tmp_path):
    place = tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    resolved = run(capsys, "run", small, "--print-config")[1]
    (place / "config.yaml").write_text(resolved)
    (place / "summary.json").write_text("{")
    assert "summary.json: damaged" in refused(capsys, "run", small)


def test_bad_generate_options(capsys, tiny_folder):
    bad = [("--temperature", -1), ("--temperature", "nan"), ("--seed", 2**70), ("--top-p", 0)]
    for option, value in [*bad, ("--top-k", -3), ("--max-new-tokens", 0)]:
        message = refused(capsys, "generate", tiny_folder, "--prompt", "a", option, value)
        assert option.strip("-").replace("-", "_") in message.replace("-", "_")
    assert "999" in refused(
        capsys, "generate", tiny_folder, "--prompt", "a", "--max-new-tokens", 999
    )


def test_lm_eval_names_the_extra_that_it_needs(capsys, tiny_folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxunlearn.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = refused(capsys, "lm-eval", tiny_folder, "--tasks", "arc_easy")
    assert message == "error: lm_eval is not installed; pip install 'jaxunlearn[lm-eval]'"


def test_report_wants_finished_runs(capsys, tmp_path):
    assert "no summary.json" in refused(capsys, "report", tmp_path)
    for text in ("{", "[]", '{"name": "x"}'):
        (tmp_path / "summary.json").write_text(text)
        assert "summary.json" in refused(capsys, "report", tmp_path)
    message = refused(capsys, "report", tmp_path, "--output", tmp_path / "all.md")
    assert "all.md does not end in .html" in message


@pytest.mark.slow
def test_a_run_from_start_to_end(capsys, small, tmp_path):
    """Run, look at every file, run again, refuse another config, evaluate, compare."""
    status, out, err = run(capsys, "run", small)
    assert status == 0, err
    place = tmp_path / "runs" / "small"
    for name in ("target", "retrained", "npo"):
        assert name in out
    summary = json.loads((place / "summary.json").read_text())
    assert list(summary["models"])[:2] == ["target", "retrained"]
    assert summary["models"]["retrained"]["forget_quality"]["value"] == 1.0
    assert summary["models"]["retrained"]["priv_leak"] == {"value": 0.0, "n": 12, "ci": None}
    assert summary["models"]["npo"]["privacy_loss_auc"]["n"] == 12
    assert list(summary["environment"]["data"]) == ["forget", "retain", "holdout"]
    assert set(summary["models"]["npo"]["forget_rouge"]) == {"value", "n", "ci"}
    assert {"jax", "device", "data"} <= set(json.loads((place / "environment.json").read_text()))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["model"] == "npo"]
    assert steps == list(range(1, len(steps) + 1))
    page = (place / "report.html").read_text()
    assert "<script" in page and "Entity by entity" in page and "paired comparisons" in page
    assert "| forget rouge ↓ |" in (place / "report.md").read_text()
    numbers = (place / "report.csv").read_text()
    assert f"small,npo,forget_rouge,{summary['models']['npo']['forget_rouge']['value']}," in numbers
    card = (place / "hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "# small: an unlearned model" in card

    before = (place / "summary.json").read_bytes()
    status, out, _ = run(capsys, "run", small)
    assert status == 0 and "complete already" in out
    message = refused(capsys, "run", small, "--seed", "5")
    assert "already holds a run with another config (differs in seed)" in message
    assert (place / "summary.json").read_bytes() == before

    status, out, _ = run(capsys, "evaluate", place, small, "--json", tmp_path / "numbers.json")
    assert status == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    known = summary["models"]["npo"]
    assert all(numbers[k]["value"] == pytest.approx(known[k]["value"], abs=1e-6) for k in numbers)
    page = tmp_path / "comparison.html"
    assert run(capsys, "report", place, place, "--output", page)[0] == 0
    assert "small (2)" in page.read_text() and "paired comparisons" in page.read_text()
    assert "small (2),npo," in page.with_suffix(".csv").read_text()
    assert page.with_suffix(".md").is_file()
    assert run(capsys, "generate", place, "--question", "Who?")[0] == 0


@pytest.mark.slow
def test_an_adapter_run_exports_adapter_base_and_merged_model(capsys, small, tmp_path):
    status, _, err = run(capsys, "run", small, "--adapter.rank", "2", "--name", "lora")
    assert status == 0, err
    place = tmp_path / "runs" / "lora"
    prompt = ["--prompt", "Question: Who?\nAnswer:"]
    merged = run(capsys, "generate", place / "hf", *prompt)[1]
    assert merged == run(capsys, "generate", place / "adapter", *prompt)[1]
    assert (place / "target" / "model.safetensors").exists()


@pytest.mark.slow
def test_finetune_exports_target_and_retrained(capsys, small, tmp_path):
    status, out, _ = run(capsys, "finetune", small)
    assert status == 0
    for name in ("target", "retrained"):
        folder = tmp_path / "runs" / "small" / name
        assert str(folder) in out
        assert run(capsys, "generate", folder, "--prompt", "a", "--max-new-tokens", 2)[0] == 0


def test_the_environment_has_a_fingerprint_of_every_file_that_is_read(tmp_path):
    (tmp_path / "quiz.jsonl").write_text('{"question": "2+2?", "choices": ["3", "4"], "answer": 1}')
    sets = {"quiz": config_data.SetConfig(str(tmp_path / "quiz.jsonl"))}
    data = config.DataConfig(people=4, forget_people=1, holdout_people=1, sets=sets)
    experiment = config.Experiment(name="run", output=str(tmp_path), data=data)
    folder = RunFolder(experiment)
    folder.create()
    found = folder.write_environment(formats.load(data, 0), None)["data"]
    assert list(found) == ["forget", "retain", "holdout", "quiz"]
    assert found["quiz"].startswith("1 rows, sha256 ")
    assert len(set(found.values())) == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--training.epochs", "1:3"], "training.epochs"),
        (["--seed", "010"], 10),
        (["--name", "123"], "123"),
        (["--name", "2024-01-01"], "2024-01-01"),
        (["--parallel.fsdp", "2"], "fsdp: 2"),
    ],
)
def test_what_is_typed_is_what_is_meant(capsys, tmp_path, words, expected):
    """YAML has numbers in base 60 and 8, and dates; a word gives way to a mesh."""
    config = tmp_path / "mine.yaml"
    config.write_text("parallel: auto\nfinetune: {epochs: 1}\n")
    status, out, err = run(capsys, "run", config, *words, "--print-config")
    if words[1] == "1:3":
        assert status == 2 and expected in err
        return
    assert status == 0, err
    if words[0] == "--parallel.fsdp":
        assert expected in out
    else:
        assert yaml.safe_load(out)[words[0][2:]] == expected
