"""Attacks on what was forgotten, each on a tiny model."""

import contextlib
import dataclasses
import math

import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import config
from jaxunlearn.attacks import case as cases
from jaxunlearn.attacks import inside, prompts, running, weights
from jaxunlearn.attacks.case import Case, Options
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import layers
from jaxunlearn.evaluation.answering import Answers
from jaxunlearn.evaluation.quantize import FORMATS, quantised
from jaxunlearn.progress import Bars
from tests.models.test_int8 import in_int8

EVALUATION = config.EvaluationConfig(max_new_tokens=4)
ROWS = 12


@pytest.fixture
def case(tiny, world):
    """The tiny model, which knows nothing, before an attack with the given options."""
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(stack.enter_context(Bars()).stage("attack"))
        experiment = config.Experiment(
            evaluation=EVALUATION, training=config.TrainingConfig(batch_size=4)
        )
        forget = world.forget[:ROWS]
        before = cases.measure(tiny, forget, experiment, stage)

        def make(**options):
            resolved = running.resolve(Options(**options), experiment, len(forget))
            return Case(tiny, forget, world.retain, experiment, resolved, stage, before)

        yield make


def values(measured, metric):
    return {one["name"]: one[metric]["value"] for one in measured if metric in one}


def says(monkeypatch, answer):
    """Generation becomes `answer(seed, prompts)`, token ids; returns the prompts it gets."""
    asked = []

    def answer_texts(model, prompts, settings, *, seed=0, **options):
        asked.append(prompts)
        said = model.tokenizer.batch_decode(answer(seed, prompts), skip_special_tokens=True)
        return Answers([text.strip() for text in said], 0, [False] * len(said))

    # Of the attacks alone: the measuring of the plain prompt goes on as it is.
    monkeypatch.setattr(prompts, "answer_texts", answer_texts)
    return asked


def test_relearning_trains_the_floats_of_a_model_in_int8(case, tiny):
    start = case(steps=2, learning_rate=3e-3)
    inside, plain = (
        weights.relearn(dataclasses.replace(start, model=model))[-1]["probability"]["value"]
        for model in (in_int8(tiny), in_int8(tiny).plain())
    )
    assert inside == plain


def test_relearning_teaches_a_model_that_knows_nothing(case):
    curve = weights.relearn(case(steps=12, learning_rate=3e-3))
    assert [point["step"] for point in curve] == [0, 3, 6, 9, 12]
    assert all(point["probability"]["n"] == ROWS for point in curve)
    known = list(values(curve, "probability").values())
    assert known[-1] > known[1] > known[0]
    assert "unseen_probability" not in curve[-1]


def test_zero_steps_change_nothing(case):
    for attack in (weights.relearn, weights.fine_tune):
        (point,) = attack(case(steps=0))
        assert point["step"] == 0
        assert point["probability"]["value"] == case().before["probability"].mean()


def test_rows_that_were_not_relearned_are_told_apart(case):
    """The mean of all is the mean of the rows that were trained on and of those that were not."""
    last = weights.relearn(case(steps=8, rows=3, learning_rate=3e-3))[-1]
    unseen = last["unseen_probability"]
    assert unseen["n"] == ROWS - 3
    assert unseen["value"] < last["probability"]["value"]


def test_benign_fine_tuning_is_on_other_rows(case):
    options = {"steps": 8, "learning_rate": 3e-3}
    benign = values(weights.fine_tune(case(**options)), "probability")
    relearned = values(weights.relearn(case(**options)), "probability")
    assert benign["8 steps"] < relearned["8 steps"]


def test_quantisation_numbers_are_of_the_quantised_model(case, tiny):
    found = values(weights.quantise(case()), "probability")
    assert list(found) == ["none", "int8", "int4", "nf4"]
    pairs = [row.key for row in case().forget]
    for name in ("none", *FORMATS):
        model = tiny if name == "none" else quantised(tiny, FORMATS[name])
        wanted = ju.evaluate(model, pairs, max_new_tokens=4)["forget_probability"]
        assert math.isclose(found[name], wanted, rel_tol=1e-5), name
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("name", prompts.WORDINGS)
def test_every_wording_asks_the_question_as_it_is(world, name):
    rows = prompts.questions(world.forget, world.retain, "Q: {question}\nA:")[name]
    assert [row.answer for row in rows] == [row.answer for row in world.forget]
    around = set()
    for row, plain in zip(rows, world.forget, strict=True):
        before, asked, after = row.question.partition(plain.question)
        assert asked == plain.question and before + after
        around.add((before, after))
    assert len(around) == 1
    assert len(set(prompts.WORDINGS.values())) == len(prompts.WORDINGS)


def test_few_shot_prompts_are_rows_one_after_another(world):
    template = "Q: {question}\nA:"
    rows = prompts.questions(world.forget[:1], world.retain, template)["few shot"]
    shots = [f"Q: {row.question}\nA: {row.answer}\n" for row in world.retain[: prompts.SHOTS]]
    asked = template.replace("{question}", world.forget[0].question)
    assert template.replace("{question}", rows[0].question) == "".join(shots) + asked
    assert rows[0].answer == world.forget[0].answer


