"""Candidates: what is proposed, how a question is asked, what the bandit sees and what is drawn."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.data.tokens import prompt_tokens
from jaxunlearn.errors import UserError
from jaxunlearn.models import transformer
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.soft import with_soft_prompts
from jaxunlearn.reveal import proposing
from jaxunlearn.reveal.candidates import Candidate, asked, prompted, soft, written
from jaxunlearn.reveal.drawing import draw
from jaxunlearn.reveal.features import features

TEMPLATE = "Question: {question}\nAnswer:"
SETTINGS = RevealConfig(
    candidates=7, soft_tokens=3, dimension=4, max_new_tokens=6, samples=4, batch_size=4
)
WHY = Text("Why?", "")
QUESTIONS = [Text("Who is it?", ""), Text("What does the Bralmek eat, and where?", ""), WHY]


def test_the_question_under_an_instruction():
    assert asked(None, WHY) == asked(Candidate("plain"), WHY) == WHY
    assert asked(Candidate("a", "Be rude."), WHY) == Text("Be rude. Why?", "")
    twice = Candidate("b", "Say {question} and {question}!")
    assert asked(twice, Text("x", "", raw=True)) == Text("Say x and x!", "", raw=True)
    assert asked(Candidate("c", "Tell."), Text("", "")).question == "Tell."


def test_written_instructions_come_once_and_all():
    propose = written(["a", " b", "a ", "", "{question}?"], SETTINGS, seed=0)
    found = [(c.name, c.instruction) for c in propose(0)]
    assert found == [("written-0", "a"), ("written-1", "b"), ("written-4", "{question}?")]
    assert propose(0) == propose(2)


def test_of_many_written_instructions_each_round_has_some():
    propose = written([f"line {i}" for i in range(100)], SETTINGS, seed=0)
    rounds = [[c.name for c in propose(outer)] for outer in (0, 1, 0)]
    assert rounds[0] == rounds[2] != rounds[1]
    assert len(set(rounds[0])) == 7


def test_nothing_written_is_refused():
    with pytest.raises(UserError, match=r"^reveal.instructions: no instruction"):
        written(["", "  "], SETTINGS, seed=0)


def test_soft_prompts_are_projected_points_of_one_sequence():
    propose = soft(5, SETTINGS, seed=3)
    rounds = [propose(outer) for outer in range(3)]
    assert [c.name for c in rounds[1]] == [f"soft-1-{i}" for i in range(7)]
    vectors = np.stack([c.soft for candidates in rounds for c in candidates])
    assert vectors.shape == (21, 3, 5) and vectors.dtype == np.float32
    flat = vectors.reshape(21, 15)
    # Each is a sum of the projection's columns with weights in [0, 1]: of rank 4, not 15.
    assert np.linalg.matrix_rank(flat, tol=1e-4) == 4
    assert np.abs(flat).max() <= 4
    assert len(np.unique(flat.round(4), axis=0)) == 21
    np.testing.assert_array_equal(propose(1)[2].soft, rounds[1][2].soft)
    assert not np.array_equal(soft(5, SETTINGS, seed=4)(0)[0].soft, rounds[0][0].soft)


def test_soft_points_fill_the_cube_evenly():
    # With P known, z comes back: of the first 64 points each half of each axis has 32.
    settings = dataclasses.replace(SETTINGS, candidates=32, soft_tokens=1)
    propose = soft(6, settings, seed=0)
    e = np.stack([c.soft.ravel() for outer in range(2) for c in propose(outer)]).astype(np.float64)
    projection = np.random.default_rng(0).uniform(-1, 1, (4, 6))
    z = np.linalg.lstsq(projection.T, e.T, rcond=None)[0].T
    assert (0 - 1e-6 <= z).all() and (z <= 1 + 1e-6).all()
    assert ((z < 0.5).sum(axis=0) == 32).all()


def test_prompts_of_soft_and_written_candidates(tiny):
    one, other = soft(32, SETTINGS, seed=0)(0)[:2]
    rude = Candidate("rude", "Be rude.")
    mixed = [other, None, one, rude, other]
    model, prompts = prompted(tiny, mixed, [WHY] * 5, template=TEMPLATE)
    plain = prompt_tokens(tiny.tokenizer, "Why?", template=TEMPLATE)
    v = tiny.config.vocab_size
    assert prompts[0] == prompts[4] == [v, v + 1, v + 2, *plain]
    assert prompts[1] == plain
    assert prompts[2] == [v + 3, v + 4, v + 5, *plain]
    assert prompts[3] == prompt_tokens(tiny.tokenizer, "Be rude. Why?", template=TEMPLATE)
    np.testing.assert_array_equal(
        model.params["embed"]["soft"], np.concatenate([other.soft, one.soft])
    )
    assert prompted(tiny, [None, rude], [WHY, WHY], template=TEMPLATE)[0] is tiny
    (ids,) = prompted(tiny, [None], [Text("Once", "", raw=True)], template=TEMPLATE)[1]
    assert ids == prompt_tokens(tiny.tokenizer, "Once", template=TEMPLATE, raw=True)


def test_draws_are_those_of_generate(tiny):
    candidates = [None, Candidate("rude", "Be rude."), soft(32, SETTINGS, seed=0)(0)[0]]
    settings = dataclasses.replace(SETTINGS, temperature=1.3, top_p=0.9)
    found = draw(tiny, candidates, QUESTIONS, settings, template=TEMPLATE, seed=5).texts
    model, prompts = prompted(tiny, candidates, QUESTIONS, template=TEMPLATE)
    ids = generate(
        model.config, model.params, prompts, max_new_tokens=6, stop_tokens=tiny.stop_tokens,
        sampling=Sampling(1.3, top_p=0.9), seed=5,
    )  # fmt: skip
    texts = [tiny.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    assert found == texts and len(set(texts)) == 3
    small = dataclasses.replace(settings, batch_size=1)
    assert draw(tiny, candidates, QUESTIONS, small, template=TEMPLATE, seed=5).texts == found
    assert draw(tiny, candidates, QUESTIONS, settings, template=TEMPLATE, seed=6).texts != found


def test_an_answer_without_room(tiny):
    long = Text("word " * 100, "")
    found = draw(tiny, [None] * 2, [WHY, long], SETTINGS, template=TEMPLATE, seed=0).texts
    assert found[0] and found[1] == ""
    with pytest.raises(UserError, match=r"the shortest of 2 prompts has \d+ tokens, .* 128 posit"):
        draw(tiny, [None] * 2, [long] * 2, SETTINGS, template=TEMPLATE, seed=0)


def test_features_are_pooled_hidden_states(tiny):
    texts = [Candidate(str(i), "very " * i + "rude:") for i in range(7)]
    forward = jax.jit(transformer.hidden_states, static_argnums=0)
    for candidates in (texts, soft(32, SETTINGS, seed=0)(0)):
        found = {
            pooling: features(
                tiny, candidates, WHY, dataclasses.replace(SETTINGS, pooling=pooling),
                template=TEMPLATE,
            )
            for pooling in ("last", "mean", "max")
        }  # fmt: skip
        for row in (0, 2, 6):
            model, (ids,) = prompted(tiny, candidates[row : row + 1], [WHY], template=TEMPLATE)
            padded = np.zeros((1, 80), np.int32)
            padded[0, : len(ids)] = ids
            hidden = np.asarray(forward(model.config, model.params, padded))[0, : len(ids)]
            wanted = {"last": hidden[-1], "mean": hidden.mean(0), "max": hidden.max(0)}
            for pooling, vector in wanted.items():
                np.testing.assert_allclose(found[pooling][row], vector, atol=1e-4)
        # The question is the same, and still its last state tells the candidates apart.
        assert len(np.unique(found["last"].round(3), axis=0)) == 7
        assert found["last"].shape == (7, 32) and found["last"].dtype == np.float32


def test_a_candidate_that_is_too_long_has_no_features(tiny):
    with pytest.raises(UserError, match=r"has \d+ tokens, but the model has 128 positions"):
        features(tiny, [Candidate("long", "word " * 100)], WHY, SETTINGS, template=TEMPLATE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" write a poem. Then stop.", "Write a poem."),
        ("ask why?\nAnswer: no", "Ask why?"),
        ("name version 2.5 of it", "Name version 2.5 of it"),
        ("one line\nanother.", "One line"),
        ("  \n", ""),
    ],
)
def test_the_first_sentence_of_what_is_decoded(text, sentence):
    assert proposing.first_sentence(text) == sentence


@pytest.fixture(scope="module")
def roomy(tiny):
    """The tiny model with room for demonstrations."""
    return dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, max_positions=256))


def test_decoded_instructions(roomy):
    shown = [Text("Who?", "Nobody."), Text("Where?", "here " * 300)]
    points = soft(32, SETTINGS, seed=1)
    found = proposing.decoded(roomy, points, shown, SETTINGS)(1)
    texts = [c.instruction for c in found]
    assert texts and len(set(texts)) == len(texts)
    # The second demonstration does not fit.
    meta = (
        "\nSomebody was given one instruction, and then answered these questions."
        "\n\nQuestion: Who?\nAnswer: Nobody.\n\nThe instruction was to"
    )
    place = int(found[-1].name.removeprefix("decoded-1-"))
    model, (ids,) = with_soft_prompts(roomy, points(1)[place].soft[None])
    prompt = ids + prompt_tokens(roomy.tokenizer, meta, template="", raw=True)
    (said,) = generate(
        model.config, model.params, [prompt], max_new_tokens=64, stop_tokens=roomy.stop_tokens
    )
    text = roomy.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert texts[-1] == proposing.first_sentence(text)


def test_soft_prompts_that_decode_alike_are_one_candidate(roomy):
    same = soft(32, SETTINGS, seed=1)(0)[0].soft

    def points(outer):
        return [Candidate(f"soft-{outer}-{i}", soft=same) for i in range(3)]

    found = proposing.decoded(roomy, points, [Text("Who?", "Nobody.")], SETTINGS)(0)
    assert [c.name for c in found] == ["decoded-0-0"]


def test_demonstrations_that_do_not_fit(tiny):
    points = soft(32, SETTINGS, seed=1)
    with pytest.raises(UserError, match=r"^reveal.proposer: the shortest prompt .* room for \d+;"):
        proposing.decoded(tiny, points, [Text("Who?", "here " * 300)], SETTINGS)(0)


def test_demonstrations_are_the_best_of_the_plain_answers(tiny):
    def scorer(texts):
        return np.array([len(t.answer) / 1000 for t in texts])

    settings = dataclasses.replace(SETTINGS, samples=8)
    shown = proposing.demonstrations(
        tiny, QUESTIONS, scorer, settings, template=TEMPLATE, seed=0
    )  # fmt: skip
    lengths = [len(text.answer) for text in shown]
    assert len(shown) == 5 and lengths == sorted(lengths, reverse=True)
    assert {text._replace(answer="") for text in shown} <= set(QUESTIONS)


def test_the_proposer_that_the_settings_name(tiny):
    def named(name, **others):
        return proposing.proposer(
            tiny, QUESTIONS, None, dataclasses.replace(SETTINGS, proposer=name),
            template=TEMPLATE, seed=0, **others,
        )  # fmt: skip

    assert [c.instruction for c in named("written", instructions=["a", "b"])(0)] == ["a", "b"]
    assert named("soft")(0)[0].soft.shape == (3, 32)
    with pytest.raises(ValueError, match="nothing to search"):
        named("none")
