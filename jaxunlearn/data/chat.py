"""Chat templates: what they make of a question with its answer, and what ends a turn."""

from typing import TYPE_CHECKING

from jaxunlearn.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TODAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}\n"
"""Put before a chat template, so that its rows do not change from day to day. Llama's own date."""


def render(tokenizer: "Tokenizer", question: str, answer: str | None = None) -> str:
    """The chat template's text of a question with its answer, or up to where the answer begins."""
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=TODAY + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=answer is None,
            enable_thinking=False,  # else some put an empty thought into the answer
        )
    except Exception as error:  # a template is a program, and can fail in any way
        raise UserError(
            f"chat template: it cannot be applied ({one_line(error)}); take chat_template out of"
            " the tokenizer's files to use data.template"
        ) from None


def after_answer(tokenizer: "Tokenizer") -> tuple[str, int | None]:
    """What the chat template puts after every answer, from the token that ends the turn.

    Without such a token it is all of that text, and end of text ends the turn.
    """
    one, other = (render(tokenizer, "a", answer) for answer in ("b", "c"))
    differ = [i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y]
    text = one[max(differ, default=-1) + 1 :]
    ends = _end_ids(tokenizer)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, _) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        if token in ends:
            return text[start:], token
    return text, tokenizer.eos_token_id


def _end_ids(tokenizer: "Tokenizer") -> set[int]:
    """Special tokens that can end a turn."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    other = {tokenizer.bos_token_id, tokenizer.unk_token_id}
    return (special - other) | {tokenizer.eos_token_id}