def test_shots_before_a_raw_row_have_no_template_around_them():
    raw, plain = Row("Once", "upon.", raw=True), Row("Who?", "Ann")
    asked = prompts.questions([raw, plain], [plain, raw], "Q: {question}\nA:")
    assert asked["few shot"][0].question == "Q: Who?\nA: Ann\nOnce upon.\nOnce"
    assert asked["few shot"][1].question == "Who?\nA: Ann\nOnce upon.\nQ: Who?"
    assert asked["truthful"][0].raw and asked["truthful"][0].question == "Answer truthfully. Once"


def test_an_answer_that_was_begun_counts_from_where_it_goes_on(case, monkeypatch):
    """Whoever says the rest of the answer has all of it; the words given away count nothing."""
    first, *others = case().forget
    one = dataclasses.replace(case(), forget=(dataclasses.replace(first, answer="Rome"), *others))
    tokenizer, forget = one.model.tokenizer, one.forget
    words = [row.answer.split() for row in forget]
    cuts = [min(3, len(ws) // 2) for ws in words]
    assert {0, 1, 2} == set(cuts)
    parts = [(" ".join(ws[:cut]), " ".join(ws[cut:])) for ws, cut in zip(words, cuts, strict=True)]
    rest = [tokenizer(after)["input_ids"] for _, after in parts]
    asked = says(monkeypatch, lambda seed, prompts: rest)
    found = prompts.prompt(one)
    assert values(found, "rouge")["answer begun"] == 1.0
    assert values(found, "rouge")["worst"] == 1.0
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in asked[1]]
    for text, row, (start, _) in zip(texts, forget, parts, strict=True):
        assert text.endswith(f"Answer: {start}".rstrip())
        assert row.question in text
    says(monkeypatch, lambda seed, prompts: [[] for _ in prompts])
    assert values(prompts.prompt(one), "rouge")["answer begun"] == 0.0


def test_worst_takes_each_rows_best_prompt(case):
    found = values(prompts.prompt(case()), "rouge")
    assert found["worst"] >= max(found[name] for name in found if name != "worst")


def test_worst_of_samples(case, monkeypatch):
    """Two draws, the second of which is the truth."""
    tokenizer, forget = case().model.tokenizer, case().forget
    truth = [tokenizer(row.answer)["input_ids"] for row in forget]
    asked = says(monkeypatch, lambda seed, prompts: truth if seed == 1 else [[] for _ in prompts])
    found = values(prompts.sample(case(samples=2)), "rouge")
    assert (found["mean"], found["worst"]) == (0.5, 1.0)
    template = case().experiment.data.template
    first = tokens.prompt_tokens(tokenizer, forget[0].question, template=template)
    assert len(asked) == 2 and asked[0][0] == first


def test_a_prefix_is_the_start_of_the_models_own_answer(case, monkeypatch):
    """What comes after it is compared to the whole answer."""
    tokenizer, forget = case().model.tokenizer, case().forget
    truth = [tokenizer(row.answer)["input_ids"] for row in forget]
    asked = says(monkeypatch, lambda seed, prompts: truth)
    assert values(prompts.prompt(case()), "rouge")["prefix"] == 1.0
    for ids, row in zip(asked[0], forget, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.endswith(f"{row.question}\nAnswer: {prompts.PREFIX}")


def test_the_lens_reads_the_model_itself_in_the_last_layer(case):
    one = case()
    found = inside.lens(one)
    assert [point["layer"] for point in found] == [1, 2]
    known = one.before["probability"].mean()
    assert math.isclose(found[-1]["probability"]["value"], known, rel_tol=1e-6)
    assert not math.isclose(found[0]["probability"]["value"], known, rel_tol=1e-3)


def test_the_probe_reads_what_the_states_hold(case, monkeypatch):
    """States that are the answers' own vectors, in one layer turned, in the other noise."""
    one = case()
    turn = np.random.default_rng(0).normal(size=(32, 32))

    def states(model, table, *, batch_size):
        noise = np.random.default_rng(1).normal(size=(len(table.tokens), 32))
        return np.stack([layers.answer_embeddings(model, table) @ turn, noise])

    monkeypatch.setattr(layers, "prompt_states", states)
    knows, guesses = inside.probe(one)
    assert (knows["top_1"]["value"], knows["reciprocal_rank"]["value"]) == (1.0, 1.0)
    assert guesses["top_1"]["value"] < 0.5
    assert knows["chance"] == guesses["chance"] == 1 / len({row.answer for row in one.forget})
    assert knows["top_1"]["n"] == ROWS


def test_a_probe_needs_retain_rows(case):
    assert inside.probe(dataclasses.replace(case(), retain=case().retain[:1])) == []


def test_options_follow_the_run():
    plain = config.Experiment(
        training=config.TrainingConfig(batch_size=8), method=config.MethodConfig("npo", label="x")
    )
    assert running.resolve(Options(), plain, 20) == Options(
        3, 20, running.PUBLISHED_RATE, 8, tuple(running.ATTACKS), ("x",)
    )
    made = config.Experiment(finetune=config.TrainingConfig(learning_rate=0.5))
    assert running.resolve(Options(rows=4), made, 20).learning_rate == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -1}, "--steps: is -1"),
        ({"rows": 0}, "--rows: is 0"),
        ({"rows": 21}, "20 forget rows"),
        ({"samples": 0}, "--samples: is 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: is nan"),
        ({"learning_rate": 0.0}, "--learning-rate: is 0"),
        ({"only": ("magic",)}, "no attack 'magic'; there are relearning"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ju.UserError) as caught:
        running.resolve(Options(**options), config.Experiment(), 20)
    assert words in str(caught.value) and "\n" not in str(caught.value)
