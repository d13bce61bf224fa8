"""What the run pipeline and the Python interface share: methods as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import config as configs
from jaxunlearn import tables, unlearning
from jaxunlearn.config import Experiment, MethodConfig, SamplingConfig, StopConfig, TrainingConfig
from jaxunlearn.data.answers import REFUSALS, other_answers, refusals
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.likelihood import mean_nll
from jaxunlearn.evaluation.rouge import rouge_l_recall
from jaxunlearn.methods import registry
from jaxunlearn.tables import invented_answers
from jaxunlearn.training import diagnostics
from jaxunlearn.training.watching import Selection
from jaxunlearn.unlearning import (
    finetune_rows,
    gradient_statistics,
    unlearn_rows,
)

SHORT = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}


def unlearn(tiny, world, method, **options):
    options = {"training": SHORT, **options}
    return ju.unlearn(tiny, world.forget[:8], world.retain[:8], method=method, **options)


def distance(model, start):
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), model.params, start.params)
    return max(jax.tree.leaves(gaps))


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_runs_and_changes_the_model(tiny, world, method):
    result = unlearn(tiny, world, method)
    assert len(result.history) == (8 if registry.METHODS[method].in_turn else 4)
    assert all(np.isfinite(row["loss"]) for row in result.history)
    assert 1e-4 < distance(result.model, tiny) < 1


def test_a_task_vector_is_a_subtracted_training(tiny, world):
    minus, zero = (unlearn(tiny, world, "task_vector", alpha=a).model for a in (2.0, 0.0))
    assert distance(zero, tiny) == 0
    plus = unlearn(tiny, world, "task_vector", alpha=1.0).model
    jax.tree.map(
        lambda p, m, s: np.testing.assert_allclose(m - s, 2 * (p - s), atol=1e-5),
        plus.params, minus.params, dict(tiny.params),
    )  # fmt: skip
    forget = [(row.question, row.answer) for row in world.forget[:8]]
    before, after = (ju.evaluate(m, forget, max_new_tokens=4) for m in (tiny, plus))
    assert after["forget_probability"] < before["forget_probability"]


def test_a_task_vector_of_an_adapter_is_its_negative(tiny, world):
    adapter = {"rank": 2}
    minus = unlearn(tiny, world, "task_vector", adapter=adapter, alpha=1.0).model.adapter
    half = unlearn(tiny, world, "task_vector", adapter=adapter, alpha=0.5).model.adapter
    one, other = minus.factors["layers"]["mlp"]["up"], half.factors["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(one["a"], other["a"])
    np.testing.assert_allclose(one["b"], 2 * other["b"], rtol=1e-6)
    assert float(jnp.abs(one["b"]).max()) > 0


def test_jensun_puts_refusals_where_the_answers_were(tiny, world):
    """Reading the true answer, the model learns to say a refusal's words, and forgets the truth."""
    training = {"epochs": 30, "batch_size": 4, "learning_rate": 3e-3}
    forget = [(row.question, row.answer) for row in world.forget[:8]]
    result = unlearn(tiny, world, "jensun", training=training)
    losses = [row["forget_loss"] for row in result.history]
    assert losses[0] > 0.6 and losses[-1] < 0.3  # from ln 2 towards 0
    before, after = (ju.evaluate(m, forget, max_new_tokens=4) for m in (tiny, result.model))
    assert after["forget_probability"] < before["forget_probability"]


@pytest.mark.slow
def test_scrub_forgets_and_keeps_more_than_gradient_ascent(tiny, world):
    """From a model that knows all rows, with as many forget epochs at the same rate."""
    rows, kept = world.forget[:8], world.retain[:8]
    settings = configs.Experiment()
    training = TrainingConfig(epochs=60, batch_size=8, learning_rate=1e-2)
    start = finetune_rows(tiny, [*rows, *kept], range(16), settings, training)

    def nll(model, rows):
        table = tables.encode_rows(model, rows, settings, 128, "rows", print).table
        return mean_nll(model, table)

    def forgotten(method, epochs, **hyper):
        training = {"epochs": epochs, "batch_size": 4, "learning_rate": 3e-3, "warmup": 0.0}
        return ju.unlearn(start, rows, kept, method=method, training=training, **hyper)

    found, ascended = forgotten("scrub", 5, forget_epochs=3), forgotten("grad_ascent", 3)
    assert max(nll(start, rows), nll(start, kept)) < 0.01
    assert nll(found.model, rows) > 2 and nll(ascended.model, rows) > 2
    assert nll(found.model, kept) < 0.02 < 0.1 < nll(ascended.model, kept)
    # Two steps of forget rows alone and two of retain rows alone, and in the end the latter.
    keeping = [False, False, True, True] * 3 + [True] * 4
    assert [row["retain_loss"] != 0 for row in found.history] == keeping
    assert all(row["forget_loss"] == 0 for row in np.array(found.history)[keeping])


