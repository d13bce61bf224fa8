"""Text to token tables: chat template or plain template, answer mask, padding.

A row is the tokens of its prompt followed by the tokens of its answer, and the tokens of the prompt
are exactly those that generation starts from. Prompt and answer are encoded as one text; where a
token reaches across the border between them, they are encoded apart and joined.

In a rendered chat the answer is what lies between the generation prompt and the text that the
template puts after every answer. The token that ends the turn is added to it, and nothing else.

A raw text has neither template nor chat: the answer follows the question after a space, or at once
where the question ends in white space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxunlearn.data.chat import after_answer, render
from jaxunlearn.data.rows import Text, UnlearningData
from jaxunlearn.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

WIDTH_STEP = 16
"""Tables are padded to a multiple of this, so that few shapes have to be compiled."""

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""A batch is cut to the smallest of these that holds its longest row: few shapes, few pads."""

BYTE_ALPHABET = 256
_SPECIAL = ("<pad>", "<s>", "</s>")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class TokenTable:
    """Rows of tokens in one fixed shape."""

    tokens: np.ndarray
    """int32 [n, T], right-padded."""
    answer_mask: np.ndarray
    """bool [n, T]: this token belongs to the answer or closes it; never in column 0."""
    lengths: np.ndarray
    """int32 [n]: tokens of the row, padding not counted."""
    prompt_lengths: np.ndarray
    """int32 [n]: tokens before the answer, at least 1."""
    labels: np.ndarray | None = None
    """int32 [n, T]: what is to be said in the place of each token; None: the tokens."""


@dataclass(frozen=True)
class Encoded:
    """A token table and which of the given rows are in it."""

    table: TokenTable
    kept: tuple[int, ...]
    """For each row of the table, its index among the given texts."""
    left_out: tuple[int, ...]
    """Indices of the texts that are longer than `max_length`; nothing is ever cut."""


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a Hugging Face folder; nothing is downloaded or executed.

    Raises:
      UserError: when the folder has no tokenizer, or one that cannot be read or is not a fast one.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder}: no tokenizer here; copy tokenizer.json and tokenizer_config.json of the"
            " model into this folder"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{folder}: the tokenizer cannot be read ({one_line(error)})") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{folder}: {type(tokenizer).__name__} does not say where in the text a token lies, as"
            " fast tokenizers do; copy a tokenizer.json of the model into this folder"
        )
    return tokenizer


def encode(
    tokenizer: "Tokenizer",
    texts: Sequence[tuple[str, str] | Text],
    *,
    template: str,
    max_length: int,
    width: int | None = None,
) -> Encoded:
    """Encodes texts into one table.

    With a chat template a row is what it renders for a user and an assistant turn, up to the token
    that ends the turn. Without one it is `template`, a space, the answer and the end-of-text token.
    A raw text is its question, its answer and the end-of-text token. A text without a question is
    plain text: everything after the begin-of-text token is the answer.

    Args:
      tokenizer: as `load_tokenizer` gives it.
      texts: questions and answers; the answer may be any text, such as a paraphrase.
      template: the prompt, with {question} in it.
      max_length: texts with more tokens are left out.
      width: T of the table; default: the longest row, rounded up to a multiple of WIDTH_STEP.

    Raises:
      UserError: when the chat template fails, or an answer does not follow its own prompt.
      ValueError: when a kept row is longer than `width`.
    """
    rows = _split_rows(tokenizer, [Text(*text) for text in texts], template)
    fits = [len(prompt) + len(answer) <= max_length for prompt, answer in rows]
    kept = tuple(i for i, fit in enumerate(fits) if fit)
    left_out = tuple(i for i, fit in enumerate(fits) if not fit)
    longest = max((len(rows[i][0]) + len(rows[i][1]) for i in kept), default=1)
    if width is None:
        width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, max(max_length, 1))
    if longest > width:
        raise ValueError(f"width must be at least {longest}, got {width}")
    return Encoded(make_table([rows[i] for i in kept], width, _pad_id(tokenizer)), kept, left_out)


def make_table(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], width: int, pad: int = 0
) -> TokenTable:
    """Prompt tokens and answer tokens of each row, side by side in `width` columns."""
    tokens = np.full((len(rows), width), pad, np.int32)
    for i, (prompt, answer) in enumerate(rows):
        tokens[i, : len(prompt) + len(answer)] = [*prompt, *answer]
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in rows], np.int32)
    # Nothing comes before the first token that could predict it.
    prompts = np.array([max(len(prompt), 1) for prompt, _ in rows], np.int32)
    column = np.arange(width)
    mask = (column >= prompts[:, None]) & (column < lengths[:, None])
    return TokenTable(tokens, mask, lengths, prompts)


