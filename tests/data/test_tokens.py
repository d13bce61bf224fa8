import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.rows import EvalSet, Row, Text, UnlearningData
from jaxunlearn.data.synthetic import build
from jaxunlearn.data.tokens import (
    all_texts,
    encode,
    load_tokenizer,
    prompt_tokens,
    relabel,
    same_width,
    stop_tokens,
)
from jaxunlearn.errors import UserError
from tests.data.vocabularies import (
    CHAT,
    SHARED,
    TEMPLATE,
    built_in,
    each_tokenizer,  # noqa: F401
    row,
    stories,
    texts,
    train,
)

templates = st.sampled_from([TEMPLATE, "{question}", "[INST] {question} [/INST]", "{question}\n"])


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


@given(question=texts, gap=st.sampled_from(["", " ", "\n", "\n\n", "\t "]), answer=texts)
@settings(max_examples=150, deadline=None)
def test_a_raw_answer_continues_the_question(tokenizer, question, gap, answer):
    text = Text(question + gap, answer, raw=True)
    before = tokenizer.chat_template
    try:
        found = []
        for tokenizer.chat_template in (None, CHAT):
            encoded = encode(tokenizer, [text], template=TEMPLATE, max_length=4096)
            prompt, tokens = row(encoded)
            assert prompt == prompt_tokens(tokenizer, text.question, template=TEMPLATE, raw=True)
            found.append((prompt, tokens))
    finally:
        tokenizer.chat_template = before
    assert found[0] == found[1]
    assert tokens[-1] == tokenizer.eos_token_id
    together = tokenizer.decode([*prompt, *tokens[:-1]], skip_special_tokens=True)
    assert together.strip() == f"{question}{gap or ' '}{answer}"
    assert tokenizer.decode(tokens[:-1]).strip() == answer


def test_texts_are_encoded_together_as_they_are_alone():
    """Also those that share a prompt, be it a chat's, a template's or a raw one."""
    tokenizer = train()
    tokenizer.chat_template = CHAT
    texts = [
        Text(question, answer, raw)
        for question in ("Who is it?", "<|user|>\nWho is it?</s>\n<|assistant|>\n", "")
        for answer in ("Ann Lee", "Bob", "")
        for raw in (False, True)
    ]
    together = encode(tokenizer, texts, template=TEMPLATE, max_length=999)
    alone = [encode(tokenizer, [text], template=TEMPLATE, max_length=999) for text in texts]
    assert [row(together, i) for i in range(len(texts))] == [row(one) for one in alone]
    assert encode(tokenizer, [], template=TEMPLATE, max_length=999).kept == ()


def test_raw_rows_by_hand():
    tokenizer = train(("no merges",), 259)
    tokenizer.chat_template = CHAT
    pairs = [("q", "ab"), ("q\n", "ab"), ("", "ab")]
    texts = [Text(question, answer, raw=True) for question, answer in pairs]
    encoded = encode(tokenizer, texts, template="{question}:", max_length=99)
    decoded = [[tokenizer.decode(part) for part in row(encoded, i)] for i in range(3)]
    assert decoded == [["<s>q", " ab</s>"], ["<s>q\n", "ab</s>"], ["<s>", "ab</s>"]]


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


def test_special_tokens_in_plain_rows_are_kept():
    tokenizer = train()
    pairs = [("a</s>", "b</s>c</s>"), ("", "b</s>")]
    encoded = encode(tokenizer, pairs, template="{question}", max_length=99)
    assert [tokenizer.decode(part) for part in row(encoded)] == ["<s>a</s>", " b</s>c</s></s>"]
    assert tokenizer.decode(row(encoded, 1)[1]) == "b</s></s>"


def test_training_is_deterministic_and_survives_saving(tmp_path):
    code = (
        "import hashlib\nfrom tests.data.vocabularies import built_in\n"
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
    choice = Row("c", "y", options=("x", "y", "z"), raw=True)
    sets = {"retain": EvalSet("retain", rows[1:]), "choice": EvalSet("general", (choice,))}
    data = UnlearningData(rows[:1], rows[1:], sets)
    texts = all_texts(data, template="{question}?")
    assert texts == ["q? a", "q? p", "q? x", "q? y", "text", "c y", "c x", "c z"]


def test_right_and_wrong_answers_of_the_built_in_world_take_as_many_tokens():
    data = build(40, 4, seed=0)
    tokenizer = train(all_texts(data, template=TEMPLATE), 1024)

    def mean(answers):
        return np.mean([len(ids) for ids in tokenizer(answers)["input_ids"]])

    right = mean([row.paraphrased_answer for row in data.forget])
    wrong = mean([text for row in data.forget for text in row.perturbed_answers])
    assert abs(right - wrong) < 0.3
    pairs = [(row.question, row.answer) for row in (*data.forget, *data.retain, *data.background)]
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


def test_a_tokenizer_that_is_not_fast_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(UserError, match=r"ByT5Tokenizer .* tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_stories_tokens_are_those_of_its_card():
    if not SHARED.is_dir():
        pytest.skip("no ../shared")
    text = "Once upon a time, there was a little girl named Lily."
    table = encode(stories(), [("", text)], template=TEMPLATE, max_length=512).table
    card = "1 403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 2"
    assert table.tokens[0, : table.lengths[0]].tolist() == [int(i) for i in card.split()]


def test_relabel_goes_through_the_other_answer_over_and_over(tokenizer):
    pairs = [("Who?", "a long answer with many words in it"), ("What?", "short")]
    refusals = [("Who?", "no idea"), ("What?", "I do not know what to say about that")]
    table, other = (
        encode(tokenizer, p, template="{question}", max_length=64).table for p in (pairs, refusals)
    )
    labelled = relabel(table, other)
    np.testing.assert_array_equal(labelled.tokens, table.tokens)
    outside = ~table.answer_mask
    np.testing.assert_array_equal(labelled.labels[outside], table.tokens[outside])
    for i, mask in enumerate(table.answer_mask):
        words = other.tokens[i, other.answer_mask[i]][:-1].tolist()
        expected = [words[n % len(words)] for n in range(mask.sum())]
        assert labelled.labels[i, mask].tolist() == expected
    widened, _ = same_width(
        labelled,
        encode(tokenizer, [("Q", "word " * 40)], template="{question}", max_length=256).table,
    )
    assert widened.labels.shape == widened.tokens.shape
