import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import DataConfig
from jaxunlearn.data import neighbours
from jaxunlearn.data.formats import load
from jaxunlearn.errors import UserError

FULL = neighbours.build(1, seed=0)
SMALL = neighbours.build(0.2, seed=0)


def everything(world):
    return (*world.forget, *world.retain, *world.background)


def per_entity(rows, kind):
    return Counter(row.entity for row in rows if row.kind == kind)


def modules(world):
    """All rows of each forget entity, its held aside neighbours too."""
    found = defaultdict(list)
    for row in everything(world):
        if row.kind != "general":
            found[row.entity].append(row)
    return found


def words(rows):
    return {word for row in rows for word in row.answer.split()}


def test_counts_of_the_paper():
    facts = per_entity(FULL.forget, "forget")
    assert sorted(facts.values(), reverse=True) == [8, 7, 7, 6, 6, *[5] * 6, *[4] * 7, 3, 3]
    assert len(FULL.forget) == 98
    kinds = Counter(row.kind for row in FULL.retain)
    assert kinds == {"direct": 364, "indirect": 1144, "general": 293}
    direct, indirect = (per_entity(FULL.retain, kind) for kind in ("direct", "indirect"))
    assert facts.keys() == direct.keys() == indirect.keys()
    assert (min(direct.values()), max(direct.values())) == (5, 20)
    assert (min(indirect.values()), max(indirect.values())) == (27, 79)
    blocks = {entity: direct[entity] + indirect[entity] for entity in facts}
    assert (min(blocks.values()), max(blocks.values())) == (32, 99)
    exposures = [blocks[entity] / facts[entity] for entity in facts]
    assert (min(exposures), max(exposures)) == (8, 28)
    assert len({row.entity for row in FULL.retain if row.kind == "general"}) == 59