def check_ids(table: TokenTable, vocab_size: int) -> None:
    """Refuses tokens that a model of this vocabulary does not have.

    Raises:
      UserError: the tokenizer is not the model's own.
    """
    largest = int(table.tokens.max(initial=0))
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer gives token id {largest}, but the model's vocabulary has ids 0 to "
            f"{vocab_size - 1}; put the model's own tokenizer into its folder"
        )


def relabel(table: TokenTable, other: TokenTable) -> TokenTable:
    """The table with labels: along each answer the other table's answer, over and over.

    Its closing token is left out, so that an answer of any length is covered by its words.

    Args:
      table: n rows.
      other: other answers, n rows too.
    """
    labels = table.tokens.copy()
    for row, mask in enumerate(table.answer_mask):
        words = other.tokens[row, other.answer_mask[row]]
        labels[row, mask] = np.resize(words[:-1] if len(words) > 1 else words, mask.sum())
    return replace(table, labels=labels)


def same_width(*tables: TokenTable) -> tuple[TokenTable, ...]:
    """The tables, all as wide as the widest of them."""
    width = max(table.tokens.shape[1] for table in tables)
    return tuple(_widen(table, width) for table in tables)


def batch_width(longest: int, width: int, widths: Sequence[int] = WIDTHS) -> int:
    """Columns of a batch whose longest row has this many tokens, from a table of `width`."""
    return min(min((w for w in widths if w >= longest), default=width), width)


def prompt_tokens(
    tokenizer: "Tokenizer", question: str, *, template: str, raw: bool = False
) -> list[int]:
    """What generation starts from: exactly the first tokens of the row that `encode` makes."""
    text = Text(question, "", raw)
    prompt = _prompt_text(tokenizer, text, template)
    ((ids, _),) = _encode_texts(tokenizer, [prompt], [_is_chat(tokenizer, text)])
    return ids


def plain(text: Text, template: str) -> tuple[str, str]:
    """Prompt and what follows it, without a chat template."""
    if not text.question:
        return "", text.answer
    if not text.raw:
        return template.replace("{question}", text.question), f" {text.answer}"
    return text.question, text.answer if text.question[-1].isspace() else f" {text.answer}"


def stop_tokens(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """The tokens that end an answer: end of text and, with a chat template, end of turn."""
    stops = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        stops.add(after_answer(tokenizer)[1])
    return tuple(sorted(stops - {None}))


def all_texts(data: UnlearningData, *, template: str) -> list[str]:
    """Every row with each of its answers as one text: what a tokenizer is to be trained on.

    The wrong answers are in it, so that the right ones are not made of fewer tokens than they are;
    and so is the holdout, so that the tokenizer does not tell it from the forget rows.
    """
    parts = (part.rows for part in data.evaluation.values())
    parts = (data.forget, data.retain, *parts, data.background)
    rows = dict.fromkeys(row for part in parts for row in part)
    return [
        "".join(plain(row.text(answer), template))
        for row in rows
        for answer in (
            row.answer,
            row.paraphrased_answer,
            *row.perturbed_answers,
            *(option for option in row.options if option != row.answer),
        )
        if answer is not None
    ]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE tokenizer with <pad>, <s> (put before each text) and </s>.

    Every text can be encoded and comes back unchanged. The same texts give the same tokenizer.

    Raises:
      UserError: when `vocab_size` has no room for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = BYTE_ALPHABET + len(_SPECIAL)
    if vocab_size < smallest:
        raise UserError(f"model.vocab_size: must be at least {smallest}, got {vocab_size}")
    pad, bos, eos = _SPECIAL
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, model.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )


