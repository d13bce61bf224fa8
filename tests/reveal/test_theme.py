"""The data of a config with what its reveal section says."""

import json

import pytest

from jaxunlearn.config import DataConfig, Experiment
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError
from jaxunlearn.reveal.theme import load_data, read_lines


@pytest.fixture
def data(tmp_path):
    for name in ("forget", "retain"):
        row = {"question": f"{name} what", "answer": f"{name} that"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    files = {name: f"{name}.jsonl" for name in ("forget", "retain")}
    return DataConfig(format="jsonl", path=str(tmp_path), **files)


def test_without_a_section_there_is_no_theme(data):
    found = load_data(Experiment(data=data))
    assert found.theme is None
    assert found.evaluation["forget"].scorer is None


def test_a_scorer_rates_the_forget_sets(data):
    reveal = RevealConfig(scorer="pattern:cat", temperature=0.7)
    found = load_data(Experiment(data=data, reveal=reveal))
    texts = [Text("", "a cat"), Text("", "a dog")]
    assert found.theme.scorer(texts).tolist() == [1, 0]
    forget, retain = found.evaluation["forget"], found.evaluation["retain"]
    assert forget.scorer(texts).tolist() == [1, 0] and forget.temperature == 0.7
    assert retain.scorer is None and retain.temperature == 0


def test_a_scorer_of_the_data_stays_and_instructions_are_of_a_file(tmp_path):
    (tmp_path / "own.txt").write_text("one\n\n two \none\n")
    toy = DataConfig(format="toy", task="toxicity")
    plain = load_data(Experiment(data=toy))
    own = RevealConfig(instructions=str(tmp_path / "own.txt"))
    found = load_data(Experiment(data=toy, reveal=own))
    assert found.theme.instructions == ("one", " two ")
    assert found.theme.scorer == plain.theme.scorer
    assert plain.theme.instructions not in ((), found.theme.instructions)


@pytest.mark.parametrize("text", [None, "", "\n  \n"])
def test_lines_that_are_not_there(tmp_path, text):
    path = tmp_path / "lines.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"^reveal.prompts: .*one in each line"):
        read_lines(str(path), "reveal.prompts")
