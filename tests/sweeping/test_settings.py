"""What a sweep varies: combinations of values, points drawn from ranges, and their names."""

import math

import numpy as np
import pytest
import yaml

from jaxunlearn.errors import UserError
from jaxunlearn.sweeping.settings import Span, draw, expand, name_of, span, split


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"finetune": {"epochs": 1}}))
    return path


def test_a_run_for_each_combination(config):
    runs = expand(config, {"method.beta": [0.1, 1], "seed": [0, 1]}, {"name": "many"})
    assert [one.name for _, one in runs] == [
        "beta-0.1-seed-0", "beta-0.1-seed-1", "beta-1-seed-0", "beta-1-seed-1",
    ]  # fmt: skip
    assert {one.output for _, one in runs} == {"runs/many"}
    assert [(one.method.hyper["beta"], one.seed) for _, one in runs] == [
        (0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1),
    ]  # fmt: skip


def test_a_grid_beside_each_drawn_point(config):
    drawn = [{"training.learning_rate": 1e-4}, {"training.learning_rate": 0.02}]
    runs = expand(config, {"seed": [0, 1]}, {}, drawn)
    assert [one.name for _, one in runs] == [
        "learning_rate-0.0001-seed-0", "learning_rate-0.0001-seed-1",
        "learning_rate-0.02-seed-0", "learning_rate-0.02-seed-1",
    ]  # fmt: skip
    assert [one.training.learning_rate for _, one in runs] == [1e-4, 1e-4, 0.02, 0.02]


@pytest.mark.parametrize(
    ("grid", "drawn", "words"),
    [
        ({}, [{}], "nothing to vary"),
        ({"seed": [0, 0]}, [{}], "--grid seed"),
        ({"seed": []}, [{}], "--grid seed"),
        ({"seeds": [0, 1]}, [{}], "unknown key seeds"),
        ({"training.epochs": [1, "many"]}, [{}], "training.epochs"),
        ({"method.beta": [1, 2]}, [{"method.beta": 0.5}], "--search method.beta: is in the grid"),
        ({}, [{"training.epochs": 1.5}], "training.epochs"),
    ],
)
def test_a_bad_choice_is_refused_before_anything_runs(config, grid, drawn, words):
    with pytest.raises(UserError, match=words):
        expand(config, grid, {}, drawn)
    assert not (config.parent / "runs").exists()


def test_spans_from_words():
    assert span("1e-5:1e-3:log", "k") == Span(1e-5, 1e-3, log=True)
    assert span("-1:3", "k") == Span(-1, 3) and span("-1:3", "k").whole
    assert not span("-1.0:3", "k").whole


@pytest.mark.parametrize("words", ["1", "1:", "a:b", "1:2:ln", "2:1", "1:1", "0:1:log", "1:nan"])
def test_what_is_no_range_is_refused(words):
    with pytest.raises(UserError, match="--search k"):
        span(words, "k")


@pytest.mark.parametrize("words", ["inf:nan", "1:inf", "nan:1"])
def test_the_ends_of_a_range_are_finite(words):
    with pytest.raises(UserError, match="must be finite numbers"):
        span(words, "k")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{fsdp: 2, tensor: 1},jit", ["{fsdp: 2, tensor: 1}", "jit"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("[[1,2],{a: [3,4]}], x", ["[[1,2],{a: [3,4]}]", "x"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'a,b',2024-01-01,1:30", ["'a,b'", "2024-01-01", "1:30"]),
        ("it's,ok", ["it's", "ok"]),
        # As ever: no brackets or quotes, or what YAML cannot read.
        ("0.1,1e-4, 2", ["0.1", "1e-4", " 2"]),
        ("2024-01-01,1:30,010", ["2024-01-01", "1:30", "010"]),
        ("a: b,c", ["a: b", "c"]),
        ("layers/[01]/mlp,layers/5", ["layers/[01]/mlp", "layers/5"]),
        ("{a: 1,b", ["{a: 1", "b"]),
        ("null,''", ["null", "''"]),
    ],
)
def test_values_are_cut_at_the_commas_between_them(text, values):
    assert split(text) == values


@pytest.mark.parametrize("text", ["", "1,,2", "1,", " "])
def test_an_empty_value_is_refused(text):
    with pytest.raises(UserError, match="has an empty value; write null"):
        split(text)


def test_settings_of_one_name_are_refused(config):
    with pytest.raises(UserError, match="2 settings have the folder name path-a_b"):
        expand(config, {"model.path": ["a b", "a_b"]}, {})


def test_shares_of_a_span_by_hand():
    assert Span(0.0, 2.0).at(0.25) == 0.5
    assert Span(1e-4, 1e-2, log=True).at(0.5) == 1e-3
    assert Span(0.0, 1.0).at(1 / 3) == 0.3333  # so that the run's name is the value
    whole = Span(1, 3)
    assert [whole.at(share) for share in (0.0, 0.34, 0.5, 0.99, 1.0)] == [1, 2, 2, 3, 3]
    assert isinstance(whole.at(0.5), int)
    # 1 to 8 in three octaves, the last one with 4 to 7, and 8 beside them
    assert Span(1, 7, log=True).at(0.34) == 2 and Span(1, 7, log=True).at(0.67) == 4


@pytest.mark.parametrize("sampler", ["random", "sobol"])
def test_draws_depend_on_the_seed_alone(sampler):
    spans = {"training.learning_rate": Span(1e-5, 1e-2, log=True), "method.beta": Span(0.1, 1.0)}
    points = draw(spans, 8, sampler, seed=3)
    assert points == draw(spans, 8, sampler, seed=3) != draw(spans, 8, sampler, seed=4)
    assert points[:5] == draw(spans, 5, sampler, seed=3)  # a longer sweep keeps the runs it has
    for key, of in spans.items():
        values = [point[key] for point in points]
        assert len(set(values)) == 8 and of.low <= min(values) and max(values) <= of.high
    assert all(len(name_of(point)) < 45 for point in points)


def test_sobol_leaves_no_part_out():
    """Of 16 points there is one in each sixteenth of each axis; random draws have gaps."""
    spans = {"x": Span(0.0, 1.0), "y": Span(1e-4, 1.0, log=True)}

    def parts(sampler):
        x = np.array([[p["x"], 1 + math.log10(p["y"]) / 4] for p in draw(spans, 16, sampler)])
        return [len(set(np.minimum(column * 16, 15).astype(int))) for column in x.T]

    assert parts("sobol") == [16, 16]
    assert max(parts("random")) < 16


def test_points_that_are_alike_count_once():
    points = draw({"training.epochs": Span(1, 2)}, 8)
    assert sorted(point["training.epochs"] for point in points) == [1, 2]


@pytest.mark.parametrize(("samples", "sampler"), [(0, "sobol"), (4, "grid")])
def test_bad_draws_are_refused(samples, sampler):
    with pytest.raises(UserError):
        draw({"x": Span(0.0, 1.0)}, samples, sampler)


@pytest.mark.parametrize("key", ["name", "output"])
def test_folders_are_not_for_varying(key):
    with pytest.raises(UserError, match=f"sweep: {key} is not for varying"):
        expand(None, {key: ["a", "b"]}, {})


def test_a_run_is_not_written_over(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "config.yaml").touch()
    with pytest.raises(UserError, match="holds a run; give the sweep another --name"):
        expand(None, {"seed": [0, 1]}, {"output": str(tmp_path)})
