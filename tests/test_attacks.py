"""Attacks on what was forgotten: each on a tiny model, then the command on a whole run."""

import contextlib
import dataclasses
import json
import math

import numpy as np
import pytest
import yaml

import jaxunlearn as ju
from jaxunlearn import attacks, cli, config
from jaxunlearn.attacks import Case, Options
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import robustness
from jaxunlearn.evaluation.quantize import FORMATS, quantised
from jaxunlearn.evaluation.robustness import quantisation_robustness, relearning_robustness
from jaxunlearn.progress import Bars

SMALL = {
    "data": {"people": 6, "forget_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 2, "learning_rate": 3e-3},
    "training": {"epochs": 2, "batch_size": 10},
    "evaluation": {"max_new_tokens": 4, "limit": 6},
}  # fmt: skip
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
        before = attacks.measure(tiny, forget, experiment, stage)

        def make(**options):
            resolved = attacks.resolve(Options(**options), experiment, len(forget))
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
        return [text.strip() for text in said], 0

    # Of the attacks alone: the measuring of the plain prompt goes on as it is.
    monkeypatch.setattr(attacks, "answer_texts", answer_texts)
    return asked


def test_relearning_teaches_a_model_that_knows_nothing(case):
    curve = attacks.relearn(case(steps=12, learning_rate=3e-3))
    assert [point["step"] for point in curve] == [0, 3, 6, 9, 12]
    assert all(point["probability"]["n"] == ROWS for point in curve)
    known = list(values(curve, "probability").values())
    assert known[-1] > known[1] > known[0]
    assert "unseen_probability" not in curve[-1]


def test_zero_steps_change_nothing(case):
    for attack in (attacks.relearn, attacks.fine_tune):
        (point,) = attack(case(steps=0))
        assert point["step"] == 0
        assert point["probability"]["value"] == case().before["probability"].mean()


def test_rows_that_were_not_relearned_are_told_apart(case):
    """The mean of all is the mean of the rows that were trained on and of those that were not."""
    last = attacks.relearn(case(steps=8, rows=3, learning_rate=3e-3))[-1]
    unseen = last["unseen_probability"]
    assert unseen["n"] == ROWS - 3
    assert unseen["value"] < last["probability"]["value"]


def test_benign_fine_tuning_is_on_other_rows(case):
    options = {"steps": 8, "learning_rate": 3e-3}
    benign = values(attacks.fine_tune(case(**options)), "probability")
    relearned = values(attacks.relearn(case(**options)), "probability")
    assert benign["8 steps"] < relearned["8 steps"]


def test_quantisation_numbers_are_of_the_quantised_model(case, tiny):
    found = values(attacks.quantise(case()), "probability")
    assert list(found) == ["none", "int8", "int4", "nf4"]
    pairs = [row.key for row in case().forget]
    for name in ("none", *FORMATS):
        model = tiny if name == "none" else quantised(tiny, FORMATS[name])
        wanted = ju.evaluate(model, pairs, max_new_tokens=4)["forget_probability"]
        assert math.isclose(found[name], wanted, rel_tol=1e-5), name
    assert len(set(found.values())) == 4


def test_few_shot_prompts_are_rows_one_after_another(world):
    template = "Q: {question}\nA:"
    rows = attacks.questions(world.forget[:1], world.retain, template)["few shot"]
    shots = [f"Q: {row.question}\nA: {row.answer}\n" for row in world.retain[: attacks.SHOTS]]
    asked = template.replace("{question}", world.forget[0].question)
    assert template.replace("{question}", rows[0].question) == "".join(shots) + asked
    assert rows[0].answer == world.forget[0].answer


def test_shots_before_a_raw_row_have_no_template_around_them():
    raw, plain = Row("Once", "upon.", raw=True), Row("Who?", "Ann")
    asked = attacks.questions([raw, plain], [plain, raw], "Q: {question}\nA:")
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
    found = attacks.prompt(one)
    assert values(found, "rouge")["answer begun"] == 1.0
    assert values(found, "rouge")["worst"] == 1.0
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in asked[0]]
    for text, row, (start, _) in zip(texts, forget, parts, strict=True):
        assert text.endswith(f"Answer: {start}".rstrip())
        assert row.question in text
    says(monkeypatch, lambda seed, prompts: [[] for _ in prompts])
    assert values(attacks.prompt(one), "rouge")["answer begun"] == 0.0


def test_worst_takes_each_rows_best_prompt(case):
    found = values(attacks.prompt(case()), "rouge")
    assert found["worst"] >= max(found[name] for name in found if name != "worst")


