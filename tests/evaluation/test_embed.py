"""Embedders: padding and company change nothing, and a user's own is checked."""

import numpy as np
import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import embed

TEXTS = ["Ann", "She was a nurse in Cairo.", "1957", "the river town of Lund " * 6]


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def flat(texts):
    """Vectors by hand: angle 0 for a, 90 degrees for b, 180 for c, 60 for d; e is no direction."""
    angles = {"a": 0, "b": 90, "c": 180, "d": 60}
    found = [np.exp(1j * np.deg2rad(angles[t])) if t in angles else 0 for t in texts]
    return np.array([[z.real, z.imag] for z in found])


def test_company_and_padding_change_no_embedding(tiny):
    together = embed.from_model(tiny, TEXTS, batch_size=4)(TEXTS)
    assert together.shape == (4, 32) and together.dtype == np.float64
    for batch_size in (1, 3):
        embedder = embed.from_model(tiny, TEXTS, batch_size=batch_size)
        alone = np.concatenate([embedder([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, together, atol=1e-5)
    assert np.ptp(together, axis=0).min() > 1e-3  # the texts are told apart


def test_the_same_text_has_cosine_one(tiny):
    embedder = embed.from_model(tiny, TEXTS)
    (one,), (other,) = embedder(["a nurse"]), embedder(["a nurse", *TEXTS])[:1]
    assert cosine(one, other) == pytest.approx(1, abs=1e-6)


def test_the_true_answers_have_mean_zero_however_often_they_occur(tiny):
    embedder = embed.from_model(tiny, [*TEXTS, TEXTS[0], TEXTS[0]])
    np.testing.assert_allclose(embedder(TEXTS).mean(axis=0), 0, atol=1e-6)


def test_an_embedding_is_the_mean_state_of_the_text_without_its_begin_token(tiny):
    from jaxunlearn.models import transformer

    embedder = embed.from_model(tiny, [TEXTS[0]])
    ids = [tiny.tokenizer(t)["input_ids"] + [2] for t in TEXTS[:2]]
    assert ids[0][0] == 1
    first, second = (
        np.asarray(transformer.hidden_states(tiny.config, tiny.params, np.array([i])))[0, 1:]
        for i in ids
    )
    expected = second.mean(axis=0) - first.mean(axis=0)
    np.testing.assert_allclose(embedder(TEXTS[1:2])[0], expected, atol=1e-5)


def test_a_text_beyond_the_limit_is_seen_to_its_limit(tiny):
    long = "She was a nurse in Cairo. " * 40
    assert len(tiny.tokenizer(long)["input_ids"]) > tiny.config.max_positions
    one, other = embed.from_model(tiny, TEXTS)([long, long + "And more."])
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(one).all()


def test_unrelated_answers_are_near_zero_and_paraphrases_are_not(stories260k):
    from jaxunlearn.models.loading import load_model

    pairs = {
        "The cat slept in the garden.": "In the garden the cat was sleeping.",
        "Tom bought a red ball at the shop.": "At the shop Tom bought a ball that was red.",
        "It rained all day and mom was sad.": "Mom was sad because it rained all day.",
        "The big dog ate the cake.": "The cake was eaten by the big dog.",
    }
    truths = list(pairs)
    embedder = embed.from_model(load_model(stories260k), truths)
    same = embed.similarity(embedder, list(pairs.values()), truths)
    other = embed.similarity(embedder, truths[1:] + truths[:1], truths)
    assert other.mean() < 0.1 and same.mean() > 0.4


def test_similarity_by_hand():
    found = embed.similarity(flat, ["a", "b", "c", "d", "e", "", "  "], ["a"] * 7)
    # Opposite meanings, no direction and empty texts score 0.
    np.testing.assert_allclose(found, [1, 0, 0, 0.5, 0, 0, 0], atol=1e-12)


def test_each_text_is_embedded_once_and_empty_ones_never():
    seen = []

    def counting(texts):
        seen.append(list(texts))
        return flat(texts)

    embed.similarity(counting, ["b", "b", "", "a"], ["a", "a", "a", "a"])
    assert seen == [["b", "a"]]
    embed.similarity(counting, ["", "a"], ["a", "a"])
    assert len(seen) == 1


@pytest.fixture
def own(tmp_path):
    """Writes a file of a user's; gives a function of its as the config names it."""

    def write(body):
        path = tmp_path / "mine.py"
        path.write_text(f"import numpy as np\ndef encode(texts):\n    {body}\nnumber = 3\n")
        return f"{path}:encode"

    return write


def test_an_embedder_of_ones_own(own):
    embedder = embed.load(own("return [[len(text), 1] for text in texts]"))
    np.testing.assert_array_equal(embedder(("a", "abc")), [[1, 1], [3, 1]])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return np.zeros((3, 2))", r"shape \(3, 2\) for 2 texts; return one vector per text"),
        ("return np.zeros(2)", r"shape \(2,\)"),
        ("return np.zeros((2, 0))", r"shape \(2, 0\)"),
        ("return np.array([[1.0], [np.nan]])", "not finite for 'second'"),
        ("return 1 / 0", "fails on 2 texts: ZeroDivisionError"),
        ("return [['x'], ['y']]", "fails on 2 texts: ValueError"),
    ],
)
def test_what_an_embedder_returns_is_checked(own, body, words):
    name = own(body)
    with pytest.raises(UserError, match=words) as caught:
        embed.load(name)(["first", "second"])
    assert str(caught.value).startswith(f"evaluation.embedder: {name} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{}gone", "has no function 'gone'"),
        ("{}number", "has no function 'number'"),
        ("nowhere.py:f", "no such file"),
        ("minilm", "name a function as path/to/file.py:function"),
    ],
)
def test_embedders_that_cannot_be_loaded(own, name, words):
    file = own("return 0").removesuffix("encode")
    with pytest.raises(UserError, match=words) as caught:
        embed.load(name.format(file))
    assert str(caught.value).startswith("evaluation.embedder: ")
