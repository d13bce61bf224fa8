"""Rows of text from files: TOFU, JSONL, CSV, Parquet, or the built-in world.

JSON lines and CSV are read with the standard library, Parquet through `datasets`. The text readers
of `datasets` infer types: they turn an answer such as "1990-01-01" into a datetime, shift the
columns of a CSV line that has a field too many, and report no line numbers.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.data import synthetic
from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.errors import UserError

TOFU_AUTHOR_ROWS = 20
"""TOFU's full.json holds its authors one after the other, this many rows each."""

FIELDS = ("question", "answer", "text", "entity", "paraphrased_answer", "perturbed_answers")
"""What `data.columns` can map; `text` stands for question and answer in plain text rows."""

_OPTIONAL = {"entity", "paraphrased_answer", "perturbed_answers"}
_ALIASES = {"perturbed_answers": "perturbed_answer"}  # TOFU's name
_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_Record = tuple[str, dict[str, Any]]  # where it stands, column -> value


def load(config: DataConfig, seed: int) -> UnlearningData:
    """Reads the data set that `config` names.

    Args:
      config: the `data` section; a relative path starts at the current directory.
      seed: decides the built-in world; files are read in their own order.

    Raises:
      UserError: for a missing file or split (lists what there is), a bad row (file and line), an
        empty set, and a forget row that is also in the retain set (names both).
    """
    if config.format == "synthetic":
        return synthetic.build(config.people, config.forget_people, seed)
    unknown = [key for key in config.columns if key not in FIELDS]
    if unknown:
        allowed = ", ".join(FIELDS)
        raise UserError(f"data.columns.{unknown[0]}: no such field; map one of {allowed}")
    data = _load_tofu(config) if config.format == "tofu" else _load_plain(config)
    _refuse_overlap(data.forget, data.retain)
    _refuse_unused_columns(config.columns, data)
    return data


def read_file(path: Path, columns: dict[str, str] | None = None) -> tuple[Row, ...]:
    """The rows of one .jsonl, .json, .csv or .parquet file.

    Args:
      path: the file; its ending tells the format.
      columns: ours to theirs, as `data.columns`.

    Raises:
      UserError: an unknown ending, a file that cannot be read, or a bad row (file and line).
    """
    kinds = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix not in kinds:
        raise UserError(f"{path}: unknown kind of file; use one of {', '.join(kinds)}")
    return _rows(path, kinds[path.suffix], columns or {})


def _load_plain(config: DataConfig) -> UnlearningData:
    forget, retain = (
        _rows(_locate(config, name, (f".{config.format}",)), config.format, config.columns)
        for name in (config.forget, config.retain)
    )
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", retain)}
    return UnlearningData(forget, retain, evaluation)


