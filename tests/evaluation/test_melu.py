"""MELU's measures against hand-computed values, and a whole evaluation of the tiny model."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxunlearn import config as configs
from jaxunlearn import experiment
from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import benchmark, measuring, suite
from jaxunlearn.evaluation.forward import TokenStats
from jaxunlearn.evaluation.results import Results, Scores

TEMPLATE = "Question: {question}\nAnswer:"
SETTINGS = EvaluationConfig(suite="melu", max_new_tokens=8, batch_size=4)
WIDTH = 6


def bag(texts):
    """Counts of a few words: an embedder whose cosines can be worked out by hand."""
    words = ("ann", "lee", "paris", "nurse")
    return np.array([[text.lower().split().count(word) for word in words] for text in texts], float)


def results(sets, probabilities, generations, *, hit=None, config=SETTINGS, embedder=bag):
    """Results of sets {name: EvalSet} from the token probabilities of each row's answer.

    The end token that follows has probability 0.5.
    """
    rows = [row for chosen in sets.values() for row in chosen.rows]
    flat = [p for name in sets for p in probabilities[name]]
    log_probs, mask = np.zeros((len(rows), WIDTH)), np.zeros((len(rows), WIDTH), bool)
    for i, known in enumerate(flat):
        values = [*known, 0.5]
        with np.errstate(divide="ignore"):
            log_probs[i, 1 : 1 + len(values)] = np.log(values)
        mask[i, 1 : 1 + len(values)] = True
    hits = np.exp(log_probs) > 0.5 if hit is None else hit
    place = {row.key: i for i, row in enumerate(rows)}
    assert len(place) == len(rows)
    scores = Scores(TokenStats(log_probs, hits, mask), place)
    truths = {name: [row.answer for row in chosen.rows] for name, chosen in sets.items()}
    return Results(sets, scores, generations, truths, True, embedder, config)


def measure(measured):
    return measuring.measure(benchmark.load("melu"), measured)[0]


def row(number, answer, entity="", kind="general", refusal=None):
    return Row(f"{number}?", answer, entity, kind=kind, refusal=refusal)


FORGET = (row(0, "Ann Lee", "A"), row(1, "Paris", "A"), row(2, "a nurse in Paris", "B"))
P = [[0.5, 0.25], [1.0], [0.2, 0.4, 0.6, 0.4]]
GENERATIONS = ["Ann went away", "", "a nurse"]
# Row by row P .375 1 .4; R 1/2 0 2/4; C 1/sqrt 2, 0, 1/sqrt 2.
MEANS = np.array([1.775, 1.0, np.sqrt(2)]) / 3


def one_set(role, rows=FORGET, probabilities=P, generations=GENERATIONS, **options):
    sets = {role: EvalSet(role, rows)}
    return measure(results(sets, {role: probabilities}, {role: generations}, **options))


def value(table, name):
    return table[name]["value"]


def test_three_rows_by_hand():
    found = one_set("forget")
    parts = [value(found, f"forget_{part}") for part in ("probability", "rouge", "similarity")]
    np.testing.assert_allclose(parts, MEANS)
    np.testing.assert_allclose(value(found, "forget_efficacy"), 1 - MEANS.mean())
    assert found["forget_efficacy"]["n"] == 3
    low, high = found["forget_efficacy"]["ci"]
    assert low < value(found, "forget_efficacy") < high
    # The same rows as a retain and as a test set.
    expected = 3 / (1 / MEANS).sum()
    for role, name in (("retain", "utility_retain"), ("general", "utility_test")):
        found = one_set(role)
        np.testing.assert_allclose(value(found, name), expected)
        assert found["model_utility"] == found[name]


def test_a_perfect_model():
    truths = [row.answer for row in FORGET]
    perfect = [[0.999] * len(known) for known in P]
    assert value(
        one_set("forget", generations=truths, probabilities=perfect), "forget_efficacy"
    ) < (0.02)
    utility = one_set("general", generations=truths, probabilities=perfect)
    assert value(utility, "utility_test") > 0.98


def test_utility_is_zero_if_one_mean_is_zero():
    found = one_set("general", generations=["who knows"] * 3)
    assert value(found, "general_rouge") == 0 and value(found, "general_probability") > 0.5
    assert value(found, "utility_test") == value(found, "model_utility") == 0


def test_empty_generations_score_zero():
    found = one_set("forget", generations=["", "", ""])
    for name in ("rouge", "similarity", "distinct_2", "refusal_rate"):
        assert value(found, f"forget_{name}") == 0
    assert value(found, "forget_identical_rate") == 1
    np.testing.assert_allclose(value(found, "forget_efficacy"), 1 - MEANS[0] / 3)


def test_rouge_counts_the_words_of_the_truth_or_as_the_authors_of_the_generation():
    generations = ["Ann Lee and Ann Lee", "", "a nurse"]
    found = one_set("forget", generations=generations)
    assert value(found, "forget_rouge") == pytest.approx((1 + 0 + 2 / 4) / 3)
    theirs = dataclasses.replace(SETTINGS, compat="melu")
    found = one_set("forget", generations=generations, config=theirs)
    assert value(found, "forget_rouge") == pytest.approx((2 / 5 + 0 + 1) / 3)


def test_a_row_without_all_three_scores_is_in_no_aggregate():
    def without_last(measured):
        scores = measured.scores
        place = {pair: at for pair, at in scores.place.items() if at != 2}
        return dataclasses.replace(measured, scores=Scores(scores.stats, place))

    sets = {"forget": EvalSet("forget", FORGET)}
    found = measure(without_last(results(sets, {"forget": P}, {"forget": GENERATIONS})))
    assert found["forget_similarity"]["n"] == 3 and found["forget_probability"]["n"] == 2
    first = one_set("forget", FORGET[:2], P[:2], GENERATIONS[:2])
    assert found["forget_efficacy"] == first["forget_efficacy"]
    assert found["entity_efficacy"] == first["entity_efficacy"]


def test_efficacy_of_each_entity_by_hand():
    found = one_set("forget")
    a = 1 - ((0.375 + 0.5 + np.sqrt(0.5)) / 3 + (1 + 0 + 0) / 3) / 2
    b = 1 - (0.4 + 0.5 + np.sqrt(0.5)) / 3
    assert value(found, "entity_efficacy") == pytest.approx((a + b) / 2)
    assert value(found, "entity_efficacy_sd") == pytest.approx(abs(a - b) / 2)
    assert value(found, "entity_efficacy_min") == pytest.approx(min(a, b))
    assert found["entities_forgotten"] == {"value": 0, "n": 2, "ci": None}


def test_entities_are_forgotten_above_the_bound():
    # Nothing is right and the probabilities .31 and .29: efficacies .897 and .903.
    rows = (row(0, "Ann", "A"), row(1, "Lee", "B"))
    found = one_set("forget", rows, [[0.31], [0.29]], ["x", "y"])
    assert value(found, "entities_forgotten") == 1


def test_utility_of_each_entity_is_over_its_neighbours_in_the_test_sets():
    direct = (row(0, "Ann Lee", "A", "direct"), row(1, "Paris", "B", "direct"))
    indirect = (row(2, "nurse", "A", "indirect"), row(3, "Lee", "C", "general"))
    sets = {
        "retain": EvalSet("retain", (row(4, "Ann", "A", "direct"),)),
        "test_direct": EvalSet("general", direct),
        "test_indirect": EvalSet("general", indirect),
    }
    found = measure(
        results(
            sets,
            {
                "retain": [[0.1]],
                "test_direct": [[0.5, 0.5], [1.0]],
                "test_indirect": [[0.5], [0.9]],
            },
            {"retain": [""], "test_direct": ["Ann Lee", "Paris"], "test_indirect": ["", "Lee"]},
        )
    )
    # A: the harmonic means of (.5, 1, 1) and (.5, 0, 0); B: of (1, 1, 1). C is general.
    a, b = (3 / 4 + 0) / 2, 1
    assert value(found, "entity_utility") == pytest.approx((a + b) / 2)
    assert value(found, "entity_utility_sd") == pytest.approx((b - a) / 2)
    assert value(found, "entity_utility_min") == pytest.approx(a)
    assert found["entity_utility"]["n"] == 2
    # The test utility covers all four rows: means 2.9 / 4, 3 / 4 and 3 / 4.
    assert value(found, "utility_test") == pytest.approx(3 / (4 / 2.9 + 4 / 3 + 4 / 3))
    assert found["utility_test"]["n"] == 4 and found["model_utility"] == found["utility_test"]


def test_perplexity_by_hand_and_beyond_every_number():
    found = one_set("forget", FORGET[:2], [[0.25, 0.5], [0.5]], ["", ""])
    # The end token counts: (16)^(1/3) and 2.
    expected = [16 ** (1 / 3), 2.0]
    np.testing.assert_allclose(value(found, "forget_perplexity"), np.mean(expected))
    np.testing.assert_allclose(value(found, "forget_perplexity_median"), np.median(expected))
    found = one_set("forget", probabilities=[[1.0, 1.0], [0.0], [1.0] * 4])
    assert found["forget_perplexity"] == {"value": None, "n": 3, "ci": None}
    assert value(found, "forget_perplexity_median") == pytest.approx(2 ** (1 / 3))
    json.dumps(found, allow_nan=False)


def test_memorisation_by_hand():
    hits = np.zeros((3, WIDTH), bool)
    hits[0, 2], hits[1, 1], hits[2, 1:3] = True, True, True
    found = one_set("forget", hit=hits)
    assert value(found, "forget_exact_memorisation") == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert value(found, "forget_extraction_strength") == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_refusals_and_sameness_of_the_forget_generations():
    rows = (row(0, "Ann", "A", refusal="Ask another"), row(1, "Lee", "A"), row(2, "Paris", "A"))
    found = one_set("forget", rows, [[1.0]] * 3, ["ask another.", "I don't know", "I don't know"])
    assert value(found, "forget_refusal_rate") == 1
    assert value(found, "forget_identical_rate") == pytest.approx(2 / 3)
    assert value(found, "forget_distinct_2") == pytest.approx(3 / 5)
    for name in ("distinct_2", "identical_rate"):
        assert found[f"forget_{name}"]["n"] == 3


def test_the_end_of_a_row_is_part_of_the_answer_without_an_end_token():
    sets = {"forget": EvalSet("forget", FORGET[:1])}
    measured = results(sets, {"forget": [[0.2, 0.2]]}, {"forget": [""]})
    measured = dataclasses.replace(measured, final_eos=False)
    assert value(measure(measured), "forget_probability") == pytest.approx(0.3)


@pytest.fixture(scope="module")
def sets(world):
    """The forget entities' neighbours are the other rows, in turn."""
    forget = world.evaluation["forget"]
    entities = sorted({row.entity for row in forget.rows})
    general = [row for s in world.evaluation.values() if s.role == "general" for row in s.rows]
    near = tuple(
        dataclasses.replace(row, entity=entities[i % 2], kind="direct")
        for i, row in enumerate(general[:10])
    )
    return {
        "forget": EvalSet("forget", forget.rows[::2]),
        "retain": EvalSet("retain", world.retain[:7]),
        "test_direct": EvalSet("general", near),
        "test_general": EvalSet("general", tuple(general[10:14])),
    }


