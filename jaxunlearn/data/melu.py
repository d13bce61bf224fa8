"""MELU's CSV files: forget rows, neighbours of their entities, general rows.

Columns are title, question, answer, type and idk: title is the forget entity, type is entity for
direct and domain for indirect neighbours, idk is the refusal of a forget row.

Reference: Bushipaka et al., "Standard vs. Modular Sampling", arXiv 2509.05316.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.data.files import locate, read_rows
from jaxunlearn.data.records import FORGET_KINDS, RETAIN_KINDS, required, to_row
from jaxunlearn.data.rows import EvalSet, Row, Text, UnlearningData
from jaxunlearn.errors import UserError

COLUMNS = {"entity": "title", "kind": "type", "refusal": "idk"}
"""Ours to theirs; `data.columns` may say otherwise."""


def load(config: DataConfig) -> UnlearningData:
    """The files `forget`, `retain` and, if there is one, `test`.

    The test rows are the evaluation sets test_direct, test_indirect and test_general, as far as
    there are such rows. They are also the background: the paper's target learns them too.

    Raises:
      UserError: a missing file or column, a bad row, or a forget row that is there twice.
    """
    columns = COLUMNS | config.columns

    def forget_row(where: str, record: Mapping[str, Any]) -> Row:
        required(where, record, "entity", columns["entity"])
        row = to_row(where, record, columns, FORGET_KINDS)
        column = columns["refusal"]
        if column not in record:
            return replace(row, refusal="")
        # An empty cell that went through pandas is the text "nan", which is no refusal either.
        if row.refusal is None or row.refusal.lower() == "nan":
            raise UserError(
                f"{where}: {column} must be a refusal, found {record[column]!r}; write one, or"
                " leave out the whole column"
            )
        return row

    def kept_row(where: str, record: Mapping[str, Any]) -> Row:
        for field in ("entity", "kind"):
            required(where, record, field, columns[field])
        return to_row(where, record, columns, RETAIN_KINDS)

    forget = read_rows(locate(config, config.forget, (".csv",)), "csv", forget_row)
    _refuse_duplicates(forget)
    retain = read_rows(locate(config, config.retain, (".csv",)), "csv", kept_row)
    evaluation = {"forget": EvalSet("forget", forget), "retain": EvalSet("retain", retain)}
    if config.test is None:
        return UnlearningData(forget, retain, evaluation)
    test = read_rows(locate(config, config.test, (".csv",)), "csv", kept_row)
    for kind in ("direct", "indirect", "general"):
        if rows := tuple(row for row in test if row.kind == kind):
            evaluation[f"test_{kind}"] = EvalSet("general", rows)
    return UnlearningData(forget, retain, evaluation, test)


def _refuse_duplicates(rows: tuple[Row, ...]) -> None:
    first: dict[Text, str] = {}
    for row in rows:
        if row.key in first:
            raise UserError(
                f"{row.source}: question and answer are those of {first[row.key]}; remove one"
            )
        first[row.key] = row.source
