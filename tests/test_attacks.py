"""Attacks on what was forgotten: each on a tiny model, then the command on a whole run."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import jaxunlearn as ju
from jaxunlearn import cli, config
from jaxunlearn.attacks import case as cases
from jaxunlearn.attacks import inside, models, prompts, running, weights
from jaxunlearn.attacks.case import Case, Options
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import layers, robustness
from jaxunlearn.evaluation.answering import Answers
from jaxunlearn.evaluation.quantize import FORMATS, quantised
from jaxunlearn.evaluation.robustness import quantisation_robustness, relearning_robustness
from jaxunlearn.progress import Bars
from tests.models.test_int8 import in_int8

SMALL = {
    "data": {"people": 6, "forget_people": 2},
    "model": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
              "vocab_size": 400},
    "finetune": {"epochs": 2, "learning_rate": 3e-3},
    "training": {"epochs": 2, "batch_size": 10},
    "baselines": [{"name": "grad_diff"}],
    "evaluation": {"max_new_tokens": 4},
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
    for one in robustness.aggregates(found, ["unlearned"])["unlearned"].values():
        np.testing.assert_allclose(
            [one[name]["value"] for name in ("R", "Q", "HM")], [0.25, 0.5, 1 / 3]
        )
        assert {number["n"] for number in one.values()} == {4}
    del found["relearning"]["retrained"]
    alone = robustness.aggregates(found, ["unlearned"])["unlearned"]["rouge"]
    assert (alone["R"]["value"], alone["Q"]["value"], alone["HM"]["value"]) == (None, 0.5, None)
    empty = robustness.aggregates({}, ["unlearned"])["unlearned"]["probability"]
    assert {one["value"] for one in empty.values()} == {None}


def result_of(value, r, *, steps=2):
    """What a run's attacks found, with the probability of one model as it is, and its R."""
    return {
        "name": "x",
        "settings": {"steps": steps, "rows": 3},
        "before": {"npo": point("before", value)},
        "lens": {"npo": [{**point("layer 1", value), "layer": 1}]},
        "aggregates": {"npo": {"probability": {"R": {"value": r, "n": 4, "ci": None}}}},
    }


def test_without_a_step_nothing_is_known_of_relearning():
    found = {"relearning": {m: [point("0 steps", 0.1)] for m in ("npo", "retrained")}}
    (of_npo,) = robustness.aggregates(found, ["npo"]).values()
    assert of_npo["probability"]["R"] == {"value": None, "n": 0, "ci": None}


def test_several_runs_are_means_by_hand():
    runs = [result_of(0.1, 1.0), result_of(0.3, None, steps=5)]
    both = robustness.over_runs(runs, ["a", "b"])
    assert (both["runs"], both["settings"]) == (["a", "b"], {"rows": 3})
    of_model = both["before"]["npo"]["probability"]
    assert (of_model["value"], of_model["seeds"], of_model["ci"]) == (0.2, 2, [0.1, 0.3])
    assert math.isclose(of_model["sd"], 0.02**0.5)
    (layer,) = both["lens"]["npo"]
    assert (layer["name"], layer["layer"], layer["probability"]["value"]) == ("layer 1", 1, 0.2)
    # The one run that has an R.
    assert both["aggregates"]["npo"]["probability"]["R"]["seeds"] == 1
    assert robustness.verdicts(both) == ["npo, probability: R 1.000 (1.000-1.000)"]