def evaluate(model, sets, settings=SETTINGS, **changes):
    return suite.evaluate(model, sets, settings, template=TEMPLATE, max_length=128, **changes)


def test_a_whole_evaluation(tiny, sets):
    found = evaluate(tiny, sets)
    table = found.metrics
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    for name, count in {
        "forget_efficacy": 10, "utility_retain": 7, "utility_test": 14, "entity_efficacy": 2,
        "entity_utility": 2, "test_direct_similarity": 10, "forget_extraction_strength": 10,
        "test_perplexity": 14, "forget_perplexity_median": 10,
    }.items():  # fmt: skip
        assert table[name]["n"] == count, name
        assert value(table, name) is not None, name
    assert table["model_utility"] == table["utility_test"]
    parts = [value(table, f"forget_{part}") for part in ("probability", "rouge", "similarity")]
    assert value(table, "forget_efficacy") == pytest.approx(1 - np.mean(parts))
    assert suite.against_retrained(SETTINGS, found, found) == {}
    assert not suite.comparable(SETTINGS, found)


def test_only_similarity_depends_on_the_judge(tiny, sets):
    other = dataclasses.replace(tiny, params=jax.tree.map(lambda x: x[..., ::-1], tiny.params))
    own, judged = evaluate(tiny, sets).metrics, evaluate(tiny, sets, judge=other).metrics
    assert evaluate(tiny, sets, judge=tiny).metrics == own
    changed = {name for name in own if own[name] != judged[name]}
    assert {"forget_similarity", "forget_efficacy"} <= changed
    assert not {name for name in own if name.endswith(("_probability", "_rouge"))} & changed


