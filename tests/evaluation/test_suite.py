"""The evaluation: every row forwarded once, numbers independent of batching, limits as stated."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import EvalSet, Row
from jaxunlearn.evaluation import benchmark, forward, rouge, suite
from jaxunlearn.models import placement, transformer

TEMPLATE = "Question: {question}\nAnswer:"
SETTINGS = EvaluationConfig(max_new_tokens=8, batch_size=4)


def encode(model, rows):
    pairs = [(row.question, row.answer) for row in rows]
    return tokens.encode(model.tokenizer, pairs, template=TEMPLATE, max_length=128).table


def evaluate(model, sets, settings=SETTINGS, **changes):
    options = {"template": TEMPLATE, "max_length": 128, **changes}
    return suite.evaluate(model, sets, settings, **options)


def test_scores_equal_an_unbatched_forward_pass(tiny, world):
    table = encode(tiny, world.forget)
    stats = forward.score(tiny.config, tiny.params, table, batch_size=7)
    for row in range(len(table.tokens)):
        ids = table.tokens[row : row + 1, : table.lengths[row]]
        logits = transformer.logits(tiny.config, tiny.params, ids)[0, :-1]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        mine = stats.log_probs[row, 1 : table.lengths[row]]
        np.testing.assert_allclose(mine, log_probs[np.arange(len(mine)), ids[0, 1:]], atol=2e-5)
        hits = log_probs.argmax(-1) == ids[0, 1:]
        np.testing.assert_array_equal(stats.hits[row, 1 : table.lengths[row]], hits)


def test_batch_size_changes_nothing(tiny, world):
    a = evaluate(tiny, world.evaluation, dataclasses.replace(SETTINGS, batch_size=3))
    b = evaluate(tiny, world.evaluation, dataclasses.replace(SETTINGS, batch_size=64))
    assert a.generations == b.generations
    for name, entry in a.metrics.items():
        np.testing.assert_allclose(entry["value"], b.metrics[name]["value"], rtol=1e-4)


def test_every_distinct_text_is_forwarded_once(tiny, monkeypatch):
    row = Row("Who?", "Ann", paraphrased_answer="It is Ann", perturbed_answers=("Bob", "Cid"))
    seen, asked = [], []

    def counting(config, params, table, **options):
        seen.extend(row.tobytes() for row in table.tokens)
        return forward.score(config, params, table, **options)

    def answering(model, prompts, config, **options):
        asked.extend(map(tuple, prompts))
        return answering.real(model, prompts, config, **options)

    answering.real = suite.answer_texts
    monkeypatch.setattr(suite, "score", counting)
    monkeypatch.setattr(suite, "answer_texts", answering)
    sets = {"forget": EvalSet("forget", (row, row)), "retain": EvalSet("retain", (row,))}
    found = evaluate(tiny, sets)
    # Four answers, and what the model says, which it judges itself.
    said = set(found.generations["forget"]) - {""}
    assert len(seen) == len(set(seen)) == 4 + len(said)
    assert len(asked) == 1


def test_rows_draw_answers_of_their_own_at_a_temperature(tiny):
    """The same ones each time; the most likely answer is one and the same."""
    same, other = (Row("Who?", "Ann"),) * 4, (Row("Where?", "Rome"), Row("Who?", "Ann"))
    drawn = {
        "forget": EvalSet("forget", same, temperature=1.0),
        "retain": EvalSet("retain", other, temperature=1.0),
    }
    settings = dataclasses.replace(SETTINGS, suite="custom")
    first, again = (evaluate(tiny, drawn, settings).generations for _ in range(2))
    assert first == again
    who = [*first["forget"], first["retain"][1]]
    assert len(set(who)) == 5
    batches = dataclasses.replace(settings, batch_size=2)
    assert evaluate(tiny, drawn, batches).generations == first
    greedy = {name: dataclasses.replace(one, temperature=0.0) for name, one in drawn.items()}
    mixed = {"forget": drawn["forget"], "retain": greedy["retain"]}
    likely = evaluate(tiny, greedy, settings).generations
    assert len({*likely["forget"], likely["retain"][1]}) == 1
    found = evaluate(tiny, mixed, settings).generations
    assert found == {"forget": first["forget"], "retain": likely["retain"]}


def test_answers_follow_the_temperature(tiny):
    """Close to 0 they are the most likely ones."""
    rows = tuple(Row(f"Who is {name}?", "Ann") for name in ("Bob", "Cid", "Dan"))
    settings = dataclasses.replace(SETTINGS, suite="custom")
    said = [
        evaluate(tiny, {"forget": EvalSet("forget", rows, temperature=heat)}, settings).generations
        for heat in (0.0, 1e-4, 1.0)
    ]
    assert said[0] == said[1] != said[2]


def test_the_scorer_sees_the_question_and_what_was_said(tiny):
    seen = []

    def scorer(texts):
        seen.extend(texts)
        return np.array([float(text.question == "Who?") for text in texts])

    rows = (Row("Who?", "Ann"), Row("Where?", "Rome"))
    sets = {"forget": EvalSet("forget", rows, scorer=scorer)}
    found = evaluate(tiny, sets, dataclasses.replace(SETTINGS, suite="toy"))
    assert found.metrics["forget_score"]["value"] == 0.5
    assert [(text.question, text.answer) for text in seen] == [
        ("Who?", found.generations["forget"][0]), ("Where?", found.generations["forget"][1])
    ]  # fmt: skip


def test_nine_numbers_make_the_utility(tiny, world):
    result = evaluate(tiny, world.evaluation).metrics
    kept = [name for name in world.evaluation if name != "forget"]
    assert len(kept) == 3
    measures = ("probability", "rouge", "truth_ratio")
    nine = [result[f"{name}_{measure}"]["value"] for name in kept for measure in measures]
    expected = 0.0 if min(nine) == 0 else 9 / sum(1 / value for value in nine)
    np.testing.assert_allclose(result["model_utility"]["value"], expected, rtol=1e-6)
    assert result["model_utility"]["n"] == 9


def test_general_sets_score_the_right_option_against_the_wrong(tiny, world):
    name, chosen = list(world.evaluation.items())[-1]
    assert chosen.role == "general"
    result = evaluate(tiny, {name: chosen}).metrics[f"{name}_probability"]["value"]
    by_hand = []
    for row in chosen.rows:
        options = [dataclasses.replace(row, answer=a) for a in (row.answer, *row.perturbed_answers)]
        table = encode(tiny, options)
        stats = forward.score(tiny.config, tiny.params, table)
        p = np.exp([x[m].mean() for x, m in zip(stats.log_probs, stats.mask, strict=True)])
        by_hand.append(p[0] / p.sum())
    np.testing.assert_allclose(result, np.mean(by_hand), rtol=1e-4)


def test_raw_rows_are_scored_as_they_stand(tiny):
    row = Row("Once upon", "a time", raw=True)
    found = evaluate(tiny, {"forget": EvalSet("forget", (row,))}).rows["forget_probability"]
    ids = tiny.tokenizer("Once upon a time")["input_ids"] + [tiny.tokenizer.eos_token_id]
    start = len(tiny.tokenizer("Once upon")["input_ids"])
    log_probs = jax.nn.log_softmax(transformer.logits(tiny.config, tiny.params, np.array([ids]))[0])
    by_hand = np.exp(np.mean([log_probs[t - 1, ids[t]] for t in range(start, len(ids))]))
    np.testing.assert_allclose(found, [by_hand], rtol=1e-4)


def test_a_set_says_how_long_answers_are_and_what_they_are_compared_to(tiny):
    rows = (Row("Once", "upon a time there was a girl who went out.", raw=True),)
    long = {"forget": EvalSet("forget", rows)}
    full = evaluate(tiny, long, dataclasses.replace(SETTINGS, suite="memory"))
    short = {"forget": EvalSet("forget", rows, max_new_tokens=3, cut=True)}
    part = evaluate(tiny, short, dataclasses.replace(SETTINGS, suite="memory"))
    (said,), (longer,) = part.generations["forget"], full.generations["forget"]
    assert len(said) < len(longer) and longer.startswith(said)
    ids = tiny.tokenizer(rows[0].answer, add_special_tokens=False)["input_ids"]
    truth = tiny.tokenizer.decode(ids[:3])
    assert part.rows["forget_rouge"] == rouge.rouge_l_recall([said], [truth]).tolist()
    until = {"forget": EvalSet("forget", rows, until=("zzz", longer[3:5]))}
    ended = evaluate(tiny, until, dataclasses.replace(SETTINGS, suite="memory"))
    assert ended.generations["forget"] == [longer[: longer.index(longer[3:5])].strip()]
    assert len(ended.generations["forget"][0]) <= 3


def test_rows_over_the_limit_are_counted_not_cut(tiny):
    rows = (Row("Who?", "Ann"), Row("Who?", "Ann " * 200))
    result = evaluate(tiny, {"forget": EvalSet("forget", rows)}, max_length=64)
    assert result.left_out == 1
    assert result.metrics["forget_probability"]["n"] == 1


def test_questions_without_room_for_an_answer_are_counted(tiny):
    rows = (Row("Who?", "Ann"), Row("Who? " * 30, "Ann"))
    settings = dataclasses.replace(SETTINGS, max_new_tokens=80)
    result = evaluate(tiny, {"forget": EvalSet("forget", rows)}, settings)
    assert result.no_room == 1 and result.generations["forget"][1] == ""


def test_without_wrong_answers_there_is_no_truth_ratio(tiny):
    result = evaluate(tiny, {"forget": EvalSet("forget", (Row("Who?", "Ann"),))})
    assert result.metrics["forget_truth_ratio"]["value"] is None
    assert result.rows["forget_truth_ratio"] == [None]
    compared = suite.against_retrained(SETTINGS, result, result)
    assert compared == {"forget_quality": {"value": None, "n": 0, "ci": None}}


def test_forget_quality_of_a_model_against_itself_is_one(tiny, world):
    result = evaluate(tiny, world.evaluation)
    compared = suite.against_retrained(SETTINGS, result, result)
    n = len(world.evaluation["forget"].rows)
    assert compared == {"forget_quality": {"value": 1.0, "n": n, "ci": None}}


@pytest.mark.parametrize(("limit", "count"), [(None, 24), (5, 5), (99, 24)])
def test_limit_spreads_over_the_set(limit, count):
    rows = tuple(Row("q", str(i)) for i in range(24))
    whole = EvalSet("retain", rows, max_new_tokens=3, until=(".",))
    found = suite.limit_sets({"retain": whole}, limit)["retain"]
    cut = found.rows
    assert len(cut) == count and found == dataclasses.replace(whole, rows=cut)
    if limit == 5:
        assert [row.answer for row in cut] == ["0", "4", "9", "14", "19"]


@pytest.mark.parametrize("name", benchmark.built_in())
def test_names_are_those_of_what_is_measured(tiny, world, name):
    """Also of sets that only this suite has, and without the rows that a metric is about."""
    chosen = benchmark.load(name)
    sets = {**world.evaluation, "holdout": EvalSet("holdout", world.retain[4:6])}
    asked = {one for metric in chosen.metrics for one in (*metric.data, *metric.versus)}
    for one in sorted(asked - {"forget", "retain", "general", "holdout"}):
        sets[one] = EvalSet("retain", world.retain[:2])
    settings = dataclasses.replace(SETTINGS, suite=name, max_new_tokens=2)
    for part in (sets, {"forget": sets["forget"]}):
        part = suite.limit_sets(part, 2)
        found = evaluate(tiny, part, settings)
        assert set(chosen.names(part, compared=False)) == set(found.metrics)
        compared = suite.against_retrained(settings, found, found)
        assert set(chosen.names(part, compared=True)) == {*found.metrics, *compared}


def test_rows_in_parts_are_the_same_rows(tiny, world, monkeypatch):
    table = encode(tiny, world.forget)
    done = []
    whole = forward.score(tiny.config, tiny.params, table, batch_size=7, moments=True)
    sizes = []

    def two(config, rows, width):
        sizes.append(rows)
        return 2

    monkeypatch.setattr(forward, "rows_at_once", two)
    options = {"batch_size": 7, "moments": True, "on_rows": done.append}
    parts = forward.score(tiny.config, tiny.params, table, **options)
    assert set(sizes) == {7}
    assert {1, 2} == set(done) and sum(done) == len(table.tokens)
    for name in ("log_probs", "means", "deviations"):
        ours, theirs = (getattr(one, name) for one in (parts, whole))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(parts.hits, whole.hits)


@pytest.mark.parametrize("cores", [1, 3])
def test_batches_side_by_side_come_in_order(monkeypatch, cores):
    """As many at a time as there are cores; each waits until all of them are at work."""
    monkeypatch.setattr(placement.os, "cpu_count", lambda: cores)
    together = threading.Barrier(cores, timeout=60)

    def double(number):
        together.wait()
        return 2 * number

    found = list(placement.side_by_side(double, range(6), at_once=5))
    assert found == [(number, 2 * number) for number in range(6)]


def test_an_error_in_one_of_the_batches_is_raised():
    def fail(number):
        raise KeyError(number)

    with pytest.raises(KeyError):
        list(placement.side_by_side(fail, range(6), at_once=2))


def test_who_stops_listening_waits_for_no_further_batch(monkeypatch):
    monkeypatch.setattr(placement.os, "cpu_count", lambda: 2)
    begun, rest = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            rest.wait(60)

    batches = placement.side_by_side(work, range(100), at_once=2)
    next(batches)
    threading.Timer(0.2, rest.set).start()
    batches.close()
    assert len(begun) < 10
