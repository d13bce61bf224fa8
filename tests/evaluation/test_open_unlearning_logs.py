"""Log files of open-unlearning: theirs are read, ours come back, bad ones say what to do."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.open_unlearning_logs import check_split, read_log, write_logs

ROWS = (
    Row("Who wrote Dew ?", "Ann Lee didn't .", source="forget01.json:1"),
    Row("Where?", "In Köln", source="forget01.json:2"),
)
RATIOS = [0.25, 1.5]
PROMPT = "system\n\nCutting Knowledge Date: December 2023\n\nuser\n\n{}assistant\n\n"


def by_index(*entries):
    return {"value_by_index": {str(i): entry for i, entry in enumerate(entries)}}


def prob(*losses):
    """An entry of a probability metric: a list where a row has several answers."""
    probs = [math.exp(-loss) for loss in losses]
    if len(losses) == 1:
        return {"prob": probs[0], "avg_loss": losses[0]}
    return {"prob": probs, "avg_loss": list(losses)}


def rouge(question, answer):
    texts = {"input": PROMPT.format(question), "ground_truth": answer, "generation": "It rains."}
    return {"rouge1_recall": 0.0, "rougeL_f1": 0.0, "rougeL_recall": 0.0, **texts}


def their_log():
    """As their default TOFU suite writes it, with as many rows as ROWS."""
    return {
        "forget_Q_A_PARA_Prob": {"agg_value": 0.3, **by_index(prob(1.0), prob(2.0))},
        "forget_Q_A_PERT_Prob": {"agg_value": 0.1, **by_index(prob(2.0, 3.0), prob(1.5, 0.5))},
        # Their tokenizer's decoder takes away the blank before a full stop or a question mark.
        "forget_Q_A_ROUGE": {
            "agg_value": 0.0,
            **by_index(rouge("Who wrote Dew?", "Ann Lee didn't."), rouge("Where?", "In Köln")),
        },
        "forget_quality": {"agg_value": None},
        "forget_truth_ratio": {
            "agg_value": 0.4,
            **by_index({"score": math.exp(-1.5)}, {"score": math.exp(1)}),
        },
        "mia_min_k": {
            "agg_value": 0.375,
            "auc": 0.375,
            "forget": {"agg_value": 3.0, **by_index({"score": 2.5}, {"score": 3.5})},
            "holdout": {"agg_value": 2.0, **by_index({"score": 2.0}, {"score": 2.0})},
        },
        "privleak": {"agg_value": 25.0},
    }


@pytest.fixture
def write(tmp_path):
    def write(log):
        path = tmp_path / "TOFU_EVAL.json"
        path.write_text(json.dumps(log), encoding="utf-8")
        return path

    return write


def without(log, *names):
    return {name: metric for name, metric in log.items() if name not in names}


def test_their_log_is_read(write):
    path = write(their_log())
    log = read_log(str(path))
    assert log.path == path and log.rows == 2 and log.min_k_auc == 0.375
    np.testing.assert_allclose(log.truth_ratios, np.exp([-1.5, 1]), rtol=1e-9)
    assert log.truth_ratios.dtype == np.float64
    assert log.texts[0] == (PROMPT.format("Who wrote Dew?"), "Ann Lee didn't.")
    check_split(log, ROWS)


def test_the_losses_count_where_score_is_another_number(write):
    log = their_log()
    for entry in log["forget_truth_ratio"]["value_by_index"].values():
        entry["score"] = 1 / (1 + entry["score"])  # aggregator: prob_mean
    np.testing.assert_allclose(read_log(write(log)).truth_ratios, np.exp([-1.5, 1]), rtol=1e-9)


@pytest.mark.parametrize("name", ["forget_truth_ratio", "forget_Truth_Ratio"])
def test_without_losses_the_scores_count_in_order_of_the_index(write, name):
    scores = {str(i): {"score": i / 8} for i in (10, 0, 2, 1, 9, 8, 7, 6, 5, 4, 3)}
    log = read_log(write({name: {"agg_value": 0.5, "value_by_index": scores}}))
    np.testing.assert_array_equal(log.truth_ratios, np.arange(11) / 8)
    assert log.rows == 11 and log.texts == () and log.min_k_auc is None
    check_split(log, ROWS[:1] * 11)


def test_a_row_without_a_number_has_no_truth_ratio(write):
    log = without(their_log(), "forget_Q_A_PARA_Prob")
    log["forget_truth_ratio"]["value_by_index"]["1"]["score"] = math.nan
    np.testing.assert_array_equal(read_log(write(log)).truth_ratios[1:], [np.nan])
    log["forget_truth_ratio"]["value_by_index"]["1"] = None
    np.testing.assert_array_equal(read_log(write(log)).truth_ratios[1:], [np.nan])


def test_a_muse_log_has_the_attack_only(write):
    log = read_log(write({"mia_min_k": their_log()["mia_min_k"], "privleak": {"agg_value": 1}}))
    assert log.truth_ratios is None and log.texts == ()
    assert log.rows == 2 and log.min_k_auc == 0.375


def test_the_first_muse_logs_have_scores_and_no_auc(write):
    log = read_log(
        write(
            {
                "forget_minKpc_neg_logprob": by_index({"score": 1.0}, {"score": 3.0}),
                "holdout_minKpc_neg_logprob": by_index(*({"score": s} for s in (2.0, 2.0, 4.0))),
            }
        )
    )
    assert log.rows == 2
    # A forget row has the lower loss in 3 of 3 and 1 of 3 pairs.
    assert log.min_k_auc == pytest.approx(4 / 6)


def test_other_rows_are_refused(write):
    log = read_log(write(their_log()))
    with pytest.raises(UserError, match=r"TOFU_EVAL\.json: has 2 forget rows, the forget set 40;"):
        check_split(log, ROWS * 20)
    other = (ROWS[0], Row("When?", "In Köln", source="forget01.json:2"))
    with pytest.raises(UserError, match=r"row 1: input is .*Where.*has forget01\.json:2: 'When"):
        check_split(log, other)
    other = (Row(ROWS[0].question, "Bo Lee"), ROWS[1])
    with pytest.raises(UserError, match=r"row 0: ground_truth is .* forget set has 'Bo Lee'; give"):
        check_split(log, other)
    with pytest.raises(UserError, match="row 0"):
        check_split(log, ROWS[::-1])


def changed(name, value):
    return {**their_log(), name: value}


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([], "not metrics with their rows"),
        ({}, "not metrics with their rows"),
        ({"forget_truth_ratio": 0.4, "model_utility": 0.6}, "TOFU_SUMMARY.json has no rows"),
        ({"forget_quality": {"agg_value": 1}}, "neither forget_truth_ratio nor mia_min_k; eval"),
        ({"forget_truth_ratio": {"agg_value": 1}}, "forget_truth_ratio: has no rows under value"),
        ({"forget_truth_ratio": by_index()}, "forget_truth_ratio: has no rows under value"),
        (
            {"forget_truth_ratio": by_index({"prob": 1.0})},
            "row 0: score must be a number >= 0, found N",
        ),
        (
            {"forget_truth_ratio": by_index({"score": "1"})},
            "row 0: score must be a number >= 0, found '",
        ),
        ({"forget_truth_ratio": by_index({"score": True})}, "must be a number >= 0, found True"),
        ({"forget_truth_ratio": by_index({"score": []})}, r"must be a number >= 0, found \[\]"),
        ({"forget_truth_ratio": by_index(0.5)}, "forget_truth_ratio: has no rows under value"),
        ({"forget_truth_ratio": {"value_by_index": {"a": {}}}}, "has no rows under value_by_index"),
        ({"forget_truth_ratio": {"value_by_index": [{"score": 1}]}}, "has no rows under"),
        ({"forget_truth_ratio": {"value_by_index": {"1": {"score": 1}}}}, "row 0 is missing"),
        ({"mia_min_k": {"agg_value": 0.5}}, "mia_min_k: forget: has no rows"),
        (
            changed("mia_min_k", {"auc": 0.5}),
            "mia_min_k: agg_value must be a number >= 0, found None",
        ),
        (changed("forget_Q_A_ROUGE", by_index({})), "row 0: input and ground_truth must be texts"),
        (changed("forget_Q_A_ROUGE", by_index(rouge("a", "b"))), "forget_Q_A_ROUGE has no row 1"),
        (changed("forget_Q_A_PERT_Prob", by_index(prob(1.0))), None),
    ],
)
def test_bad_logs_are_refused(write, log, message):
    path = write(log)
    if message is None:  # a row without wrong answers
        np.testing.assert_array_equal(read_log(path).truth_ratios[1:], [np.nan])
        return
    with pytest.raises(UserError, match=message) as error:
        read_log(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5])
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "TOFU_EVAL.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as JSON .* give the TOFU_EVAL\.json"):
        read_log(path)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_log(tmp_path)
    with pytest.raises(UserError, match="no such file; give the TOFU_EVAL"):
        read_log(tmp_path / "x.json")


def entry(value):
    return {"value": value, "n": 2, "ci": None}


def ours():
    """Everything of an evaluation that `write_logs` is given."""
    sets = ("forget", "retain", "real_authors", "world_facts")
    kinds = ("probability", "rouge", "truth_ratio")
    metrics = {f"{name}_{kind}": entry(0.5) for name in sets for kind in kinds}
    rows = {name: [0.25, 0.75] for name in metrics}
    rows["forget_truth_ratio"] = RATIOS
    for name in ("forget_exact_memorisation", "forget_extraction_strength"):
        metrics[name], rows[name] = entry(0.5), [0.25, None]
    metrics |= {
        "model_utility": entry(0.6),
        "forget_quality": entry(None),
        "privacy_min_k_auc": entry(0.7),
        "privacy_loss_auc": entry(0.8),
        "privacy_loss_tpr_at_1": entry(0.1),
        "priv_leak": entry(-40.0),
    }
    texts = {name: [row.key for row in ROWS] for name in sets}
    return metrics, rows, {name: ["It rains.", "Köln"] for name in sets}, texts


def test_what_is_written_is_read_back(tmp_path):
    path, _ = write_logs(tmp_path / "new" / "logs", *ours())
    log = read_log(path)
    np.testing.assert_array_equal(log.truth_ratios, RATIOS)
    assert log.min_k_auc == 0.7 and log.texts == tuple(row.key[:2] for row in ROWS)
    check_split(log, ROWS)


@given(st.lists(st.floats(0, 1e10) | st.none(), max_size=4), st.floats(0, 1e10))
def test_truth_ratios_come_back_exactly(tmp_path_factory, ratios, last):
    ratios.append(last)
    metrics, rows, generations, texts = ours()
    rows["forget_truth_ratio"] = ratios
    rows["forget_rouge"] = [None] * len(ratios)
    texts["forget"] = [(f"Who is {i}?", "Ann") for i in range(len(ratios))]
    generations["forget"] = ["Bo"] * len(ratios)
    folder = tmp_path_factory.mktemp("logs")
    path, _ = write_logs(folder, metrics, rows, generations, texts)
    expected = np.array([np.nan if ratio is None else ratio for ratio in ratios])
    np.testing.assert_array_equal(read_log(path).truth_ratios, expected)


def test_their_names_and_layout(tmp_path):
    paths = write_logs(tmp_path, *ours())
    assert [path.name for path in paths] == ["TOFU_EVAL.json", "TOFU_SUMMARY.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]
    log, summary = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert list(log) == sorted(log) and list(summary) == sorted(summary)
    assert set(log) == {
        "exact_memorization", "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE",
        "forget_quality", "forget_truth_ratio", "mia_loss", "mia_min_k", "model_utility",
        "privleak", "ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio", "retain_Q_A_Prob",
        "retain_Q_A_ROUGE", "retain_Truth_Ratio", "wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE",
        "wf_Truth_Ratio",
    }  # fmt: skip
    values = {name: metric["agg_value"] for name, metric in log.items()}
    assert values.pop("forget_quality") is None and values == summary
    assert summary["privleak"] == -40.0 and summary["exact_memorization"] == 0.5
    assert log["mia_loss"] == {"agg_value": 0.8, "auc": 0.8}
    assert log["ra_Q_A_Prob_normalised"]["value_by_index"] == {
        "0": {"prob": 0.25},
        "1": {"prob": 0.75},
    }
    assert log["extraction_strength"]["value_by_index"] == {"0": {"score": 0.25}}
    assert log["wf_Q_A_ROUGE"]["value_by_index"]["1"] == {
        "rougeL_recall": 0.75,
        "input": "Where?",
        "ground_truth": "In Köln",
        "generation": "Köln",
    }
    assert "value_by_index" not in log["retain_Truth_Ratio"]


@pytest.mark.parametrize("name", ["TOFU_EVAL.json", "TOFU_SUMMARY.json"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("theirs")
    with pytest.raises(UserError, match=rf"{name}: is there already; move it away or name another"):
        write_logs(tmp_path, *ours())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "theirs"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file: is a file; name a folder"):
        write_logs(tmp_path / "file", *ours())


def test_a_failed_write_leaves_nothing(tmp_path):
    metrics, *rest = ours()
    metrics["model_utility"] = entry(math.inf)
    with pytest.raises(ValueError, match="JSON"):
        write_logs(tmp_path / "logs", metrics, *rest)
    metrics, rows, generations, texts = ours()
    with pytest.raises(ValueError, match="zip"):
        write_logs(tmp_path / "logs", metrics, rows, generations, {**texts, "forget": []})
    assert not (tmp_path / "logs").exists()
