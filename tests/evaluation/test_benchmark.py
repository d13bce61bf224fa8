"""Benchmarks: files of declarative rows, read strictly, and what their rows come to."""

import json

import numpy as np
import pytest

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import aggregation, benchmark, measuring, suite
from jaxunlearn.evaluation.forward import TokenStats
from jaxunlearn.evaluation.results import Results, Scores
from jaxunlearn.evaluation.statistics import STATISTICS

FORGET = (Row("a?", "Ann Lee"), Row("b?", "Paris"))
RETAIN = (Row("c?", "Rome"),)
ASKED = (
    Row("Which?", "blue", options=("red", "blue")),
    Row("What?", "one two", options=("one two", "a")),
)


def results(sets, known, generations=None, compat="paper"):
    """Results from {text: log-probabilities of its tokens}; the end token that follows has 0.5."""
    texts = list(known)
    log_probs = np.zeros((len(texts), 8))
    mask = np.zeros(log_probs.shape, bool)
    for i, text in enumerate(texts):
        values = [*known[text], np.log(0.5)]
        log_probs[i, 1 : 1 + len(values)] = values
        mask[i, 1 : 1 + len(values)] = True
    stats = TokenStats(log_probs, log_probs > np.log(0.6), mask)
    config = EvaluationConfig(compat=compat)
    place = {text: i for i, text in enumerate(texts)}
    return Results(sets, Scores(stats, place), generations or {}, truths(sets), True, None, config)


def truths(sets):
    return {name: [row.answer for row in one.rows] for name, one in sets.items()}


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


def rows(*metrics):
    return benchmark.Benchmark("mine", "a test", tuple(benchmark.Metric(**m) for m in metrics))


def test_every_built_in_suite_is_complete():
    for name in benchmark.built_in():
        one = benchmark.load(name)
        assert one.name == name and one.about and one.metrics
        names = [(metric.metric, metric.data) for metric in one.metrics]
        assert len(names) == len(set(names))
        assert set(one.headline) <= {metric.metric for metric in one.metrics} | {
            metric.metric.replace("{set}", of)
            for metric in one.metrics
            for of in (*metric.data, "retain")
        }


def test_each_set_or_all_of_them_together():
    sets = {"forget": EvalSet("forget", FORGET), "kept": EvalSet("retain", RETAIN)}
    known = {FORGET[0].key: [0.0, 0.0], FORGET[1].key: [-1.0], RETAIN[0].key: [-3.0]}
    both = {"data": ["forget", "retain"], "statistic": "log_prob"}
    table, per_row = measuring.measure(
        rows({"metric": "{set}_lp", **both}, {"metric": "lp", **both}), results(sets, known)
    )
    half = np.log(0.5)
    of_rows = [half / 3, (half - 1) / 2, (half - 3) / 2]
    assert list(table) == ["forget_lp", "kept_lp", "lp"]
    assert table["forget_lp"]["value"] == pytest.approx(np.mean(of_rows[:2]))
    assert table["kept_lp"]["value"] == pytest.approx(of_rows[2])
    assert table["lp"]["value"] == pytest.approx(np.mean(of_rows)) and table["lp"]["n"] == 3
    assert per_row["forget_log_prob"] == pytest.approx(of_rows[:2])
    assert per_row["kept_log_prob"] == pytest.approx(of_rows[2:])


