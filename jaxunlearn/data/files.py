"""One data file to records: JSON lines, CSV, Parquet or text.

JSON lines and CSV are read with the standard library, Parquet through `datasets`. The text readers
of `datasets` infer types: they turn an answer such as "1990-01-01" into a datetime, shift the
columns of a CSV line that has a field too many, and report no line numbers.
"""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxunlearn.config import DataConfig
from jaxunlearn.errors import UserError, one_line

Record = Mapping[str, Any]
"""Column to value."""

_KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_SUFFIXES = (*_KINDS, ".txt", ".conll")
_Records = Iterator[tuple[str, Record]]  # with where it stands
_T = TypeVar("_T")


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
    inside = (folder / name).parent
    entries = (inside if inside.is_dir() else folder).iterdir()
    there = sorted(e.relative_to(folder).as_posix() for e in entries if e.suffix in _SUFFIXES)
    listed = ", ".join(there)
    raise UserError(f"data: there is no {name} in {folder}; it holds {listed or 'no data files'}")


def kind_of(path: Path) -> str:
    """What `read_rows` is to take a file for, by its ending.

    Raises:
      UserError: an unknown ending.
    """
    if path.suffix not in _KINDS:
        raise UserError(f"{path}: unknown kind of file; use one of {', '.join(_KINDS)}")
    return _KINDS[path.suffix]


def read_rows(path: Path, kind: str, make: Callable[[str, Record], _T]) -> tuple[_T, ...]:
    """All rows of a file.

    Args:
      path: the file.
      kind: jsonl, csv, parquet or text (a row is a paragraph).
      make: where a record stands (file and line) and its columns -> the row; see `to_row`.

    Raises:
      UserError: a file that cannot be read or holds no rows, or a bad row.
    """
    read = {
        "jsonl": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "text": _read_text,
    }[kind]
    try:
        rows = tuple(make(where, record) for where, record in read(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; add some or name another file")
    return rows


def _read_json(path: Path) -> _Records:
    """JSON lines (blank ones are skipped), or one JSON array of objects or of plain texts."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        items = parse_json(path.name, _decode(path.name, data))
        items = [{"text": item} if isinstance(item, str) else item for item in items]
    else:
        items = data.split(b"\n")
    for i, item in enumerate(items, 1):
        where = f"{path.name}:{i}"
        if isinstance(item, bytes):
            if not item.strip():
                continue
            item = parse_json(where, _decode(where, item))
        if not isinstance(item, dict):
            raise UserError(f"{where}: a row is a JSON object, found {kind_name(item)}")
        yield where, item


def _decode(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def parse_json(where: str, text: str) -> Any:
    """The value of a JSON text.

    Raises:
      UserError: it is none.
    """
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
        raise UserError(
            f"{path}: not a Parquet file that can be read ({one_line(error)})"
        ) from None


def _read_text(path: Path) -> _Records:
    """Paragraphs, which empty lines part; the line of a record is the one it starts on."""
    line = 1
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for part in re.split(r"(\n\s*\n)", _decode(path.name, data)):
        blank = len(part) - len(part.lstrip())
        if part.strip():
            yield f"{path.name}:{line + part[:blank].count(chr(10))}", {"text": part}
        line += part.count("\n")


def kind_name(value: Any) -> str:
    """What a value of the wrong type is, for errors."""
    names = {type(None): "null", dict: "an object", list: "an array", str: "a text"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")
