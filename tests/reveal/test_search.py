"""The search: what a pull is worth, whose turn it is, and that a killed search goes on exactly."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxunlearn.config_reveal import Bandit, RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.answering import Answers
from jaxunlearn.reveal import bandit
from jaxunlearn.reveal import search as search_module
from jaxunlearn.reveal.candidates import soft, written
from jaxunlearn.reveal.search import search

TEMPLATE = "Question: {question}\nAnswer:"
SETTINGS = RevealConfig(
    outer=2, candidates=16, initial=4, carried=3, pulls=3, soft_tokens=2, dimension=3, samples=4,
    max_new_tokens=6, batch_size=8, bandit=Bandit(width=8, steps=20),
)  # fmt: skip
QUESTIONS = [Text(asked, "") for asked in ("Who is it?", "Where?", "Why?")]
LINES = [f"Say the word {i}." for i in range(5)]


def scorer(texts):
    """More for longer answers."""
    return np.array([min(len(text.answer), 50) / 50 for text in texts])


def run(tiny, settings=SETTINGS, *, proposer=None, score=scorer, say=lambda line: None, **others):
    proposer = proposer or soft(tiny.config.hidden_size, settings, seed=0)
    others = {"questions": QUESTIONS, "template": TEMPLATE, "seed": 1, **others}
    return search(tiny, scorer=score, proposer=proposer, settings=settings, say=say, **others)


def told(found):
    return [(one.candidate.name, *one[1:]) for one in found]


@pytest.fixture
def drawn(monkeypatch):
    """Draws that are made, by candidate, with their questions."""
    calls, real = [], search_module.draw

    def draw(model, candidates, questions, *args, **kwargs):
        calls.append((candidates[0].name, questions))
        return real(model, candidates, questions, *args, **kwargs)

    monkeypatch.setattr(search_module, "draw", draw)
    return calls


@pytest.fixture
def said(monkeypatch):
    """What answers are, instead of the model's: by candidate's name."""
    answers = {}

    def draw(model, candidates, questions, *args, **kwargs):
        texts = answers[candidates[0].name]
        return Answers(texts, 0, [False] * len(texts))

    monkeypatch.setattr(search_module, "draw", draw)
    return answers


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted search and its log."""
    log = tmp_path_factory.mktemp("search") / "log.jsonl"
    return run(tiny, log=log), log.read_bytes()


def test_every_candidate_is_tried_once_and_the_best_comes_first(whole):
    found, log = whole
    names = [one.candidate.name for one in found]
    assert len(set(names)) == len(names) == 2 * (4 + 3)
    assert {name.split("-")[1] for name in names} == {"0", "1"}
    rewards = [one.reward for one in found]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] > rewards[-1]
    assert all(one.candidate.soft.shape == (2, 32) for one in found)
    records = [json.loads(line) for line in log.decode().splitlines()[1:]]
    assert [(r["outer"], r["pull"]) for r in records] == [(o, p) for o in (0, 1) for p in range(7)]
    assert {r["candidate"]: r["reward"] for r in records} == {c: v for c, v, *_ in told(found)}
    assert all(len(r["answers"]) == r["texts"] == 4 for r in records)


@pytest.mark.parametrize("lines", [1, 3, 6, 14])
def test_a_killed_search_goes_on_exactly(tiny, whole, tmp_path, drawn, lines):
    found, bytes_ = whole
    log = tmp_path / "log.jsonl"
    kept = bytes_.splitlines(keepends=True)
    log.write_bytes(b"".join(kept[:lines]) + kept[lines][:40])
    assert told(run(tiny, log=log)) == told(found)
    assert log.read_bytes() == bytes_
    assert len(drawn) == 15 - lines


def test_a_finished_search_draws_nothing(tiny, whole, tmp_path, drawn):
    found, bytes_ = whole
    log = tmp_path / "log.jsonl"
    log.write_bytes(bytes_)
    assert told(run(tiny, log=log)) == told(found) and not drawn
    assert log.read_bytes() == bytes_


