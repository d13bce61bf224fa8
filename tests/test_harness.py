"""lm-evaluation-harness on our models: the same numbers as from its own Hugging Face model."""

import copy
import dataclasses
import json
import math

import datasets
import huggingface_hub
import jax
import numpy as np
import pytest
import yaml

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from jaxunlearn import cli, harness
from jaxunlearn.errors import UserError
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel

POSITIONS = 128
QUESTION = "Question: {{question}}\nAnswer:"
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": QUESTION,
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": QUESTION,
        "doc_to_target": "answer",
        "generation_kwargs": {"max_gen_toks": 8, "until": ["e", "\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    },
}
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<s>{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}</s><s>assistant:{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory, world, tiny):
    """Task files; a third of the questions is asked twice, and a text fills several windows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [*world.forget[:8], *world.forget[:4]]
    questions = [f"Question: {row.question}\nAnswer:" for row in rows]
    said = harness.HarnessModel(tiny).generate_until(
        requests("generate_until", [(q, TASKS["answer"]["generation_kwargs"]) for q in questions])
    )
    lines = [
        {
            "question": row.question,
            "choices": [row.answer, *row.perturbed_answers],
            "right": number % 2,
            # Half of the right answers are what the model says.
            "answer": said[number] if number % 2 else row.answer,
            "text": " ".join(row.answer for row in rows[: 1 + number]),
        }
        for number, row in enumerate(rows)
    ]
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, task in TASKS.items():
        source = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "fewshot_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(source | task))
    return folder


@pytest.fixture(scope="module")
def manager(task_folder):
    return TaskManager(include_path=task_folder, include_defaults=False)


@pytest.fixture(scope="module")
def gpt2(tokenizer):
    """Learned positions, which end where the model's do."""
    settings = {"model_type": "gpt2", "vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2}
    settings |= {"n_head": 4, "n_positions": POSITIONS, "bos_token_id": 1, "eos_token_id": 2}
    config = read_config(settings, "gpt2")
    params = jax.tree.map(lambda x: x * 4, transformer.init_params(config, jax.random.key(2)))
    return LanguageModel(config, params, tokenizer, hf_config=settings)


def requests(kind, arguments):
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def run(model, manager, *tasks, **options):
    return lm_eval.simple_evaluate(
        model=model, tasks=[*tasks], task_manager=manager, bootstrap_iters=0, **options
    )


def assert_same(ours, theirs):
    """Every prompt, answer and number of two runs; log-probabilities to 1e-4 and rounding."""
    assert ours["results"].keys() == theirs["results"].keys()
    for task, numbers in theirs["results"].items():
        for key, value in numbers.items():
            if isinstance(value, float):
                np.testing.assert_allclose(ours["results"][task][key], value, rtol=1e-4)
        for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert mine["arguments"] == other["arguments"]
            for a, b in zip(mine["resps"], other["resps"], strict=True):
                if isinstance(b[0], str):
                    assert a == b
                else:
                    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "gpt2"])
@pytest.mark.parametrize("num_fewshot", [0, 4])
def test_numbers_are_those_of_the_harness_own_model(request, manager, name, num_fewshot, tmp_path):
    """With four examples the prompts are longer than the model and are cut."""
    torch_model = pytest.importorskip("lm_eval.models.huggingface").HFLM
    model = request.getfixturevalue(name)
    folder = str(export_model(dataclasses.replace(model), tmp_path / name))
    tasks = [f"local_{task}" for task in TASKS if num_fewshot == 0 or task != "text"]
    theirs = run(
        torch_model(folder, device="cpu", dtype="float32", batch_size=4),
        manager, *tasks, num_fewshot=num_fewshot,
    )  # fmt: skip
    ours = run(harness.HarnessModel(folder, batch_size=5), manager, *tasks, num_fewshot=num_fewshot)
    assert_same(ours, theirs)
    prompts = [sample["arguments"][0][0] for sample in ours["samples"]["local_answer"]]
    longest = max(len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts)
    assert (longest > POSITIONS) == (num_fewshot == 4)


