"""Config: typed, frozen, strict, and errors that say how to mend it."""

import dataclasses

import pytest
import yaml

from jaxunlearn import config, config_data, config_file
from jaxunlearn.errors import UserError

JSONL = {"format": "jsonl", "forget": "f", "retain": "r"}


def test_dump_and_load_are_inverse(tmp_path):
    data = {"format": "csv", "forget": "f", "retain": "r", "columns": {"question": "q"}}
    data["sets"] = {"quiz": {"path": "quiz.jsonl", "columns": {"answer": "a"}}}
    overrides = {"method.beta": 0.2, "adapter.rank": 4, "data": data}
    overrides["data.sets.more.path"] = "more.jsonl"
    experiment = config_file.load(None, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_file.dump(experiment)))
    assert config_file.load(path) == experiment
    assert experiment.method.hyper["beta"] == 0.2
    assert experiment.adapter == config.AdapterConfig(rank=4)
    assert experiment.data.sets["quiz"] == config_data.SetConfig(
        "quiz.jsonl", "general", {"answer": "a"}
    )
    assert experiment.data.sets["more"] == config_data.SetConfig("more.jsonl")


def test_name_is_the_file_stem(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {path: x}\n")
    assert config_file.load(tmp_path / "mine.yaml").name == "mine"
    assert config_file.load(None).name == "quickstart"


@pytest.mark.parametrize("name", ["lume", "muse"])
def test_formats_whose_files_have_names_need_no_more(name):
    assert config.DataConfig(format=name).forget is None


def test_numbers_without_a_point_are_numbers():
    # YAML 1.1 reads 1e-5 as text.
    assert config_file.load(None, {"training.learning_rate": "1e-5"}).training.learning_rate == 1e-5


def test_remat_was_once_true_or_false():
    found = [config.ModelConfig(remat=word).remat for word in (True, False, "dots")]
    assert found == ["full", "none", "dots"]
    with pytest.raises(UserError, match=r"model\.remat: .*'none', 'full' or 'dots'"):
        config_file.load(None, {"model.remat": "some"})


def test_configs_are_frozen_and_validated_when_built():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_file.load(None).training.epochs = 3
    with pytest.raises(ValueError):
        config.TrainingConfig(epochs=0)


def test_overrides_index_lists():
    assert config_file.load(None, {"baselines.0.retain_weight": 3}).baselines[0].hyper == {
        "retain_weight": 3
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trainig.epochs": 3}, ["unknown key trainig", "training"]),
        ({"training.epoch": 3}, ["unknown key training.epoch", "training.epochs"]),
        ({"learning_rate": 1}, ["unknown key learning_rate", "training.learning_rate"]),
        ({"training.epochs": "many"}, ["training.epochs", "integer", "'many'"]),
        ({"training.epochs": True}, ["training.epochs: expected a number, found true"]),
        ({"training.learning_rate": True}, ["training.learning_rate: expected a number"]),
        ({"seed": True}, ["seed: expected a number, found true"]),
        ({"training.optimizer_options.b1": True}, ["b1: expected a number, found true"]),
        ({"parallel.fsdp": True}, ["parallel: expected auto, jit, pmap, or a mesh"]),
        ({"training.learning_rate": -1}, ["training.learning_rate", "greater than 0", "-1"]),
        ({"training.learning_rate": float("nan")}, ["training.learning_rate", "finite"]),
        ({"training.warmup": 2}, ["training.warmup", "less than or equal to 1", "2"]),
        ({"training": 3}, ["training: expected a section of keys"]),
        ({"training": "fast"}, ["training: expected a section of keys"]),
        ({"training.epochs.more": 1}, ["--training.epochs.more", "epochs"]),
        ({"sampling.name": "rnd"}, ["sampling.name", "'random', 'cyclic'", "'rnd'"]),
        ({"sampling.general": "per_epoch"}, ["sampling: general means nothing for name random"]),
        ({"sampling.match_steps": "epochs"}, ["sampling.match_steps", "'melu'"]),
        ({"sampling.match_steps": 10**9}, ["sampling.match_steps", "1000000"]),
        ({"training.micro_batches": 3}, ["micro_batches", "multiple"]),
        ({"baselines.7.beta": 1}, ["--baselines.7.beta", "0"]),
        ({"data.format": "tofu"}, ["data: forget is required for format tofu"]),
        ({"data.forget_people": 40}, ["forget_people must be smaller than people"]),
        ({"data.columns": {"question": "q"}}, ["columns means nothing for format synthetic"]),
        ({"data.path": "x"}, ["path means nothing", "choose format tofu or melu or jsonl"]),
        ({"data.authors": 4}, ["authors means nothing", "choose format tofu"]),
        ({"data.neighbours": True}, ["neighbours means nothing", "choose format tofu"]),
        ({"data.holdout": "h"}, ["holdout means nothing for format synthetic", "tofu or jsonl"]),
        ({"data": JSONL | {"holdout_people": 2}}, ["holdout_people means nothing", "synthetic"]),
        ({"data": {"world": "neighbours", "holdout_people": 2}}, ["holdout_people means nothing"]),
        ({"data.holdout_people": -1}, ["data.holdout_people", "greater than or equal to 0"]),
        ({"data.test": "t"}, ["test means nothing for format synthetic", "choose format melu"]),
        ({"data": JSONL | {"people": 9}}, ["people means nothing for format jsonl", "synthetic"]),
        ({"data": JSONL | {"world": "neighbours"}}, ["world means nothing for format jsonl"]),
        ({"data.scale": 1}, ["scale means nothing for world people"]),
        ({"data": {"world": "neighbours", "people": 9}}, ["people means nothing for world"]),
        ({"data": {"world": "neighbours", "forget_people": 9}}, ["forget_people means nothing"]),
        ({"data": {"world": "neighbours", "scale": 0}}, ["data.scale", "greater than 0"]),
        ({"data.world": "moon"}, ["data.world", "'people' or 'neighbours'"]),
        ({"data": {"format": "melu", "forget": "f"}}, ["retain is required for format melu"]),
        ({"data.template": "Q:"}, ["template must contain {question}"]),
        ({"data": {"format": "lume", "columns": {"entity": "id"}}}, ["columns means nothing"]),
        ({"data": {"format": "muse", "holdout": "h"}}, ["holdout means nothing for format muse"]),
        ({"data": {"format": "lume", "chunk_words": 9}}, ["chunk_words means nothing", "muse"]),
        ({"data": {"format": "lume", "threshold": 0.3}}, ["threshold means nothing", "toxicity"]),
        ({"data": {"format": "toxicity", "threshold": 0}}, ["data.threshold", "greater than 0"]),
        ({"data": {"format": "toxicity", "test": "x"}}, ["test means nothing", "melu or ner"]),
        ({"data": {"format": "muse", "chunk_words": 0}}, ["data.chunk_words", "greater than or"]),
        ({"data.sets": {"a/b": {"path": "x"}}}, ["sets: 'a/b' must be a plain name"]),
        ({"data.sets.a.role": "general"}, ["data.sets.a.path"]),
        ({"data.sets.a": {"path": "x", "role": "holdout"}}, ["data.sets.a.role", "'general'"]),
        ({"data.sets.a": {"pth": "x"}}, ["data.sets.a.pth"]),
    ],
)
def test_faults_name_key_and_remedy(overrides, words):
    with pytest.raises(UserError) as caught:
        config_file.load(None, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.beta", [1, 2]),
        ("method.beta", float("nan")),
        ("method.hyper", {"beta": 1}),
        ("method.sampling.ratio", []),
        ("sampling.match_steps", 0),
    ],
)
def test_a_value_of_no_allowed_type_is_one_fault(key, value):
    with pytest.raises(UserError) as caught:
        config_file.load(None, {key: value})
    message = str(caught.value)
    assert message.count(key) == 1 and message.endswith(f"found {value!r}")
    assert message.startswith(f"built-in quickstart: {key}: expected a number")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,", "not valid YAML"),
        ("- 1\n- 2\n", "a config is a mapping"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        config_file.load(path)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read"):
        config_file.load("nowhere.yaml")


def test_another_method_name_starts_the_section_anew():
    chosen = config_file.load(None, {"method.name": "wga", "method.retain_weight": 2.0}).method
    assert (chosen.name, chosen.hyper) == ("wga", {"retain_weight": 2.0})
    assert config_file.load(None, {"method.name": "npo"}).method.hyper["beta"] == 0.3


def test_a_method_may_change_the_training_and_its_label():
    tree = {
        "method": {"name": "npo", "beta": 0.2, "label": "mine", "training": {"optimizer": "lion"}}
    }
    experiment = config.validate(config.Experiment, config_file._nest_hyper(tree), where="here")
    assert experiment.method.hyper == {"beta": 0.2} and experiment.method.label == "mine"
    assert config.training_of(experiment, experiment.method).optimizer == "lion"
    again = config.validate(
        config.Experiment, config_file._nest_hyper(config_file.dump(experiment)), where="there"
    )
    assert again == experiment
    with pytest.raises(UserError, match="method npo: training: unknown key lr"):
        config.training_of(experiment, config.MethodConfig(training={"lr": 1.0}))
    for stop, words in [({}, "exactly one of above"), ({"above": 1, "below": 2}, "exactly one")]:
        with pytest.raises(UserError, match=words):
            config.validate(config.Experiment, {"stop": stop}, where="here")


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"goal": "min"}, "select.metric: is missing"),
        ({"metric": "forget_rouge"}, "select.goal: is missing"),
        ({"metric": "forget_rouge", "goal": "up"}, "select.goal: input should be 'min' or 'max'"),
        ({"metric": "forget_rouge", "goal": "min", "keep_utility": 1.5}, "less than or equal to 1"),
        ({"metric": "forget_rouge", "goal": "min", "patience": 0}, "select.patience"),
    ],
)
def test_a_select_section_that_cannot_be(select, words):
    with pytest.raises(UserError, match=words):
        config.validate(config.Experiment, {"select": select}, where="here")


def test_a_methods_optimizer_has_its_own_options():
    shared = {"optimizer": "sophia", "optimizer_options": {"rho": 2.0}}
    experiment = config_file.load(None, {"training": shared})

    def options(**training):
        return config.training_of(experiment, config.MethodConfig(training=training))

    assert options(epochs=2).optimizer_options == {"rho": 2.0}
    assert options(optimizer="lion").optimizer_options == {}
    assert options(optimizer_options={"gamma": 1}).optimizer_options == {"gamma": 1}
    with pytest.raises(UserError, match=r"method npo: training: optimizer_options\.gamma: input"):
        options(optimizer_options={"gamma": "x"})
    tree = {"method": {"name": "npo", "training": {"optimizer_options": {"gamma": 1}}}}
    read = config.validate(config.Experiment, config_file._nest_hyper(tree), where="here")
    assert read.method.training == {"optimizer_options": {"gamma": 1}}