def test_a_search_that_was_killed_in_its_first_line(tiny, whole, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(whole[1][:20])
    assert told(run(tiny, log=log)) == told(whole[0])
    assert log.read_bytes() == whole[1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings": dataclasses.replace(SETTINGS, temperature=0.9)}, "settings"),
        ({"settings": dataclasses.replace(SETTINGS, bandit=Bandit(bonus=2.0))}, "settings"),
        ({"questions": QUESTIONS[:2]}, "questions"),
        ({"template": "{question}"}, "template"),
        ({"seed": 2}, "seed"),
        ({"existing": ["a text"]}, "existing texts"),
        ({"proposer": written(LINES, SETTINGS, seed=0)}, "candidates"),
    ],
)
def test_a_log_of_another_search_is_refused(tiny, whole, tmp_path, change, what):
    log = tmp_path / "log.jsonl"
    log.write_bytes(whole[1])
    with pytest.raises(UserError, match=rf"log.jsonl: this log is of a search with other {what};"):
        run(tiny, log=log, **change)
    assert log.read_bytes() == whole[1]


def test_a_log_of_another_model_is_refused(tiny, whole, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(whole[1])
    other = dataclasses.replace(tiny, params=jax.tree.map(lambda x: x * 1.001, tiny.params))
    with pytest.raises(UserError, match="a search with other model;"):
        run(other, log=log)


def test_what_is_not_searched_may_change(tiny, whole, tmp_path, drawn):
    log = tmp_path / "log.jsonl"
    log.write_bytes(whole[1])
    settings = dataclasses.replace(SETTINGS, best=2, rows=7, scorer="pattern:x", batch_size=4)
    assert told(run(tiny, settings, log=log)) == told(whole[0]) and not drawn


@pytest.mark.parametrize("line", [0, 4])
def test_a_damaged_log(tiny, whole, tmp_path, line):
    log = tmp_path / "log.jsonl"
    lines = whole[1].splitlines(keepends=True)
    for damage in (b'{"half": \n', b"[]\n", b"\xff\n"):
        log.write_bytes(b"".join([*lines[:line], damage, *lines[line + 1 :]]))
        with pytest.raises(UserError, match=rf"log.jsonl:{line + 1}: this is no line of a sea"):
            run(tiny, log=log)


def test_a_log_that_comes_to_another_candidate(tiny, whole, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(whole[1].replace(b'"candidate": "soft-1-', b'"candidate": "soft-9-'))
    with pytest.raises(UserError, match=r"pull 0 of round 1 is of soft-9-\d+, but this search com"):
        run(tiny, log=log)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda scores: 1 / 0, "the scorer fails on row 0 of 4 texts: ZeroDivisionError"),
        (lambda scores: [*scores[:2], np.nan, 0], "the scorer gives nan for row 2 of 4 texts"),
        (lambda scores: scores[:3], r"the scorer gives an array of shape \(3,\) for 4 texts"),
    ],
)
def test_a_failing_scorer_loses_nothing(tiny, whole, tmp_path, drawn, fault, words):
    log = tmp_path / "log.jsonl"

    def failing(texts):
        scores = scorer(texts)
        return fault(scores) if len(drawn) == 3 else scores

    for _ in range(2):
        with pytest.raises(UserError, match=words):
            run(tiny, score=failing, log=log)
        records = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        assert [r["reward"] is None for r in records] == [False, False, True]
        assert len(drawn) == 3 and len(records[2]["answers"]) == 4
    assert told(run(tiny, log=log)) == told(whole[0])
    assert len(drawn) == 2 * (4 + 3)


def one_hot(texts):
    return np.array([[text.split()[0] == word for word in "abcd"] for text in texts], float)


def test_what_a_pull_is_worth(tiny, said):
    said |= {"written-0": ["a 1", "a 1", "b 0", "b 0"], "written-1": ["c 0", "c 1", "c 1", "c 1"]}

    def last_digit(texts):
        assert {text._replace(answer="") for text in texts} == set(QUESTIONS)
        return np.array([float(text.answer[-1]) for text in texts])

    settings = dataclasses.replace(SETTINGS, reward_weight=0.25)
    found = run(
        tiny, settings, proposer=written(LINES[:2], settings, seed=0), score=last_digit,
        embed=one_hot,
    )  # fmt: skip
    # Two pairs of equal answers are 2 different ones of 4; four equal ones are 1 of 4.
    by_name = {one.candidate.name: one for one in found}
    first = by_name["written-0"]
    assert first[2:] == pytest.approx((0.5, 1 / 3))
    assert first.reward == pytest.approx(1 / (0.25 / 0.5 + 0.75 * 3))
    assert by_name["written-1"][2:] == pytest.approx((0.75, 0))
    assert by_name["written-1"].reward < 1e-5
    assert [one.candidate.name for one in found] == ["written-0", "written-1"]