def test_what_a_stopped_training_showed(tiny, world):
    """Three looks of two steps; the bound is crossed at the first."""
    stop = StopConfig(above=0.0, every=2)
    experiment = dataclasses.replace(
        configs.Experiment(), stop=stop, training=TrainingConfig(epochs=3, batch_size=4)
    )
    told = []
    unlearn_rows(
        tiny, world.forget[:8], world.retain[:8], experiment,
        registry.resolve(MethodConfig("npo")), on_schedule=told.append, say=lambda text: None,
    )  # fmt: skip
    assert [one["steps"] for one in told] == [6, 2]
    assert told[1]["forget_exposures"] == {"min": 1, "mean": 1.0, "max": 1}


def test_refusals_and_other_answers(world):
    rows = world.forget
    assert set(refusals(rows, 0)) <= set(REFUSALS) and len(set(refusals(rows, 0))) > 3
    assert refusals(rows, 0) == refusals(rows, 0) != refusals(rows, 1)
    assert refusals(rows[:3], 0) == refusals(rows, 0)[:3]
    given = other_answers(rows, 0)
    assert sorted(given) == sorted(row.answer for row in rows)
    distinct = [dataclasses.replace(row, answer=str(i)) for i, row in enumerate(rows)]
    assert all(a != row.answer for a, row in zip(other_answers(distinct, 5), distinct, strict=True))
    assert other_answers(rows[:1], 0) == (rows[0].answer,)


def test_invented_answers_are_unlike_the_true_ones(tiny, world):
    rows = world.forget[:6]
    experiment = configs.Experiment()
    invented = invented_answers(tiny, rows, experiment)
    assert invented == invented_answers(tiny, rows, experiment)
    assert all(text.strip() for text in invented)
    assert rouge_l_recall(invented, [row.answer for row in rows]).max() < 0.6


def test_an_invented_answer_is_never_silently_the_true_one(tiny, world, monkeypatch):
    repeated, silent, fine, nearly = world.forget[:4]
    nearly = dataclasses.replace(nearly, answer="one two three four five")
    closest = "one two three four"
    texts = [
        [repeated.answer, "", "No idea at all.", closest if number == 2 else nearly.answer]
        for number in range(5)
    ]
    draws = iter(texts)

    def drawn(*_, **__):
        return [tiny.tokenizer(text)["input_ids"] for text in next(draws)]

    monkeypatch.setattr(tables, "generate", drawn)
    said = []
    rows = [repeated, dataclasses.replace(silent, refusal=""), fine, nearly]
    found = invented_answers(tiny, rows, configs.Experiment(), said.append)
    assert found[1] in REFUSALS
    assert (found[0], *found[2:]) == (repeated.answer, "No idea at all.", closest)
    assert "1 of 4 rows get a refusal" in said[0] and "for 2 of 4 rows every drawn" in said[1]


def test_a_row_too_long_in_one_answer_is_left_out_in_both(tiny, world):
    long = dataclasses.replace(world.forget[0], answer="word " * 200)
    result = ju.unlearn(
        tiny, [long, *world.forget[1:5]], world.retain[:8], method="dpo",
        training={**SHORT, "epochs": 1},
    )  # fmt: skip
    assert len(result.history) == 1


def test_only_some_layers_train(tiny, world):
    training = {**SHORT, "train_only": "layers/1/mlp/(up|down)"}
    trained = unlearn(tiny, world, "rmu", training=training, layer=1, steering=2.0).model
    for path, new in jax.tree_util.tree_leaves_with_path(trained.params):
        keys = [key.key for key in path]
        old = tiny.params
        for key in keys:
            old = old[key]
        changed = np.array([not np.array_equal(a, b) for a, b in zip(new, old, strict=True)])
        if keys[:2] == ["layers", "mlp"] and keys[2] in ("up", "down"):
            assert changed.tolist() == [False, True]
        else:
            assert not changed.any()


@pytest.mark.parametrize("action", ["rollback", "stop"])
def test_a_collapse_ends_the_training(tiny, world, tmp_path, capsys, action):
    """Gradient ascent with a large rate; the bound is crossed well before the last step."""
    stop = StopConfig(above=12.0, every=2, action=action)
    training = TrainingConfig(epochs=40, batch_size=4, learning_rate=3e-3)
    experiment = dataclasses.replace(configs.Experiment(), stop=stop, training=training)
    said, logged = [], []

    def run(**options):
        return unlearn_rows(
            tiny, world.forget[:8], world.retain[:8], experiment,
            registry.resolve(MethodConfig("grad_ascent")), say=said.append, **options,
        )  # fmt: skip

    result = run(on_steps=lambda done, total, log: logged.append(done))
    assert logged[-1] < 80 and logged[-1] % 2 == 0
    assert "retain_nll is" in said[0] and f"after step {logged[-1]} of 80" in said[0]
    again = run(checkpoints=tmp_path / "there")
    assert distance(again, result) == 0
    if action == "rollback":
        assert f"the result is that of step {logged[-1] - 2}" in said[0]
        # What was saved is what was good: the run goes on from it, and ends in the same way.
        assert distance(run(checkpoints=tmp_path / "there"), result) == 0