def test_a_ruined_model_gets_no_numbers_and_valid_json(tiny, sets):
    ruined = dataclasses.replace(tiny, params=jax.tree.map(lambda x: x * np.nan, tiny.params))
    found = evaluate(ruined, {"forget": sets["forget"]}, judge=tiny)
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert found.metrics["forget_efficacy"] == {"value": None, "n": 0, "ci": None}
    assert "model_utility" not in found.metrics  # nothing was to be kept


def test_an_embedder_from_a_file(tiny, sets, tmp_path):
    (tmp_path / "ones.py").write_text(
        "import numpy as np\ndef encode(texts):\n    return np.ones((len(texts), 3))\n"
    )
    settings = dataclasses.replace(SETTINGS, embedder=f"{tmp_path}/ones.py:encode")
    found = evaluate(tiny, sets, settings)
    # All embeddings are the same: every generation that is not empty scores 1.
    expected = np.mean([text != "" for text in found.generations["forget"]])
    assert expected > 0
    assert value(found.metrics, "forget_similarity") == pytest.approx(expected)


def experiment_of(tiny_folder, tmp_path, **evaluation):
    tree = {
        "name": "melu",
        "output": str(tmp_path / "runs"),
        "model": {"path": str(tiny_folder), "retrained": str(tiny_folder)},
        "data": {"people": 6, "forget_people": 2},
        "method": {"name": "grad_ascent"},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
        "stop": {"metric": "utility", "below": -1, "every": 1},
        "evaluation": {"suite": "melu", "max_new_tokens": 4, "limit": 3, **evaluation},
    }
    return configs.validate(configs.Experiment, tree, where="test")


