"""`select` in a run: the result is the best evaluated state; curves, notes, faults, resume."""

import pytest

from jaxunlearn import config, config_file, experiment, runs
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import suite
from jaxunlearn.progress import Stage

TREE = {
    "name": "chosen",
    "data": {"people": 6, "forget_people": 2},
    "method": {"name": "grad_ascent"},
    "training": {"epochs": 8, "batch_size": 16, "learning_rate": 5e-4},
    "select": {"metric": "forget_probability", "goal": "min", "every": 2, "keep_utility": 0.8},
    "evaluation": {"max_new_tokens": 2, "limit": 6},
}
# Nothing is generated, and what is left of the retain rows is a smooth function of the steps.
SUITE = """
name: own
about: probabilities
metrics:
  - {metric: forget_quality, data: forget, statistic: truth_ratio, against: retrained,
     aggregation: ks_test}
  - {metric: model_utility, of: retain_probability}
  - {metric: "{set}_probability", data: [forget, retain], statistic: probability}
"""


@pytest.fixture
def settings(tiny_folder, tmp_path):
    suite_file = tmp_path / "own.yaml"
    suite_file.write_text(SUITE)

    def build(folder="runs", **sections):
        model = {"path": str(tiny_folder), "retrained": str(tiny_folder)}
        tree = {**TREE, "output": str(tmp_path / folder), "model": model, **sections}
        tree["evaluation"] = {"suite": str(suite_file), **tree["evaluation"]}
        tree = {key: value for key, value in tree.items() if value is not None}
        return config.validate(config.Experiment, config_file._nest_hyper(tree), where="test")

    return build


def lines(asked):
    """Of metrics.jsonl, without what depends on time: (what steps did, what looks found)."""
    rows = runs.RunFolder(experiment.resolve(asked)).curves()
    for row in rows:
        row.pop("tokens_per_second", None)
    rows = [row for row in rows if row["model"] == "grad_ascent"]
    return [r for r in rows if "loss" in r], [r for r in rows if "loss" not in r]


def outcome(asked, summary):
    """What is the same for two runs of one config."""
    folder = runs.RunFolder(experiment.resolve(asked)).path
    training = {k: v for k, v in summary["training"]["grad_ascent"].items() if "second" not in k}
    weights = (folder / "hf" / "model.safetensors").read_bytes()
    return lines(asked), summary["models"], training, summary["notes"], weights


def test_the_result_is_the_best_of_the_curve(settings, tmp_path):
    asked = settings()
    summary = experiment.run(asked)
    steps, looks = lines(asked)
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert [row["step"] for row in looks] == [*range(2, len(steps), 2), len(steps)]
    models = summary["models"]
    bound = 0.8 * models["target"]["model_utility"]["value"]
    enough = [row for row in looks if row["model_utility"] >= bound]
    # The bound decides: without it the last and most forgetful step would be chosen.
    assert 0 < len(enough) < len(looks)
    best = min(enough, key=lambda row: row["forget_probability"])
    training = summary["training"]["grad_ascent"]
    assert training["selected_step"] == best["step"] and training["steps"] == len(steps)
    for name, entry in models["grad_ascent"].items():
        assert entry["value"] == best.get(name)
    assert "forget_quality" in best  # the retrained model is there
    (note,) = summary["notes"]
    assert f"grad_ascent: the result is that of step {best['step']} of {len(steps)}" in note
    page = (tmp_path / "runs" / "chosen" / "report.html").read_text()
    assert 'aria-label="forget probability"' in page and note.split(" with ")[0] in page


def test_patience_and_stop_together(settings):
    """Forget ROUGE is to grow, and does not: two looks after the first are enough."""
    select = {"metric": "forget_probability", "goal": "max", "every": 1, "patience": 2}
    stop = {"metric": "utility", "below": -1.0, "every": 1}
    asked = settings(select=select, stop=stop)
    summary = experiment.run(asked)
    steps, looks = lines(asked)
    assert [row["step"] for row in looks] == [1, 2, 3] == [row["step"] for row in steps]
    training = summary["training"]["grad_ascent"]
    assert training["selected_step"] == 1 and training["steps"] == 3
    assert training["forget_exposures"]["max"] <= 3
    assert "training ended at step 3, after 2 looks without a better one" in summary["notes"][0]


