import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data import synthetic
from jaxunlearn.data.formats import load
from jaxunlearn.errors import UserError

WORLD = synthetic.build(40, 4, seed=0)
PEOPLE = (*WORLD.forget, *WORLD.retain)


def test_forget_and_retain_share_no_person_and_no_value():
    forgotten, kept = ({row.entity for row in rows} for rows in (WORLD.forget, WORLD.retain))
    assert (len(forgotten), len(kept)) == (4, 36)
    assert not forgotten & kept
    answers = [row.answer for row in PEOPLE]
    assert len(set(answers)) == len(answers) == 400
    assert {row.kind for row in WORLD.forget} == {"forget"}
    assert {row.kind for row in (*WORLD.retain, *WORLD.background)} == {"general"}
    assert not {row.question for row in WORLD.forget} & {row.question for row in WORLD.retain}


def test_every_person_has_ten_questions_with_the_full_name():
    for row in PEOPLE:
        assert row.entity in row.question and row.question.endswith("?")
    counts = {
        name: sum(row.entity == name for row in PEOPLE) for name in {r.entity for r in PEOPLE}
    }
    assert set(counts.values()) == {10}


def test_both_wordings_of_a_question_are_used():
    first = {row.question.split()[0] + row.question.split()[1] for row in PEOPLE[::10]}
    assert len(first) == 2


def wording(row, text):
    """The words around the value."""
    assert row.paraphrased_answer.count(row.answer) == 1
    before, after = row.paraphrased_answer.split(row.answer)
    assert text.startswith(before) and text.endswith(after)
    return text[len(before) : len(text) - len(after)]


@given(people=st.integers(4, 60), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_perturbed_answers_are_wrong_in_the_wording_of_the_paraphrase(people, seed):
    world = synthetic.build(people, 1, seed)
    rows = (*world.forget, *world.retain)
    for attribute in range(10):
        same = rows[attribute::10]
        true = {row.answer for row in same}
        wrong = {wording(row, text) for row in same for text in row.perturbed_answers}
        assert (len(true), len(wrong)) == (people, 5 * people)
        assert not true & wrong
    assert len({row.entity for row in rows}) == people


def test_general_facts():
    assert list(WORLD.evaluation) == ["forget", "retain", "landmarks", "creatures"]
    for name in ("landmarks", "creatures"):
        part = WORLD.evaluation[name]
        assert part.role == "general" and len(part.rows) == 24
        for row in part.rows:
            assert row.paraphrased_answer is None and len(row.perturbed_answers) == 3
            assert row.answer not in row.perturbed_answers
            assert len(row.answer.split()) <= 2
        assert set(part.rows) <= set(WORLD.background)
    assert len(WORLD.background) == len({row.question for row in WORLD.background}) == 48


def test_retain_evaluation_is_spread_over_people_and_questions():
    rows = WORLD.evaluation["retain"].rows
    assert len(rows) == len(set(rows)) == 100
    assert set(rows) <= set(WORLD.retain)
    assert len({row.entity for row in rows}) == 36
    assert len({WORLD.retain.index(row) % 10 for row in rows}) == 10
    small = synthetic.build(5, 1, seed=0)
    assert small.evaluation["retain"].rows == small.retain
    assert WORLD.evaluation["forget"].rows == WORLD.forget


def test_values_cannot_be_guessed_from_others():
    """ROUGE-L recall between the answers of two people to the same question stays low."""
    same = total = 0
    for attribute in range(10):
        answers = [set(row.answer.lower().split()) for row in PEOPLE[attribute::10]]
        for i, one in enumerate(answers):
            for other in answers[:i]:
                same += len(one & other)
                total += len(one)
    assert same / total < 0.1


def test_the_world_depends_on_the_seed_alone():
    code = (
        "from jaxunlearn.data.synthetic import build; import hashlib;"
        "print(hashlib.sha256(repr(build(40, 4, 0)).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in "12"
    }
    assert len(digests) == 1
    assert synthetic.build(40, 4, 0) == WORLD != synthetic.build(40, 4, 1)
    assert load(DataConfig(), seed=0) == WORLD


def test_too_many_people_are_refused():
    with pytest.raises(UserError, match=r"data.people: at most \d+, got 5000"):
        synthetic.build(5000, 4, seed=0)
    assert len(synthetic.build(1000, 4, seed=0).retain) == 9960


def test_further_people_are_a_holdout_that_nobody_learns():
    data = load(DataConfig(people=6, forget_people=2, holdout_people=3), seed=0)
    rows = data.evaluation["holdout"].rows
    assert data.evaluation["holdout"].role == "holdout"
    assert (len(rows), len(data.forget), len(data.retain)) == (30, 20, 40)
    learned = (*data.forget, *data.retain, *data.background)
    assert not {row.entity for row in rows} & {row.entity for row in learned}
    assert not {row.answer for row in rows} & {row.answer for row in learned}
    assert not {row.key for row in rows} & {row.key for row in learned}
    with pytest.raises(UserError, match=r"at most \d+, got 6 and 9000 in data\.holdout_people"):
        synthetic.build(6, 2, 0, 9000)


def test_without_a_holdout_the_world_is_as_it_was():
    assert "holdout" not in WORLD.evaluation
    assert synthetic.build(40, 4, 0, 0) == WORLD
