"""The functions of a run: who owns what, what is refused, and what is kept for the next start."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.attribution import of_run
from jaxunlearn.attribution.owners import owners_of
from jaxunlearn.config import DataConfig, Experiment
from jaxunlearn.config_attribution import (
    AttributionConfig,
    ClassifierSettings,
    EncoderSettings,
    FunctionConfig,
)
from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError
from tests.conftest import TEMPLATE


def experiment(**attribution):
    settings = {"function": FunctionConfig(kind="overlap"), "min_accuracy": 0.0, **attribution}
    return Experiment(
        data=DataConfig(template=TEMPLATE), attribution=AttributionConfig(**settings), seed=3
    )


def rows(*entities, answer="x"):
    return [Row(f"q{i}", answer, entity=name) for i, name in enumerate(entities)]


def test_owners_are_entities_or_groups_of_them():
    forget, retain = rows("a", "a", "b"), rows("c", "d", "e")
    assert owners_of(forget, retain) == (["a", "a", "b"], ["c", "d", "e"])
    assert owners_of(forget, retain, group=2) == (
        ["a … b", "a … b", "a … b"], ["c … d", "c … d", "e"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("forget", "retain", "attribution", "fault"),
    [
        (["a", ""], ["b"], {}, "forget row 'q1' has no entity"),
        (["a"], [""], {}, "retain row 'q0' has no entity"),
        (["a", "b"], ["b"], {}, "b owns forget rows and retain rows"),
        (["a"], [], {}, "a single owner, a"),
        (["a"], ["b"], {"held_out": FunctionConfig(kind="overlap", seed=1)}, "another kind$"),
        (["a"], ["b"], {"function": FunctionConfig(seed=1)}, "another kind or seed$"),
        (["a"], ["b"], {"held_out": FunctionConfig(kind="watermark")}, "has a watermark"),
        (["a"], ["b"], {"held_out": FunctionConfig(model="nowhere")}, "nowhere"),
    ],
)
def test_data_without_owners_is_refused(tiny, world, forget, retain, attribution, fault):
    data = dataclasses.replace(world, forget=tuple(rows(*forget)), retain=tuple(rows(*retain)))
    with pytest.raises(UserError, match=fault):
        of_run.check(tiny, data, experiment(**attribution), print)


def test_a_classifier_of_another_tokenizer_is_refused(tiny, world, stories260k):
    asked = experiment(held_out=FunctionConfig(model=str(stories260k)))
    with pytest.raises(UserError, match="has another tokenizer than the model"):
        of_run.check(tiny, world, asked, print)


def test_a_bad_function_is_refused_with_its_figure(tiny, world):
    weak = FunctionConfig(classifier=ClassifierSettings(epochs=1))
    asked = experiment(function=weak, min_accuracy=0.9)
    with pytest.raises(UserError, match=r"attribution\.function: names the owner of \d+\.\d% of"):
        of_run.fit(tiny, world, asked)
    assert of_run.fit(tiny, world, experiment(function=weak)).functions[0] is not None


def test_an_owner_whose_rows_are_too_long_is_named(tiny, world):
    long = tuple(rows("the long one", answer="word " * 200))
    data = dataclasses.replace(world, forget=(*world.forget, *long))
    with pytest.raises(UserError, match="all rows of the long one are too long"):
        of_run.fit(tiny, data, experiment(), say=lambda text: None)


@pytest.mark.parametrize(
    "function",
    [
        FunctionConfig(classifier=ClassifierSettings(epochs=1)),
        FunctionConfig(kind="encoder", encoder=EncoderSettings(layers=1, width=16, epochs=1)),
    ],
)
def test_what_was_fitted_is_taken_from_its_folder(tiny, world, tmp_path, function):
    asked = experiment(function=function, held_out=FunctionConfig(kind="tracin", dimension=8))
    one = of_run.fit(tiny, world, asked, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["function"]
    mark = (tmp_path / "function" / "attribution.json").stat().st_mtime_ns
    other = of_run.fit(tiny, world, asked, folder=tmp_path)
    assert (tmp_path / "function" / "attribution.json").stat().st_mtime_ns == mark
    tokens, lengths = np.array([[5, 6, 7]]), np.array([3])
    for a, b in zip(one.functions, other.functions, strict=True):
        np.testing.assert_array_equal(a.scores(tokens, lengths), b.scores(tokens, lengths))


def test_forget_sets_score_answers_by_the_owner_of_the_question(tiny, world):
    weak = FunctionConfig(classifier=ClassifierSettings(epochs=1))
    asked = experiment(held_out=weak)
    found = of_run.fit(tiny, world, asked)
    data = found.attached(world, tiny, asked)
    assert data.evaluation["retain"].attribution is None
    chosen = data.evaluation["forget"]
    texts = [row.key for row in chosen.rows]
    right = chosen.attribution(texts)
    strange = chosen.attribution([text._replace(answer="zzz qqq") for text in texts])
    swapped = chosen.attribution(
        [text._replace(answer=world.retain[i].answer) for i, text in enumerate(texts)]
    )
    assert right.mean() > 0.5 > swapped.mean() and right.mean() > strange.mean()
    assert ((right >= 0) & (right <= 1)).all()
    unknown = texts[0]._replace(question="Who is that?")
    assert np.isnan(chosen.attribution_held_out([unknown])).all()
    assert len(chosen.attribution([])) == 0
    twice = dataclasses.replace(world.retain[0], question=world.forget[0].question)
    both = dataclasses.replace(world.evaluation["forget"], rows=(world.forget[0], twice))
    data = found.attached(dataclasses.replace(world, evaluation={"forget": both}), tiny, asked)
    assert np.isnan(data.evaluation["forget"].attribution(texts[:1])).all()
    owners = found.owners(world.forget)
    assert {found.names[i] for i in owners} == {row.entity for row in world.forget}
    assert found.forget == {row.entity for row in world.forget}