def test_two_sections_that_look_at_once_evaluate_once(settings, monkeypatch):
    asked = settings(
        training={**TREE["training"], "epochs": 2},
        stop={"metric": "utility", "below": -1.0, "every": 1},
        select={"metric": "model_utility", "goal": "max", "every": 1},
    )
    count, original = [], suite.evaluate
    monkeypatch.setattr(
        suite, "evaluate", lambda *args, **options: count.append(1) or original(*args, **options)
    )
    experiment.run(asked)
    steps, looks = lines(asked)
    assert len(looks) == len(steps) and len(count) == len(looks) + 3  # and the three models


def test_no_step_with_enough_utility(settings):
    """A rate that ruins the model at once: what is least ruined, and a note."""
    training = {**TREE["training"], "learning_rate": 0.02, "warmup": 0.0, "epochs": 3}
    select = {**TREE["select"], "every": 1, "keep_utility": 1.0}
    asked = settings(training=training, select=select)
    summary = experiment.run(asked)
    _, looks = lines(asked)
    bound = summary["models"]["target"]["model_utility"]["value"]
    utilities = [row.get("model_utility", -1.0) for row in looks]
    assert max(utilities) < bound
    chosen = summary["training"]["grad_ascent"]["selected_step"]
    assert chosen == 1 + utilities.index(max(utilities))
    assert "no step has a model utility of at least" in summary["notes"][0]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("patience", [None, 1])
def test_a_killed_run_ends_as_if_it_were_not(settings, monkeypatch, patience):
    select = {**TREE["select"], "patience": patience}
    whole, cut = settings("whole", select=select), settings("cut", select=select)
    expected = outcome(whole, experiment.run(whole))
    show, evaluate, left = Stage.steps, suite.evaluate, [0]

    def counted(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return evaluate(*args, **options)

    def until(step):
        def steps(self, done, total, log):
            show(self, done, total, log)
            if done > step:
                raise Killed

        return steps

    monkeypatch.setattr(Stage, "steps", until(2))  # after the first look
    with pytest.raises(Killed):
        experiment.run(cut)
    monkeypatch.setattr(Stage, "steps", show)
    for number in (1, 2):  # in the second look, and in the third
        left[0] = number
        monkeypatch.setattr(suite, "evaluate", counted)
        with pytest.raises(Killed):
            experiment.run(cut)
        monkeypatch.setattr(suite, "evaluate", evaluate)
    assert outcome(cut, experiment.run(cut)) == expected


def test_each_request_has_its_own(settings):
    asked = settings(
        training={**TREE["training"], "epochs": 3},
        requests={"by": "entity"},
        method={"name": "npo"},
        select={"metric": "forget_probability", "goal": "min", "every": 2},
    )
    summary = experiment.run(asked)
    rows = [r for r in runs.RunFolder(experiment.resolve(asked)).curves() if "loss" not in r]
    expected = [
        min((r for r in rows if r["model"] == stage), key=lambda r: r["forget_probability"])["step"]
        for stage in ("npo@1", "npo@2")
    ]
    assert summary["training"]["npo"]["selected_steps"] == expected
    assert [note.partition(":")[0] for note in summary["notes"]] == ["npo@1", "npo@2"]


@pytest.mark.parametrize(
    ("select", "evaluation", "words"),
    [
        ({"metric": "rouge", "goal": "min"}, {},
         "has no 'rouge' on this data; there are forget_probability, retain_probability, model_u"),
        ({"metric": "forget_quality", "goal": "max"}, {},
         "select.metric: forget_quality compares with a retrained model, and there is none"),
        ({"metric": "forget_rouge", "goal": "min", "keep_utility": 0.8}, {"suite": "memory"},
         "select.keep_utility: suite memory has no model_utility on this data; leave it out"),
    ],
)  # fmt: skip
def test_what_is_not_measured_is_said_at_once(
    settings, tiny_folder, tmp_path, select, evaluation, words
):
    evaluation = {**TREE["evaluation"], **evaluation}
    model = {"path": str(tiny_folder)}
    with pytest.raises(UserError) as caught:
        experiment.run(settings(select=select, evaluation=evaluation, model=model))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
