import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class Chat:
    """What a real chat template prints: the tests do not trust the one in the folder."""

    prompt: str
    """From the first character to the answer; {q} is the question."""
    answer: str
    """What is to be learned; {a} is the answer."""
    tokens: tuple[str, ...]
    """Its special tokens, the one that ends a turn first."""
    bos: str = "<s>"
    eos: str = "</s>"
    shown_question: Callable[[str], str] = str
    shown_answer: Callable[[str], str] = str


CHATML = ("<|im_end|>", "<|im_start|>")
HEADERS = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
USER = "<|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
CHATS = {
    "chatml": Chat(
        "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
        "{a}<|im_end|>",
        CHATML,
    ),
    "qwen2.5": Chat(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n",
        "{a}<|im_end|>",
        CHATML,
        eos="<|im_end|>",
    ),
    "qwen3": Chat(
        "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "{a}<|im_end|>",
        CHATML,
        eos="<|im_end|>",
        shown_answer=lambda text: text.lstrip("\n"),
    ),
    "llama3": Chat(
        "<|begin_of_text|>" + USER + ASSISTANT,
        "{a}<|eot_id|>",
        HEADERS,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        shown_question=str.strip,
        shown_answer=str.strip,
    ),
    "llama3.1": Chat(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        + USER
        + ASSISTANT,
        "{a}<|eot_id|>",
        HEADERS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        shown_question=str.strip,
        shown_answer=str.strip,
    ),
    "gemma": Chat(
        "<bos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
        "{a}<end_of_turn>",
        ("<end_of_turn>", "<start_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        shown_question=str.strip,
        shown_answer=str.strip,
    ),
    "mistral-v0.2": Chat("<s>[INST] {q} [/INST]", "{a}</s>", ("</s>",)),
    "mistral-v0.3": Chat(
        "<s>[INST] {q}[/INST]", " {a}</s>", ("</s>", "[INST]", "[/INST]"), shown_answer=str.strip
    ),
    "phi3": Chat(
        "<|user|>\n{q}<|end|>\n<|assistant|>\n",
        "{a}<|end|>",
        ("<|end|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
    ),
    "llama2": Chat(
        "<s>[INST] {q} [/INST]",
        " {a} </s>",
        ("</s>",),
        shown_question=str.strip,
        shown_answer=str.strip,
    ),
}


def metaspace():
    """A tokenizer in the style of Llama 2: puts a blank first, merges "](", falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("▁", "A"), ("n", "n"), ("▁A", "nn"), ("]", "("), ("▁", "("), ("▁", "▁")]
    letters = [chr(i) for i in range(33, 127)]
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    words += ["".join(pair) for pair in merges]
    vocab = {word: i for i, word in enumerate(words)}
    model = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, clean_up_tokenization_spaces=False)


def trimming():
    """In the style of Llama 3: the places it gives for its tokens leave blanks out."""
    from tokenizers import processors

    tokenizer = train()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@cache
def chat_tokenizer(name, make):
    chat, tokenizer = CHATS[name], make()
    tokenizer.add_special_tokens(
        {
            "bos_token": chat.bos,
            "eos_token": chat.eos,
            "additional_special_tokens": list(chat.tokens),
        }
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    folder = Path(__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text()
    return tokenizer


def check_chat_row(name, make, question, answer):
    chat, tokenizer = CHATS[name], chat_tokenizer(name, make)
    encoded = encode(tokenizer, [(question, answer)], template="x{question}", max_length=4096)
    prompt, tokens = row(encoded)
    assert prompt == prompt_tokens(tokenizer, question, template="x{question}")
    assert tokenizer.decode(prompt) == chat.prompt.replace("{q}", chat.shown_question(question))
    assert tokenizer.decode(tokens) == chat.answer.replace("{a}", chat.shown_answer(answer))
    assert tokens[-1] == tokenizer.convert_tokens_to_ids(chat.tokens[0])
    assert encoded.table.answer_mask.sum() == len(tokens)


markers = sorted({token for chat in CHATS.values() for token in (*chat.tokens, chat.bos, chat.eos)})
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
pieces = st.sampled_from([*markers, "<think>", "Ann", "](", " ", "\n", "\n\n", "{{ x }}", "user"])
hard_texts = st.lists(st.one_of(st.text(characters, max_size=8), pieces), max_size=6).map("".join)
each_chat = pytest.mark.parametrize("name", CHATS)
each_make = pytest.mark.parametrize("make", [train, trimming, metaspace])


@each_chat
@each_make
def test_real_chat_templates(name, make):
    answers = ["Ann Lee", "", " ", "  Ann \n", "\nAnn\n\n", "(see Ann)", "\u0301日本 😀"]
    for answer in answers + [f"{marker}Ann{marker} and {marker}" for marker in markers]:
        check_chat_row(name, make, "Who is Ann?", answer)


@each_chat
@each_make
@given(question=hard_texts.filter(bool), answer=hard_texts)
@settings(max_examples=40, deadline=None)
def test_any_text_in_real_chat_templates(name, make, question, answer):
    check_chat_row(name, make, question, answer)


@each_chat
@each_make
def test_stop_tokens_of_real_chat_templates(name, make):
    chat, tokenizer = CHATS[name], chat_tokenizer(name, make)
    ids = tokenizer.convert_tokens_to_ids([chat.eos, chat.tokens[0]])
    assert stop_tokens(tokenizer) == tuple(sorted(set(ids)))


@pytest.mark.parametrize("name", ["mistral-v0.2", "chatml"])
def test_a_blank_is_not_put_where_a_merge_is_undone(name):
    tokenizer = chat_tokenizer(name, metaspace)
    joined = tokenizer("[/INST](see", add_special_tokens=False)["input_ids"]
    assert "](" in tokenizer.convert_ids_to_tokens(joined)
    encoded = encode(tokenizer, [("Who?", "(see")], template="x{question}", max_length=99)
    assert tokenizer.convert_ids_to_tokens(row(encoded)[1])[:2] == ["(", "s"]


def test_a_special_token_that_takes_the_space_after_it():
    from tokenizers import AddedToken

    tokenizer = train()
    taking = [AddedToken(t, rstrip=True) for t in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": taking})
    tokenizer.chat_template = chat_tokenizer("phi3", train).chat_template
    encoded = encode(tokenizer, [("a", "\n Ann")], template=TEMPLATE, max_length=99)
    prompt, tokens = row(encoded)
    assert prompt == prompt_tokens(tokenizer, "a", template=TEMPLATE)
    assert tokenizer.decode(tokens) == "\n Ann<|end|>"


def test_chat_rows_do_not_change_from_day_to_day():
    tokenizer = train()
    form = "  {% if true %}{{ strftime_now('%d %B %Y') }}\n{% endif %}"
    for template in (form, "\n" + form, "{% macro m() %}" + form + "{% endmacro %}{{ m() }}"):
        tokenizer.chat_template = template + CHAT
        text = tokenizer.decode(prompt_tokens(tokenizer, "a", template=TEMPLATE))
        usual = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}],
            chat_template=tokenizer.chat_template.replace("strftime_now", "'26 Jul 2024'.format"),
            add_generation_prompt=True,
            tokenize=False,
        )
        assert text == usual
        assert text.lstrip() == "26 Jul 2024\n<|user|>\na</s>\n<|assistant|>\n"


def test_a_chat_template_that_ends_turns_with_plain_text():
    tokenizer = train(("Ann.\n" * 3,))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    encoded = encode(tokenizer, [("a", "Ann.")], template=TEMPLATE, max_length=99)
    assert [tokenizer.decode(part) for part in row(encoded)] == [
        "user: a\nassistant: ",
        "Ann.</s>",
    ]
    assert stop_tokens(tokenizer) == (tokenizer.eos_token_id,)


def test_a_prompt_that_is_encoded_otherwise_before_an_answer():
    tokenizer = train(("blanks  ",) * 3)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    encoded = encode(tokenizer, [("Q:  ", "Ann")], template=TEMPLATE, max_length=99)
    assert tokenizer.convert_ids_to_tokens(row(encoded)[0]) == ["Q", ":", "ĠĠ"]
    assert tokenizer.decode(row(encoded)[1]) == "Ann</s>"


def test_a_chat_template_without_a_generation_prompt():
    tokenizer = chat_tokenizer("chatml", train)
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace("if add_generation_prompt", "if false")
    try:
        encoded = encode(tokenizer, [("a", "Ann")], template=TEMPLATE, max_length=99)
        assert [tokenizer.decode(part) for part in row(encoded)] == [
            "<|im_start|>user\na<|im_end|>\n",
            "<|im_start|>assistant\nAnn<|im_end|>",
        ]
    finally:
        tokenizer.chat_template = before


def test_special_tokens_in_plain_rows_are_kept():
    tokenizer = train()
    pairs = [("a</s>", "b</s>c</s>"), ("", "b</s>")]
    encoded = encode(tokenizer, pairs, template="{question}", max_length=99)
    assert [tokenizer.decode(part) for part in row(encoded)] == ["<s>a</s>", " b</s>c</s></s>"]
    assert tokenizer.decode(row(encoded, 1)[1]) == "b</s></s>"


def test_a_thought_in_the_answer_is_refused():
    tokenizer = chat_tokenizer("qwen3", train)
    with pytest.raises(UserError, match="generation prompt"):
        encode(tokenizer, [("a", "<think>x</think>b")], template=TEMPLATE, max_length=99)


@pytest.mark.parametrize(
    "change",
    [
        ("<|assistant|>", "<|bot|>"),
        ("m.content", "loop.index"),
        ("</s>", "{{ m.content | length }}"),
    ],
)
def test_a_chat_template_that_hides_the_answer_is_refused(change):
    tokenizer = train()
    tokenizer.chat_template = CHAT.replace(*change)
    with pytest.raises(UserError, match="generation prompt"):
        encode(tokenizer, [("a", "an answer")], template=TEMPLATE, max_length=99)


@pytest.mark.parametrize(
    "template, fault",
    [
        ("{{ raise_exception('a system turn\n is missing') }}", "a system turn is missing"),
        ("{{ messages.nothing.there }}", "no attribute 'nothing'"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_chat_template_that_fails_is_one_line(template, fault):
    tokenizer = train()
    tokenizer.chat_template = template
    for call in (
        lambda: encode(tokenizer, [("a", "b")], template=TEMPLATE, max_length=99),
        lambda: prompt_tokens(tokenizer, "a", template=TEMPLATE),
        lambda: stop_tokens(tokenizer),
    ):
        with pytest.raises(UserError, match=f"chat template: .*{fault}") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert prompt_tokens(tokenizer, "", template=TEMPLATE) == [tokenizer.bos_token_id]


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
    for row, mask in enumerate(table.answer_mask):
        words = other.tokens[row, other.answer_mask[row]][:-1].tolist()
        expected = [words[i % len(words)] for i in range(mask.sum())]
        assert labelled.labels[row, mask].tolist() == expected
    widened, _ = same_width(
        labelled,
        encode(tokenizer, [("Q", "word " * 40)], template="{question}", max_length=256).table,
    )
    assert widened.labels.shape == widened.tokens.shape
