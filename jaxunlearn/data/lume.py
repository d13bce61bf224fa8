"""LUME: three tasks, each with texts to complete and questions about them.

A file has the columns id, input, output and task. An id names a story or a person, in quotes or
not, followed by sc and a number (complete the text) or qa and a number (answer the question); a
task is Task1 (stories), Task2 (invented people and their private data) or Task3 (real people).

The evaluation of SemEval-2025 Task 4, which has these data, gives the model the bare input of
either kind, takes at most 256 new tokens, has no stop string, and scores completions by ROUGE-L
recall and questions by equality of the lower-cased answers. Its likelihoods are of the input
followed by the output with no space between. Here a space is between them, and a question stands in
the chat template or in `data.template`; with the template "{question}" it stands bare, too.

Reference: Ramakrishna et al., "LUME: LLM Unlearning with Multitask Evaluations", arXiv 2502.15097.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.data.files import kind_of, locate, read_rows
from jaxunlearn.data.records import fixed
from jaxunlearn.data.rows import EvalSet, Kind, Row, UnlearningData
from jaxunlearn.errors import UserError

_ID = re.compile(r"(.+?)(sc|qa)\d+")
_TASK = re.compile(r"Task([123])")
_PARTS = [f"{task}_{part}" for task in "123" for part in ("completion", "question")]


def load(config: DataConfig) -> UnlearningData:
    """The files `forget` and `retain`, or those that the config names.

    Completions are raw rows. The evaluation sets are called forget_1_completion, forget_1_question
    and so on to retain_3_question, after file, task and kind; those without rows are left out.

    Raises:
      UserError: a missing file or column, or a bad row.
    """
    forget, forget_parts = _read(config, config.forget or "forget", "forget")
    retain, retain_parts = _read(config, config.retain or "retain", "general")
    evaluation = {
        **{f"forget_{name}": EvalSet("forget", rows) for name, rows in forget_parts.items()},
        **{f"retain_{name}": EvalSet("retain", rows) for name, rows in retain_parts.items()},
    }
    return UnlearningData(forget, retain, evaluation)


def read_holdout(config: DataConfig) -> tuple[Row, ...]:
    """The rows of the file `data.holdout`, in the same layout.

    Raises:
      UserError: a missing file or column, or a bad row.
    """
    return _read(config, config.holdout or "holdout", "general")[0]


def _read(
    config: DataConfig, name: str, kind: Kind
) -> tuple[tuple[Row, ...], dict[str, tuple[Row, ...]]]:
    """All rows of a file, and those of each of _PARTS that has some."""
    part_of: dict[str, str] = {}

    def make(where: str, record: Mapping[str, Any]) -> Row:
        name, question, answer, task = (
            fixed(where, record, column, "LUME") for column in ("id", "input", "output", "task")
        )
        found, number = _ID.fullmatch(name.replace('"', "")), _TASK.fullmatch(task)
        if found is None:
            raise UserError(
                f"{where}: id must end in sc or qa and a number, found {name!r}; mend it"
            )
        if number is None:
            raise UserError(f"{where}: task must be Task1, Task2 or Task3, found {task!r}; mend it")
        raw = found[2] == "sc"
        part_of[where] = f"{number[1]}_{'completion' if raw else 'question'}"
        return Row(question, answer, entity=found[1], source=where, kind=kind, raw=raw)

    path = locate(config, name, (".jsonl", ".json", ".parquet"))
    rows = read_rows(path, kind_of(path), make)
    parts = {part: tuple(row for row in rows if part_of[row.source] == part) for part in _PARTS}
    return rows, {part: chosen for part, chosen in parts.items() if chosen}
