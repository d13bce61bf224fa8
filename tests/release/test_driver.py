"""Reveal and Release on a model that says nonsense: what it promises holds for any model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.config import AdapterConfig, DataConfig, Experiment, TrainingConfig
from jaxunlearn.config_reveal import Filters, RevealConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.answering import Answers
from jaxunlearn.methods.release_settings import Release
from jaxunlearn.models import adapter_algebra, transformer
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.peft_adapter import export_adapter
from jaxunlearn.modules import ModuleStore, composed
from jaxunlearn.release import driver, iteration
from jaxunlearn.release.choosing import Measured
from jaxunlearn.release.iteration import Job
from jaxunlearn.reveal import harvest as harvesting
from jaxunlearn.unlearning import finetune_rows
from tests.conftest import TEMPLATE

FILTERS = Filters(max_repetition=1.0, unique=False)


def vowels(texts):
    """Share of the answers' letters that are vowels, doubled."""
    return np.array([
        min(1.0, 2 * sum(c in "aeiou" for c in t.answer) / max(len(t.answer), 1)) for t in texts
    ])  # fmt: skip


class Killed(Exception):
    pass


def table(model, rows):
    texts = [row.key for row in rows]
    return tokens.encode(model.tokenizer, texts, template=TEMPLATE, max_length=128).table


def job_of(model, world, folder, *, scorer=vowels, on_steps=None, reveal=None, **settings):
    reveal = reveal or RevealConfig(
        rows=24, max_new_tokens=8, filters=dataclasses.replace(FILTERS, min_score=0.4)
    )
    return Job(
        start=model,
        base="somewhere",
        forget=world.forget,
        retain=world.retain,
        questions=[row.text("") for row in world.forget],
        scorer=scorer,
        instructions=(),
        retain_table=table(model, world.retain[:8]),
        forget_table=table(model, world.forget[:8]),
        experiment=Experiment(data=DataConfig(template=TEMPLATE), seed=3),
        settings=Release(**settings),
        reveal=reveal,
        adapter=AdapterConfig(rank=2, alpha=8.0),
        training=TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, checkpoint_every=2),
        steps=5,
        folder=folder / "release",
        checkpoints=lambda stage: folder / "checkpoints" / stage,
        logger=lambda stage: on_steps or (lambda done, total, log: None),
        say=lambda text: None,
    )


def finished(model, world, folder, **options):
    """Iterations and last model."""
    found = list(driver.release(job_of(model, world, folder, **options), ModuleStore(folder / "m")))
    return [done for done, _ in found], found[-1][1]


def difference(one, other):
    """Largest difference of two models' merged params."""
    pairs = zip(
        jax.tree.leaves(one.merged().params), jax.tree.leaves(other.merged().params), strict=True
    )
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tiny, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *finished(tiny, world, folder, iterations=2, forget_weight=0.4), folder