def test_worst_of_samples(case, monkeypatch):
    """Two draws, the second of which is the truth."""
    tokenizer, forget = case().model.tokenizer, case().forget
    truth = [tokenizer(row.answer)["input_ids"] for row in forget]
    asked = says(monkeypatch, lambda seed, prompts: truth if seed == 1 else [[] for _ in prompts])
    found = values(attacks.sample(case(samples=2)), "rouge")
    assert (found["mean"], found["worst"]) == (0.5, 1.0)
    template = case().experiment.data.template
    first = tokens.prompt_tokens(tokenizer, forget[0].question, template=template)
    assert len(asked) == 2 and asked[0][0] == first


def test_options_follow_the_run():
    plain = config.Experiment(training=config.TrainingConfig(batch_size=8))
    assert attacks.resolve(Options(), plain, 20) == Options(
        3, 20, attacks.PUBLISHED_RATE, 8, tuple(attacks.ATTACKS)
    )
    made = config.Experiment(finetune=config.TrainingConfig(learning_rate=0.5))
    assert attacks.resolve(Options(rows=4), made, 20).learning_rate == 0.5


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
        attacks.resolve(Options(**options), config.Experiment(), 20)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_only_a_finished_run_is_attacked(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    for place in (tmp_path, tmp_path / "gone"):
        assert cli.main(["attack", str(place)]) == 2
        assert f"error: {place}: not a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "theirs", "r"),
    [
        ((0.1, 0.5), (0.1, 0.2), 0.25),
        ((0.1, 0.2), (0.1, 0.5), 1.0),
        ((0.3, 0.2), (0.1, 0.5), 1.0),
        ((0.3, 0.3), (0.1, 0.1), 1.0),
        ((0.1, 0.2), (0.3, 0.2), 0.0),
    ],
)
def test_relearning_robustness(ours, theirs, r):
    assert relearning_robustness(ours, theirs) == pytest.approx(r)


@pytest.mark.parametrize(
    ("before", "after", "q"), [(0.2, 0.8, 0.25), (0.8, 0.2, 1), (0, 0, 1), (0, 0.1, 0)]
)
def test_quantisation_robustness(before, after, q):
    assert quantisation_robustness(before, after) == q


def point(name, value):
    found = {"value": value, "n": 4, "ci": None}
    return {"name": name, "probability": found, "rouge": found}


def test_aggregates_by_hand():
    """R = 0.1 / 0.4, Q = 0.1 / 0.2 of NF4, HM = 2 / (4 + 2); the middle of a curve says nothing."""
    found = {
        "relearning": {
            "unlearned": [point("0", 0.1), point("1", 0.9), point("2", 0.5)],
            "retrained": [point("0", 0.2), point("1", 0.2), point("2", 0.3)],
        },
        "quantisation": {
            "unlearned": [point("none", 0.1), point("int4", 0.9), point("nf4", 0.2)],
            "retrained": [point("none", 0.1), point("int4", 0.9), point("nf4", 0.9)],
        },
    }
    for one in robustness.aggregates(found).values():
        np.testing.assert_allclose(
            [one[name]["value"] for name in ("R", "Q", "HM")], [0.25, 0.5, 1 / 3]
        )
        assert {number["n"] for number in one.values()} == {4}
    del found["relearning"]["retrained"]
    alone = robustness.aggregates(found)["rouge"]
    assert (alone["R"]["value"], alone["Q"]["value"], alone["HM"]["value"]) == (None, 0.5, None)
    empty = robustness.aggregates({})["probability"]
    assert {one["value"] for one in empty.values()} == {None}


@pytest.mark.slow
def test_the_command_from_start_to_end(tmp_path, capsys):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path / "runs")}))
    assert cli.main(["run", str(path)]) == 0
    place = tmp_path / "runs" / "small"
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert cli.main(["attack", str(place), "--rows", "99999"]) == 2
    assert "--rows: is 99999" in capsys.readouterr().err
    assert not (place / "attacks.json").exists()

    words = ["attack", str(place), "--steps", "2", "--rows", "5", "--samples", "1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "nf4" in out and "HM" in out
    result = json.loads((place / "attacks.json").read_text())
    assert [name for name in result if name in attacks.ATTACKS] == list(attacks.ATTACKS)
    for name in attacks.ATTACKS:
        assert list(result[name]) == ["unlearned", "retrained"]
    n = result["settings"]["forget_rows"]
    assert result["before"]["unlearned"]["probability"]["n"] == n
    assert all(0 <= one["value"] <= 1 for one in result["aggregates"]["probability"].values())
    page = (place / "attacks.html").read_text()
    assert "unlearned, quantisation: nf4" in page and "src=" not in page
    # The retrained model is the run's own: it was restored, and nothing of the run was changed.
    assert {p: p.read_bytes() for p in before} == before

    # The run may have been moved since.
    moved = place.rename(tmp_path / "elsewhere")
    assert cli.main(["attack", str(moved), "--only", "quantisation"]) == 0
    again = json.loads((moved / "attacks.json").read_text())
    assert "relearning" not in again and again["quantisation"] == result["quantisation"]