def test_metrics_of_metrics_wherever_they_stand():
    sets = {"forget": EvalSet("forget", FORGET[:1]), "retain": EvalSet("retain", RETAIN)}
    known = {FORGET[0].key: [np.log(0.5)], RETAIN[0].key: [np.log(0.5)]}  # probability 0.5 each
    table, _ = measuring.measure(
        rows(
            {"metric": "score", "of": ["1 - forget_p", "retain_p"], "aggregation": "harmonic_mean"},
            {"metric": "first", "of": ["general_p", "score"], "aggregation": "first"},
            {"metric": "none", "of": "general_p", "aggregation": "mean"},
            {
                "metric": "each",
                "data": ["forget", "retain"],
                "of": "1 - {set}_p",
                "aggregation": "mean",
            },
            {"metric": "{set}_p", "data": ["forget", "retain"], "statistic": "probability"},
            {"metric": "general_p", "data": "general", "statistic": "probability"},
        ),
        results(sets, known),
    )
    assert list(table) == ["score", "first", "each", "forget_p", "retain_p"]
    assert table["score"]["value"] == pytest.approx(0.5) and table["score"]["n"] == 2
    assert table["first"] == table["score"]
    assert table["each"]["value"] == pytest.approx(0.5)


def test_two_samples_and_the_retrained_model():
    sets = {"forget": EvalSet("forget", FORGET), "holdout": EvalSet("holdout", RETAIN)}
    auc = {"data": "forget", "versus": "holdout", "statistic": "log_prob", "aggregation": "auc"}
    mine = rows(
        {"metric": "found", **auc},
        {"metric": "beside", **auc, "against": "retrained"},
        {"metric": "leak", "of": "found", "against": "retrained", "aggregation": "priv_leak"},
    )
    roles = {"forget": "forget", "holdout": "holdout"}
    known = {FORGET[0].key: [-1.0], FORGET[1].key: [-3.0], RETAIN[0].key: [-2.0]}
    ours = measuring.measure(mine, results(sets, known))
    assert list(ours[0]) == ["found"] and ours[0]["found"]["value"] == 0.5
    # The retrained model finds the first forget row as likely and the second less so.
    theirs = measuring.measure(mine, results(sets, known | {FORGET[1].key: [-9.0]}))
    compared = measuring.against(mine, roles, ours, theirs, "paper")
    assert compared["beside"]["value"] == 0.75  # differences 0 and 3, of the holdout 0
    assert compared["leak"]["value"] == 0.0
    assert measuring.against(mine, roles, ours, ({}, {}), "paper") == {}


def test_several_metrics_beside_those_of_the_retrained_model():
    sets = {name: EvalSet(name, FORGET) for name in ("forget", "retain")}
    rouge = {"statistic": "rouge"}
    tug = {"against": "retrained", "aggregation": "tug_of_war"}
    mine = rows(
        {"metric": "near", "of": ["forget_r", "retain_r"], **tug},
        {"metric": "each", "data": ["forget", "retain"], "of": ["1 - {set}_r"], **tug},
        {"metric": "lost", "of": ["forget_r", "general_r"], **tug},
        {"metric": "most", "of": ["near", "retain_r"], "against": "retrained"},
        {"metric": "{set}_r", "data": ["forget", "retain"], **rouge},
        {"metric": "general_r", "data": "general", **rouge},
    )
    right, half = ["Ann Lee", "Paris"], ["Ann", "Paris"]
    ours = measuring.measure(mine, results(sets, {}, {"forget": ["", ""], "retain": half}))
    theirs = measuring.measure(mine, results(sets, {}, {"forget": half, "retain": right}))
    roles = {name: name for name in sets}
    found = measuring.against(mine, roles, ours, theirs, "paper")
    near = (1 - 0.75) * (1 - 0.25)
    assert {name: one["value"] for name, one in found.items()} == pytest.approx(
        {"near": near, "each": near, "most": (near + 0.75) / 2}
    )
    assert found["near"]["n"] == 2
    same = measuring.against(mine, roles, theirs, theirs, "paper")
    assert same["near"]["value"] == same["each"]["value"] == 1
    assert mine.names(sets, compared=True) == ["forget_r", "retain_r", "near", "each", "most"]
    assert mine.names(sets, compared=False) == ["forget_r", "retain_r"]
    gone = (theirs[0] | {"forget_r": {"value": None, "n": 0, "ci": None}}, theirs[1])
    assert measuring.against(mine, roles, ours, gone, "paper")["near"]["value"] is None


