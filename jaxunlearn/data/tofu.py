"""TOFU: which split is which, whom a row is about, and which authors are alike."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.data.files import has_split, locate, read_rows
from jaxunlearn.data.records import FORGET_KINDS, RETAIN_KINDS, to_row
from jaxunlearn.data.rows import EvalSet, Kind, Row, Text, UnlearningData
from jaxunlearn.errors import UserError

AUTHOR_ROWS = 20
"""full.json holds its authors one after the other, this many rows each."""

_Authors = Mapping[Text, int]  # Row.key -> place of the author in full.json


def load(config: DataConfig) -> UnlearningData:
    """The splits `forget` and `retain`, and the four evaluation sets.

    The author of a row is looked up in full.json, where the position tells them. With
    `data.neighbours` a retain row is an indirect neighbour of the forget author that it is about.

    Raises:
      UserError: a missing split, a bad row, or an unknown author where authors are needed.
    """

    def split(name: str, kinds: Mapping[str, Kind] = RETAIN_KINDS) -> tuple[Row, ...]:
        path = locate(config, name, (".json", ".jsonl"))
        make = partial(to_row, columns=config.columns, kinds=kinds)
        return tuple(_with_entity(row, authors) for row in read_rows(path, "jsonl", make))

    def first_there(*names: str) -> tuple[Row, ...]:
        return split(next((name for name in names if has_split(config, name)), names[-1]))

    authors: dict[Text, int] = {}
    if has_split(config, "full"):
        authors = {row.key: i // AUTHOR_ROWS for i, row in enumerate(split("full"))}
    forget, retain = split(config.forget, FORGET_KINDS), split(config.retain)
    if config.authors is not None:
        retain = _limit_authors(forget, retain, authors, config.authors)
    if config.neighbours:
        retain = _as_neighbours(forget, retain, authors)
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
    authors: _Authors,
    count: int,
) -> tuple[Row, ...]:
    """The retain rows of the authors that come next after the forget authors, round the end.

    Round the end, because the rows of retain_perturbed are those of the first authors: a truth
    ratio on the retain set needs them.
    """
    _need_authors((*forget, *retain), authors, "authors")
    kept = {authors[row.key] for row in forget}
    total, last = max(authors.values()) + 1, max(kept)
    others = {authors[row.key] for row in retain} - kept
    if not len(kept) < count <= len(kept) + len(others):
        raise UserError(
            f"data.authors: {count} cannot hold the {len(kept)} forget authors and some of the"
            f" {len(others)} others; choose {len(kept) + 1} to {len(kept) + len(others)}"
        )
    nearest = sorted(others, key=lambda author: (author - last) % total)
    chosen = set(nearest[: count - len(kept)])
    return tuple(row for row in retain if authors[row.key] in chosen)


def _as_neighbours(
    forget: Sequence[Row], retain: Sequence[Row], authors: _Authors
) -> tuple[Row, ...]:
    """The retain rows as indirect neighbours of the forget authors, by `draft`."""
    _need_authors((*forget, *retain), authors, "neighbours")
    texts: list[dict[int, str]] = [{}, {}]  # in file order
    for of_author, rows in zip(texts, (forget, retain), strict=True):
        for row in rows:
            author = authors[row.key]
            of_author[author] = f"{of_author.get(author, '')} {row.question} {row.answer}"
    names = dict.fromkeys(row.entity for row in forget)
    owners = draft(list(texts[0].values()), list(texts[1].values()))
    entity = {author: list(names)[owner] for author, owner in zip(texts[1], owners, strict=True)}
    return tuple(replace(row, entity=entity[authors[row.key]], kind="indirect") for row in retain)


def draft(captains: Sequence[str], players: Sequence[str]) -> list[int]:
    """Shares texts out in turns: each captain takes the most similar text that is left.

    Similarity is the cosine of word counts, weighted by log(n / number of texts with the word);
    the earlier one of two equally similar texts goes first.

    Returns:
      For each of `players` the place of its captain; two captains' shares differ by at most one.
    """
    similarity = _similarity(captains, players)
    owner: dict[int, int] = {}
    for turn in range(len(players)):
        captain = turn % len(captains)
        left = (player for player in range(len(players)) if player not in owner)
        owner[max(left, key=lambda player: similarity[captain, player])] = captain
    return [owner[player] for player in range(len(players))]


def _similarity(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Cosines, float64 [len(left), len(right)]."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in (*left, *right)]
    frequency = Counter(word for count in counts for word in count)
    column = {word: i for i, word in enumerate(frequency)}
    vectors = np.zeros((len(counts), len(column)))
    for vector, count in zip(vectors, counts, strict=True):
        for word, number in count.items():
            vector[column[word]] = number * np.log(len(counts) / frequency[word])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths == 0, 1, lengths)
    # Rounded, so that equal ones stay equal however the machine adds up.
    return np.round(vectors[: len(left)] @ vectors[len(left) :].T, 9)


def _need_authors(rows: Iterable[Row], authors: _Authors, key: str) -> None:
    unknown = next((row for row in rows if row.key not in authors), None)
    if unknown is not None:
        raise UserError(
            f"{unknown.source}: data.{key} needs each row in full.json, and this one is not"
            f" there; leave data.{key} out, or add full.json"
        )


def _within(rows: tuple[Row, ...], candidates: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those of `candidates` that are in `rows`, as related as there; `rows` where that is none."""
    known = {row.key: row for row in rows}
    return (
        tuple(
            replace(row, entity=known[row.key].entity, kind=known[row.key].kind)
            for row in candidates
            if row.key in known
        )
        or rows
    )


def _with_entity(row: Row, authors: _Authors) -> Row:
    author = authors.get(row.key)
    if row.entity or author is None:
        return row
    return replace(row, entity=f"author {author}")