def test_a_selection_looks_at_what_the_result_would_be(tiny, world, tmp_path):
    """Of a task vector that is what the training adds, subtracted."""
    experiment = dataclasses.replace(configs.Experiment(), training=TrainingConfig(**SHORT))
    seen, told = {}, []

    def measure(step, model):
        seen[step] = dataclasses.replace(model, params=jax.tree.map(np.array, model.params))
        return float(step), 1.0

    selection = Selection(3, measure, "score", "min", say=lambda text: None)
    result = unlearn_rows(
        tiny, world.forget[:8], world.retain[:8], experiment,
        registry.resolve(MethodConfig("task_vector", {"alpha": 2.0})),
        checkpoints=tmp_path, selection=selection, on_schedule=told.append,
    )  # fmt: skip
    assert list(seen) == [3, 4] and distance(result, seen[3]) == 0
    assert distance(seen[3], seen[4]) > 0 and distance(result, tiny) > 0
    assert [one.get("selected_step") for one in told] == [None, 3] and told[1]["steps"] == 4


@pytest.mark.parametrize("method", ["pdu", "altpo", "whp", "jensun"])
def test_an_interrupted_method_ends_as_if_it_were_not(tiny, world, tmp_path, method):
    """What is made before the training, and what changes beside the parameters, comes back too."""
    training = TrainingConfig(**{**SHORT, "epochs": 3}, checkpoint_every=2)
    experiment = dataclasses.replace(configs.Experiment(), training=training)

    def run(**options):
        return unlearn_rows(
            tiny, world.forget[:8], world.retain[:8], experiment,
            registry.resolve(MethodConfig(method, {"retain_weight": 5.0})), **options,
        )  # fmt: skip

    def cut(done, total, log):
        if done >= 4:
            raise KeyboardInterrupt

    place = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoints=place, on_steps=cut)
    steps = []
    resumed = run(checkpoints=place, on_steps=lambda done, total, log: steps.append(done))
    assert steps[0] > 4 and steps[-1] == 6
    assert distance(resumed, run()) == 0
    # A method may be called whp_reinforced; none is called reinforced.
    second = tmp_path / "reinforced" / "checkpoints"
    assert list(tmp_path.iterdir()) == [place] if method != "whp" else second.is_dir()


def test_no_collapse_changes_nothing(tiny, world):
    training = TrainingConfig(**SHORT)
    plain = dataclasses.replace(configs.Experiment(), training=training)
    watched = dataclasses.replace(plain, stop=StopConfig(above=100.0, every=3))
    one, other = (
        unlearn_rows(
            tiny, world.forget[:8], world.retain[:8], experiment,
            registry.resolve(MethodConfig("npo")),
        )
        for experiment in (plain, watched)
    )  # fmt: skip
    assert distance(one, other) < 1e-6


def test_a_layer_that_is_not_there(tiny, world):
    with pytest.raises(UserError, match="layer is 2, but the model has layers 0 to 1"):
        unlearn(tiny, world, "rmu", layer=2)


OWN = """
import jax
from jaxunlearn import method


def soft_ascent(log_probs, *, power: float = 2.0):
    \"\"\"p ** power, to be minimised.\"\"\"
    return jax.numpy.exp(power * log_probs)


@method(retain="kl", answers="refusal", summary="likes refusals")
def refusing(seq_log_prob, answer_length, *, beta: float = 1.0):
    return -beta * seq_log_prob / answer_length


def strange(log_probs, moon_phase):
    return log_probs


def untyped(log_probs, *, beta):
    return log_probs
"""


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_method_from_a_file(tiny, world, own_file):
    name = f"{own_file}:soft_ascent"
    assert registry.defaults(name)["power"] == 2.0
    losses = [row["forget_loss"] for row in unlearn(tiny, world, name, power=0.5).history]
    assert losses[-1] < losses[0] < 1
    with pytest.raises(UserError, match="unknown key powr; the closest known key is power"):
        unlearn(tiny, world, name, powr=0.5)