def test_numbers_that_tug_of_war_cannot_compare_are_named():
    mine = rows(
        {"metric": "t", "of": "p", "against": "retrained", "aggregation": "tug_of_war"},
        {"metric": "p", "data": "forget", "statistic": "perplexity"},
    )
    found = measuring.measure(
        mine,
        results({"forget": EvalSet("forget", FORGET)}, {row.key: [-1.0] for row in FORGET}),
    )
    with pytest.raises(UserError, match=r"evaluation.suite: t: .*but p is 2.3.*; change what it"):
        measuring.against(mine, {"forget": "forget"}, found, found, "paper")


def test_a_plan_names_what_is_needed_and_nothing_else():
    one = benchmark.load("privacy")
    sets = {"forget": EvalSet("forget", FORGET), "retain": EvalSet("retain", RETAIN)}
    assert one.plan(sets) == {"forget": set(), "retain": set()}
    plan = one.plan(sets | {"unseen": EvalSet("holdout", RETAIN)})
    assert plan["forget"] == plan["unseen"] == {"log_prob", "zlib", "min_k", "min_k_plus_plus"}
    assert not plan["retain"]


def test_scores_are_what_the_scorer_of_the_set_gives():
    def length(texts):
        return np.array([len(text.question + text.answer) / 10 for text in texts])

    sets = {
        "forget": EvalSet("forget", FORGET, scorer=length),
        "kept": EvalSet("retain", RETAIN, scorer=lambda texts: np.ones(len(texts))),
        "plain": EvalSet("retain", RETAIN),
    }
    said = {"forget": ["", "Rome"], "kept": ["no"]}
    each = {"data": ["forget", "retain"], "statistic": "score"}
    mine = rows(
        {"metric": "{set}_score", **each},
        {"metric": "score", **each},
        {"metric": "apart", **each, "versus": "retain", "aggregation": "auc"},
        {"metric": "none", "data": "plain", "statistic": "score"},
        {"metric": "nor", **each, "versus": "plain", "aggregation": "auc"},
        {"metric": "leak", **each, "against": "retrained", "aggregation": "ks_test"},
        {"metric": "lost", **each, "data": "plain", "against": "retrained", "aggregation": "auc"},
    )
    found = measuring.measure(mine, results(sets, {}, said))
    values = {name: one["value"] for name, one in found[0].items()}
    assert values == pytest.approx(
        {"forget_score": 0.4, "kept_score": 1, "score": 1.8 / 3, "apart": 1 / 6}
    )
    assert found[1] == {"forget_score": pytest.approx([0.2, 0.6]), "kept_score": [1.0]}
    assert mine.plan(sets) == {"forget": {"score"}, "kept": {"score"}, "plain": set()}
    assert mine.names(sets, compared=False) == ["forget_score", "kept_score", "score", "apart"]
    roles = {name: one.role for name, one in sets.items()}
    compared = measuring.against(mine, roles, found, found, "paper")
    assert list(compared) == ["leak"] and compared["leak"]["value"] == 1


def test_letters_and_texts_of_options_by_hand():
    sets = {"mmlu": EvalSet("general", ASKED)}
    prompts = ["Which?\nA. red\nB. blue\nAnswer:", "What?\nA. one two\nB. a\nAnswer:"]
    letters = [
        one._replace(question=prompt)
        for prompt, row in zip(prompts, ASKED, strict=True)
        for one in STATISTICS["letter_accuracy"].texts(row)
    ]
    assert [one.answer for one in letters] == ["A", "B", "A", "B"]
    options = [one for row in ASKED for one in STATISTICS["option_accuracy"].texts(row)]
    assert [one.answer for one in options] == ["red", "blue", "one two", "a"]
    assert all(one.raw for one in letters + options)
    known = dict(zip(letters, [[-1.0], [-0.5], [-3.0], [-2.0]], strict=True))
    # All tokens together -1 and -3, -4 and -2; by letter of the option -1/3, -3/4, -4/7 and -2.
    known |= dict(zip(options, [[-1.0], [-3.0], [-2.0, -2.0], [-2.0]], strict=True))
    found = results(sets, known)
    expected = {
        "letter_accuracy": [1, 0],
        "letter_probability": [1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1.0))],
        "option_accuracy": [0, 0],
        "option_accuracy_normalised": [0, 1],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(STATISTICS[name].values(found, "mmlu"), values)
    # An option that was left out: the question cannot be answered.
    found = results(sets, {text: v for text, v in known.items() if text != options[-1]})
    np.testing.assert_array_equal(STATISTICS["option_accuracy"].values(found, "mmlu"), [0, np.nan])


