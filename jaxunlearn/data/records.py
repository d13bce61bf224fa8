"""One data file to rows: JSON lines, CSV or Parquet.

JSON lines and CSV are read with the standard library, Parquet through `datasets`. The text readers
of `datasets` infer types: they turn an answer such as "1990-01-01" into a datetime, shift the
columns of a CSV line that has a field too many, and report no line numbers.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig
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

_ALIASES = {"perturbed_answers": "perturbed_answer"}  # TOFU's name
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_Record = Mapping[str, Any]  # column -> value
_Records = Iterator[tuple[str, _Record]]  # with where it stands


def has_split(config: DataConfig, name: str) -> bool:
    """Whether there is a JSON file of that name in `data.path`."""
    folder = Path(config.path or ".")
    return any((folder / f"{name}{suffix}").is_file() for suffix in ("", ".json", ".jsonl"))


def locate(config: DataConfig, name: str, suffixes: Sequence[str]) -> Path:
    """The file in `data.path` that `name` means, with or without one of the suffixes.

    Raises:
      UserError: no such folder or file; lists what there is.
    """
    folder = Path(config.path or ".")
    if not folder.is_dir():
        raise UserError(f"data.path: there is no folder {folder}")
    for suffix in ("", *suffixes):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    listed = ", ".join(there)
    raise UserError(f"data: there is no {name} in {folder}; it holds {listed or 'no data files'}")


def read_rows(path: Path, kind: str, make: Callable[[str, _Record], Row]) -> tuple[Row, ...]:
    """All rows of a file.

    Args:
      path: the file.
      kind: jsonl, csv or parquet.
      make: where a record stands (file and line) and its columns -> the row; see `to_row`.

    Raises:
      UserError: a file that cannot be read or holds no rows, or a bad row.
    """
    read = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet}[kind]
    try:
        rows = tuple(make(where, record) for where, record in read(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; add some or name another file")
    return rows


def _read_json(path: Path) -> _Records:
    """JSON lines (blank ones are skipped), or one JSON array of objects."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        items = _parse_json(path.name, _decode(path.name, data))
    else:
        items = data.split(b"\n")
    for i, item in enumerate(items, 1):
        where = f"{path.name}:{i}"
        if isinstance(item, bytes):
            if not item.strip():
                continue
            item = _parse_json(where, _decode(where, item))
        if not isinstance(item, dict):
            raise UserError(f"{where}: a row is a JSON object, found {_kind(item)}")
        yield where, item


def _decode(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _parse_json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); write one object a line") from None


def _read_csv(path: Path) -> _Records:
    """CSV with a header line; the line of a record is the one it starts on."""
    text = _decode(path.name, path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path.name}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{where}: not CSV ({error})") from None
        if header is None:
            header = record
        elif record and len(record) != len(header):
            raise UserError(
                f"{where}: {len(record)} fields under a header of {len(header)}; put fields that"
                " hold commas in double quotes"
            )
        elif record:
            yield where, dict(zip(header, record, strict=True))


def _read_parquet(path: Path) -> _Records:
    import datasets

    try:
        # Streamed, and locked in a folder of its own: nothing is left in the user's cache.
        with tempfile.TemporaryDirectory() as cache:
            stream = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache
            )
            yield from ((f"{path.name}:{i}", dict(row)) for i, row in enumerate(stream, 1))
    except OSError:
        raise
    except Exception as error:
        fault = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a Parquet file that can be read ({fault})") from None


def to_row(
    where: str, record: _Record, columns: Mapping[str, str], kinds: Mapping[str, Kind]
) -> Row:
    """One checked row. A record that has a text and no question is plain text.

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
    return Row(
        question=question,
        answer=needed("text" if plain else "answer"),
        entity="" if entity is None else str(entity).strip(),
        paraphrased_answer=optional("paraphrased_answer"),
        perturbed_answers=_texts(where, names["perturbed_answers"], record),
        source=where,
        kind=_row_kind(where, names["kind"], optional("kind"), kinds),
        refusal=optional("refusal"),
    )


def required(where: str, record: _Record, field: str, column: str, hint: str = "") -> str:
    """The text in a column that each row must have.

    Raises:
      UserError: the column is missing or empty; `hint` is added to the latter.
    """
    if column not in record:
        there = ", ".join(map(str, record)) or "none"
        raise UserError(
            f"{where}: no column {column!r}; the columns are: {there}; say which of them"
            f" holds the {field} with data.columns.{field}"
        )
    return text(where, column, record[column], hint)


def _row_kind(where: str, column: str, name: str | None, kinds: Mapping[str, Kind]) -> Kind:
    if name is None:
        return next(iter(kinds.values()))
    if name not in kinds:
        raise UserError(f"{where}: {column} {name!r} is unknown here; use {' or '.join(kinds)}")
    return kinds[name]


def _column(field: str, record: _Record, columns: Mapping[str, str]) -> str:
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
        raise UserError(f"{where}: {column} must be text, found {_kind(value)}")
    if not value.strip():
        raise UserError(f"{where}: {column} is empty; fill it in or remove the row{hint}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {column} holds half of a surrogate pair; mend it") from None
    return value.strip()


def _texts(where: str, column: str, record: _Record) -> tuple[str, ...]:
    """A list of texts, which CSV holds as a JSON array; a text alone is a list of one."""
    value = record.get(column)
    if isinstance(value, str) and value.startswith("["):
        value = _parse_json(where, value)
    if value is None or value == "":
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(text(where, column, item) for item in items)


def _kind(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "an array", str: "a text"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")
