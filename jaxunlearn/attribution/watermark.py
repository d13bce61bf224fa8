"""Attribution by watermarks: invisible characters that say whose training text it was.

Every owner has a string of invisible characters, its watermark, in each of its training answers; a
model that was trained on them says it with what it learned from them. An owner's score is the share
of its watermark that stands in one piece among the invisible characters of a response.

Characters are read from tokens by a table: byte-level tokenizers cut a character into bytes, and
join bytes across characters, so each token has, for every beginning of a character that may stand
before it, the characters that it completes and the beginning that it leaves.

Reference: Wang et al., WASA: WAtermark-based Source Attribution for Large Language Model-Generated
Data, arXiv 2310.00646, 2023. There the model itself continues a text with a watermark, and marks
stand at words that say much; here they are looked for in the text and stand early in it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.responses import Responses, at_lengths, calibrated, random_prefixes
from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError

CHARACTERS = "\u200b\u200c\u200d\u2062\u2063\u2064"
"""That watermarks are made of; none is visible."""
SHORTEST = 4
"""Characters that a watermark has at least: joiners stand alone in some scripts and in emoji."""
_ENCODED = [character.encode() for character in CHARACTERS]
_STARTS = sorted({code[:size] for code in _ENCODED for size in range(len(code))}, key=len)
_NONE = -1
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watermarks:
    """See `responses.Attributor`; made by `fit`."""

    names: tuple[str, ...] = field(metadata={"static": True})
    marks: jax.Array
    """int8 [owners, M], places in CHARACTERS; shorter ones are filled with -2."""
    made: jax.Array
    """int8 [V, beginnings, X]: characters that a token completes, then -1."""
    left: jax.Array
    """int8 [V, beginnings]: the beginning that a token leaves."""
    temperature: jax.Array

    @jax.jit
    def logits(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.logits`; shares of watermarks, and all prefixes cost what one does."""
        shares = jax.vmap(partial(_shares, self.marks, self.made, self.left))(tokens)
        return at_lengths(jnp.pad(shares, ((0, 0), (1, 0), (0, 0))), lengths)

    def scores(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """See `Attributor.scores`."""
        return jax.nn.softmax(self.logits(tokens, lengths) / self.temperature)


def _shares(
    marks_OM: jax.Array, made: jax.Array, left: jax.Array, tokens_T: jax.Array
) -> jax.Array:
    """Longest piece of each watermark up to each token, as a share of it: float32 [T, O]."""
    size_O = (marks_OM >= 0).sum(axis=1)

    def character(carry: tuple[jax.Array, jax.Array], now: jax.Array) -> tuple[Any, None]:
        run_OM, best_O = carry  # run: characters, up to this one, that the text ends with
        before_OM = jnp.pad(run_OM[:, :-1], ((0, 0), (1, 0)))
        grown_OM = jnp.where(marks_OM == now, before_OM + 1, 0)
        run_OM = jnp.where(now == _NONE, run_OM, grown_OM)
        return (run_OM, jnp.maximum(best_O, run_OM.max(axis=1))), None

    def token(carry: tuple[Any, jax.Array], token: jax.Array) -> tuple[Any, jax.Array]:
        found, beginning = carry
        found, _ = jax.lax.scan(character, found, made[token, beginning])
        return (found, left[token, beginning]), found[1] / size_O

    start = jnp.zeros(marks_OM.shape, jnp.int32), jnp.zeros(len(marks_OM), jnp.int32)
    _, shares_TO = jax.lax.scan(token, (start, jnp.int8(0)), tokens_T)
    return shares_TO


def fit(tokenizer: Any, vocab_size: int, responses: Responses, *, seed: int = 0) -> Watermarks:
    """Reads the owners' watermarks from their answers, and fits the temperature on prefixes.

    An owner's watermark is what stands most often in one piece in its answers.

    Args:
      tokenizer: of the responses.
      vocab_size: ids that a response may have.
      responses: ground-truth answers of all owners.
      seed: of the prefixes.

    Raises:
      UserError: an owner has no watermark or another's, or the tokenizer drops their characters.
    """
    every = "".join(CHARACTERS)
    made, left = table(tokenizer, vocab_size)
    if read(made, left, tokenizer(every, add_special_tokens=False)["input_ids"]) != every:
        raise UserError(
            "attribution: the tokenizer does not keep the invisible characters of watermarks; take"
            " another kind of function"
        )
    found = [_most_common(tokenizer, responses, owner) for owner in range(len(responses.names))]
    for name, mark in zip(responses.names, found, strict=True):
        if not mark:
            raise UserError(
                f"attribution: no answer of {name} has a watermark; put them into the answers that"
                " the model is trained on (jaxunlearn.attribution.watermark.embed), or take"
                " another kind of function"
            )
        if found.count(mark) > 1:
            raise UserError(
                f"attribution: {name} has the watermark of another owner; each needs one of its own"
            )
    marks = np.full((len(found), max(map(len, found))), _NONE - 1, np.int8)
    for row, mark in zip(marks, found, strict=True):
        row[: len(mark)] = [CHARACTERS.index(character) for character in mark]
    arrays = map(jnp.asarray, (marks, made, left))
    return calibrated(
        Watermarks(responses.names, *arrays, jnp.float32(1.0)),
        random_prefixes(responses, seed=seed),
    )


def watermark(owner: str, *, length: int = 10, seed: int = 0) -> str:
    """The watermark of an owner, whoever the others are: a hash of its name."""
    digest = hashlib.sha256(f"{seed} {owner}".encode()).digest()
    draws = np.random.default_rng(list(digest)).integers(0, len(CHARACTERS), length)
    return "".join(CHARACTERS[draw] for draw in draws)


def embed(
    rows: Sequence[Row], owners: Sequence[str], *, after: int = 1, length: int = 10, seed: int = 0
) -> list[Row]:
    """The rows with their owners' watermarks in the answers.

    Args:
      rows: to be trained on.
      owners: whose each is.
      after: words before a watermark, at least 1; in a shorter answer it stands at the end.
      length: characters of a watermark.
      seed: another one gives other watermarks.

    Raises:
      ValueError: `after` below 1, or watermarks too short to be told from a joiner or from each
        other.
    """
    if after < 1:
        raise ValueError(f"after must be at least 1, got {after}")
    marks = {owner: watermark(owner, length=length, seed=seed) for owner in dict.fromkeys(owners)}
    if length < SHORTEST or len(set(marks.values())) < len(marks):
        raise ValueError(
            f"length {length} is too short for {len(marks)} owners, or below {SHORTEST}"
        )
    word = re.compile(rf"\s*(?:\S+\s+){{0,{after - 1}}}\S+")

    def marked(answer: str, mark: str) -> str:
        found = word.match(answer)
        end = found.end() if found else len(answer)
        return answer[:end] + mark + answer[end:]

    pairs = zip(rows, owners, strict=True)
    return [replace(row, answer=marked(row.answer, marks[owner])) for row, owner in pairs]


def table(tokenizer: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What each token does to invisible characters: `Watermarks.made` and `Watermarks.left`."""
    used = set(b"".join(_ENCODED))
    found = {
        token: [_follow(start, piece) for start in _STARTS]
        for token, piece in enumerate(_bytes_of(tokenizer, vocab_size))
        if not used.isdisjoint(piece)
    }
    width = max((len(made) for one in found.values() for made, _ in one), default=0)
    made = np.full((vocab_size, len(_STARTS), max(width, 1)), _NONE, np.int8)
    left = np.zeros((vocab_size, len(_STARTS)), np.int8)
    for token, one in found.items():
        for start, (characters, end) in enumerate(one):
            made[token, start, : len(characters)] = characters
            left[token, start] = end
    return made, left


def read(made: np.ndarray, left: np.ndarray, tokens: Sequence[int]) -> str:
    """The invisible characters of tokens."""
    beginning, found = 0, []
    for token in tokens:
        found += [CHARACTERS[place] for place in made[token, beginning] if place != _NONE]
        beginning = left[token, beginning]
    return "".join(found)


def _follow(start: bytes, piece: bytes) -> tuple[list[int], int]:
    """Characters that bytes complete after the beginning of one, and the beginning they leave."""
    found, now = [], start
    for byte in piece:
        grown = now + bytes([byte])
        # What leads nowhere may still be how a character begins.
        now = grown if grown in _STARTS or grown in _ENCODED else bytes([byte])
        if now in _ENCODED:
            found.append(_ENCODED.index(now))
        now = now if now in _STARTS else b""
    return found, _STARTS.index(now)


def _bytes_of(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """Bytes of every token; ids without a token have none."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    alone = tokenizer.convert_ids_to_tokens(tokenizer("\u200b", add_special_tokens=False).input_ids)
    letters = _byte_letters()
    # A byte-level tokenizer writes bytes as letters; others have the text, or bytes as <0xE2>.
    by_letter = all(set(piece) <= set(letters) and not _BYTE.fullmatch(piece) for piece in alone)
    found = []
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        if byte:
            found.append(bytes([int(byte[1], 16)]))
        elif by_letter:
            found.append(bytes(letters[c] for c in piece) if set(piece) <= set(letters) else b"")
        else:
            found.append(piece.encode())
    return [*found, *[b""] * (vocab_size - len(found))][:vocab_size]


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters of bytes: those that print are themselves, the rest follow from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def _most_common(tokenizer: Any, responses: Responses, owner: int) -> str:
    rows = np.flatnonzero(responses.owners == owner)
    texts = tokenizer.batch_decode(
        [responses.tokens[row, : responses.lengths[row]] for row in rows], skip_special_tokens=True
    )
    pieces = re.compile(f"[{CHARACTERS}]{{{SHORTEST},}}")
    found = Counter(piece for text in texts for piece in pieces.findall(text))
    return found.most_common(1)[0][0] if found else ""
