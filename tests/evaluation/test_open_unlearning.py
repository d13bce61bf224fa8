"""open-unlearning's metrics against its formulas, token by token."""

import doctest
import zlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from scipy.special import log_softmax

from jaxunlearn.evaluation import metrics, open_unlearning, privacy, rouge

# First and last answer token of each row; row 3 is an end token only, row 4 has no answer.
SPANS = [(3, 11), (1, 2), (2, 17), (5, 5), None, (4, 4 + 9), (1, 19), (6, 12)]
T, V = 20, 7


@pytest.fixture(scope="module")
def world():
    """Log-probabilities of what follows each position, tokens, and answer positions by row."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(SPANS), T, V))
    tokens = rng.integers(V, size=(len(SPANS), T))
    sure = rng.random((len(SPANS), T)) < 0.6
    sure[5], sure[6] = False, True
    for i, t in np.ndindex(len(SPANS), T):
        logits[i, t - 1, tokens[i, t]] += 8 if sure[i, t] else -8
    logits[0, 4, 0] += 80  # a prediction without variance
    places = [[] if span is None else list(range(span[0], span[1] + 1)) for span in SPANS]
    return log_softmax(logits, axis=-1), tokens, places


@pytest.fixture(scope="module")
def arrays(world):
    """The same by the conventions of `metrics`."""
    log_p, tokens, places = world
    shape = len(places), T
    log_probs, means, deviations = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    hits, mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, t in np.ndindex(len(places), T):
        p = np.exp(log_p[i, t - 1])
        log_probs[i, t] = log_p[i, t - 1, tokens[i, t]]
        hits[i, t] = log_p[i, t - 1].argmax() == tokens[i, t]
        means[i, t] = p @ log_p[i, t - 1]
        deviations[i, t] = np.sqrt(p @ (log_p[i, t - 1] - means[i, t]) ** 2)
        mask[i, t] = t in places[i]
    return {
        "log_probs": log_probs, "hits": hits, "mask": mask, "means": means,
        "deviations": deviations,
    }  # fmt: skip


def losses(world, i, *, without_last):
    """Loss of each answer token of a row."""
    log_p, tokens, places = world
    answer = places[i][:-1] if without_last else places[i]
    return np.array([-log_p[i, t - 1, tokens[i, t]] for t in answer])


def by_row(world, formula):
    return [formula(i) if world[2][i] else np.nan for i in range(len(SPANS))]


def assert_same(found, expected):
    assert found.dtype == np.float64 and found.shape == (len(expected),)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def right(world, i):
    log_p, tokens, places = world
    return [log_p[i, t - 1].argmax() == tokens[i, t] for t in places[i][:-1]]


def test_extraction_strength(world, arrays):
    def formula(i):
        found = right(world, i)
        if not found:
            return 0.0
        k = next((k for k in range(len(found)) if all(found[k:])), len(found) - 1)
        return 1 - k / len(found)

    expected = by_row(world, formula)
    found = open_unlearning.extraction_strength(arrays["hits"], arrays["mask"])
    assert_same(found, expected)
    assert expected[5] == pytest.approx(1 / 9) and expected[6] == 1  # always wrong, always right
    assert expected[3] == 0 and np.isnan(expected[4])
    assert metrics.extraction_strength(arrays["hits"], arrays["mask"])[5] == 0


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_extraction_strength_is_ours_but_for_its_floor(hits):
    hits, mask = np.array([hits]), np.ones((1, len(hits)), bool)
    found = open_unlearning.extraction_strength(hits, mask)
    ours = metrics.extraction_strength(hits, mask)
    np.testing.assert_allclose(found, max(ours[0], 1 / (hits.shape[1] - 1)))


def test_exact_memorisation_is_the_same(world, arrays):
    found = metrics.exact_memorisation(arrays["hits"], arrays["mask"])
    expected = [np.mean(right(world, i)) if right(world, i) else np.nan for i in range(len(SPANS))]
    assert_same(found, expected)


def lowest(values, fraction):
    count = max(1, int(len(values) * fraction))
    return float(np.mean(sorted(values)[:count]))


@pytest.mark.parametrize("fraction", [0.2, 0.4, 1.0])
def test_min_k(world, arrays, fraction):
    def formula(i):
        found = -losses(world, i, without_last=True)
        return lowest(found, fraction) if len(found) else 0.0

    found = open_unlearning.min_k(arrays["log_probs"], arrays["mask"], fraction=fraction)
    assert_same(found, by_row(world, formula))


def test_min_k_looks_at_40_percent(arrays):
    default = open_unlearning.min_k(arrays["log_probs"], arrays["mask"])
    given = open_unlearning.min_k(arrays["log_probs"], arrays["mask"], fraction=0.4)
    np.testing.assert_array_equal(default, given)


@pytest.mark.parametrize("fraction", [0.2, 0.4])
def test_min_k_rounds_as_a_float_product_does(fraction):
    for length in range(1, 300):
        values = -np.arange(length + 1.0)[None, ::-1]
        found = open_unlearning.min_k(values, np.ones_like(values, bool), fraction=fraction)
        np.testing.assert_allclose(found, lowest(values[0, :-1], fraction))


def test_min_k_plus_plus(world, arrays):
    def formula(i):
        log_p, tokens, places = world
        scores = []
        for t in places[i][:-1]:
            q = log_p[i, t - 1]
            mean = sum(np.exp(v) * v for v in q)
            variance = sum(np.exp(v) * v**2 for v in q) - mean**2
            scores.append((q[tokens[i, t]] - mean) / max(variance, 1e-6) ** 0.5)
        return lowest(scores, 0.4) if scores else 0.0

    found = open_unlearning.min_k_plus_plus(
        arrays["log_probs"], arrays["means"], arrays["deviations"], arrays["mask"]
    )
    expected = by_row(world, formula)
    assert_same(found, expected)
    assert expected[0] < -1000  # the variance that was held


def test_probability_loss_and_zlib_attacks_are_the_same(world, arrays):
    log_probs, mask = arrays["log_probs"], arrays["mask"]
    loss = np.array(by_row(world, lambda i: losses(world, i, without_last=False).mean()))
    assert_same(metrics.answer_probability(log_probs, mask), np.exp(-loss))
    assert_same(metrics.mean_log_prob(log_probs, mask), -loss)
    texts = [f"Antwort Nr. {i} ä" * (i + 1) for i in range(len(SPANS))]
    lengths = np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts])
    assert_same(privacy.zlib_score(log_probs, mask, texts), -loss / lengths)


def test_auc_is_the_same_with_holdout_rows_as_positives():
    rng = np.random.default_rng(0)
    forget, holdout = rng.integers(0, 9, 30) / 2, rng.integers(2, 12, 20) / 2  # losses, with ties
    found = np.mean([[(h > f) + (h == f) / 2 for f in forget] for h in holdout])
    assert privacy.auc(-forget, -holdout) == pytest.approx(found)


PROBABILITY = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(st.tuples(PROBABILITY, PROBABILITY, PROBABILITY), min_size=1, max_size=9))
def test_option_probability(options):
    options = np.array(options)
    expected = [p / (p + a + b + 1e-10) for p, a, b in options]
    assert_same(open_unlearning.option_probability(options[:, 0], options[:, 1:]), expected)


LOSS = st.floats(0, 60)


@given(st.lists(st.tuples(LOSS, LOSS, LOSS), min_size=1, max_size=9))
def test_truth_ratio_and_its_score(options):
    options = np.array(options)
    expected = [np.exp(-(a + b) / 2) / (np.exp(-c) + 1e-10) for c, a, b in options]
    ratios = open_unlearning.truth_ratio(-options[:, 0], -options[:, 1:])
    assert_same(ratios, expected)
    scores = open_unlearning.forget_truth_ratio(ratios)
    assert_same(scores, [min(r, 1 / (r + 1e-10)) for r in expected])
    assert_same(metrics.retain_truth_ratio(ratios), [max(0.0, 1 - r) for r in expected])


def test_missing_options_are_counted_out():
    correct = np.array([0.5, np.nan, 0.5])
    wrong = np.array([[0.25, np.nan], [0.5, 0.5], [np.nan, np.nan]])
    found = open_unlearning.option_probability(correct, wrong)
    np.testing.assert_allclose(found, [2 / 3, np.nan, np.nan])
    ratios = open_unlearning.truth_ratio(np.log(correct), np.log(wrong))
    np.testing.assert_allclose(ratios, [0.5, np.nan, np.nan])
    scores = open_unlearning.forget_truth_ratio(ratios)
    np.testing.assert_allclose(scores, [0.5, np.nan, np.nan])


def test_a_wholly_unlikely_right_answer():
    low = np.array([-50.0])
    ratio = open_unlearning.truth_ratio(low, low[None])
    np.testing.assert_allclose(ratio, np.exp(-50) / 1e-10)
    np.testing.assert_allclose(metrics.truth_ratio(low, low[None]), 1)


def test_forget_quality_and_utility_are_the_same():
    rng = np.random.default_rng(0)
    ours, theirs = rng.lognormal(0, 1, 40), rng.lognormal(0.5, 1, 40)
    found = metrics.forget_quality(ours, theirs)
    assert found == pytest.approx(scipy.stats.ks_2samp(ours, theirs).pvalue)
    inverse = scipy.stats.ks_2samp(1 / (ours + 1e-10), 1 / (theirs + 1e-10))  # its first version
    assert found == pytest.approx(inverse.pvalue)
    values = rng.random(9)
    utility = metrics.model_utility({str(i): value for i, value in enumerate(values)})
    assert utility == pytest.approx(scipy.stats.hmean(values))


def test_rouge():
    predictions = ["He wrote novels in Paris.", "", "no word", "Paris", "the the the cat"]
    references = ["He writes poems in Paris, he says.", "Paris", "Rome", "?", "the cat sat"]
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r, p)["rougeL"] for p, r in zip(predictions, references, strict=True)]
    f1 = open_unlearning.rouge_l_f1(predictions, references)
    assert_same(f1, [score.fmeasure for score in scores])
    recall = open_unlearning.rouge_l_recall(predictions, references)
    assert_same(recall, [score.recall for score in scores])
    assert recall[3] == 0 and np.isnan(rouge.rouge_l_recall(predictions, references)[3])


@pytest.mark.parametrize(("auc", "retrained"), [(0.9, 0.4), (0.2, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_priv_leak_and_rel_diff(auc, retrained):
    a, b = 1 - auc, 1 - retrained
    found = open_unlearning.priv_leak(auc, retrained)
    assert found == pytest.approx(100 * (a - b) / (b + 1e-10))
    found = open_unlearning.rel_diff(auc, retrained)
    assert found == pytest.approx(100 * (auc - retrained) / (retrained + 1e-10))


def test_without_a_retrained_model_the_auc_is_one_half():
    assert open_unlearning.priv_leak(0.9) == open_unlearning.priv_leak(0.9, 0.5)
    assert open_unlearning.priv_leak(0.9) == pytest.approx(-80)
    assert open_unlearning.rel_diff(0.9) == pytest.approx(80)


def test_doctests():
    failures, count = doctest.testmod(open_unlearning)
    assert failures == 0 and count >= 10