def test_tables_by_hand():
    found = {
        **result_of(0.1, 1.0),
        "quantisation": {"retrained": [point("nf4", 0.5)], "npo": [point("nf4", 0.25)]},
        "prompts": {"npo": [{"name": "prefix", "rouge": point("", 0.75)["rouge"]}]},
    }
    made = robustness.tables(found)
    assert made["Attacks"]["columns"] == [
        "retrained prob.", "retrained ROUGE", "npo prob.", "npo ROUGE",
    ]  # fmt: skip
    assert made["Attacks"]["rows"] == {
        "quantisation: nf4": ["0.500", "0.500", "0.250", "0.250"],
        "prompts: prefix": ["-", "-", "-", "0.750"],
    }
    assert made["Layers"]["columns"] == ["npo logit lens"]
    assert made["Layers"]["rows"] == {"layer 1": ["0.100"]}
    assert list(robustness.tables(result_of(0.1, 1.0))) == ["Layers"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run with a baseline; tests copy it before they attack it."""
    place = tmp_path_factory.mktemp("runs")
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(place)}))
    assert cli.main(["run", str(path)]) == 0
    return place / "small"


@pytest.fixture
def run_folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "small"))


def attack(*words):
    """With little work."""
    return cli.main(["attack", *map(str, words), "--steps", "2", "--rows", "5", "--samples", "1"])


def read(folder):
    return json.loads((folder / "attacks.json").read_text())


@pytest.mark.slow
def test_the_command_from_start_to_end(run_folder, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}
    assert cli.main(["attack", str(run_folder), "--rows", "99999"]) == 2
    assert "--rows: is 99999" in capsys.readouterr().err
    assert not (run_folder / "attacks.json").exists()

    assert attack(run_folder) == 0
    out = capsys.readouterr().out
    assert "nf4" in out and "HM" in out and "layer 2" in out
    result = read(run_folder)
    assert [name for name in result if name in running.ATTACKS] == list(running.ATTACKS)
    for name in running.ATTACKS:
        known = ["target"] if name in running.INSIDE else []
        assert list(result[name]) == [*known, "retrained", "npo"]
    n = result["settings"]["forget_rows"]
    assert result["before"]["npo"]["probability"]["n"] == n
    assert all(0 <= v["value"] <= 1 for v in result["aggregates"]["npo"]["probability"].values())
    last, now = result["lens"]["target"][-1], result["before"]["target"]
    assert math.isclose(last["probability"]["value"], now["probability"]["value"], rel_tol=1e-6)
    page = (run_folder / "attacks.html").read_text()
    assert "quantisation: nf4" in page and "Layer by layer" in page and "src=" not in page
    # The retrained model is the run's own: it was restored, and nothing of the run was changed.
    assert {p: p.read_bytes() for p in before} == before

    # The run may have been moved since; what was found is not looked for again.
    moved = run_folder.rename(tmp_path / "elsewhere")
    time = (moved / "attacks.json").stat().st_mtime_ns
    assert attack(moved, "--only", "quantisation") == 0
    assert "attacked already" in capsys.readouterr().out
    assert (moved / "attacks.json").stat().st_mtime_ns == time


@pytest.mark.slow
def test_only_adds_to_what_was_made_with_the_same_settings(run_folder, capsys):
    assert attack(run_folder, "--only", "lens") == 0
    first = read(run_folder)
    assert attack(run_folder, "--only", "quantisation", "--only", "lens") == 0
    both = read(run_folder)
    assert list(both["quantisation"]) == ["retrained", "npo"]
    assert (both["lens"], both["before"]) == (first["lens"], first["before"])
    names = [name for name in both if name in running.ATTACKS]
    assert names == ["quantisation", "lens"]  # in the order of reports
    capsys.readouterr()

    # Other settings would lose what is there; of an older run it means nothing.
    assert attack(run_folder, "--only", "lens", "--method", "grad_diff") == 2
    told = capsys.readouterr().err
    assert "made with methods ['npo'], now methods ['grad_diff']; move it away" in told
    assert read(run_folder) == both
    later = (run_folder / "attacks.json").stat().st_mtime_ns + 10**9
    os.utime(run_folder / "summary.json", ns=(later, later))
    assert attack(run_folder, "--only", "probe", "--method", "grad_diff") == 0
    assert "older than the run" in capsys.readouterr().out
    assert "lens" not in read(run_folder)

    (run_folder / "attacks.json").write_text("[]")
    os.utime(run_folder / "attacks.json", ns=(later, later))
    assert attack(run_folder, "--only", "lens") == 2
    assert "attacks.json: damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_baselines_come_from_their_checkpoints(run_folder, capsys):
    """The numbers of the run itself come back."""
    words = ["--only", "lens", "--method", "grad_diff", "--method", "npo"]
    shutil.rmtree(run_folder / "checkpoints" / "retrained")
    stages = {p.name for p in (run_folder / "checkpoints").iterdir()}
    assert attack(run_folder, *words) == 0
    # The retrained model was trained again, but not into the run.
    assert {p.name for p in (run_folder / "checkpoints").iterdir()} == stages
    models = json.loads((run_folder / "summary.json").read_text())["models"]
    before = read(run_folder)["before"]
    assert list(before) == list(models) == ["target", "retrained", "grad_diff", "npo"]
    for label, one in before.items():
        known = models[label]["forget_probability"]
        assert known["n"] == one["probability"]["n"]
        assert math.isclose(known["value"], one["probability"]["value"], rel_tol=1e-4), label
    capsys.readouterr()

    assert attack(run_folder, "--method", "magic") == 2
    assert f"{run_folder} has no 'magic'; it has grad_diff, npo" in capsys.readouterr().err
    for gone in ("grad_diff", "target"):
        shutil.rmtree(run_folder / "checkpoints" / gone)
        assert attack(run_folder, *words) == 2
        told = capsys.readouterr().err
        assert f"checkpoints/{gone}: is not there any more" in told and "--name NEW" in told
    # The main one is in hf; without the target's checkpoint there is no upper bound.
    (run_folder / "attacks.json").unlink()
    assert attack(run_folder, "--only", "lens") == 0
    assert list(read(run_folder)["lens"]) == ["retrained", "npo"]


@pytest.mark.slow
def test_several_runs_are_attacked_in_turn(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name)
    only = ["--only", "lens", "--only", "quantisation"]
    assert attack("a", "b", *only, "--output", "b/all.html") == 2
    assert "b/all.html is in the folder of one of the runs" in capsys.readouterr().err
    assert attack("a", *only, "--output", "all.html") == 2
    assert "--output: is for several runs" in capsys.readouterr().err
    assert attack("a", "b", *only, "--output", "all") == 2
    assert "must end in .html" in capsys.readouterr().err
    assert attack("a", "nothing", *only) == 2
    assert not Path("a/attacks.json").exists()

    capsys.readouterr()
    assert attack("a", *only) == 0
    assert attack("a", "b", "a", *only) == 0
    out = capsys.readouterr().out
    assert "a: attacked already" in out and "b: attacked already" not in out
    both, one = read(tmp_path), read(tmp_path / "b")
    assert both["runs"] == ["a", "b"]
    # The same run twice: means and both ends are its own numbers.
    ours, theirs = (r["aggregates"]["npo"]["probability"]["Q"] for r in (both, one))
    assert ours["value"] == theirs["value"] and ours["ci"] == [theirs["value"]] * 2
    assert "least and greatest value of the seeds" in Path("attacks.html").read_text()


def test_models_after_requests(tmp_path, monkeypatch):
    """The checkpoints that a label needs are those of all its requests."""
    experiment = dataclasses.replace(
        config.Experiment(), finetune=None, baselines=(config.MethodConfig("grad_diff"),),
        requests=config.RequestsConfig(),
    )  # fmt: skip
    monkeypatch.setattr(models.requests, "split", lambda data, asked: [None, None])
    (tmp_path / "checkpoints" / "grad_diff@1" / "5").mkdir(parents=True)
    with pytest.raises(ju.UserError, match="grad_diff@2: is not there"):
        models.check(tmp_path, experiment, None, ["grad_diff"])
    (tmp_path / "checkpoints" / "grad_diff@2" / "5").mkdir(parents=True)
    models.check(tmp_path, experiment, None, ["grad_diff"])


@pytest.mark.slow
def test_a_baseline_after_requests_is_the_one_after_the_last(tmp_path):
    path = tmp_path / "asked.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output": str(tmp_path), "requests": {}}))
    assert cli.main(["run", str(path)]) == 0
    folder = tmp_path / "asked"
    assert attack(folder, "--only", "lens", "--method", "grad_diff") == 0
    known = json.loads((folder / "summary.json").read_text())["models"]["grad_diff"]
    found = read(folder)["lens"]["grad_diff"][-1]["probability"]
    assert found["n"] == known["forget_probability"]["n"]
    assert math.isclose(found["value"], known["forget_probability"]["value"], rel_tol=1e-4)
