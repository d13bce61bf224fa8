"""The data set that a config names: a built-in world, or rows from files."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxunlearn.config import DataConfig
from jaxunlearn.data import (
    code_tasks,
    lume,
    melu,
    muse,
    neighbours,
    ner,
    synthetic,
    tofu,
    toxicity,
    toy,
)
from jaxunlearn.data.files import kind_of, locate, read_rows
from jaxunlearn.data.records import FIELDS, FORGET_KINDS, HOLDOUT_KINDS, RETAIN_KINDS, to_row
from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.errors import UserError

_OPTIONAL = (
    "entity",
    "kind",
    "refusal",
    "paraphrased_answer",
    "perturbed_answers",
    "options",
    "raw",
)


def load(config: DataConfig, seed: int) -> UnlearningData:
    """Reads the data set that `config` names, and its further evaluation sets.

    Args:
      config: the `data` section; a relative path starts at the current directory.
      seed: decides the built-in world; files are read in their own order.

    Raises:
      UserError: for a missing file or split (lists what there is), a bad row (file and line), an
        empty set, a row that is in two of the forget, retain and holdout sets (names both), a
        neighbour of an entity that no forget row is about, and a further set that has the name of
        another one or a row that is to be forgotten.
    """
    if config.format == "synthetic":
        if config.world == "neighbours":
            data = neighbours.build(config.scale, seed)
        else:
            data = synthetic.build(config.people, config.forget_people, seed, config.holdout_people)
    elif config.format == "toy":
        data = toy.build(config.task, seed)
    else:
        data = _load_files(config)
    return replace(data, evaluation=data.evaluation | _further_sets(data, config))


def _load_files(config: DataConfig) -> UnlearningData:
    _refuse_unknown_fields("data.columns", config.columns)
    readers = {
        "tofu": tofu.load,
        "melu": melu.load,
        "lume": lume.load,
        "muse": muse.load,
        "toxicity": toxicity.load,
        "ner": ner.load,
        "code": code_tasks.load,
    }
    data = readers.get(config.format, _load_plain)(config)
    kept = (*data.retain, *data.background)
    _refuse_overlap(data.forget, kept, "a row to keep")
    _refuse_overlap(data.background, data.retain, "a retain row, so that it is not held aside")
    names = (melu.COLUMNS if config.format == "melu" else {}) | config.columns
    _refuse_strange_neighbours(data.forget, kept, names.get("entity", "entity"))
    parts = (data.forget, data.retain, *(part.rows for part in data.evaluation.values()))
    _refuse_unused_columns("data.columns", config.columns, parts)
    if config.holdout is not None:
        data = _with_holdout(data, config)
    for part in data.evaluation.values():
        if part.role == "holdout":
            refuse_seen(part.rows, _to_forget(data), kept)
    return data


def read_file(path: Path, columns: dict[str, str] | None = None) -> tuple[Row, ...]:
    """The rows of one .jsonl, .json, .csv or .parquet file.

    Args:
      path: the file; its ending tells the format.
      columns: ours to theirs, as `data.columns`.

    Raises:
      UserError: an unknown ending, a file that cannot be read, or a bad row (file and line).
    """
    spelt = RETAIN_KINDS | FORGET_KINDS
    return read_rows(path, kind_of(path), partial(to_row, columns=columns or {}, kinds=spelt))


def _load_plain(config: DataConfig) -> UnlearningData:
    forget, retain = (
        read_rows(
            locate(config, name, (f".{config.format}",)),
            config.format,
            partial(to_row, columns=config.columns, kinds=kinds),
        )
        for name, kinds in ((config.forget, FORGET_KINDS), (config.retain, RETAIN_KINDS))
    )
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", retain)}
    return UnlearningData(forget, retain, evaluation)


def refuse_seen(holdout: Iterable[Row], forget: Iterable[Row], retain: Iterable[Row]) -> None:
    """Refuses a holdout that a model may have been trained on.

    Raises:
      UserError: a holdout row that is also a forget or a retain row; names both.
    """
    seen = {row.key: ("retain", row.source) for row in retain}
    seen |= {row.key: ("forget", row.source) for row in forget}
    for row in holdout:
        if row.key in seen:
            part, source = seen[row.key]
            raise UserError(
                f"{row.source}: this holdout row is also a {part} row ({source}); no model may"
                " have seen a holdout row, so remove it from one of them"
            )


def _further_sets(data: UnlearningData, config: DataConfig) -> dict[str, EvalSet]:
    """The evaluation sets of `data.sets`."""
    found: dict[str, EvalSet] = {}
    for name, chosen in config.sets.items():
        where = f"data.sets.{name}"
        if name in data.evaluation:
            known = ", ".join(data.evaluation)
            raise UserError(f"{where}: there is a set {name} already, one of {known}; rename it")
        _refuse_unknown_fields(f"{where}.columns", chosen.columns)
        near = Path(config.path or ".") / chosen.path
        rows = read_file(near if near.is_file() else Path(chosen.path), chosen.columns)
        _refuse_unused_columns(f"{where}.columns", chosen.columns, (rows,))
        found[name] = EvalSet(chosen.role, rows)
    forget = _to_forget(replace(data, evaluation=data.evaluation | found))
    known = {row.key: row.source for row in forget}
    for name, part in found.items():
        for row in part.rows:
            if part.role != "forget" and row.key in known:
                raise UserError(
                    f"{row.source}: this row of data.sets.{name} is also a row to forget"
                    f" ({known[row.key]}); remove it, or set data.sets.{name}.role to forget"
                )
    return found


def _to_forget(data: UnlearningData) -> list[Row]:
    """The forget rows, and those that show whether they are forgotten."""
    parts = [part.rows for part in data.evaluation.values() if part.role == "forget"]
    return [*data.forget, *(row for part in parts for row in part)]


def _with_holdout(data: UnlearningData, config: DataConfig) -> UnlearningData:
    """The data with the evaluation set `holdout`, from a file in the format of the others."""
    if config.format == "lume":
        rows = lume.read_holdout(config)
    else:
        tofu_file = config.format == "tofu"
        kind = "jsonl" if tofu_file else config.format
        path = locate(config, config.holdout, (".json", ".jsonl") if tofu_file else (f".{kind}",))
        rows = read_rows(path, kind, partial(to_row, columns=config.columns, kinds=HOLDOUT_KINDS))
    evaluation = data.evaluation | {"holdout": EvalSet("holdout", rows)}
    return replace(data, evaluation=evaluation)


def _refuse_overlap(rows: Iterable[Row], others: Iterable[Row], what: str) -> None:
    sources = {row.key: row.source for row in others}
    for row in rows:
        if row.key in sources:
            raise UserError(
                f"{row.source}: this {row.kind} row is also {what} ({sources[row.key]}); remove it "
                "from one of them"
            )


def _refuse_strange_neighbours(forget: Iterable[Row], kept: Iterable[Row], column: str) -> None:
    known = {row.entity for row in forget} - {""}
    for row in kept:
        if row.kind != "general" and row.entity not in known:
            near = difflib.get_close_matches(row.entity, sorted(known), 1, 0.0)
            there = f"the closest one is {near[0]!r}" if near else "they name none"
            raise UserError(
                f"{row.source}: {column} must be an entity of the forget rows where kind is"
                f" {row.kind}, found {row.entity!r}; {there}"
            )


def _refuse_unknown_fields(where: str, columns: Mapping[str, str]) -> None:
    unknown = [key for key in columns if key not in FIELDS]
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: no such field; map one of {', '.join(FIELDS)}")


def _refuse_unused_columns(
    where: str, columns: Mapping[str, str], parts: Iterable[Sequence[Row]]
) -> None:
    """A misspelt column of an optional field would otherwise go unseen."""
    rows = [row for part in parts for row in part]
    unset = (None, "", (), False, "general", "forget")
    for field in filter(columns.__contains__, _OPTIONAL):
        if all(getattr(row, field) in unset for row in rows):
            raise UserError(
                f"{where}.{field}: no row holds anything of use in a column"
                f" {columns[field]!r}; mend the name or leave it out"
            )
