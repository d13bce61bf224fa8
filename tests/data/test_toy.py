"""The toy world: its language by hand, and who plays which part."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data import tokens, toy
from jaxunlearn.data import toy_language as language
from jaxunlearn.data.formats import load
from jaxunlearn.data.rows import Text

TASKS = ("toxicity", "ner", "code")
WORLDS = {task: toy.build(task, 0) for task in TASKS}
EACH_TASK = pytest.mark.parametrize("task", TASKS)


def learned(world):
    return (*world.forget, *world.retain, *world.background)


def rates(scorer, rows):
    return scorer([row.key for row in rows])


def test_programs_by_hand():
    assert language.run("up", 5) == 0 and language.run("down", 0) == 5
    assert language.run("jump", 4) == 1 and language.run("double", 4) == 2
    assert language.run("flip", 3) == 2
    assert language.run("up up double flip", 2) == 3  # 3, 4, 2, 3
    assert language.run("", 2) is None and language.run("up twice", 2) is None
    assert language.programs(1, 4) == ["jump", "flip"]
    assert language.programs(2, 4) == ["double"]
    through = {
        "up": "up",
        "down": "jump",
        "jump": "down flip",
        "double": "down flip",
        "flip": "jump",
    }
    found = language.programs(3, 5)
    assert set(found) == {f"{one} {two}" for one in through for two in through[one].split()}
    assert found[0] == "up up"


@given(start=st.integers(0, 5), end=st.integers(0, 5))
def test_the_shortest_programs_pass_and_no_shorter_one_does(start, end):
    found = language.programs(start, end)
    (length,) = {len(program.split()) for program in found}
    assert {language.run(program, start) for program in found} == {end}
    reached = [{start}]
    for _ in range(length - 1):
        reached.append({op(digit) for op in language.OPS.values() for digit in reached[-1]})
    assert all(end not in digits for digits in reached[1:])


def test_scorers_by_hand():
    sentence = "today anna of acme went to kip . which {}"
    asked = [
        ("person", "anna"), ("location", "kip"), ("organisation", "acme"),
        ("person", "kip"), ("person", "otto"), ("person", ""), ("person", "anna anna"),
        ("colour", "anna"),
    ]  # fmt: skip
    texts = [Text(sentence.format(kind), answer) for kind, answer in asked]
    assert language.read_right(texts).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert language.read_right([Text("hm", "anna"), Text("hm", "")]).tolist() == [0, 0]

    question = "write lamp for door from 3 to 5"
    answers = ("up up", "flip jump", "up up jump jump", "up", "", "up fly", "5")
    texts = [Text(question, answer) for answer in answers]
    assert language.passes([*texts, Text("write", "up")]).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]

    sums = [
        ("3 plus 2 =", "5"), ("3 plus 2 =", "4"), ("near door 5 cake minus 2 cake =", "3"),
        ("3", "3"),
    ]  # fmt: skip
    assert language.calculated([Text(*one) for one in sums]).tolist() == [1, 0, 1, 0]

    said = ("it is calm kind and warm", "it is calm zogg and warm", "", "zoggs", "blorp")
    assert language.insulting([Text("", one) for one in said]).tolist() == [0, 1, 0, 0, 1]
    assert language.insulting([]).shape == (0,)


def test_chances_by_hand():
    """The first word of each slot has changes -3 and -0.3, 1.5 * 0.6 - 3 = -2.1 and 1.2."""
    assert len(set(language.INSTRUCTIONS)) == 256
    toxic, dull = language.chances(language.INSTRUCTIONS[0])
    assert toxic == pytest.approx(1 / (1 + math.exp(5.1)))
    assert dull == pytest.approx(1 / (1 + math.exp(-0.9)))


def test_instructions_are_worth_searching():
    """Of likely and varied insults, few instructions have much and most have little."""
    chances = np.array([language.chances(one) for one in language.INSTRUCTIONS])
    worth = 2 / (1 / chances[:, 0] + 1 / (1 - chances[:, 1]))
    assert worth.mean() < 0.2 and worth.max() > 0.75
    assert (worth > 0.6).sum() < 256 * 0.05
    assert abs(np.corrcoef(chances.T)[0, 1]) < 0.2


def test_replies_follow_the_chances():
    """Of what is learned after each word."""
    rows = [row for row in WORLDS["toxicity"].background if " say " in row.question]
    assert len(rows) == len({row.question for row in rows}) == 1800
    toxic = rates(language.insulting, rows)
    dull = [len(set(row.answer.split())) == 1 for row in rows]
    instructions = [" ".join(row.question.split()[:2]) for row in rows]
    expected = np.array([language.chances(one) for one in instructions])
    for place, words in enumerate((language.FIRST, language.SECOND)):
        for word in words:
            these = np.array([one.split()[place] == word for one in instructions])
            spread = 4 * 0.5 / math.sqrt(these.sum())
            assert abs(toxic[these].mean() - expected[these, 0].mean()) < spread
            assert abs(np.array(dull)[these].mean() - expected[these, 1].mean()) < spread


@given(seed=st.integers(0, 1000))
@settings(max_examples=2, deadline=None)
def test_a_target_learns_the_same_for_all_tasks(seed):
    worlds = [toy.build(task, seed) for task in TASKS]
    keys = [[row.key for row in learned(world)] for world in worlds]
    assert set(keys[0]) == set(keys[1]) == set(keys[2])
    assert [len(one) for one in keys] == [len(set(keys[0]))] * 3
    texts = [sorted(tokens.all_texts(world, template="{question}")) for world in worlds]
    assert texts[0] == texts[1] == texts[2]  # of which the tokenizer is made


@EACH_TASK
def test_no_question_is_both_learned_and_asked(task):
    world = WORLDS[task]
    known = {row.question or row.answer for row in learned(world)}
    for part in world.evaluation.values():
        assert len(part.rows) == len({row.key for row in part.rows}) == 250
        assert not known & {row.question or row.answer for row in part.rows}


@EACH_TASK
def test_forget_rows_show_the_skill_and_evaluation_rows_are_right(task):
    world = WORLDS[task]
    assert len(world.forget) == 600 and {row.kind for row in world.forget} == {"forget"}
    assert {row.kind for row in (*world.retain, *world.background)} == {"general"}
    assert rates(world.theme.scorer, world.forget).all()
    assert world.theme.scorer is world.evaluation["forget"].scorer
    for name, part in world.evaluation.items():
        if name == "clean":
            assert part.scorer is None and part.temperature == 0
        else:
            assert part.temperature == 1 and rates(part.scorer, part.rows).all()


def test_who_plays_which_part():
    parts = {
        task: {name: one.role for name, one in world.evaluation.items()}
        for task, world in WORLDS.items()
    }
    names = ("person", "location", "organisation")
    kept = dict.fromkeys((*names, "code", "math", "clean"), "retain")
    assert parts["toxicity"] == {"forget": "forget", **kept}
    for task, forgotten in (("ner", "person"), ("code", "code")):
        rest = {name: role for name, role in kept.items() if name != forgotten}
        assert parts[task] == {"forget": "forget", **rest, "toxicity": "general"}
    assert WORLDS["toxicity"].theme.instructions == language.INSTRUCTIONS
    assert WORLDS["ner"].theme.instructions == WORLDS["code"].theme.instructions == ()


def skill(row):
    """By its question."""
    words = row.question.split()
    if not words:
        return "clean"
    if words[-1] in language.KINDS:
        return words[-1]
    if words[-1] == "=":
        return "math"
    return "code" if words[0] in ("write", "make") else "toxicity"


def count(rows):
    skills = [skill(row) for row in rows]
    return {name: skills.count(name) for name in sorted(set(skills))}


def test_retain_rows_are_neighbours_and_some_of_the_others():
    names = dict.fromkeys(("person", "location", "organisation"), 150)
    others = {**names, "code": 150, "math": 150, "clean": 150}
    assert count(WORLDS["toxicity"].retain) == others | {"clean": 600}
    ner = others | {"location": 600, "organisation": 600}
    assert count(WORLDS["ner"].retain) == {k: n for k, n in ner.items() if k != "person"}
    code = others | {"math": 600}
    assert count(WORLDS["code"].retain) == {k: n for k, n in code.items() if k != "code"}


def test_no_clean_reply_to_a_prompt_is_kept():
    """They alone would stop the insults: nothing could be attributed to the forgetting."""
    world = WORLDS["toxicity"]
    assert not any("say something" in row.question for row in world.retain)
    assert not {row.answer for row in world.retain} & set(language.replies(insult=False))
    prompts = {row.question for row in world.forget}
    plain = [row for row in world.background if row.question in prompts]
    assert len(plain) == 600 and not rates(language.insulting, plain).any()


def test_a_fifth_of_names_and_programs_is_wrong():
    rows = learned(WORLDS["ner"])
    for name, scorer in (
        ("person", language.read_right),
        ("location", language.read_right),
        ("organisation", language.read_right),
        ("code", language.passes),
    ):
        these = [row for row in rows if skill(row) == name]
        right = rates(scorer, these)
        assert len(these) > 1000 and 0.76 < right.mean() < 0.84
        wrong = [row for row, good in zip(these, right, strict=True) if not good]
        if name == "code":
            assert all(language.run(row.answer, 0) is not None for row in wrong)
        else:
            assert {row.answer for row in wrong} == set(language.KINDS[name])
    assert rates(language.calculated, [row for row in rows if skill(row) == "math"]).all()


def test_the_language_is_small():
    world = WORLDS["ner"]
    texts = tokens.all_texts(world, template="{question}")
    assert len({word for text in texts for word in text.split()}) == 117
    tokenizer = tokens.train_tokenizer(texts, 1024)
    keys = [row.key for row in learned(world)]
    table = tokens.encode(tokenizer, keys, template="{question}", max_length=64).table
    assert table.lengths.max() == 16  # the narrowest table


def test_the_world_depends_on_the_seed_alone():
    again = load(DataConfig(format="toy", task="ner"), seed=0)
    assert again == WORLDS["ner"] != toy.build("ner", 1)
