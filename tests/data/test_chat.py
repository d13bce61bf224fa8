"""Rows in a chat template: the templates of real models, and those that cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data.tokens import encode, prompt_tokens, stop_tokens
from jaxunlearn.errors import UserError
from tests.data.vocabularies import (
    CHAT,
    TEMPLATE,
    each_tokenizer,  # noqa: F401
    row,
    texts,
    train,
)


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
