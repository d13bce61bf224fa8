"""One record of a data file to a checked row."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from jaxunlearn.data.files import Record, kind_name, parse_json
from jaxunlearn.data.rows import Kind, Row
from jaxunlearn.errors import UserError

FIELDS = (
    "question",
    "answer",
    "text",
    "entity",
    "kind",
    "refusal",
    "paraphrased_answer",
    "perturbed_answers",
    "options",
    "raw",
)
"""What `data.columns` can map; `text` stands for question and answer in plain text rows."""

FORGET_KINDS: dict[str, Kind] = {"forget": "forget"}
"""Kinds of a forget row, as files spell them; the first one is that of a row without any."""

RETAIN_KINDS: dict[str, Kind] = {
    "general": "general",
    "direct": "direct",
    "entity": "direct",
    "indirect": "indirect",
    "domain": "indirect",
}
"""The same of retain rows; entity and domain are MELU's words."""

HOLDOUT_KINDS: dict[str, Kind] = {"general": "general", "forget": "general"}
"""The same of a holdout row, which may have been cut out of a file of forget rows."""

_ALIASES = {
    "perturbed_answers": "perturbed_answer",  # TOFU's name
    "options": "choices",  # MMLU's, WMDP's and ARC's
    "answer": "answerKey",  # ARC's
}


def to_row(
    where: str, record: Record, columns: Mapping[str, str], kinds: Mapping[str, Kind]
) -> Row:
    """One checked row. A record that has a text and no question is plain text; one that has options
    is a multiple-choice question, whose answer may be given as `_chosen` reads it.

    Args:
      where: file and line, for errors and for `Row.source`.
      record: column to value.
      columns: ours to theirs, as `data.columns`.
      kinds: how a kind may be spelt; the first one is that of a record without any.

    Raises:
      UserError: a missing column, an empty or wrong value, or an unknown kind.
    """
    names = {field: _column(field, record, columns) for field in FIELDS}
    plain = names["text"] in record and ("text" in columns or names["question"] not in record)

    def needed(field: str, hint: str = "") -> str:
        return required(where, record, field, names[field], hint)

    def optional(field: str) -> str | None:
        value = record.get(names[field])
        return text(where, names[field], value) if value else None

    no_text = " (rows without a question go in a column named text)"
    question = "" if plain else needed("question", no_text)
    entity = record.get(names["entity"])
    options: tuple[str, ...] = ()
    if plain or record.get(names["options"]) in (None, ""):
        answer = needed("text" if plain else "answer")
    else:
        options, labels = _options(where, names["options"], record)
        present(where, record, "answer", names["answer"])
        answer = _chosen(where, names["answer"], record[names["answer"]], options, labels)
    return Row(
        question=question,
        answer=answer,
        entity="" if entity is None else str(entity).strip(),
        paraphrased_answer=optional("paraphrased_answer"),
        perturbed_answers=_texts(where, names["perturbed_answers"], record),
        source=where,
        kind=_row_kind(where, names["kind"], optional("kind"), kinds),
        refusal=optional("refusal"),
        raw=_flag(where, names["raw"], record),
        options=options,
    )


def required(where: str, record: Record, field: str, column: str, hint: str = "") -> str:
    """The text in a column that each row must have.

    Raises:
      UserError: the column is missing or empty; `hint` is added to the latter.
    """
    present(where, record, field, column)
    return text(where, column, record[column], hint)


def fixed(where: str, record: Record, column: str, name: str) -> str:
    """The text in a column that every file of the data set of this name has.

    Raises:
      UserError: the column is missing or empty.
    """
    return text(where, column, published(where, record, column, name))


def published(where: str, record: Record, column: str, name: str) -> Any:
    """What stands in a column that every file of the data set of this name has.

    Raises:
      UserError: the column is missing.
    """
    if column not in record:
        there = ", ".join(map(str, record)) or "none"
        raise UserError(
            f"{where}: no column {column!r}, which {name} has here; the columns are: {there}; use"
            " the file as it was published"
        )
    return record[column]


