"""Metrics against hand-computed values, their limits, and properties that must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ks_2samp

from jaxunlearn.evaluation import metrics, rouge

# Prompt token, three answer tokens, end token, padding.
MASK = np.array([[False, True, True, True, True, False]])
NO_ANSWER = np.zeros_like(MASK)


def hits(*values):
    """A row of argmax hits over MASK: three answer tokens and the end token."""
    return np.array([[True, *values, True]], bool)


bool_table = hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9)))


def test_answer_probability_is_the_geometric_mean_of_answer_tokens():
    log_probs = np.log([[0.9, 0.5, 0.25, 0.5, 0.25, 0.9]])
    expected = (0.5 * 0.25 * 0.5 * 0.25) ** (1 / 4)
    np.testing.assert_allclose(metrics.answer_probability(log_probs, MASK), [expected])


def test_token_probability_is_the_arithmetic_mean_without_the_end_token():
    log_probs = np.log([[0.9, 0.5, 0.25, 0.75, 0.01, 0.9]])
    np.testing.assert_allclose(metrics.token_probability(log_probs, MASK), [0.5])
    with_last = metrics.token_probability(log_probs, MASK, final_eos=False)
    np.testing.assert_allclose(with_last, [1.51 / 4])


def test_token_probability_ignores_what_lies_outside_the_answer():
    log_probs = np.array([[np.nan, 0.0, -np.inf, 0.0, np.nan, np.inf]])
    np.testing.assert_allclose(metrics.token_probability(log_probs, MASK), [2 / 3])
    assert np.isnan(metrics.token_probability(log_probs, NO_ANSWER))


def test_answer_probability_ignores_what_lies_outside_the_answer():
    log_probs = np.array([[-np.inf, -1.0, -1.0, -1.0, -1.0, np.nan]])
    np.testing.assert_allclose(metrics.answer_probability(log_probs, MASK), [np.exp(-1)])


def test_answer_probability_keeps_tiny_probabilities_in_log_space():
    log_probs = np.full(MASK.shape, -1e4, np.float32)
    assert metrics.mean_log_prob(log_probs, MASK) == [-1e4]
    assert metrics.answer_probability(log_probs, MASK) == [0.0]


def test_rows_without_answer_are_nan_everywhere():
    zeros = np.zeros(MASK.shape)
    assert np.isnan(metrics.answer_probability(zeros, NO_ANSWER))
    assert np.isnan(metrics.exact_memorisation(zeros, NO_ANSWER))
    assert np.isnan(metrics.extraction_strength(zeros, NO_ANSWER))


def test_option_probability_by_hand():
    correct = np.array([0.6, 0.2, 0.5, np.nan, 0.0])
    wrong = np.array([[0.2, 0.2], [0.6, np.nan], [np.nan, np.nan], [0.1, 0.1], [0.0, 0.0]])
    np.testing.assert_allclose(
        metrics.option_probability(correct, wrong), [0.6, 0.25, np.nan, np.nan, 0.0]
    )


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("the cat", "the cat sat on", 0.5),
        ("on sat cat the", "the cat sat on", 0.25),  # order counts
        ("He was running", "he runs", 1.0),  # stemmed, and a longer prediction costs no recall
        ("no overlap here", "the cat", 0.0),
        ("", "the cat", 0.0),
        ("anything", "", np.nan),
        ("anything", "东京", np.nan),  # the library sees no words in it
    ],
)
def test_rouge_l_recall_by_hand(prediction, reference, recall):
    np.testing.assert_allclose(rouge.rouge_l_recall([prediction], [reference]), [recall])


def test_rouge_agrees_with_the_library():
    from rouge_score.rouge_scorer import RougeScorer

    prediction = "Nikolai Abilov was born in Almaty and writes on identities."
    reference = "The author Nikolai Abilov, born in Almaty, wrote about identity."
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)
    assert rouge.rouge_l_recall([prediction], [reference]) == [expected["rougeL"].recall]


some_words = st.lists(
    st.sampled_from(["write", "Writes", "writing", "identities", "identity", "as", "1st", "é"])
).map(" ".join)


@given(some_words, some_words)
def test_words_that_come_again_are_stemmed_as_the_library_does(prediction, reference):
    from rouge_score.rouge_scorer import RougeScorer

    (ours,) = rouge.rouge_l_recall([prediction], [reference])
    library = RougeScorer(["rougeL"], use_stemmer=True)
    theirs = library.score(reference, prediction)["rougeL"].recall
    assert np.isnan(ours) if not set(reference.split()) - {"é"} else ours == theirs


@pytest.mark.parametrize(
    ("prediction", "reference", "precision"),
    [
        ("the cat sat on", "the cat", 0.5),  # over the prediction's words
        ("the cat", "the cat sat on", 1.0),
        ("", "the cat", 0.0),
        ("...", "the cat", 0.0),
    ],
)
def test_rouge_l_precision_by_hand(prediction, reference, precision):
    assert rouge.rouge_l_precision([prediction], [reference]) == [precision]


def test_rouge_of_unequal_lists_is_an_error():
    with pytest.raises(ValueError):
        rouge.rouge_l_recall(["a"], ["a", "b"])


def test_truth_ratio_is_the_geometric_mean_over_the_correct_one():
    correct = np.log([0.5, 0.1, 0.5, 0.5])
    wrong = np.log([[0.4, 0.1], [0.2, np.nan], [np.nan, np.nan], [0.5, 0.5]])
    np.testing.assert_allclose(
        metrics.truth_ratio(correct, wrong), [0.2 / 0.5, 2.0, np.nan, 1.0], rtol=1e-12
    )


def test_truth_ratio_stays_finite_for_a_ruined_model():
    ratios = metrics.truth_ratio(np.array([-5000.0, 0.0]), np.array([[-1.0], [-5000.0]]))
    assert np.isfinite(ratios).all() and (ratios > 0).all()
    np.testing.assert_allclose(metrics.forget_truth_ratio(ratios), [0, 0], atol=1e-200)
    np.testing.assert_allclose(metrics.retain_truth_ratio(ratios), [0, 1], atol=1e-200)


def test_truth_ratio_scores():
    ratios = np.array([0.5, 1.0, 4.0, np.nan])
    np.testing.assert_allclose(metrics.forget_truth_ratio(ratios), [0.5, 1.0, 0.25, np.nan])
    np.testing.assert_allclose(metrics.retain_truth_ratio(ratios), [0.5, 0.0, 0.0, np.nan])


@given(hnp.arrays(float, 5, elements=st.floats(-100, 100)))
def test_forget_truth_ratio_does_not_care_which_side_is_likelier(log_ratios):
    score = metrics.forget_truth_ratio(np.exp(log_ratios))
    np.testing.assert_allclose(score, metrics.forget_truth_ratio(np.exp(-log_ratios)))
    assert ((score >= 0) & (score <= 1)).all()


def test_forget_quality_tells_distributions_apart():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(0, 1, 200), rng.normal(0, 1, 200), rng.normal(3, 1, 200)
    assert metrics.forget_quality(a, a) == 1.0
    assert metrics.forget_quality(a, b) == ks_2samp(a, b).pvalue > 0.05
    assert metrics.forget_quality(a, c) < 1e-30


def test_forget_quality_by_hand_and_without_values():
    # Two values below two others: D = 1, and 2 of the 6 orders are as extreme.
    assert metrics.forget_quality([1, 2, np.nan], [3, 4]) == pytest.approx(1 / 3)
    assert np.isnan(metrics.forget_quality([], [1.0]))
    assert np.isnan(metrics.forget_quality([np.nan], [1.0]))


def test_model_utility_is_the_harmonic_mean():
    nine = {str(i): v for i, v in enumerate([1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])}
    assert metrics.model_utility(nine) == pytest.approx(9 / (3 + 6 + 12))
    assert metrics.model_utility(nine | {"0": 0.0}) == 0.0


@pytest.mark.parametrize("missing", [None, np.nan, np.inf, -0.1])
def test_model_utility_names_what_is_missing(missing):
    with pytest.raises(ValueError, match=r"retain_rouge is"):
        metrics.model_utility({"retain_probability": 0.5, "retain_rouge": missing})


def test_model_utility_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="there are none"):
        metrics.model_utility({})


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_model_utility_lies_between_the_smallest_and_the_mean(values):
    utility = metrics.model_utility(dict(enumerate(values)))
    assert min(values) - 1e-12 <= utility <= np.mean(values) + 1e-12


# Printed means of ROUGE-L recall in arXiv 2605.30919; the retrained model's first.
TOW_ROWS = [
    # ArXiv has no test set: ToW*. The printed value of the original model is the same.
    ({"forget": 0.172, "retain": 0.908}, {"forget": 0.825, "retain": 0.895}, 0.342),
    # TOFU, Qwen3-8B, DareU and the original model; printed 0.797 and 0.501.
    (
        {"forget": 0.375, "retain": 0.827, "test": 0.687},
        {"forget": 0.465, "retain": 0.718, "test": 0.670},
        0.797,
    ),
    (
        {"forget": 0.375, "retain": 0.827, "test": 0.687},
        {"forget": 0.848, "retain": 0.808, "test": 0.664},
        0.505,
    ),
]


@pytest.mark.parametrize(("retrained", "values", "expected"), TOW_ROWS)
def test_tug_of_war_on_published_rows(retrained, values, expected):
    assert metrics.tug_of_war(values, retrained) == pytest.approx(expected, abs=1e-3)
    assert metrics.tug_of_war(retrained, values) == metrics.tug_of_war(values, retrained)
    assert metrics.tug_of_war(retrained, retrained) == 1


def test_tug_of_war_is_lost_on_one_set():
    assert metrics.tug_of_war({"forget": 0.0, "retain": 0.7}, {"forget": 1.0, "retain": 0.7}) == 0


@pytest.mark.parametrize(
    ("values", "retrained", "fault"),
    [
        ({}, {}, "the same sets"),
        ({"forget": 0.5}, {"forget": 0.5, "test": 0.5}, r"\['forget'\] and \['forget', 'test'\]"),
        ({"forget": 40.7}, {"forget": 0.5}, "forget is 40.7"),
        ({"forget": 0.5}, {"forget": np.nan}, "forget is nan"),
    ],
)
def test_tug_of_war_names_what_is_wrong(values, retrained, fault):
    with pytest.raises(ValueError, match=fault):
        metrics.tug_of_war(values, retrained)


@pytest.mark.parametrize(
    ("row", "exact", "strength"),
    [
        (hits(1, 1, 1, 1), 1, 1),
        (hits(0, 0, 0, 0), 0, 0),
        (hits(0, 0, 0, 1), 0, 0),  # stopping in time is not memory
        (hits(1, 1, 1, 0), 1, 1),  # running on does not unsay the answer
        (hits(0, 1, 1, 1), 2 / 3, 2 / 3),
        (hits(1, 0, 1, 1), 2 / 3, 1 / 3),
        (hits(1, 1, 0, 1), 2 / 3, 0),
    ],
)
def test_memorisation_by_hand(row, exact, strength):
    np.testing.assert_allclose(metrics.exact_memorisation(row, MASK), [exact])
    np.testing.assert_allclose(metrics.extraction_strength(row, MASK), [strength])


def test_memorisation_counts_the_last_token_when_it_is_no_end_token():
    row = hits(1, 1, 1, 0)
    assert metrics.exact_memorisation(row, MASK, final_eos=False) == [0.75]
    assert metrics.extraction_strength(row, MASK, final_eos=False) == [0.0]


def test_memorisation_of_one_token():
    one = np.array([[False, True, True]])
    for right in (True, False):
        row = np.array([[False, right, not right]])
        assert metrics.exact_memorisation(row, one) == [float(right)]
        assert metrics.extraction_strength(row, one) == [float(right)]
    only_end_token = np.array([[False, False, True]])
    assert np.isnan(metrics.extraction_strength(only_end_token, only_end_token))
    assert metrics.extraction_strength(only_end_token, only_end_token, final_eos=False) == [1.0]


def slow_extraction_strength(hits, mask):
    """The definition, read out: try every prefix length."""
    right = hits[mask]
    first = next(k for k in range(len(right) + 1) if right[k:].all())
    return 1 - first / len(right) if len(right) else np.nan


@given(bool_table, st.data())
def test_extraction_strength_follows_its_definition(mask, data):
    row = data.draw(hnp.arrays(bool, mask.shape))
    expected = [slow_extraction_strength(h, m) for h, m in zip(row, mask, strict=True)]
    strength = metrics.extraction_strength(row, mask, final_eos=False)
    np.testing.assert_allclose(strength, expected)
    exact = metrics.exact_memorisation(row, mask, final_eos=False)
    known = ~np.isnan(exact)
    assert (strength[known] <= exact[known]).all()


@given(bool_table, st.data(), st.integers(0, 4))
def test_padding_changes_nothing(mask, data, extra):
    row = data.draw(hnp.arrays(bool, mask.shape))
    pad = ((0, 0), (0, extra))
    wide_row, wide_mask = np.pad(row, pad, constant_values=True), np.pad(mask, pad)
    for metric in (metrics.exact_memorisation, metrics.extraction_strength):
        np.testing.assert_array_equal(metric(row, mask), metric(wide_row, wide_mask))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.mean_log_prob(np.zeros((2, 3)), np.zeros((2, 4), bool)),
        lambda: metrics.exact_memorisation(np.zeros(3, bool), np.zeros(3, bool)),
        lambda: metrics.option_probability(np.zeros(2), np.zeros(2)),
        lambda: metrics.truth_ratio(np.zeros(2), np.zeros((3, 1))),
    ],
)
def test_wrong_shapes_are_named(call):
    with pytest.raises(ValueError, match="shapes"):
        call()