def test_sets_without_options_have_no_accuracy():
    sets = {"forget": EvalSet("forget", FORGET), "mmlu": EvalSet("general", ASKED)}
    found = results(sets, {})
    table, _ = measuring.measure(benchmark.load("wmdp"), found)
    assert not any(name.startswith("forget") for name in table)
    assert table["mmlu_letter_accuracy"] == {"value": None, "n": 0, "ci": None}


def test_open_unlearning_formulas_are_used_where_asked():
    sets = {"forget": EvalSet("forget", FORGET[1:])}
    known = {FORGET[1].key: [-5.0, -5.0]}  # never the most likely token
    names = ("extraction_strength", "min_k")
    ours, theirs = (
        {name: STATISTICS[name].values(results(sets, known, compat=c), "forget") for name in names}
        for c in ("paper", "open-unlearning")
    )
    assert ours["extraction_strength"] == [0] and theirs["extraction_strength"] == [0.5]
    assert ours["min_k"] == theirs["min_k"] == [-5]
    change = {c: aggregation.find(aggregation.CHANGES, "priv_leak", c) for c in ("paper", "melu")}
    assert change["paper"] is change["melu"]
    their_leak = aggregation.find(aggregation.CHANGES, "priv_leak", "open-unlearning")
    assert their_leak(0.75, 0.5) == pytest.approx(-50) and change["paper"](0.75, 0.5) == 0.5


def test_a_users_own_file(tiny, world, tmp_path):
    own = write(
        tmp_path,
        """
name: mine
about: a short one
include: gradient_norm
metrics:
  - {metric: "{set}_words", data: [forget, retain], statistic: rouge, source: me}
""",
    )
    settings = EvaluationConfig(suite=own, max_new_tokens=4)
    sets = {name: EvalSet(one.role, one.rows[:3]) for name, one in world.evaluation.items()}
    sets["holdout"] = EvalSet("holdout", world.retain[-3:])
    found = suite.evaluate(
        tiny, sets, settings, template="Question: {question}\nAnswer:", max_length=128
    )
    assert list(found.metrics) == [
        "forget_words", "retain_words",
        "privacy_gradient_norm_auc", "privacy_gradient_norm_tpr_at_1",
    ]  # fmt: skip
    assert found.metrics["privacy_gradient_norm_auc"]["n"] == 6
    assert set(found.generations) == {"forget", "retain"}
    json.dumps(found.rows, allow_nan=False)
    first = benchmark.version(own)
    write(tmp_path, "name: mine\nabout: another\ninclude: [memory]\n")
    assert benchmark.version(own) != first and benchmark.version("tofu") is None


def test_what_is_included_counts_and_is_found_beside_the_file(tmp_path):
    inner = tmp_path / "sub" / "inner.yaml"
    inner.parent.mkdir()
    inner.write_text("name: i\nabout: a\ninclude: other.yaml\n")
    (tmp_path / "sub" / "other.yaml").write_text("name: o\nabout: a\ninclude: memory\n")
    own = write(tmp_path, "name: m\nabout: a\ninclude: sub/inner.yaml\n")
    assert benchmark.load(own).metrics == benchmark.load("memory").metrics
    before = benchmark.version(own)
    (tmp_path / "sub" / "other.yaml").write_text("name: o\nabout: a\ninclude: privacy\n")
    assert benchmark.version(own) != before