@pytest.mark.slow
def test_a_chat_template_is_applied_as_the_harness_own_model_does(tiny, manager, tmp_path):
    """This template refuses system turns, which are then left out."""
    torch_model = pytest.importorskip("lm_eval.models.huggingface").HFLM
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = CHAT
    model = dataclasses.replace(tiny, tokenizer=tokenizer)
    folder = str(export_model(model, tmp_path / "chat"))
    options = {"apply_chat_template": True, "system_instruction": "Be brief.", "limit": 3}
    theirs = run(
        torch_model(folder, device="cpu", dtype="float32"), manager, "local_choice", **options
    )
    ours = run(harness.HarnessModel(folder), manager, "local_choice", **options)
    assert_same(ours, theirs)
    prompt = ours["samples"]["local_choice"][0]["arguments"][0][0]
    assert prompt.startswith("<s>user: Question") and prompt.endswith("</s><s>assistant:")
    # The template's own <s> is the only one.
    assert harness.HarnessModel(model).tok_encode(prompt).count(tokenizer.bos_token_id) == 2


def test_a_chat_template_that_is_missing_or_fails_is_refused(tiny):
    turns = [{"role": "user", "content": "Who?"}]
    with pytest.raises(UserError, match="no chat template"):
        harness.HarnessModel(tiny).apply_chat_template(turns)
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"cannot be applied \(never\)"):
        harness.HarnessModel(dataclasses.replace(tiny, tokenizer=tokenizer)).apply_chat_template(
            turns
        )


def test_an_adapter_counts_as_if_merged(tiny):
    factors = lora.init(tiny.params, 2, key=jax.random.key(3))
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    adapted = dataclasses.replace(tiny, adapter=lora.Adapter(factors, 1.0))
    settings = {"max_gen_toks": 8}

    def numbers(model):
        model = harness.HarnessModel(model)
        found = model.loglikelihood(requests("loglikelihood", [("Who?", " Ann")]))
        return found[0][0], model.generate_until(requests("generate_until", [("Who?", settings)]))

    (with_adapter, said), (merged, said_merged) = numbers(adapted), numbers(adapted.merged())
    np.testing.assert_allclose(with_adapter, merged, rtol=1e-5)
    assert said == said_merged
    assert abs(with_adapter - numbers(tiny)[0]) > 0.01


def test_log_likelihoods_by_hand(tiny):
    model, ids = harness.HarnessModel(tiny), tiny.tokenizer("Who is it? Ann")["input_ids"]
    start = len(tiny.tokenizer("Who is it?")["input_ids"])
    logits = np.asarray(transformer.logits(tiny.config, tiny.params, np.array([ids]))[0])
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected = sum(log_probs[t - 1, ids[t]] for t in range(start, len(ids)))
    # The space at the end of a context counts as the continuation's.
    pairs = [("Who is it?", " Ann"), ("Who is it? ", "Ann")]
    found = model.loglikelihood(requests("loglikelihood", pairs))
    np.testing.assert_allclose([value for value, _ in found], expected, rtol=1e-5)

    best = int(logits[start - 1].argmax())
    tokens = [(None, ids[:start], [best]), (None, ids[:start], [(best + 1) % 400])]
    (top, greedy), (other, not_greedy) = model._loglikelihood_tokens(tokens)
    assert greedy and not not_greedy and top > other
    np.testing.assert_allclose(top, log_probs[start - 1, best], rtol=1e-5)


def test_rolling_windows_by_hand(tiny):
    """Each token is predicted once; the last window is a full one."""
    model = harness.HarnessModel(tiny, max_length=8)
    ids = model.tok_encode("Ann was born in Oslo and lives there with Bob and Cid.")
    assert len(ids) % 8
    whole, expected = [tiny.tokenizer.bos_token_id, *ids], 0.0
    for first in range(0, len(ids), 8):
        stop = min(first + 8, len(ids))
        seen = whole[max(stop - 8, 0) : stop]
        logits = transformer.logits(tiny.config, tiny.params, np.array([seen]))[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))[-(stop - first) :]
        expected += sum(log_probs[i, ids[first + i]] for i in range(stop - first))
    text = tiny.tokenizer.decode(ids[1:])
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.loglikelihood_rolling([]) == []