def _split_rows(
    tokenizer: "Tokenizer", texts: Sequence[Text], template: str
) -> list[tuple[list[int], list[int]]]:
    """Prompt tokens and answer tokens of each text."""
    chat = [_is_chat(tokenizer, text) for text in texts]
    eos = tokenizer.eos_token_id
    after, end = after_answer(tokenizer) if any(chat) else ("", eos)
    prompts = [_prompt_text(tokenizer, text, template) for text in texts]
    rests = [
        _answer_text(tokenizer, text, prompt, after) if rendered else plain(text, template)[1]
        for text, prompt, rendered in zip(texts, prompts, chat, strict=True)
    ]
    wholes = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    # Several answers to a question share its prompt.
    distinct = list(dict.fromkeys(zip(prompts, chat, strict=True)))
    coded = _encode_texts(tokenizer, *zip(*distinct, strict=True)) if distinct else []
    tokens_of = {one: tokens for one, (tokens, _) in zip(distinct, coded, strict=True)}
    rows = []
    for start, (whole, stops), rest, rendered in zip(
        prompts,
        _encode_texts(tokenizer, wholes, chat),
        rests,
        chat,
        strict=True,
    ):
        prompt = tokens_of[start, rendered]
        size = len(prompt)
        joined = whole[:size] == prompt and max(stops[:size], default=0) <= len(start)
        answer = whole[size:] if joined else _encode_apart(tokenizer, rest)
        last = end if rendered else eos
        rows.append((prompt, answer if last is None else [*answer, last]))
    return rows


def _is_chat(tokenizer: "Tokenizer", text: Text) -> bool:
    return bool(tokenizer.chat_template) and text.question != "" and not text.raw


def _prompt_text(tokenizer: "Tokenizer", text: Text, template: str) -> str:
    chat = _is_chat(tokenizer, text)
    return render(tokenizer, text.question) if chat else plain(text, template)[0]


def _answer_text(tokenizer: "Tokenizer", text: Text, prompt: str, after: str) -> str:
    """The text between the prompt and what the chat template puts after the answer."""
    chat = render(tokenizer, text.question, text.answer)
    end = len(chat) - len(after)
    if not (chat.startswith(prompt) and chat.endswith(after) and len(prompt) <= end):
        raise UserError(
            "chat template: its generation prompt is not how its assistant turn begins, so the"
            " answer cannot be found; take chat_template out of the tokenizer's files to use"
            " data.template"
        )
    return chat[len(prompt) : end]


def _encode_texts(
    tokenizer: "Tokenizer", texts: Sequence[str], rendered: Sequence[bool]
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each text, and where in it they end; a chat already holds its special tokens."""
    out: list[tuple[list[int], list[int]]] = [([], []) for _ in texts]
    for chat in (False, True):
        chosen = [i for i, flag in enumerate(rendered) if flag == chat]
        if not chosen:
            continue
        coded = _tokens_and_ends(tokenizer, [texts[i] for i in chosen], add_special_tokens=not chat)
        for i, (tokens, ends) in zip(chosen, coded, strict=True):
            # Some tokenizers close every text; a prompt must stay open. Their token covers no text.
            closed = tokens and tokens[-1] == tokenizer.eos_token_id and ends[-1] == 0
            out[i] = (tokens[:-1], ends[:-1]) if closed else (tokens, ends)
    return out


def _tokens_and_ends(
    tokenizer: "Tokenizer", texts: Sequence[str], *, add_special_tokens: bool
) -> list[tuple[list[int], list[int]]]:
    """Tokens of each text, and how many of its characters lie before the end of each."""
    coded = tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [
        (tokens, [end for _, end in spans])
        for tokens, spans in zip(coded["input_ids"], coded["offset_mapping"], strict=True)
    ]


def _encode_apart(tokenizer: "Tokenizer", rest: str) -> list[int]:
    """Tokens of a text that continues another one."""
    alone = tokenizer("b", add_special_tokens=False)["input_ids"]
    puts_space = not tokenizer.convert_ids_to_tokens(alone)[0].startswith("b")
    # The line break takes the space, and both are dropped.
    before = "\n" if puts_space else ""
    ((tokens, ends),) = _tokens_and_ends(tokenizer, [before + rest], add_special_tokens=False)
    return [token for token, end in zip(tokens, ends, strict=True) if end > len(before)]


def _pad_id(tokenizer: "Tokenizer") -> int:
    """Any id will do: lengths and masks say what is real."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def _widen(table: TokenTable, width: int) -> TokenTable:
    extra = ((0, 0), (0, width - table.tokens.shape[1]))
    return replace(
        table,
        # Padding is never read, so the value need not be the pad id.
        tokens=np.pad(table.tokens, extra),
        answer_mask=np.pad(table.answer_mask, extra),
        labels=None if table.labels is None else np.pad(table.labels, extra),
    )
