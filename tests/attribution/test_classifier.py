"""The classifier: what it is trained on, what it says of prefixes, and its folder."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.attribution import classifier_files
from jaxunlearn.attribution.classifier import train
from jaxunlearn.attribution.corruption import LONGEST_SPAN, corrupt
from jaxunlearn.attribution.heads import _schedule
from jaxunlearn.attribution.reports import accuracy, expected_calibration_error, masking_curve
from jaxunlearn.attribution.responses import calibrated, in_batches, random_prefixes
from jaxunlearn.config import AdapterConfig
from jaxunlearn.config_attribution import ClassifierSettings
from jaxunlearn.errors import UserError
from tests.models.test_int8 import in_int8

ADAPTER = AdapterConfig(rank=4, alpha=8.0)
SETTINGS = ClassifierSettings(adapter=ADAPTER, epochs=20, learning_rate=3e-3)


@pytest.fixture(scope="module")
def plain(tiny, answers):
    """Trained as the paper has it, on whole answers."""
    return train(tiny, answers, dataclasses.replace(SETTINGS, prefix_share=0.0))[0]


@pytest.fixture(scope="module")
def trained(tiny, answers):
    """With prefixes and an incoherent class."""
    return train(tiny, answers, dataclasses.replace(SETTINGS, incoherent_rows=3))[0]


def owner_scores(classifier, rows):
    return in_batches(classifier.scores, rows, 32)


def test_it_knows_the_answers_that_it_was_trained_on(plain, answers):
    assert accuracy(owner_scores(plain, answers), answers.owners) >= 0.95
    assert not plain.has_incoherent


def test_prefixes_mend_what_whole_answers_do_not_teach(tiny, plain, answers):
    prefixes = random_prefixes(answers, seed=5)
    with_prefixes, losses = train(tiny, answers, SETTINGS)
    assert losses[0] == pytest.approx(np.log(6), rel=1e-5)  # the head starts at zero
    found = [
        accuracy(owner_scores(one, prefixes), answers.owners) for one in (plain, with_prefixes)
    ]
    assert found[1] > found[0] + 0.1


def test_scores_and_the_incoherent_class_sum_to_one(trained, answers):
    every = in_batches(trained.probabilities, answers, 32)
    assert trained.has_incoherent and every.shape == (60, 7)
    np.testing.assert_allclose(every.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(owner_scores(trained, answers), every[:, :6])


def test_corrupted_answers_are_told(trained, answers):
    rows = jnp.asarray(answers.tokens), jnp.asarray(answers.lengths)
    others = (jnp.roll(part, 7, axis=0) for part in rows)
    made, lengths, changed = corrupt(*rows, *others, key=jax.random.key(8))
    told = trained.probabilities(made, lengths)[:, -1][changed]
    assert told.mean() > in_batches(trained.probabilities, answers, 32)[:, -1].mean() + 0.2


def test_prefixes_by_one_pass_are_the_prefixes_by_themselves(trained, answers):
    tokens, lengths = answers.tokens[:4], np.array([[1, 2, 4], [0, 1, 2], [3, 3, 1], [2, 4, 5]])
    together = trained.scores(tokens, lengths)
    for row in range(4):
        for place, length in enumerate(lengths[row]):
            alone = np.full((1, tokens.shape[1] + 3), 7)  # what is not seen plays no part
            alone[0, :length] = tokens[row, :length]
            found = trained.scores(alone, np.array([length]))[0]
            np.testing.assert_allclose(together[row, place], found, atol=1e-5)


def test_longer_prefixes_say_more_and_masked_words_less(trained, answers):
    shares = (0.25, 0.5, 1.0)
    lengths = np.stack([np.ceil(answers.lengths * share) for share in shares], axis=1).astype(int)
    own = np.asarray(trained.scores(answers.tokens, lengths))[np.arange(60), :, answers.owners]
    assert (np.diff(own.mean(axis=0)) > 0).all()
    curve = masking_curve(trained, answers, (0, 1, 2, 4), batch_size=32)
    assert (np.diff(curve) < 0).all() and curve[0] == pytest.approx(own[:, -1].mean(), abs=1e-5)


def test_calibration_lowers_the_error_of_a_classifier_that_is_too_sure(plain, answers):
    fit, test = (random_prefixes(answers, seed=seed) for seed in (1, 2))
    cooler = calibrated(plain, fit, batch_size=32)
    errors = [
        expected_calibration_error(owner_scores(one, test), answers.owners)
        for one in (plain, cooler)
    ]
    assert cooler.temperature > 1.5 and errors[1] < errors[0] / 2


def test_it_is_a_pytree_that_programs_take(trained, answers):
    program = jax.jit(lambda attributor, tokens, lengths: attributor.scores(tokens, lengths).sum())
    assert 0 < program(trained, answers.tokens[:2], answers.lengths[:2]) <= 2


def test_the_same_seed_gives_the_same_classifier_and_the_base_is_left_alone(tiny, answers):
    before = jax.tree.map(np.array, tiny.params)
    quick = dataclasses.replace(SETTINGS, epochs=1, incoherent_rows=2)
    one, two = (classifier_files.fingerprint(train(tiny, answers, quick)[0]) for _ in range(2))
    other = classifier_files.fingerprint(train(tiny, answers, quick, seed=1)[0])
    assert one == two != other
    jax.tree.map(np.testing.assert_array_equal, tiny.params, before)


def test_every_step_sees_as_many_rows_of_each_owner():
    owners = np.array([0] * 5 + [1] * 2 + [2])
    quick = ClassifierSettings(epochs=3, rows_per_owner=2)
    schedule = _schedule(owners, quick, np.random.default_rng(0))
    assert schedule.shape == (9, 6)
    np.testing.assert_array_equal(owners[schedule], [[0, 0, 1, 1, 2, 2]] * 9)
    # Permutations end to end: no row comes more than once oftener than another of its owner.
    times = np.bincount(schedule.ravel(), minlength=8)
    assert np.ptp(times[:5]) <= 1 and np.ptp(times[5:7]) <= 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rows: dataclasses.replace(rows, tokens=rows.tokens + 10**4), "token id"),
        (
            lambda rows: dataclasses.replace(rows, tokens=np.pad(rows.tokens, ((0, 0), (0, 128)))),
            "model takes 128",
        ),
    ],
)
def test_responses_that_the_model_cannot_read_are_refused(tiny, answers, change, fault):
    with pytest.raises(UserError, match=fault):
        train(tiny, change(answers), SETTINGS)


def test_a_saved_classifier_comes_back(tiny, trained, answers, tmp_path):
    warm = dataclasses.replace(trained, temperature=jnp.float32(1.7))
    classifier_files.save(warm, tmp_path / "one")
    back = classifier_files.load(tmp_path / "one", tiny)
    np.testing.assert_array_equal(owner_scores(back, answers), owner_scores(warm, answers))
    assert classifier_files.fingerprint(back) == classifier_files.fingerprint(warm)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {
        "attribution.json",
        "attribution.safetensors",
    }


def test_one_beside_a_base_in_int8_comes_back(tiny, answers, tmp_path):
    quick, base = dataclasses.replace(SETTINGS, epochs=1), in_int8(tiny)
    found, _ = train(base, answers, quick)
    classifier_files.save(found, tmp_path / "one")
    back = classifier_files.load(tmp_path / "one", base)
    np.testing.assert_array_equal(owner_scores(back, answers), owner_scores(found, answers))
    with pytest.raises(UserError, match="trained on another model"):
        classifier_files.load(tmp_path / "one", base.plain())


def test_a_classifier_of_another_model_or_a_changed_one_is_refused(tiny, trained, tmp_path):
    folder = tmp_path / "one"
    classifier_files.save(trained, folder)
    other = dataclasses.replace(tiny, params=jax.tree.map(lambda x: x * 1.01, tiny.params))
    with pytest.raises(UserError, match="trained on another model"):
        classifier_files.load(folder, other)
    file = folder / classifier_files.SETTINGS
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 9.0}))
    with pytest.raises(UserError, match="changed after it was written"):
        classifier_files.load(folder, tiny)
    (folder / classifier_files.TENSORS).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        classifier_files.load(folder, tiny)


def kinds(tokens, other, made):
    """By which of the corruptions an answer can have become what it is."""
    n = len(tokens)
    repeats = (
        [tokens[c] if c < begin else tokens[begin + (c - begin) % span] for c in range(n)]
        for begin in range(max(n // 2, 1))
        for span in range(1, min(LONGEST_SPAN, n - begin) + 1)
    )
    splices = (
        (tokens[:cut] + other[offset:])[: len(made)]
        for cut in range(1, max(n, 2))
        for offset in range(len(other))
    )
    return {
        name
        for name, found in {
            "shuffled": sorted(made) == sorted(tokens),
            "repeated": made in repeats,
            "spliced": made in splices,
        }.items()
        if found
    }


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 10), other=st.integers(1, 10))
def test_every_corruption_is_one_of_the_three(seed, length, other):
    column = np.arange(10)
    rows = np.where(column < length, column + 1, 0)[None], np.array([length])
    others = np.where(column < other, column + 20, 0)[None], np.array([other])
    made, lengths, changed = corrupt(*map(jnp.asarray, (*rows, *others)), key=jax.random.key(seed))
    made, end = made[0].tolist(), int(lengths[0])
    before = rows[0][0, :length].tolist()
    assert 1 <= end <= 10 and not any(made[end:])
    assert kinds(before, others[0][0, :other].tolist(), made[:end])
    assert bool(changed[0]) == (made[:end] != before)


def test_each_corruption_has_its_chance():
    rows = jnp.tile(jnp.arange(1, 9), (300, 1)), jnp.full(300, 8)
    others = rows[0] + 20, rows[1]
    made, lengths, _ = corrupt(*rows, *others, key=jax.random.key(0))
    before, other = list(range(1, 9)), list(range(21, 29))
    found = [
        kinds(before, other, row[:n].tolist())
        for row, n in zip(np.asarray(made), np.asarray(lengths), strict=True)
    ]
    # 100 each, up to 4 standard errors of 8.2.
    for kind in ("shuffled", "repeated", "spliced"):
        assert abs(sum(kind in one for one in found) - 100) < 33
