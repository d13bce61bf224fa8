"""The data set that a config names: a built-in world, or rows from files."""

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxunlearn.config import DataConfig
from jaxunlearn.data import melu, neighbours, synthetic, tofu
from jaxunlearn.data.records import (
    FIELDS,
    FORGET_KINDS,
    HOLDOUT_KINDS,
    RETAIN_KINDS,
    locate,
    read_rows,
    to_row,
)
from jaxunlearn.data.rows import EvalSet, Row, UnlearningData
from jaxunlearn.errors import UserError

_OPTIONAL = ("entity", "kind", "refusal", "paraphrased_answer", "perturbed_answers")


def load(config: DataConfig, seed: int) -> UnlearningData:
    """Reads the data set that `config` names.

    Args:
      config: the `data` section; a relative path starts at the current directory.
      seed: decides the built-in world; files are read in their own order.

    Raises:
      UserError: for a missing file or split (lists what there is), a bad row (file and line), an
        empty set, a row that is in two of the forget, retain and holdout sets (names both), and a
        neighbour of an entity that no forget row is about.
    """
    if config.format == "synthetic":
        if config.world == "neighbours":
            return neighbours.build(config.scale, seed)
        return synthetic.build(config.people, config.forget_people, seed, config.holdout_people)
    unknown = [key for key in config.columns if key not in FIELDS]
    if unknown:
        allowed = ", ".join(FIELDS)
        raise UserError(f"data.columns.{unknown[0]}: no such field; map one of {allowed}")
    data = {"tofu": tofu.load, "melu": melu.load}.get(config.format, _load_plain)(config)
    kept = (*data.retain, *data.background)
    _refuse_overlap(data.forget, kept, "a row to keep")
    _refuse_overlap(data.background, data.retain, "a retain row, so that it is not held aside")
    names = (melu.COLUMNS if config.format == "melu" else {}) | config.columns
    _refuse_strange_neighbours(data.forget, kept, names.get("entity", "entity"))
    _refuse_unused_columns(config.columns, data)
    return data if config.holdout is None else _with_holdout(data, config)


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
    spelt = RETAIN_KINDS | FORGET_KINDS
    return read_rows(path, kinds[path.suffix], partial(to_row, columns=columns or {}, kinds=spelt))


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


def _with_holdout(data: UnlearningData, config: DataConfig) -> UnlearningData:
    """The data with the evaluation set `holdout`, from a file in the format of the others."""
    tofu_file = config.format == "tofu"
    kind = "jsonl" if tofu_file else config.format
    path = locate(config, config.holdout, (".json", ".jsonl") if tofu_file else (f".{kind}",))
    make = partial(to_row, columns=config.columns, kinds=HOLDOUT_KINDS)
    rows = read_rows(path, kind, make)
    refuse_seen(rows, data.forget, (*data.retain, *data.background))
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


def _refuse_unused_columns(columns: dict[str, str], data: UnlearningData) -> None:
    """A misspelt column of an optional field would otherwise go unseen."""
    parts = (data.forget, data.retain, *(part.rows for part in data.evaluation.values()))
    unset = (None, "", (), "general", "forget")
    for field in filter(columns.__contains__, _OPTIONAL):
        if all(getattr(row, field) in unset for rows in parts for row in rows):
            raise UserError(
                f"data.columns.{field}: no row holds anything of use in a column"
                f" {columns[field]!r}; mend the name or leave it out"
            )
