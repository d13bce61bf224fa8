"""The log of a search: a line of JSON for each pull, from which a killed search goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.writing import write_text

_PULL = {"outer", "pull", "candidate", "instruction", "answers", "reward"}


class SearchLog:
    """Pulls of one search, in a file or nowhere.

    The first line says of which search the log is. Answers are in it because they are data; they
    may be such as nobody should have to read.
    """

    def __init__(self, path: Path | None, marks: Mapping[str, str]):
        """Reads what is there; a half-written last line is dropped.

        Args:
          path: a new file, or the log of an interrupted search; None keeps nothing.
          marks: name and value of everything that decides the search's course.

        Raises:
          UserError: the file is no log of such a search.
        """
        self._path = path
        self._pulls: dict[tuple[int, int], dict[str, Any]] = {}
        if path is None:
            return
        whole = path.read_bytes() if path.is_file() else b""
        text, _, half = whole.rpartition(b"\n")
        lines = text.split(b"\n") if text else []
        records = [self._parsed(line, number) for number, line in enumerate(lines, 1)]
        if not records:
            write_text(path, json.dumps({"search": dict(marks)}) + "\n")
            return
        self._check(records[0], marks)
        if half:
            with path.open("r+b") as file:
                file.truncate(len(text) + 1)
        for record in records[1:]:
            self._pulls[record["outer"], record["pull"]] = record

    def find(
        self, outer: int, pull: int, candidate: str, instruction: str | None
    ) -> dict[str, Any] | None:
        """What was written last of a pull; None if nothing was.

        Raises:
          UserError: it was of another candidate.
        """
        record = self._pulls.get((outer, pull))
        if record is None:
            return None
        if (record["candidate"], record["instruction"]) != (candidate, instruction):
            raise UserError(
                f"{self._path}: pull {pull} of round {outer} is of {record['candidate']}, but this "
                f"search comes to {candidate} there; remove the file to search anew"
            )
        return record

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a pull; of two lines of one pull the later one counts."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        wanted = (
            {"search"}
            if number == 1
            else {"outer", "pull", "candidate", "instruction", "answers", "reward"}
        )
        if not isinstance(record, dict) or not wanted <= record.keys():
            raise UserError(
                f"{self._path}:{number}: this is no line of a search's log; remove the file to "
                "search anew"
            )
        return record

    def _check(self, first: Mapping[str, Any], marks: Mapping[str, str]) -> None:
        found = first["search"]
        other = [name for name, value in marks.items() if found.get(name) != value]
        if other:
            raise UserError(
                f"{self._path}: this log is of a search with other {', '.join(other)}; name "
                "another file, or remove this one to search anew"
            )