def test_composites_come_after_what_they_are_of():
    names = [metric.metric for metric in benchmark.load("tofu").composites]
    for first, then in (
        ("privacy_loss_similarity", "privacy_score"), ("privacy_score", "overall_score"),
        ("model_utility", "utility_score"), ("utility_score", "overall_score"),
    ):  # fmt: skip
        assert names.index(first) < names.index(then)


def test_suites_can_be_joined():
    both = benchmark.load("memory + wmdp")
    assert [m.metric for m in both.metrics[:2]] == ["{set}_probability", "{set}_rouge"]
    assert len(both.metrics) == 2 + len(benchmark.load("wmdp").metrics)
    # What both have is there once.
    assert len(benchmark.load("tofu+tofu").metrics) == len(benchmark.load("tofu").metrics)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "a suite is a mapping of keys to values, found a list"),
        ("name: x\nabout: y\n", "no metrics"),
        ("name: x\nabout: y\nmetric: []\n", "unknown key metric; the closest known key is metrics"),
        ("name: x\nabout: y\ninclude: tofuu\n", "no suite 'tofuu'"),
        ("a: [", "not valid YAML"),
        ("name: x\nabout: y\ninclude: mine.yaml\n", "includes itself ("),
        ("name: x\nabout: y\ninclude: gone.yaml\n", "mine.yaml includes it"),
        ("name: x\ninclude: memory\n", "about: is missing"),
        ("{metric: m, of: [1 - nothing], aggregation: mean}", "m: of: no metric 'nothing'"),
        ("{metric: m, of: [m - 1], aggregation: mean}", "no metric 'm - 1'"),
        ("{metric: m, of: [m], aggregation: mean}", "metrics of each other: m -> m"),
        ("{metric: '{sett}_m', data: forget, statistic: rouge}", "the only thing in braces"),
        (
            "{metric: m, data: forget, statistic: rouge}\n"
            "  - {metric: m, data: retain, statistic: rouge}",
            "metric 'm' is there twice",
        ),
        ("{metric: m, data: forget, statistic: rogue}", "statistic 'rogue' is unknown; use one of"),
        (
            "{metric: m, data: forget, statistic: rouge, aggregation: auc}",
            "aggregation 'auc' is unknown",
        ),
        ("{metric: m, statistic: rouge}", "data is missing"),
        ("{metric: m, data: forget}", "give either data and statistic, or of"),
        ("{metric: m, of: [a, b], against: retrained, aggregation: priv_leak}", "is of one metric"),
        ("{metric: m, of: [a, b], aggregation: tug_of_war}", "aggregation 'tug_of_war' is unknown"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    if text.startswith("{"):
        text = f"name: x\nabout: y\nmetrics:\n  - {text}\n"
    with pytest.raises(UserError) as fault:
        benchmark.load(write(tmp_path, text))
    assert words in str(fault.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"suite": "tofu2"}, "there are code, custom, "),
        ({"suite": "no/such.yaml"}, "No such file"),
        ({"suite": "tofu", "embedder": "a.py:f"}, "does not compare meanings"),
        ({"suite": "tofu", "compat": "melu"}, "is for suite melu"),
        ({"suite": "wmdp"}, "measures nothing of the evaluation sets forget (forget)"),
        ({"suite": "muse"}, "measures nothing of the evaluation sets forget (forget)"),
    ],
)
def test_settings_that_cannot_be_followed(settings, words):
    with pytest.raises(UserError) as fault:
        suite.check(EvaluationConfig(**settings), {"forget": EvalSet("forget", FORGET)})
    assert words in str(fault.value)