def test_diversity_counts_what_is_there_already(tiny, said):
    said |= {"written-0": ["a"] * 4, "written-1": ["b"] * 4}
    found = run(
        tiny, proposer=written(LINES[:2], SETTINGS, seed=0), embed=one_hot,
        existing=["a"] * 9, score=lambda texts: np.ones(4),
    )  # fmt: skip
    # Of 8 texts: all equal, or two equal groups.
    assert [(one.candidate.name, one.diversity) for one in found] == [
        ("written-1", pytest.approx(1 / 7)),
        ("written-0", pytest.approx(0, abs=1e-9)),
    ]


def test_each_question_is_asked_as_often_as_any_other(tiny, drawn):
    settings = dataclasses.replace(SETTINGS, samples=6)
    run(tiny, settings, proposer=written(LINES[:3], settings, seed=0))
    assert all(sorted(questions) == sorted(2 * QUESTIONS) for _, questions in drawn)
    assert len({tuple(questions) for _, questions in drawn}) > 1


def test_the_bandit_starts_from_the_best_so_far(tiny, said, monkeypatch):
    settings = dataclasses.replace(SETTINGS, candidates=50)
    instructions = [f"line {i}" for i in range(14)]
    said |= {f"written-{i}": [f"{w} {i}" for w in "abcd"] for i in range(14)}
    observed, real = [], bandit.observe

    def observe(settings, state, contexts, arms, rewards):
        observed.append((len(contexts), list(rewards)))
        return real(settings, state, contexts, arms, rewards)

    monkeypatch.setattr(bandit, "observe", observe)
    tried = []

    def by_number(texts):
        tried.append((1 + int(texts[0].answer.split()[1])) / 20)
        return np.full(4, tried[-1])

    lines = []
    found = run(
        tiny, settings, proposer=written(instructions, settings, seed=0), score=by_number,
        embed=one_hot, say=lines.append,
    )  # fmt: skip
    assert len(found) == 14 and len(set(tried)) == 14
    rewards = [2 / (1 / r + 1) for r in tried]  # diversity is 1
    starts = [rewards[:4], rewards[:11]]
    carried = [sorted(start, reverse=True)[:3] for start in starts]
    assert [observed[0][1], observed[3][1]] == [pytest.approx(start) for start in carried]
    # The pool: 3 carried, and what was not tried before the bandit: 10 of 14, then 3 of 7.
    assert [observed[0][0], observed[3][0]] == [13, 6]
    assert len(lines) == 4


def test_too_few_written_instructions_are_all_tried(tiny, said):
    said |= {f"written-{i}": [f"{w} {i}" for w in "abcd"] for i in range(5)}
    lines = []
    found = run(
        tiny, proposer=written(LINES, SETTINGS, seed=0), embed=one_hot, say=lines.append
    )  # fmt: skip
    assert len(found) == 5
    assert lines[0].startswith("search: round 0 has 5 candidates that were not tried yet: 4 initi")
    assert "1 of the bandit, not 3" in lines[0]
    assert lines[-1] == "search: no candidate is left for round 1"


def test_answers_are_never_shown(tiny, said, capsys):
    said |= {f"written-{i}": ["unspeakable"] * 4 for i in range(2)}
    lines = []
    run(
        tiny, proposer=written(LINES[:2], SETTINGS, seed=0), say=lines.append,
        embed=lambda texts: np.ones((len(texts), 2)),
    )  # fmt: skip
    assert lines and "unspeakable" not in "".join([*lines, *capsys.readouterr()])


def test_no_question_is_refused(tiny):
    with pytest.raises(UserError, match=r"^reveal: there is no question to ask; name a file"):
        run(tiny, questions=[])