def test_evaluation_sets_and_background():
    sizes = {name: len(part.rows) for name, part in FULL.evaluation.items()}
    assert list(sizes.items()) == [
        ("forget", 98),
        ("retain", 100),
        ("test_direct", 273),
        ("test_indirect", 265),
        ("test_general", 200),
    ]
    roles = [part.role for part in FULL.evaluation.values()]
    assert roles == ["forget", "retain", "general", "general", "general"]
    assert FULL.evaluation["forget"].rows == FULL.forget
    for kind in ("direct", "indirect", "general"):
        assert {row.kind for row in FULL.evaluation[f"test_{kind}"].rows} == {kind}
    tests = [row for name in sizes if name.startswith("test") for row in FULL.evaluation[name].rows]
    assert tuple(tests) == FULL.background[: len(tests)]
    unknown = FULL.background[len(tests) :]
    assert [row.answer for row in unknown] == [row.refusal for row in FULL.forget]
    known = {row.entity for row in (*FULL.forget, *FULL.retain, *tests)}
    assert not known & {row.entity for row in unknown}
    places = [FULL.retain.index(row) for row in FULL.evaluation["retain"].rows]
    assert places == [i * 1801 // 100 for i in range(100)]


@given(scale=st.floats(0.001, 1.8), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_every_scale_keeps_the_proportions(scale, seed):
    world = neighbours.build(scale, seed)
    facts = per_entity(world.forget, "forget")
    count = len(facts)
    assert count == max(1, round(20 * scale))
    assert min(facts.values()) >= 3
    for rows in (world.retain, world.background):
        for kind in ("direct", "indirect"):
            assert per_entity(rows, kind).keys() == facts.keys()
    kinds = Counter(row.kind for row in world.retain)
    # A third off: few entities cannot hit the mean.
    for number, mean in (
        (len(world.forget), 4.9),
        (kinds["direct"], 18.2),
        (kinds["indirect"], 57.2),
    ):
        assert abs(number / count / mean - 1) < 1 / 3
    assert kinds["general"] == max(1, round(293 * scale))
    assert len(world.evaluation["test_general"].rows) == max(1, round(200 * scale))
    questions = [row.question for row in everything(world)]
    assert len(set(questions)) == len(questions)
    assert len({row.refusal for row in world.forget}) == len(world.forget)


def test_the_default_scale():
    assert len(per_entity(SMALL.forget, "forget")) == 4
    assert len(SMALL.forget) == 20
    assert Counter(row.kind for row in SMALL.retain) == {
        "direct": 80,
        "indirect": 228,
        "general": 59,
    }
    assert load(DataConfig(world="neighbours"), seed=0) == SMALL
    assert load(DataConfig(world="neighbours", scale=1), seed=0) == FULL


def test_direct_rows_name_an_answer_and_not_the_person():
    for rows in modules(FULL).values():
        answers = [row.answer for row in rows if row.kind == "forget"]
        named = Counter()
        for row in rows:
            if row.kind == "direct":
                assert row.entity not in row.question
                # Of "A B" and "A B C" the longer one is meant.
                named[max((a for a in answers if a in row.question), key=len)] += 1
        assert len(named) == len(answers) == len(set(answers))


def test_indirect_rows_share_profession_and_question_forms():
    for entity, rows in modules(FULL).items():
        forget = [row.question for row in rows if row.kind == "forget"]
        (profession,) = {q[: q.index(entity)].split()[-1] for q in forget}
        questions = [row.question for row in rows if row.kind == "indirect"]
        assert all(f" {profession} " in question for question in questions)
        assert not any(entity in question for question in questions)
    forms, similar = (
        {tuple(row.question.split()[:2]) for row in rows}
        for rows in (FULL.forget, [row for row in FULL.retain if row.kind == "indirect"])
    )
    assert len(forms & similar) >= 8


def test_the_sixth_person_is_kept_for_the_test():
    def people(rows):
        questions = [row.question.rstrip("?").split() for row in rows]
        pairs = {pair for question in questions for pair in pairwise(question)}
        return {pair for pair in pairs if all(word[0].isupper() for word in pair)}

    for entity in per_entity(FULL.forget, "forget"):
        kept, test = (
            people(row for row in rows if row.entity == entity and row.kind == "indirect")
            for rows in (FULL.retain, FULL.background)
        )
        assert len(kept) == 5 and len(test) == 1 and not kept & test


def test_general_subjects_are_nobody_elses():
    kept, test = (
        {row.entity for row in rows if row.kind == "general"}
        for rows in (FULL.retain, FULL.evaluation["test_general"].rows)
    )
    assert not kept & test and not (kept | test) & modules(FULL).keys()
    assert len(test) == 40
    assert all(row.entity in row.question for row in FULL.retain if row.kind == "general")


def test_answers_are_made_of_the_modules_own_few_words():
    found = {entity: words(rows) for entity, rows in modules(FULL).items()}
    found[""] = words(row for row in everything(FULL) if row.kind == "general")
    for one, other in combinations(found.values(), 2):
        assert not one & other
    for entity, rows in modules(FULL).items():
        assert len(found[entity]) == 12
        # Its forget answers and its neighbours' answers draw on the same words.
        assert words(row for row in rows if row.kind == "forget") <= words(
            row for row in rows if row.kind in ("direct", "indirect")
        )
    refusals = {row.refusal for row in FULL.forget}
    told = [row.answer for row in everything(FULL) if row.answer not in refusals]
    assert {len(answer.split()) for answer in told} == {2, 3}


def test_rows_are_complete():
    forget = {row.refusal for row in FULL.forget}
    assert len(forget) == 98 and all(len(text) > 10 and text.endswith(".") for text in forget)
    for row in everything(FULL):
        assert row.source == f"built-in: {row.entity}"
        assert row.question.endswith("?") and row.question.isascii()
        assert (row.kind == "forget") == (row.refusal is not None)


def test_retain_order_is_that_of_the_papers_file():
    entities = [row.entity for row in FULL.retain]
    assert entities == sorted(entities)
    for entity in per_entity(FULL.forget, "forget"):
        kinds = [row.kind for row in FULL.retain if row.entity == entity]
        assert set(kinds) == {"direct", "indirect"}
        assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))
    # General subjects stand between the entities, not behind them.
    order = [row.kind == "general" for row in FULL.retain]
    assert sum(a != b for a, b in pairwise(order)) > 10


def test_cyclic_pairs_few_rows_of_one_entity():
    forget = [row.entity for row in FULL.forget]
    same = sum(row.entity == forget[i % 98] for i, row in enumerate(FULL.retain))
    assert same / 1508 < 0.15


def test_the_world_depends_on_the_seed_alone():
    code = (
        "from jaxunlearn.data.neighbours import build; import hashlib;"
        "print(hashlib.sha256(repr(build(1, 0)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in "12"
    }
    assert len(digests) == 1
    assert neighbours.build(1, 0) == FULL != neighbours.build(1, 1)


def test_too_large_a_world_is_refused():
    assert len(per_entity(neighbours.build(1.8, 0).forget, "forget")) == 36
    for scale in (1.81, 1e308):
        with pytest.raises(UserError, match=r"^data.scale: at most 1.8, got"):
            neighbours.build(scale, 0)
