"""Membership inference: scores and curves by hand, and a holdout that changes nothing else."""

import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import synthetic, tokens
from jaxunlearn.data.rows import EvalSet, Text
from jaxunlearn.evaluation import columns, forward, metrics, privacy, suite
from jaxunlearn.evaluation.gradient_norm import gradient_norm_score
from jaxunlearn.models import lora as adapters
from jaxunlearn.models import transformer
from tests.models.test_int8 import in_int8

TEMPLATE = "Question: {question}\nAnswer:"
SETTINGS = EvaluationConfig(max_new_tokens=2, batch_size=32)
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
NAMES = [
    *(f"privacy_{name}_auc" for name in ATTACKS),
    "privacy_loss_tpr_at_1",
    "privacy_loss_tpr_at_0.1",
]
# Row 0 has five answer tokens, row 1 one, row 2 none.
LOG_PROBS = np.array([[0, -1, -2, -6, -3, -4.0], [0, -9, -0.5, -9, -9, -9], [-1.0] * 6])
MASK = np.array([[0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0] * 6], bool)


def test_zlib_score_divides_by_the_bytes_of_the_compressed_text():
    texts = ["ab" * 50, "ä", "x"]
    # What zlib makes of "ä": header (2), one stored or fixed block of its 2 bytes (4), check (4).
    assert [len(zlib.compress(t.encode())) for t in texts[1:]] == [10, 9]
    long = len(zlib.compress(b"ab" * 50))
    assert long < 20
    found = privacy.zlib_score(LOG_PROBS, MASK, texts)
    np.testing.assert_allclose(found, [-16 / 5 / long, -0.05, np.nan])


@pytest.mark.parametrize(
    ("fraction", "first"),
    [(0.2, -6), (0.4, -5), (0.59, -5), (0.6, -13 / 3), (1.0, -16 / 5), (0.01, -6)],
)
def test_min_k_is_the_mean_of_the_least_likely_tokens(fraction, first):
    found = privacy.min_k(LOG_PROBS, MASK, fraction=fraction)
    np.testing.assert_allclose(found, [first, -0.5, np.nan])


def test_min_k_counts_exactly():
    log_probs = -np.arange(100.0)[None]
    found = privacy.min_k(log_probs, np.ones((1, 100), bool), fraction=0.29)
    np.testing.assert_allclose(found, -np.arange(71, 100).mean())


def test_a_row_with_an_unknown_token_has_no_min_k():
    assert np.isnan(privacy.min_k(np.array([[-1.0, np.nan]]), np.ones((1, 2), bool)))[0]


def test_min_k_plus_plus_standardises_first():
    means, deviations = np.full((3, 6), -2.0), np.full((3, 6), 0.5)
    deviations[0, 3] = 8.0
    # Row 0: 2, 0, -0.5, -2, -4.
    found = privacy.min_k_plus_plus(LOG_PROBS, means, deviations, MASK, fraction=0.4)
    np.testing.assert_allclose(found, [-3, 3, np.nan])
    # Where nothing is open there is nothing to standardise by, and no division by 0.
    certain = privacy.min_k_plus_plus(np.zeros((1, 2)), *np.zeros((2, 1, 2)), np.ones((1, 2), bool))
    np.testing.assert_array_equal(certain, [0])


SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12).map(np.array)


@given(SCORES, SCORES, st.randoms())
def test_auc_counts_pairs_in_any_order(members, others, random):
    pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
    assert privacy.auc(members, others) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert privacy.auc(others, members) == pytest.approx(1 - privacy.auc(members, others))
    shuffled = [random.sample(list(values), len(values)) for values in (members, others)]
    assert privacy.auc(*shuffled) == privacy.auc(members, others)


@given(SCORES, SCORES, st.sampled_from([0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 1]))
def test_tpr_at_fpr_is_the_best_threshold(members, others, fpr):
    thresholds = [*members, *others, np.inf]
    best = max((members >= t).mean() for t in thresholds if (others >= t).mean() <= fpr)
    assert privacy.tpr_at_fpr(members, others, fpr) == best


def test_curves_by_hand():
    members, others = np.array([0.9, 0.5, 0.5, 0.1]), np.array([0.5, 0.2])
    assert privacy.auc(members, others) == (2 + 1.5 + 1.5 + 0) / 8
    assert privacy.tpr_at_fpr(members, others, 0.01) == 0.25
    assert privacy.tpr_at_fpr(members, others, 0.5) == 0.75
    # Of 1000 others one may be accused at 0.1 %, ten at 1 %.
    others = np.arange(1000.0)
    members = np.array([998.5, 995.5, 988.5, 999.5])
    assert privacy.tpr_at_fpr(members, others, 0.001) == 0.5
    assert privacy.tpr_at_fpr(members, others, 0.01) == 0.75