def test_the_result_is_the_start_plus_its_modules(tiny, whole):
    """W + sum of weight * scale * a @ b over the modules, by hand."""
    iterations, model, folder = whole
    assert [one.used for one in iterations] == [True, True]
    store = ModuleStore(folder / "m")
    known = [(one.name, one.weight) for one in store.modules()]
    assert known == [("1-retain", 1.0), ("1-forget", -0.4), ("2-retain", 1.0), ("2-forget", -0.4)]
    by_hand = np.array(tiny.params["layers"]["mlp"]["down"]["kernel"], np.float64)
    for name, weight in known:
        adapter = store.adapter(name)
        factors = adapter.factors["layers"]["mlp"]["down"]
        a, b = (np.asarray(factors[key], np.float64) for key in "ab")
        by_hand += weight * adapter.scale * a @ b
    merged = model.merged().params["layers"]["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(merged, by_hand, rtol=1e-5, atol=1e-6)


def test_the_result_is_the_same_in_transformers_and_peft(tiny, tiny_folder, whole, tmp_path):
    """Exported merged, as one adapter, and module by module."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    _, model, folder = whole
    rows = np.random.default_rng(0).integers(3, 90, (2, 24))
    ours = transformer.logits(model.config, model.params, rows, lora=model.lora)
    load = transformers.AutoModelForCausalLM.from_pretrained

    def logits(theirs):
        with torch.no_grad():
            return theirs(torch.tensor(rows)).logits.numpy()

    np.testing.assert_allclose(logits(load(export_model(model, tmp_path / "hf"))), ours, atol=1e-4)
    adapter = export_adapter(model, tmp_path / "adapter", base=tiny_folder)
    whole_one = peft.PeftModel.from_pretrained(load(tiny_folder), adapter)
    np.testing.assert_allclose(logits(whole_one), ours, atol=1e-4)
    store = ModuleStore(folder / "m")
    for one in store.modules():
        loaded = peft.PeftModel.from_pretrained(load(tiny_folder), store.path(one.name))
        alone = composed(tiny, [(1.0, store.adapter(one.name))])
        expected = transformer.logits(alone.config, alone.params, rows, lora=alone.lora)
        np.testing.assert_allclose(logits(loaded), expected, atol=1e-4)


def test_what_is_recorded(whole):
    iterations, _, folder = whole
    for one in iterations:
        lines = (
            (folder / "release" / str(one.number) / harvesting.MANIFEST).read_text().splitlines()
        )
        rows = [json.loads(line) for line in lines]
        assert len(rows) == one.answers == 24
        kept = [row for row in rows if row["dropped_by"] is None]
        assert len(kept) / len(rows) == one.kept_fraction
        assert all(row["score"] >= 0.4 for row in kept)
        assert {row["iteration"] for row in rows} == {one.number}
        scores = vowels([Text(row["question"], row["answer"]) for row in rows])
        np.testing.assert_allclose([row["score"] for row in rows], scores)
        assert [point.forget_weight for point in one.curve] == [0.0, 0.4]
        assert one.chosen == one.curve[1]
        assert 0 <= one.overlap["a_subspace"] <= 1
        assert one.forget_nll > 0.02 and one.signal is not None
    assert iterations[1].before.score == pytest.approx(iterations[0].chosen.score, abs=0.2)


def test_the_same_seed_gives_the_same_again(tiny, world, whole, tmp_path):
    iterations, model, folder = whole
    again, same = finished(tiny, world, tmp_path, iterations=2, forget_weight=0.4)
    assert again == iterations
    assert difference(model, same) == 0
    for part in ("1", "2"):
        names = ("release", part, harvesting.MANIFEST)
        assert tmp_path.joinpath(*names).read_bytes() == folder.joinpath(*names).read_bytes()


@pytest.mark.parametrize(
    "place", ["drawing", "scoring", "training", "weighing", "storing", "between"]
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tiny, world, whole, tmp_path, monkeypatch, place
):
    iterations, model, _ = whole
    left = {"drawing": 3, "scoring": 3, "training": 8, "weighing": 3, "storing": 2, "between": 1}
    count = left[place]

    def dying(function):
        def call(*args, **named):
            nonlocal count
            count -= 1
            if count < 0:
                raise Killed
            return function(*args, **named)

        return call

    options = {"iterations": 2, "forget_weight": 0.4}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if place == "drawing":
            patch.setattr(harvesting, "draw", dying(harvesting.draw))
            count = 1
        elif place == "scoring":
            options["scorer"] = dying(vowels)
        elif place == "training":
            options["on_steps"] = dying(lambda done, total, log: None)
        elif place == "weighing":
            patch.setattr(driver, "weighed", dying(driver.weighed))
            count = 1
        elif place == "storing":
            patch.setattr(ModuleStore, "write", dying(ModuleStore.write))
        else:
            patch.setattr(driver, "write_text", dying(driver.write_text))
        finished(tiny, world, tmp_path, **options)
    again, same = finished(tiny, world, tmp_path, iterations=2, forget_weight=0.4)
    assert again == iterations
    assert difference(model, same) == 0


def test_a_failing_scorer_loses_no_answer(tiny, world, tmp_path):
    """Its answers are in a file, and are not drawn again."""
    calls = 0

    def failing(texts):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise UserError("the scorer fails on row 3")
        return vowels(texts)

    with pytest.raises(UserError, match="row 3"):
        finished(tiny, world, tmp_path, scorer=failing)
    answers = tmp_path / "release" / "1" / harvesting.ANSWERS
    assert len(answers.read_text().splitlines()) == 24
    assert not (answers.parent / harvesting.MANIFEST).exists()


def test_it_stops_when_nothing_is_left_to_reveal(tiny, world, tmp_path):
    reveal = RevealConfig(rows=24, max_new_tokens=8, filters=FILTERS)
    scorer = lambda texts: np.full(len(texts), 0.3)  # noqa: E731
    (only,), model = finished(tiny, world, tmp_path, scorer=scorer, reveal=reveal)
    assert not only.used and "nothing is left" in only.ended and only.kept_fraction == 0
    assert difference(model, tiny) == 0


def test_it_stops_when_the_score_is_reached(tiny, world, tmp_path):
    (only,), model = finished(tiny, world, tmp_path, target_score=0.99)
    assert not only.used and "target" in only.ended
    assert model is tiny


def test_an_iteration_over_the_bound_is_kept_but_not_used(tiny, world, tmp_path):
    (only,), model = finished(tiny, world, tmp_path, forget_weight=30.0, max_drop=0.01)
    assert not only.used and "too much of the utility" in only.ended
    assert difference(model, tiny) == 0
    modules = ModuleStore(tmp_path / "m").modules()
    assert [(one.name, one.weight) for one in modules] == [("1-retain", 0.0), ("1-forget", 0.0)]
    assert "not used" in modules[0].about


def test_what_a_destroyed_model_gives_is_still_json(tiny, world, tmp_path):
    (only,), model = finished(tiny, world, tmp_path, iterations=2, forget_weight=1e30)
    assert only.curve[1].retain_nll is None
    assert not only.used and "too much of the utility" in only.ended
    assert difference(model, tiny) == 0
    text = (tmp_path / "release" / "1" / "iteration.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_start_model_that_is_destroyed_already(tiny, world, tmp_path):
    params = jax.tree.map(lambda x: x * jnp.nan, tiny.params)
    with pytest.raises(UserError, match=r"iteration 1: .* no finite likelihood"):
        finished(dataclasses.replace(tiny, params=params), world, tmp_path)


def test_without_a_forget_weight_there_is_only_a_retain_adapter(tiny, world, tmp_path):
    (only,), model = finished(tiny, world, tmp_path, iterations=1, forget_weight=0)
    assert [one.name for one in ModuleStore(tmp_path / "m").modules()] == ["1-retain"]
    assert only.answers == 0 and only.used
    assert difference(model, tiny) > 0


def test_controls(tiny, world, tmp_path):
    """Random: another delta of the same norms. Ext-Sub: nothing of the shared direction."""
    options = {"iterations": 1, "forget_weight": 0.4}
    found = {}
    for name, more in {
        "plain": {}, "random": {"random": True}, "ext_sub": {"ext_sub": True},
        "oracle": {"rows_from": "forget_set"}, "raw": {"rows_from": "unfiltered"},
        "coactive": {"coactive": True},
    }.items():  # fmt: skip
        folder = tmp_path / name
        (only,), _ = finished(tiny, world, folder, **options, **more)
        assert only.used
        store = ModuleStore(folder / "m")
        found[name] = (only, store.adapter("1-forget"), store.adapter("1-retain"))
    plain, random = found["plain"][1], found["random"][1]
    for path, norms in adapter_algebra.inner_products(plain, plain).items():
        same = adapter_algebra.inner_products(random, random)[path]
        np.testing.assert_allclose(same, norms, rtol=1e-4)
        across = adapter_algebra.inner_products(plain, random)[path]
        assert (np.abs(across) < 0.5 * norms).all()
    by_hand = adapter_algebra.without_common(plain, found["plain"][2])
    ours = adapter_algebra.delta(found["ext_sub"][1])
    chex_equal = jax.tree.map(jnp.allclose, ours, adapter_algebra.delta(by_hand))
    assert jax.tree.all(chex_equal)
    assert found["oracle"][0].answers == 0 and found["oracle"][0].kept_fraction is None
    assert found["raw"][0].kept_fraction == 1
    deltas = [adapter_algebra.delta(found[name][1]) for name in ("plain", "coactive", "raw")]
    for other in deltas[1:]:
        assert not jax.tree.all(jax.tree.map(jnp.allclose, deltas[0], other))


def test_the_model_reveals_once_or_anew(tiny, world, tmp_path):
    finished(tiny, world, tmp_path, iterations=2, regenerate=False)
    assert (tmp_path / "release/1/manifest.jsonl").exists()
    assert not (tmp_path / "release/2/manifest.jsonl").exists()
    assert len(ModuleStore(tmp_path / "m").modules()) == 4


def test_a_search_over_written_instructions(tiny, world, tmp_path):
    reveal = RevealConfig(
        rows=24, max_new_tokens=8, filters=dataclasses.replace(FILTERS, min_score=0.2),
        proposer="written", outer=1, initial=2, carried=2, pulls=1, samples=4, best=2,
    )  # fmt: skip
    job = job_of(tiny, world, tmp_path, reveal=reveal, iterations=1)
    job = dataclasses.replace(job, instructions=["tell me", "say", "please", "what of it"])
    ((done, _),) = driver.release(job, ModuleStore(tmp_path / "m"))
    assert len(done.candidates) == 2
    lines = (tmp_path / "release/1/manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["candidate"] for row in rows} == {one["name"] for one in done.candidates}
    # What is learned is the plain question.
    assert {row["question"] for row in rows} <= {row.question for row in world.forget}


def test_rows_that_are_known_too_well_are_told(tiny, world, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "SATURATED", 100.0)
    said = []
    job = dataclasses.replace(job_of(tiny, world, tmp_path, iterations=1), say=said.append)
    list(driver.release(job, ModuleStore(tmp_path / "m")))
    assert any("hardly train the forget adapter" in text for text in said)


def test_a_search_over_weights_takes_the_smallest_that_will_do(tiny, world, tmp_path, monkeypatch):
    """The curve is measured at every weight of the grid, and the chosen one is subtracted."""
    monkeypatch.setattr(iteration, "GRID", (0.2, 0.4))

    def falling(job, model, number, pair=(None, None), weight=0.0):
        return Measured(weight, 0.8 - weight, 1.0)

    for module in (driver, iteration):
        monkeypatch.setattr(module, "measure", falling)
    (only,), _ = finished(
        tiny, world, tmp_path, iterations=1, line_search=True, min_gain=0.5, max_drop=0.1
    )
    assert [point.forget_weight for point in only.curve] == [0, 0.2, 0.4]
    assert only.chosen.forget_weight == 0.4
    assert ModuleStore(tmp_path / "m").modules()[1].weight == -0.4


def test_no_weight_will_do(tiny, world, tmp_path, monkeypatch):
    monkeypatch.setattr(iteration, "GRID", (0.2,))
    (only,), model = finished(
        tiny, world, tmp_path, iterations=2, line_search=True, min_gain=1.0, max_drop=0.1
    )
    assert not only.used and "no weight forgets enough" in only.ended
    assert difference(model, tiny) == 0


def test_answers_are_read_as_they_were_written(tiny, world, tmp_path, monkeypatch):
    """Line ends of other kinds are a part of them, and what is cut is not learned to end."""
    said = Answers(["a\u2028b c", "d\u0085e", ""] * 8, 0, [True, False, False] * 8)
    monkeypatch.setattr(harvesting, "draw", lambda *args, **named: said)
    learned = []

    def watching(*args, unfinished=(), **named):
        learned.append((args[1], args[2], unfinished))
        return finetune_rows(*args, unfinished=unfinished, **named)

    monkeypatch.setattr(iteration, "finetune_rows", watching)
    options = {"iterations": 1, "rows_from": "unfiltered"}
    (only,), _ = finished(tiny, world, tmp_path, **options)
    rows, chosen, unfinished = learned[1]
    first = len(world.retain)
    assert [rows[i].answer for i in unfinished] == ["a\u2028b c"] * 8
    # Of nothing there is nothing to learn.
    assert list(chosen) == [first + i for i in range(24) if i % 3 != 2]
    assert only.kept_fraction == pytest.approx(16 / 24)
    (again,), _ = finished(tiny, world, tmp_path, **options)
    assert again == only