def _load_tofu(config: DataConfig) -> UnlearningData:
    """The authors of a row are looked up in full.json, where the position tells them."""

    def split(name: str) -> tuple[Row, ...]:
        path = _locate(config, name, (".json", ".jsonl"))
        return tuple(_with_entity(row, authors) for row in _rows(path, "jsonl", config.columns))

    def first_there(*names: str) -> tuple[Row, ...]:
        return split(next((name for name in names if _has_split(config, name)), names[-1]))

    authors: dict[tuple[str, str], int] = {}
    if _has_split(config, "full"):
        authors = {_key(row): i // TOFU_AUTHOR_ROWS for i, row in enumerate(split("full"))}
    forget, retain = split(config.forget), split(config.retain)
    if config.authors is not None:
        retain = _limit_authors(forget, retain, authors, config.authors)
    stem = config.forget.removesuffix(".json").removesuffix(".jsonl")
    evaluation = {
        "forget": EvalSet("forget", _within(forget, first_there(f"{stem}_perturbed", stem))),
        "retain": EvalSet(
            "retain", _within(retain, first_there("retain_perturbed", config.retain))
        ),
    }
    for name in ("real_authors", "world_facts"):
        evaluation[name] = EvalSet("general", first_there(f"{name}_perturbed", name))
    return UnlearningData(forget, retain, evaluation)


def _limit_authors(
    forget: Sequence[Row],
    retain: Sequence[Row],
    authors: dict[tuple[str, str], int],
    count: int,
) -> tuple[Row, ...]:
    """The retain rows of the authors that come next after the forget authors, round the end.

    Round the end, because the rows of retain_perturbed are those of the first authors: a truth
    ratio on the retain set needs them.
    """
    unknown = [row for row in (*forget, *retain) if _key(row) not in authors]
    if unknown:
        raise UserError(
            f"{unknown[0].source}: data.authors needs each row in full.json, and this one is not"
            " there; leave data.authors out, or add full.json"
        )
    kept = {authors[_key(row)] for row in forget}
    total, last = max(authors.values()) + 1, max(kept)
    others = {authors[_key(row)] for row in retain} - kept
    if not len(kept) < count <= len(kept) + len(others):
        raise UserError(
            f"data.authors: {count} cannot hold the {len(kept)} forget authors and some of the"
            f" {len(others)} others; choose {len(kept) + 1} to {len(kept) + len(others)}"
        )
    nearest = sorted(others, key=lambda author: (author - last) % total)
    chosen = set(nearest[: count - len(kept)])
    return tuple(row for row in retain if authors[_key(row)] in chosen)


def _within(rows: tuple[Row, ...], candidates: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those of `candidates` that are in `rows`; `rows` themselves where that is none."""
    keys = {_key(row) for row in rows}
    return tuple(row for row in candidates if _key(row) in keys) or rows


def _with_entity(row: Row, authors: dict[tuple[str, str], int]) -> Row:
    author = authors.get(_key(row))
    if row.entity or author is None:
        return row
    return replace(row, entity=f"author {author}")


def _key(row: Row) -> tuple[str, str]:
    return row.question, row.answer


def _refuse_overlap(forget: Iterable[Row], retain: Iterable[Row]) -> None:
    kept = {_key(row): row.source for row in retain}
    for row in forget:
        if _key(row) in kept:
            raise UserError(
                f"{row.source}: this forget row is also a retain row ({kept[_key(row)]});"
                " remove it from one of them"
            )


def _refuse_unused_columns(columns: dict[str, str], data: UnlearningData) -> None:
    """A misspelt column of an optional field would otherwise go unseen."""
    parts = (data.forget, data.retain, *(part.rows for part in data.evaluation.values()))
    for field in _OPTIONAL & columns.keys():
        if not any(getattr(row, field) for rows in parts for row in rows):
            raise UserError(
                f"data.columns.{field}: no row holds anything in a column {columns[field]!r};"
                " mend the name or leave it out"
            )


def _has_split(config: DataConfig, name: str) -> bool:
    folder = Path(config.path or ".")
    return any((folder / f"{name}{suffix}").is_file() for suffix in ("", ".json", ".jsonl"))


def _locate(config: DataConfig, name: str, suffixes: Sequence[str]) -> Path:
    """The file that `name` means, with or without one of the suffixes."""
    folder = Path(config.path or ".")
    if not folder.is_dir():
        raise UserError(f"data.path: there is no folder {folder}")
    for suffix in ("", *suffixes):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _SUFFIXES)
    listed = ", ".join(there)
    raise UserError(f"data: there is no {name} in {folder}; it holds {listed or 'no data files'}")


def _rows(path: Path, kind: str, columns: dict[str, str]) -> tuple[Row, ...]:
    read = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet}[kind]
    try:
        rows = tuple(_row(where, record, columns) for where, record in read(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; add some or name another file")
    return rows


def _read_json(path: Path) -> Iterator[_Record]:
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


def _read_csv(path: Path) -> Iterator[_Record]:
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


def _read_parquet(path: Path) -> Iterator[_Record]:
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


def _row(where: str, record: dict[str, Any], columns: dict[str, str]) -> Row:
    """One checked row. A record that has a text and no question is plain text."""
    names = {field: _column(field, record, columns) for field in FIELDS}
    plain = names["text"] in record and ("text" in columns or names["question"] not in record)
    for field in ("text",) if plain else ("question", "answer"):
        if names[field] not in record:
            there = ", ".join(map(str, record)) or "none"
            raise UserError(
                f"{where}: no column {names[field]!r}; the columns are: {there}; say which of them"
                f" holds the {field} with data.columns.{field}"
            )

    def text(field: str) -> str:
        return _text(where, names[field], record[names[field]])

    entity = record.get(names["entity"])
    return Row(
        question="" if plain else text("question"),
        answer=text("text" if plain else "answer"),
        entity="" if entity is None else str(entity),
        paraphrased_answer=text("paraphrased_answer")
        if record.get(names["paraphrased_answer"])
        else None,
        perturbed_answers=_texts(where, names["perturbed_answers"], record),
        source=where,
    )


def _column(field: str, record: dict[str, Any], columns: dict[str, str]) -> str:
    if field in columns or field in record:
        return columns.get(field, field)
    alias = _ALIASES.get(field)
    return alias if alias in record else field


def _text(where: str, column: str, value: Any) -> str:
    """Outer blanks are dropped: the template decides what stands between question and answer."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} must be text, found {_kind(value)}")
    if not value.strip():
        raise UserError(
            f"{where}: {column} is empty; fill it in or remove the row"
            " (rows without a question go in a column named text)"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {column} holds half of a surrogate pair; mend it") from None
    return value.strip()


def _texts(where: str, column: str, record: dict[str, Any]) -> tuple[str, ...]:
    """A list of texts, which CSV holds as a JSON array; a text alone is a list of one."""
    value = record.get(column)
    if isinstance(value, str) and value.startswith("["):
        value = _parse_json(where, value)
    if value is None or value == "":
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(_text(where, column, item) for item in items)


def _kind(value: Any) -> str:
    names = {type(None): "null", dict: "an object", list: "an array", str: "a text"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")