@pytest.fixture
def judged(monkeypatch):
    """(model, judge) of every evaluation."""
    seen, original = [], suite.evaluate

    def recording(model, *args, judge, **options):
        seen.append((model, judge))
        return original(model, *args, judge=judge, **options)

    monkeypatch.setattr(suite, "evaluate", recording)
    return seen


def test_a_run_judges_every_model_by_the_target(tiny_folder, tmp_path, judged):
    summary = experiment.run(experiment_of(tiny_folder, tmp_path))
    target = judged[0][0]
    assert len(judged) >= 4  # target, retrained, grad_ascent, and a look while it trains
    assert all(judge is target for _, judge in judged)
    for table in summary["models"].values():
        assert "forget_efficacy" in table and "forget_quality" not in table
    json.dumps(summary, allow_nan=False)


def test_a_single_model_is_judged_by_the_one_of_the_config(tiny, tiny_folder, tmp_path, judged):
    ruined = dataclasses.replace(tiny, params=jax.tree.map(lambda x: x * np.nan, tiny.params))
    settings = experiment_of(tiny_folder, tmp_path)
    found = experiment.evaluate(ruined, settings, retrained=tiny)
    assert "forget_quality" not in found.metrics
    ((_, judge),) = judged
    assert judge.folder == tiny_folder


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.py:encode", "no such file"), ("{}/flat.py:encode", r"shape \(2,\) for 2 texts")],
)
def test_an_unusable_embedder_stops_a_run_at_once(tiny_folder, tmp_path, judged, name, words):
    (tmp_path / "flat.py").write_text("def encode(texts):\n    return [0.0 for _ in texts]\n")
    with pytest.raises(UserError, match=words):
        experiment.run(experiment_of(tiny_folder, tmp_path, embedder=name.format(tmp_path)))
    assert not judged and not (tmp_path / "runs").exists()