def test_identical_requests_are_forwarded_once(tiny, monkeypatch):
    forwarded = []

    def score(config, params, table, **options):
        forwarded.append(len(table.tokens))
        return real_score(config, params, table, **options)

    def generate(config, params, prompts, **options):
        forwarded.append(len(prompts))
        return real_generate(config, params, prompts, **options)

    real_score, real_generate = harness.score, harness.generate
    monkeypatch.setattr(harness, "score", score)
    monkeypatch.setattr(harness, "generate", generate)
    model = harness.HarnessModel(tiny)
    pairs = [("Who?", " Ann"), ("Who?", " Bob"), ("Who?", " Ann")]
    found = model.loglikelihood(requests("loglikelihood", pairs))
    assert found[0] == found[2] != found[1]
    greedy, drawn = {"max_gen_toks": 4}, {"max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    texts = model.generate_until(requests("generate_until", [("Who?", greedy), ("a", greedy)] * 2))
    assert texts[:2] == texts[2:]
    texts = model.generate_until(requests("generate_until", [("Who?", drawn)] * 6))
    assert len(set(texts)) > 1
    assert texts == model.generate_until(requests("generate_until", [("Who?", drawn)] * 6))
    assert forwarded == [2, 2, 6, 6]


def test_answers_end_where_the_task_says(tiny):
    model = harness.HarnessModel(tiny)

    def say(**settings):
        return model.generate_until(requests("generate_until", [("Who?", settings)]))[0]

    whole = say(max_gen_toks=16)
    assert len(whole) > 3
    for stop in (whole[2], whole[1:3], [whole[3], whole[2]]):
        first = min(whole.index(s) for s in ([stop] if isinstance(stop, str) else stop))
        assert say(max_gen_toks=16, until=stop) == whole[:first]
    assert say(max_gen_toks=16, temperature=2.0, top_k=1, do_sample=True, num_beams=1) == whole
    with pytest.raises(UserError, match="cannot do repetition_penalty"):
        say(repetition_penalty=1.2)
    with pytest.raises(UserError, match=f"max_gen_toks is {POSITIONS}"):
        say(max_gen_toks=POSITIONS)


def test_what_a_model_must_have(tiny):
    for options, words in (
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"batch_size": "auto"}, "batch_size: is auto"),
        ({"max_length": POSITIONS + 1}, f"max_length: is {POSITIONS + 1}; use 1 to {POSITIONS}"),
    ):
        with pytest.raises(UserError, match=words):
            harness.HarnessModel(tiny, **options)
    with pytest.raises(UserError, match="no tokenizer here"):
        harness.HarnessModel(dataclasses.replace(tiny, tokenizer=None))
    bare = copy.deepcopy(tiny.tokenizer)
    bare.bos_token = bare.eos_token = None
    with pytest.raises(UserError, match="neither a bos_token nor an eos_token"):
        harness.HarnessModel(dataclasses.replace(tiny, tokenizer=bare))
    long = [("Who?", " Ann" * POSITIONS)]
    with pytest.raises(UserError, match="a continuation has"):
        harness.HarnessModel(tiny).loglikelihood(requests("loglikelihood", long))


@pytest.mark.slow
def test_the_harness_knows_the_model_by_name(tiny_folder, manager):
    args = f"path={tiny_folder},max_length=100"
    results = run("jaxunlearn", manager, "local_choice", model_args=args, batch_size=3, limit=2)
    assert results["config"]["model"] == "jaxunlearn"
    assert results["max_length"] == 100


@pytest.mark.slow
def test_the_command(capsys, tiny, tiny_folder, task_folder, manager, tmp_path):
    words = ["lm-eval", str(tiny_folder), "--include-path", str(task_folder), "--tasks"]
    file = tmp_path / "out" / "numbers.json"
    options = ["--limit", "3", "--num-fewshot", "1", "--json", str(file)]
    assert cli.main([*words, "local_ch*,local_choice,local_text", *options]) == 0
    out = capsys.readouterr().out
    assert "acc_norm" in out and "byte_perplexity" in out
    results = json.loads(file.read_text())
    assert results["config"]["model"] == str(tiny_folder) and "samples" not in results
    plain = run(
        harness.HarnessModel(tiny), manager, "local_choice", "local_text", limit=3, num_fewshot=1
    )["results"]
    for task, numbers in plain.items():
        assert math.isclose(numbers["sample_len"], results["results"][task]["sample_len"])
        for key, value in numbers.items():
            if isinstance(value, float):
                assert math.isclose(value, results["results"][task][key], rel_tol=1e-6)
    for wrong, message in (
        (["local_nothing"], "no task 'local_nothing'"),
        (["local_choice", "--limit", "0"], "limit: is 0"),
        (["local_choice", "--num-fewshot", "-1"], "num_fewshot: is -1"),
        (["local_choice", "--batch-size", "0"], "batch_size: is 0"),
        (["local_choice", "--include-path", str(tmp_path / "gone")], "no such folder"),
    ):
        assert cli.main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
