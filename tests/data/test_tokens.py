import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.data.synthetic import build
from jaxunlearn.data.tokens import (
    all_texts,
    encode,
    load_tokenizer,
    prompt_tokens,
    same_width,
    stop_tokens,
    train_tokenizer,
)
from jaxunlearn.errors import UserError

SHARED = Path(__file__).parents[2] / ".." / "shared"
TEMPLATE = "Question: {question}\nAnswer:"
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train(texts=("Question: Who is it?\nAnswer: Ann Lee",) * 3, size=320):
    return train_tokenizer(texts, size)


def built_in():
    return train(all_texts(build(8, 2, seed=0), template=TEMPLATE), 400)


def stories():
    return load_tokenizer(SHARED / "models" / "stories260K")


def gpt2():
    from transformers import GPT2TokenizerFast

    folder = SHARED / "data" / "gpt2_tokenizer"
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.fixture(params=[built_in, stories, gpt2], ids=lambda make: make.__name__, scope="module")
def tokenizer(request):
    if request.param is not built_in and not SHARED.is_dir():
        pytest.skip("no ../shared")
    return request.param()


# "▁" stands for a blank in stories260K, and the special tokens hold "<".
printable = st.characters(exclude_categories=["Cs"], exclude_characters="▁<")
texts = st.text(printable, max_size=30).map(str.strip).filter(bool)
templates = st.sampled_from([TEMPLATE, "{question}", "[INST] {question} [/INST]", "{question}\n"])


def row(encoded, i=0):
    """Prompt tokens, answer tokens."""
    table = encoded.table
    start, end = table.prompt_lengths[i], table.lengths[i]
    return table.tokens[i, :start].tolist(), table.tokens[i, start:end].tolist()


@given(question=texts, answer=texts, template=templates)
@settings(max_examples=150, deadline=None)
def test_prompt_is_a_prefix_and_answer_comes_back(tokenizer, question, answer, template):
    encoded = encode(tokenizer, [(question, answer)], template=template, max_length=4096)
    prompt, tokens = row(encoded)
    assert prompt == prompt_tokens(tokenizer, question, template=template)
    assert tokens[-1] == tokenizer.eos_token_id
    together = tokenizer.decode([*prompt, *tokens[:-1]], skip_special_tokens=True)
    assert together.strip() == f"{template.replace('{question}', question)} {answer}"
    assert tokenizer.decode(tokens[:-1]).strip() == answer


@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_plain_text_is_all_answer(tokenizer, text):
    encoded = encode(tokenizer, [("", text)], template=TEMPLATE, max_length=4096)
    table = encoded.table
    has_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokens = table.tokens[0, has_bos : table.lengths[0]]
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens[:-1]).strip() == text
    assert table.prompt_lengths[0] == 1
    assert table.answer_mask[0].sum() == table.lengths[0] - 1


def test_a_tiny_row_by_hand():
    tokenizer = train(("no merges",), 259)
    table = encode(tokenizer, [("q", "ab"), ("", "c")], template="{question}:", max_length=99).table

    def ids(text):
        return tokenizer.convert_tokens_to_ids(list(text.replace(" ", "Ġ")))

    pad, bos, eos = 0, 1, 2
    assert table.tokens.shape == (2, 16)
    assert table.tokens[0].tolist() == [bos, *ids("q: ab"), eos, *[pad] * 9]
    assert table.tokens[1].tolist() == [bos, *ids("c"), eos, *[pad] * 13]
    assert table.answer_mask[0].tolist() == [False] * 3 + [True] * 4 + [False] * 9
    assert table.answer_mask[1].tolist() == [False, True, True] + [False] * 13
    assert table.lengths.tolist() == [7, 3]
    assert table.prompt_lengths.tolist() == [3, 1]
    assert table.tokens.dtype == table.lengths.dtype == table.prompt_lengths.dtype == np.int32
    assert table.answer_mask.dtype == bool


def test_long_rows_are_left_out_not_cut():
    tokenizer = train(("no merges",), 259)
    pairs = [("q", "a" * n) for n in (3, 8, 4, 9)]
    encoded = encode(tokenizer, pairs, template="{question}", max_length=12)
    assert encoded.kept == (0, 1, 2)  # <s> q _ and </s> take four
    assert encoded.left_out == (3,)
    assert encoded.table.tokens.shape == (3, 12)
    nothing = encode(tokenizer, pairs, template="{question}", max_length=2)
    assert nothing.kept == () and nothing.table.tokens.shape[0] == 0
    assert encode(tokenizer, [], template="{question}", max_length=2).kept == ()


def test_tables_of_one_width():
    tokenizer = train(("no merges",), 259)
    short, long = (
        encode(tokenizer, [("q", "a" * n)], template="{question}", max_length=99).table
        for n in (2, 20)
    )
    wide, same = same_width(short, long)
    assert wide.tokens.shape == wide.answer_mask.shape == long.tokens.shape == (1, 32)
    assert wide.answer_mask.sum() == short.answer_mask.sum()
    assert wide.tokens[0, :6].tolist() == short.tokens[0, :6].tolist()
    np.testing.assert_array_equal(same.tokens, long.tokens)
    given = encode(tokenizer, [("q", "a")], template="{question}", max_length=99, width=40)
    assert given.table.tokens.shape == (1, 40)
    with pytest.raises(ValueError, match="width must be at least 24, got 8"):
        encode(tokenizer, [("q", "a" * 20)], template="{question}", max_length=99, width=8)