def present(where: str, record: Record, field: str, column: str) -> None:
    """Refuses a record without a column.

    Raises:
      UserError: the column is missing; lists what there is.
    """
    if column not in record:
        there = ", ".join(map(str, record)) or "none"
        raise UserError(
            f"{where}: no column {column!r}; the columns are: {there}; say which of them"
            f" holds the {field} with data.columns.{field}"
        )


def _row_kind(where: str, column: str, name: str | None, kinds: Mapping[str, Kind]) -> Kind:
    if name is None:
        return next(iter(kinds.values()))
    if name not in kinds:
        raise UserError(f"{where}: {column} {name!r} is unknown here; use {' or '.join(kinds)}")
    return kinds[name]


def _column(field: str, record: Record, columns: Mapping[str, str]) -> str:
    if field in columns or field in record:
        return columns.get(field, field)
    alias = _ALIASES.get(field)
    return alias if alias in record else field


def text(where: str, column: str, value: Any, hint: str = "") -> str:
    """Checked text. Outer blanks are dropped: the template decides where blanks stand.

    Raises:
      UserError: anything but text, or empty text.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} must be text, found {kind_name(value)}")
    if not value.strip():
        raise UserError(f"{where}: {column} is empty; fill it in or remove the row{hint}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {column} holds half of a surrogate pair; mend it") from None
    return value.strip()


def _texts(where: str, column: str, record: Record) -> tuple[str, ...]:
    """A list of texts, which CSV holds as a JSON array; a text alone is a list of one."""
    value = record.get(column)
    if isinstance(value, str) and value.startswith("["):
        value = parse_json(where, value)
    if value is None or value == "":
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(text(where, column, item) for item in items)


def _options(where: str, column: str, record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options of a question, and their labels: letters, unless the record has its own (ARC)."""
    found = record[column]
    own = isinstance(found, dict) and {"text", "label"} <= set(found)
    options = _texts(where, column, {column: found["text"]} if own else record)
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise UserError(
            f"{where}: {column} must be a list of 2 to {len(ascii_uppercase)} options, found"
            f" {len(options)}"
        )
    twice = next((option for i, option in enumerate(options) if option in options[:i]), None)
    if twice is not None:
        raise UserError(f"{where}: {column} holds {twice!r} twice; keep each option once")
    labels = _texts(where, column, {column: found["label"]}) if own else tuple(ascii_uppercase)
    if own and len(labels) != len(options):
        raise UserError(
            f"{where}: {column} has {len(options)} options and {len(labels)} labels; give each its"
            " own"
        )
    return options, labels[: len(options)]


def _chosen(
    where: str, column: str, value: Any, options: tuple[str, ...], labels: tuple[str, ...]
) -> str:
    """The right option: told by its place, counted from 0, by its label, or as it is written.

    Raises:
      UserError: it is none of the options, or another one by its label than as it is written.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(options):
            raise UserError(
                f"{where}: {column} must be 0 to {len(options) - 1}, the place of an option, found"
                f" {value}"
            )
        return options[value]
    said = text(where, column, value)
    found = {options[i] for i, label in enumerate(labels) if label == said}
    found |= {option for option in options if option == said}
    if said.isdecimal() and labels[0] == "A" and int(said) < len(options):
        found.add(options[int(said)])  # a place, as CSV spells it
    if len(found) > 1:
        raise UserError(
            f"{where}: {column} {said!r} can mean {' or '.join(map(repr, sorted(found)))}; write"
            " another form of it: the place of the option from 0, its letter, or its text"
        )
    if not found:
        raise UserError(
            f"{where}: {column} must be one of {', '.join(labels)}, the place of an option from 0,"
            f" or its text, found {said!r}"
        )
    return found.pop()


def _flag(where: str, column: str, record: Record) -> bool:
    """A truth value, which CSV holds as the word true or false; False where there is none."""
    value = record.get(column)
    if value is None or value == "":
        return False
    word = value.lower() if isinstance(value, str) else value
    if word in ("true", "false"):
        return word == "true"
    if not isinstance(value, bool):
        raise UserError(f"{where}: {column} must be true or false, found {kind_name(value)}")
    return value
