"""MUSE: a text corpus to forget (news or books) and six ways to look at the result.

The folder is that of MUSE-News or MUSE-Books: raw/forget and raw/retain1 (texts to train on; also
retain2 and holdout, which nothing here reads), knowmem/{forget,retain}_qa and the ten examples
{forget,retain}_qa_icl (question, answer), verbmem/forget (prompt, gt), privleak/{forget,holdout}
(text), and in News scal/ and sust/forget_1 to forget_4, which `data.forget` can name. A file is the
authors' .txt or .json (a list of texts or of objects), JSON lines, or the Hub's .parquet.

The authors' evaluation: greedy generation, 128 new tokens for verbmem and 32 for knowmem; a
knowmem answer ends before an empty line or the next question; scores are the mean F-measure of
ROUGE-L without stemming, in verbmem against the first 128 tokens of gt; privleak compares
Min-40% of forget and holdout texts. They train on the joined texts, cut every 2048 tokens.

Reference: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models",
arXiv 2407.06460.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.data.files import kind_of, locate, read_rows
from jaxunlearn.data.records import fixed
from jaxunlearn.data.rows import EvalSet, Kind, Row, UnlearningData

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32
UNTIL = ("\n\n", "\nQuestion", "Question:")
"""What ends an answer of knowmem."""

_HUB = "-00000-of-00001.parquet"
_SUFFIXES = (".json", ".jsonl", ".parquet", _HUB)


def load(config: DataConfig) -> UnlearningData:
    """The corpus as plain text rows, and MUSE's evaluation sets.

    verbatim: raw rows, the prompt and how it goes on. knowledge and knowledge_retain: raw rows, the
    questions after the authors' examples and in their form. members and holdout: plain texts.

    Raises:
      UserError: a missing file or column, or a bad row.
    """
    forget = _corpus(config, config.forget or "forget", "forget")
    retain = _corpus(config, config.retain or "retain1", "general")
    knowledge = partial(EvalSet, max_new_tokens=KNOWLEDGE_TOKENS, until=UNTIL)
    evaluation = {
        "verbatim": EvalSet(
            "forget",
            _read(config, "verbmem/forget", _pair("prompt", "gt", "forget")),
            max_new_tokens=VERBATIM_TOKENS,
            cut=True,
        ),
        "knowledge": knowledge("forget", _questions(config, "forget", "forget")),
        "knowledge_retain": knowledge("retain", _questions(config, "retain", "general")),
        "members": EvalSet("forget", _read(config, "privleak/forget", _text("forget"))),
        "holdout": EvalSet("holdout", _read(config, "privleak/holdout", _text("general"))),
    }
    return UnlearningData(forget, retain, evaluation)


def chunks(rows: Sequence[Row], words: int) -> tuple[Row, ...]:
    """Plain texts of at most so many words: whole paragraphs put together in their order.

    A paragraph of more words is cut between words. A chunk has the source of its first paragraph.
    """
    found: list[Row] = []
    room = 0
    for row in rows:
        for piece in _pieces(row.answer, words):
            size = len(piece.split())
            if found and size <= room:
                found[-1] = replace(found[-1], answer=f"{found[-1].answer}\n\n{piece}")
            else:
                found.append(replace(row, answer=piece))
                room = words
            room -= size
    return tuple(found)


def _pieces(text: str, words: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        spans = [word.span() for word in re.finditer(r"\S+", paragraph)]
        for start in range(0, len(spans), words):
            part = spans[start : start + words]
            yield paragraph[part[0][0] : part[-1][1]]


def _corpus(config: DataConfig, name: str, kind: Kind) -> tuple[Row, ...]:
    place = name if "/" in name else f"raw/{name}"
    return chunks(_read(config, place, _text(kind), text_file=True), config.chunk_words)


def _questions(config: DataConfig, part: str, kind: Kind) -> tuple[Row, ...]:
    """The questions of knowmem, each after the examples."""
    rows, examples = (
        _read(config, f"knowmem/{part}_{name}", _pair("question", "answer", kind))
        for name in ("qa", "qa_icl")
    )
    shots = "".join(f"Question: {e.question}\nAnswer: {e.answer}\n\n" for e in examples)
    # The last space is in the prompt, as the authors have it.
    return tuple(
        replace(row, question=f"{shots}Question: {row.question}\nAnswer: ") for row in rows
    )


_Make = Callable[[str, Mapping[str, Any]], Row]


def _pair(question: str, answer: str, kind: Kind) -> _Make:
    def make(where: str, record: Mapping[str, Any]) -> Row:
        texts = [fixed(where, record, column, "MUSE") for column in (question, answer)]
        return Row(*texts, source=where, kind=kind, raw=True)

    return make


def _text(kind: Kind) -> _Make:
    def make(where: str, record: Mapping[str, Any]) -> Row:
        return Row("", fixed(where, record, "text", "MUSE"), source=where, kind=kind)

    return make


def _read(
    config: DataConfig, name: str, make: _Make, *, text_file: bool = False
) -> tuple[Row, ...]:
    """The rows of a file; sources say its folder, for several folders hold a file forget."""
    path = locate(config, name, (".txt", *_SUFFIXES) if text_file else _SUFFIXES)
    kind = "text" if path.suffix == ".txt" else kind_of(path)
    folder = Path(name).parent.as_posix()
    return read_rows(path, kind, lambda where, record: make(f"{folder}/{where}", record))