def test_perfect_separation_and_no_scores():
    members, others = np.array([2.0, 3.0, np.nan]), np.array([1.0, -np.inf])
    for statistic in (privacy.auc, lambda a, b: privacy.tpr_at_fpr(a, b, 0.0)):
        assert statistic(members, others) == 1
        assert np.isnan(statistic(members, np.array([np.nan])))
        assert np.isnan(statistic(np.array([]), others))
    assert privacy.auc(others, members) == 0


def test_priv_leak_is_relative_and_positive_where_members_are_found():
    assert privacy.priv_leak(0.9, 0.6) == pytest.approx(0.5)
    assert privacy.priv_leak(0.3, 0.6) == pytest.approx(-0.5)
    assert privacy.priv_leak(0.6, 0.6) == 0
    assert np.isnan(privacy.priv_leak(0.6, 0.0)) and np.isnan(privacy.priv_leak(np.nan, 0.5))


def encode(model, rows):
    pairs = [row.key for row in rows]
    return tokens.encode(model.tokenizer, pairs, template=TEMPLATE, max_length=128).table


def test_moments_equal_numpy_on_the_full_distribution(tiny, world):
    table = encode(tiny, world.forget[:5])
    plain = forward.score(tiny.config, tiny.params, table)
    assert plain.means is None and plain.deviations is None
    found = forward.score(tiny.config, tiny.params, table, batch_size=3, moments=True)
    seen = table.answer_mask
    np.testing.assert_allclose(found.log_probs[seen], plain.log_probs[seen], atol=1e-5)
    logits = np.asarray(transformer.logits(tiny.config, tiny.params, table.tokens), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probs = np.exp(log_probs)
    mean = (probs * log_probs).sum(-1)
    deviation = np.sqrt((probs * log_probs**2).sum(-1) - mean**2)
    for row, length in enumerate(table.lengths):
        for ours, theirs in ((found.means, mean), (found.deviations, deviation)):
            np.testing.assert_allclose(
                ours[row, 1:length], theirs[row, : length - 1], rtol=1e-4, atol=1e-5
            )


def test_moments_of_certain_and_of_impossible_tokens():
    log_probs = np.array([[0.0, -np.inf, -200.0], np.log([0.5, 0.25, 0.25])], np.float32)
    mean, deviation = forward._moments(log_probs)
    np.testing.assert_allclose(mean, [0, -1.5 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(deviation, [0, 0.5 * np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_norms_equal_those_of_single_rows(tiny, world, adapter):
    table = encode(tiny, world.forget[:3])
    lora = None
    if adapter:
        lora = adapters.init(tiny.params, 2, key=jax.random.key(0))
        lora = jax.tree.map(lambda x: x + 0.1, lora)
    found = gradient_norm_score(tiny.config, tiny.params, table, lora=lora, batch_size=2)

    def loss(trainable, row):
        model, factors = (tiny.params, trainable) if adapter else (trainable, None)
        ids = table.tokens[row : row + 1, : table.lengths[row]]
        logits = transformer.logits(tiny.config, model, ids, lora=factors)[0, :-1]
        log_probs = jax.nn.log_softmax(logits)[np.arange(ids.shape[1] - 1), ids[0, 1:]]
        return -log_probs[table.answer_mask[row, 1 : table.lengths[row]]].mean()

    for row in range(3):
        grads = jax.grad(loss)(lora if adapter else tiny.params, row)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
        np.testing.assert_allclose(found[row], -norm, rtol=1e-4)


def test_gradient_norms_of_a_model_in_int8_are_those_of_its_floats(tiny, with_holdout):
    model = in_int8(tiny)
    found = [
        evaluate(one, with_holdout, suite="gradient_norm").metrics for one in (model, model.plain())
    ]
    assert found[0] == found[1]


def test_gradient_norm_is_a_mean_over_the_tensors_of_pytorch(tiny, tiny_folder):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    rows = [Text("Who?", "Ann Lee"), Text("Where is it?", "Paris")]
    table = tokens.encode(tiny.tokenizer, rows, template="{question}", max_length=64).table
    found = gradient_norm_score(tiny.config, tiny.params, table, by_tensor=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for row, score in enumerate(found):
        ids = torch.tensor(table.tokens[row : row + 1, : table.lengths[row]]).long()
        labels = torch.where(torch.tensor(table.answer_mask[row, : ids.shape[1]]), ids, -100)
        labels[0, -1] = -100  # the last answer token
        model.zero_grad()
        model(ids, labels=labels).loss.backward()
        norms = [p.grad.norm().item() for p in model.parameters()]
        np.testing.assert_allclose(score, -np.mean(norms), rtol=1e-3)


@pytest.fixture(scope="module")
def with_holdout():
    return synthetic.build(people=6, forget_people=2, seed=0, holdout_people=2).evaluation


def evaluate(model, sets, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return suite.evaluate(model, sets, settings, template=TEMPLATE, max_length=128)


@pytest.mark.parametrize("name", ["tofu", "melu"])
def test_a_holdout_adds_its_entries_and_changes_no_other(tiny, with_holdout, name):
    without = {key: s for key, s in with_holdout.items() if s.role != "holdout"}
    plain = evaluate(tiny, without, suite=name)
    found = evaluate(tiny, with_holdout, suite=name)
    assert set(found.metrics) == {*plain.metrics, *NAMES}
    for key, entry in plain.metrics.items():
        assert found.metrics[key]["n"] == entry["n"]
        values = [e["value"] for e in (found.metrics[key], entry)]
        assert values == [None, None] or values[0] == pytest.approx(values[1], rel=1e-4)
    assert found.generations == plain.generations and found.left_out == plain.left_out
    for key in NAMES:
        entry = found.metrics[key]
        assert entry["n"] == 40 and entry["ci"][0] <= entry["value"] <= entry["ci"][1]
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_entries_equal_the_scores_by_hand(tiny, with_holdout):
    found = evaluate(tiny, with_holdout).metrics
    sides = [with_holdout["forget"].rows, with_holdout["holdout"].rows]
    stats = [
        forward.score(tiny.config, tiny.params, encode(tiny, rows), moments=True) for rows in sides
    ]
    scores = {
        "loss": [metrics.mean_log_prob(s.log_probs, s.mask) for s in stats],
        "zlib": [
            privacy.zlib_score(s.log_probs, s.mask, [row.answer for row in rows])
            for s, rows in zip(stats, sides, strict=True)
        ],
        "min_k": [privacy.min_k(s.log_probs, s.mask) for s in stats],
        "min_k_plus_plus": [
            privacy.min_k_plus_plus(s.log_probs, s.means, s.deviations, s.mask) for s in stats
        ],
    }
    for name in ATTACKS:
        assert found[f"privacy_{name}_auc"]["value"] == pytest.approx(privacy.auc(*scores[name]))
    rate = privacy.tpr_at_fpr(*scores["loss"], 0.01)
    assert found["privacy_loss_tpr_at_1"]["value"] == pytest.approx(rate)


def test_rows_that_no_model_saw_are_not_told_apart(tiny, with_holdout):
    """An untrained model knows neither side: 0.5 is within the interval."""
    low, high = evaluate(tiny, with_holdout).metrics["privacy_loss_auc"]["ci"]
    assert low < 0.5 < high and high - low > 0.1


def test_against_the_retrained_model(tiny, with_holdout):
    ours = evaluate(tiny, with_holdout)

    def against(one, other):
        return suite.against_retrained(SETTINGS, one, other)

    assert against(ours, ours)["priv_leak"] == {"value": 0.0, "n": 40, "ci": None}
    # Each row as likely as under the retrained model: chance.
    assert against(ours, ours)["privacy_reference_auc"]["value"] == 0.5
    # A model that had learned the forget rows.
    learned = {"value": 1.0, "n": 40, "ci": None}
    theirs = dataclasses.replace(ours, metrics=ours.metrics | {"privacy_min_k_auc": learned})
    area = ours.metrics["privacy_min_k_auc"]["value"]
    leak = against(theirs, ours)["priv_leak"]["value"]
    assert leak == pytest.approx((1 - area) / area)
    unknown = dataclasses.replace(
        ours, metrics=ours.metrics | {"privacy_min_k_auc": learned | {"value": None}}
    )
    assert against(ours, unknown)["priv_leak"]["value"] is None
    plain = evaluate(tiny, {"forget": EvalSet("forget", with_holdout["forget"].rows)})
    assert list(against(plain, plain)) == ["forget_quality"]


def test_a_report_has_them_under_privacy():
    for key in (*NAMES, "priv_leak", "privacy_reference_auc", "privacy_gradient_norm_auc"):
        heading = columns.column(key, [{key: {"value": 0.5, "n": 40}}])
        assert (heading["group"], heading["arrow"], heading["behind"]) == ("privacy", "", "n = 40")
        assert "_" not in heading["label"] and "privacy" not in heading["label"]