def test_lume_by_hand():
    """Completions by ROUGE-L, questions by equality; the forget sets count from 1."""
    kinds = [(role, n, kind) for role in ("forget", "retain") for n in (1, 2, 3)
             for kind in ("completion", "question")]  # fmt: skip
    sets = {
        f"{role}_{n}_{kind}": EvalSet(
            role, (Row(f"{role}{n}{kind}1", "Ann Lee"), Row(f"{role}{n}{kind}2", "Bob Ray"))
        )
        for role, n, kind in kinds
    }
    # Half of each retained completion, one of two questions; of the forgotten a quarter and none.
    said = {
        "forget_completion": ["Ann", ""], "retain_completion": ["Ann", "Ray"],
        "forget_question": ["no", "nothing"], "retain_question": ["ann lee", "Ann"],
    }  # fmt: skip
    generations = {f"{role}_{n}_{kind}": said[f"{role}_{kind}"] for role, n, kind in kinds}
    known = {row.key: [-1.0] for one in sets.values() for row in one.rows}
    sets["holdout"] = EvalSet("holdout", (Row("h", "Zed"),))
    sets["mmlu"] = EvalSet("general", ASKED[:1])
    known[sets["holdout"].rows[0].key] = [-1.0]
    letters = STATISTICS["letter_accuracy"].texts(ASKED[0])
    known |= {letters[0]: [-2.0], letters[1]: [-1.0]}
    table, _ = measuring.measure(benchmark.load("lume"), results(sets, known, generations))
    twelve = [0.75, 1.0, 0.5, 0.5] * 3
    assert table["task_aggregate"]["n"] == 12
    expected = 12 / sum(1 / value for value in twelve)
    assert table["task_aggregate"]["value"] == pytest.approx(expected)
    assert table["forget_1_completion_rouge"]["value"] == 0.25
    assert table["forget_completion_rouge"]["n"] == 6
    assert table["retain_3_question_exact_match"]["value"] == 0.5
    assert table["membership_score"]["value"] == 1  # all alike: an AUC of a half
    assert table["mmlu_letter_accuracy"]["value"] == 1
    assert table["final_score"]["value"] == pytest.approx((expected + 1 + 1) / 3)


def test_muse_by_hand():
    sets = {
        "verbatim": EvalSet("forget", (Row("a", "one two three four"),)),
        "knowledge": EvalSet("forget", (Row("b", "Ann"), Row("c", "Bob"))),
        "knowledge_retain": EvalSet("retain", (Row("d", "Cid"),)),
        "members": EvalSet("forget", (Row("", "in it"),)),
        "holdout": EvalSet("holdout", (Row("", "out"),)),
    }
    generations = {
        "verbatim": ["one two"], "knowledge": ["Ann", "no"], "knowledge_retain": ["Cid"],
    }  # fmt: skip
    known = {row.key: [-1.0] for name, one in sets.items() for row in one.rows}
    known[sets["holdout"].rows[0].key] = [-4.0]
    chosen = benchmark.load("muse")
    found = measuring.measure(chosen, results(sets, known, generations))
    table = found[0]
    assert table["verbatim_rouge_f1"]["value"] == pytest.approx(2 / 3)  # recall 1/2, precision 1
    assert table["knowledge_rouge_f1"]["value"] == 0.5 and table["model_utility"]["value"] == 1
    assert table["privacy_min_40_auc"] == {"value": 1.0, "n": 2, "ci": [1.0, 1.0]}
    roles = {name: one.role for name, one in sets.items()}
    known[sets["holdout"].rows[0].key] = [-1.0]
    retrained = measuring.measure(chosen, results(sets, known, generations))
    leak = {
        compat: measuring.against(chosen, roles, found, retrained, compat)["priv_leak"]["value"]
        for compat in ("paper", "open-unlearning")
    }
    # Ours (1 - .5) / .5; theirs in percent, of 1 - AUC.
    assert leak == {"paper": 1.0, "open-unlearning": pytest.approx(-100)}
    assert set(chosen.plan(sets)["members"]) == {"min_40", "log_prob"}