def merging_tokenizer():
    """Merges the colon with the blank after it, across the border of prompt and answer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["q", ":", " ", "a", "b", ": ", "</s>"])}
    model = Tokenizer(models.BPE(vocab, [(":", " ")]))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")


def test_a_merge_across_the_border_is_undone():
    tokenizer = merging_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("q: ab")["input_ids"])[1] == ": "
    encoded = encode(tokenizer, [("q", "ab")], template="{question}:", max_length=99)
    prompt, answer = row(encoded)
    assert prompt == prompt_tokens(tokenizer, "q", template="{question}:") == [0, 1]
    assert answer == [2, 3, 4, 6]


def test_without_special_tokens_the_first_token_is_never_an_answer():
    tokenizer = merging_tokenizer()
    tokenizer.eos_token = None
    table = encode(tokenizer, [("", "ab"), ("q", "a")], template="{question}", max_length=99).table
    assert table.tokens[0, :2].tolist() == [3, 4]
    assert table.answer_mask[:, :4].tolist() == [
        [False, True, False, False],
        [False, True, True, False],
    ]
    assert stop_tokens(tokenizer) == ()


def test_braces_in_question_and_template():
    tokenizer = train()
    prompt = prompt_tokens(tokenizer, "{x} {question}", template='{"q": {question}}')
    assert tokenizer.decode(prompt, skip_special_tokens=True) == '{"q": {x} {question}}'


@given(question=texts, answer=texts)
@settings(max_examples=60, deadline=None)
def test_chat_template(tokenizer, question, answer):
    eos = tokenizer.eos_token
    before, tokenizer.chat_template = tokenizer.chat_template, CHAT.replace("</s>", eos)
    try:
        encoded = encode(tokenizer, [(question, answer)], template="x{question}", max_length=4096)
        prompt, tokens = row(encoded)
        assert prompt == prompt_tokens(tokenizer, question, template="x{question}")
        assert tokens.count(tokenizer.eos_token_id) == 1
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1]).strip() == answer
        text = f"<|user|>\n{question}{eos}\n<|assistant|>\n"
        # stories260K puts a blank before each text between special tokens.
        assert tokenizer.decode(prompt).replace(" ", "") == text.replace(" ", "")
        assert stop_tokens(tokenizer) == (tokenizer.eos_token_id,)
        text_row = encode(tokenizer, [("", answer)], template="x{question}", max_length=4096)
        assert text_row.table.prompt_lengths[0] == 1
    finally:
        tokenizer.chat_template = before


def test_end_of_turn_that_is_not_end_of_text():
    tokenizer = train()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = CHAT.replace("</s>", "<|end|>")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    encoded = encode(tokenizer, [("a", "b")], template=TEMPLATE, max_length=99)
    assert row(encoded)[1][-1] == end
    assert stop_tokens(tokenizer) == (tokenizer.eos_token_id, end)


def test_a_chat_template_that_hides_the_answer_is_refused():
    tokenizer = train()
    tokenizer.chat_template = CHAT.replace("<|assistant|>", "<|bot|>")
    with pytest.raises(UserError, match="generation prompt"):
        encode(tokenizer, [("a", "b")], template=TEMPLATE, max_length=99)


def test_training_is_deterministic_and_survives_saving(tmp_path):
    code = (
        "import hashlib\nfrom tests.data.test_tokens import built_in\n"
        "print(hashlib.sha256(built_in().backend_tokenizer.to_str().encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in "12"
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 60
    first = built_in()
    first.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(
        first.backend_tokenizer.to_str()
    )
    for text in ("Question: Who is Ann?", "日本 😀", "  two  blanks ,."):
        assert again(text)["input_ids"] == first(text)["input_ids"]
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<s>", "</s>", "<pad>")
    assert first("a")["input_ids"][0] == first.bos_token_id
    assert len(first) == 400


def test_all_texts_holds_every_answer_once():
    rows = (
        Row("q", "a", paraphrased_answer="p", perturbed_answers=("x", "y")),
        Row("", "text"),
    )
    data = UnlearningData(rows[:1], rows[1:], {"retain": EvalSet("retain", rows[1:])})
    assert all_texts(data, template="{question}?") == ["q? a", "q? p", "q? x", "q? y", "text"]


def test_right_and_wrong_answers_of_the_built_in_world_take_as_many_tokens():
    data = build(40, 4, seed=0)
    tokenizer = train(all_texts(data, template=TEMPLATE), 1024)

    def mean(answers):
        return np.mean([len(ids) for ids in tokenizer(answers)["input_ids"]])

    right = mean([row.paraphrased_answer for row in data.forget])
    wrong = mean([text for row in data.forget for text in row.perturbed_answers])
    assert abs(right - wrong) < 0.3
    pairs = [(row.question, row.answer) for row in (*data.forget, *data.retain, *data.general)]
    assert encode(tokenizer, pairs, template=TEMPLATE, max_length=512).table.tokens.shape[1] == 32


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"model.vocab_size: must be at least 259, got 100"):
        train(size=100)


def test_folders_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_stories_tokens_are_those_of_its_card():
    if not SHARED.is_dir():
        pytest.skip("no ../shared")
    text = "Once upon a time, there was a little girl named Lily."
    table = encode(stories(), [("", text)], template=TEMPLATE, max_length=512).table
    card = "1 403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 2"
    assert table.tokens[0, : table.lengths[0]].tolist() == [int(i) for i in card.split()]
