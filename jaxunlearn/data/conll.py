"""Files of the CoNLL kind: a token and its tag a line, a blank line after each sentence."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxunlearn.errors import UserError

_TAG = re.compile(r"([BI])-(\S+)")


@dataclass(frozen=True)
class Sentence:
    """A tagged sentence."""

    text: str
    """Its tokens with a space between each two."""
    names: tuple[tuple[str, str], ...]
    """Type and text of each entity, in the order of the sentence."""
    source: str
    """File and line of the first token."""


def read(path: Path) -> tuple[Sentence, ...]:
    """The sentences of a file.

    The token is the first column, the tag the last one; a tab parts them, or blanks where there is
    no tab. Tags are O, B-TYPE and I-TYPE. An I goes on with the entity before it if that has its
    type, and begins one otherwise, so that files without B are read as well as files with it.
    -DOCSTART- lines are skipped.

    Raises:
      UserError: the file cannot be read or holds no sentence, or a bad line.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    sentences = tuple(_sentences(path.name, lines))
    if not sentences:
        raise UserError(f"{path}: holds no sentences; add some or name another file")
    return sentences


def _sentences(name: str, lines: list[bytes]) -> Iterator[Sentence]:
    tokens: list[tuple[str, str, str]] = []
    for number, line in enumerate((*lines, b""), 1):
        where = f"{name}:{number}"
        if line.strip():
            token = _token(where, line)
            if token[0] != "-DOCSTART-":
                tokens.append((*token, where))
        elif tokens:
            yield _sentence(tokens)
            tokens = []


def _token(where: str, line: bytes) -> tuple[str, str]:
    """A token and its tag."""
    try:
        text = line.decode("utf-8").strip("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    columns = [one.strip() for one in text.split("\t" if "\t" in text else None)]
    if len(columns) < 2 or not columns[0]:
        raise UserError(f"{where}: a line is a token and its tag, found {text.strip()!r}; mend it")
    if columns[-1] != "O" and not _TAG.fullmatch(columns[-1]):
        raise UserError(f"{where}: a tag is O, B-TYPE or I-TYPE, found {columns[-1]!r}; mend it")
    return "".join(columns[0].split()), columns[-1]


def _sentence(tokens: list[tuple[str, str, str]]) -> Sentence:
    names: list[tuple[str, list[str]]] = []
    before = "O"
    for token, tag, _ in tokens:
        if tag != "O":
            begin, kind = tag[0], tag[2:]
            if begin == "B" or before[2:] != kind:
                names.append((kind, []))
            names[-1][1].append(token)
        before = tag
    text = " ".join(token for token, _, _ in tokens)
    return Sentence(text, tuple((kind, " ".join(one)) for kind, one in names), tokens[0][2])