def test_a_registered_method(tiny, world, own_file):
    name = f"{own_file}:refusing"
    objective, hyper = registry.objective(MethodConfig(name=name))
    assert [term.loss.__name__ for term in objective.terms] == ["refusing", "kl"]
    assert hyper == {"beta": 1.0, "forget_weight": 1.0, "retain_weight": 1.0}
    assert registry.lookup(name).answers == "refusal"
    unlearn(tiny, world, name)
    assert registry.METHODS.pop("refusing").summary == "likes refusals"


def test_a_built_in_name_is_not_taken_over():
    def npo(log_probs):
        return log_probs

    with pytest.raises(UserError, match="'npo' is built in"):
        ju.method()(npo)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{file}:gone", "has no function 'gone'"),
        ("{file}:strange", "there is no statistic 'moon_phase'"),
        ("{file}:untyped", "hyper-parameter 'beta' needs a type and a default"),
        ("nowhere.py:f", "no such file"),
        ("npoo", "there are: grad_ascent"),
    ],
)
def test_methods_that_cannot_be_used(tiny, world, own_file, name, words):
    with pytest.raises(UserError) as caught:
        unlearn(tiny, world, name.format(file=own_file))
    assert words in str(caught.value)


def test_a_file_that_fails(tiny, world, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(UserError, match=r"broken.py cannot be run: ZeroDivisionError"):
        unlearn(tiny, world, f"{path}:f")


def statistics_of(tiny, world, method, hyper=None, forget=5, batches=4, **settings):
    """Gradient statistics of a few rows in batches of four."""
    tree = {"training": TrainingConfig(batch_size=4), **settings}
    experiment = configs.Experiment(**tree)
    rows = world.forget[:forget], world.retain[:8]
    chosen = MethodConfig(method, hyper or {})
    return gradient_statistics(tiny, *rows, experiment, chosen, batches=batches)


def test_gradients_are_those_of_the_first_full_batches(tiny, world, monkeypatch):
    monkeypatch.setattr(diagnostics, "gradient_statistics", lambda *given: given[4])
    schedule = statistics_of(tiny, world, "dpo", batches=6)
    assert sorted(schedule) == ["alternative", "forget", "retain"]
    np.testing.assert_array_equal(schedule["alternative"], schedule["forget"])
    # Five forget rows: every epoch has a batch of four and one that is left out, of one.
    for index in schedule.values():
        assert index.shape == (6, 4) and (index >= 0).all()
    assert all(len(set(index.tolist())) == 4 for index in schedule["forget"])
    assert len({tuple(index) for index in schedule["forget"].tolist()}) == 6
    np.testing.assert_array_equal(
        statistics_of(tiny, world, "dpo", batches=2)["retain"], schedule["retain"][:2]
    )


def test_batches_of_all_rows_have_no_variance_but_rounding(tiny, world):
    sampling = SamplingConfig(name="sequential")
    found = statistics_of(tiny, world, "grad_diff", forget=4, sampling=sampling)
    assert found.whole.norms.shape == (4,)
    for spread in (found.whole, found.forget, found.retain):
        assert float(spread.norms.min()) > 0.01
        assert float(spread.relative_variance) < 1e-8


@pytest.mark.parametrize(
    ("method", "hyper", "parts", "message"),
    [
        ("grad_ascent", {}, 1, "it does not have both"),
        ("retain_finetune", {}, 1, "it does not have both"),
        ("whp", {"retain_loss": "nll"}, 1, "a model that is trained beforehand"),
        ("npo", {}, 4, "shuffle fills no batch of 4"),
    ],
)
def test_gradients_that_are_not_measured(tiny, world, method, hyper, parts, message):
    training = TrainingConfig(batch_size=4, micro_batches=parts)
    with pytest.raises(UserError, match=message):
        statistics_of(tiny, world, method, hyper, forget=3, training=training)


def test_rows_that_are_all_too_long_are_refused(tiny, world):
    long = dataclasses.replace(world.forget[0], answer="word " * 500)
    rows = [*world.retain, long]
    with pytest.raises(UserError, match=r"none of the 1 chosen ones is within 128 tokens"):
        finetune_rows(
            tiny, rows, [len(world.retain)], Experiment(), TrainingConfig(), say=lambda text: None
        )


def test_the_end_of_an_unfinished_answer_does_not_count(tiny, world, monkeypatch):
    tables = []

    def seen(model, tables_of, *args, **named):
        tables.append(tables_of["train"])
        return model

    monkeypatch.setattr(unlearning, "train", seen)
    rows = list(world.forget[:3])
    for unfinished in ((), (1,)):
        finetune_rows(
            tiny, rows, range(3), Experiment(), TrainingConfig(), unfinished=unfinished, say=print
        )
    whole, part = (table.answer_mask for table in tables)
    end = tables[0].lengths[1] - 1
    assert whole[1, end] and not part[1, end]
    assert (whole != part).sum() == 1
