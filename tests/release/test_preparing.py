"""What would fail only after the first training is refused before it."""

import dataclasses

import pytest

from jaxunlearn import config
from jaxunlearn.config import AdapterConfig, DataConfig, Experiment, MethodConfig
from jaxunlearn.config_reveal import Filters, RevealConfig
from jaxunlearn.data.rows import Row, Text, Theme
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import resolve
from jaxunlearn.release import preparing
from tests.conftest import TEMPLATE

METHOD = MethodConfig("reveal_release")
THEME = Theme(lambda texts: [0.5] * len(texts))


def check(model, world, method=METHOD, theme=THEME, **changes):
    settings = {
        "adapter": AdapterConfig(rank=2),
        "data": DataConfig(template=TEMPLATE),
        "reveal": RevealConfig(max_new_tokens=8),
        **changes,
    }
    data = dataclasses.replace(world, theme=theme)
    preparing.check(model, data, Experiment(**settings), method)


def test_what_is_right_passes(tiny, world):
    check(tiny, world)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": None}, r"^adapter: is missing; .*rank: 8"),
        ({"requests": config.RequestsConfig()}, r"^requests: is for methods that are one training"),
        ({"stop": config.StopConfig(above=2.0)}, r"^stop: is for methods"),
        ({"select": config.SelectConfig("forget_rouge", "min")}, r"^select: is for methods"),
        (
            {"sampling": config.SamplingConfig(match_steps="cyclic")},
            r"^sampling.match_steps: .* a number of steps",
        ),
        ({"theme": None}, r"^reveal.scorer: this data has no scorer .* pattern:REGEX"),
        (
            {"reveal": RevealConfig(proposer="written", max_new_tokens=8)},
            r"^reveal.instructions: is missing",
        ),
        (
            {"reveal": RevealConfig(max_new_tokens=1000)},
            r"^reveal.max_new_tokens: 1000 .* positions",
        ),
        ({"reveal": RevealConfig(prompts="nowhere.txt")}, r"^reveal.prompts: nowhere.txt cannot"),
        (
            {"reveal": RevealConfig(filters=Filters(min_words=3, max_words=2))},
            r"^reveal.filters.max_words: 2 is below min_words, 3",
        ),
        (
            {"method": MethodConfig("reveal_release", {"retain_weight": 0, "forget_weight": 0})},
            r"both 0, which does nothing",
        ),
    ],
)
def test_what_is_wrong_is_refused(tiny, world, changes, words):
    with pytest.raises(UserError, match=words):
        check(tiny, world, **changes)


def test_a_soft_prompt_takes_room(tiny, world):
    room = tiny.config.max_positions - 30
    check(tiny, world, reveal=RevealConfig(max_new_tokens=8, proposer="soft", soft_tokens=5))
    with pytest.raises(UserError, match="positions"):
        check(tiny, world, reveal=RevealConfig(max_new_tokens=8, proposer="soft", soft_tokens=room))


def test_questions_are_those_of_the_forget_rows_once(world):
    data = dataclasses.replace(world, forget=(*world.forget, world.forget[0]))
    found = preparing.questions(RevealConfig(), data)
    assert found == [row.text("") for row in world.forget]


def test_prompts_are_asked_as_the_forget_rows_are(world, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo \n")
    reveal = RevealConfig(prompts=str(tmp_path / "prompts.txt"))
    assert preparing.questions(reveal, world) == [Text("one", ""), Text("two ", "")]
    raw = dataclasses.replace(world, forget=(Row("Once", "upon", raw=True),))
    assert preparing.questions(reveal, raw)[0] == Text("one", "", raw=True)
    stories = dataclasses.replace(world, forget=(Row("", "Once upon"),))
    assert preparing.questions(reveal, stories)[0].raw


def test_the_config_knows_whether_anything_is_revealed(tmp_path):
    method, adapter = MethodConfig("reveal_release"), AdapterConfig()
    made = config.TrainingConfig(epochs=1)
    found = resolve(Experiment(method=method, adapter=adapter, finetune=made))
    assert found.reveal == RevealConfig()
    assert resolve(Experiment(finetune=made)).reveal is None
    with pytest.raises(UserError, match=r"^reveal: no method .* reveal_release does; remove it"):
        resolve(Experiment(finetune=made, reveal=RevealConfig()))
    (tmp_path / "own.py").write_text("def score(texts):\n    return [0.0 for _ in texts]\n")
    own = RevealConfig(scorer=f"{tmp_path}/own.py:score")
    first = resolve(Experiment(method=method, adapter=adapter, finetune=made, reveal=own))
    (tmp_path / "own.py").write_text("def score(texts):\n    return [1.0 for _ in texts]\n")
    second = resolve(Experiment(method=method, adapter=adapter, finetune=made, reveal=own))
    assert first.reveal.scorer_version != second.reveal.scorer_version
    (tmp_path / "prompts.txt").write_text("one\n")
    asked = RevealConfig(prompts=str(tmp_path / "prompts.txt"))
    before = resolve(Experiment(method=method, adapter=adapter, finetune=made, reveal=asked))
    (tmp_path / "prompts.txt").write_text("two\n")
    after = resolve(Experiment(method=method, adapter=adapter, finetune=made, reveal=asked))
    assert before.reveal.files_version != after.reveal.files_version
    nowhere = RevealConfig(scorer="nowhere.py:score")
    with pytest.raises(UserError, match=r"^reveal.scorer: .*nowhere.py"):
        resolve(Experiment(method=method, adapter=adapter, finetune=made, reveal=nowhere))
