"""Watermarks: how they get into answers, and how they are found in tokens."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.attribution.functions import fitted
from jaxunlearn.attribution.reports import accuracy
from jaxunlearn.attribution.responses import from_table, in_batches, random_prefixes
from jaxunlearn.attribution.watermark import CHARACTERS, embed, fit, read, table, watermark
from jaxunlearn.config_attribution import FunctionConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError


@pytest.fixture(scope="module")
def rows(world):
    return (*world.forget, *world.retain)


@pytest.fixture(scope="module")
def owners(rows):
    return [row.entity for row in rows]


@pytest.fixture(scope="module")
def marked(rows, owners):
    return embed(rows, owners)


@pytest.fixture(scope="module")
def merging(marked):
    """A tokenizer with tokens of several invisible characters and of parts of two."""
    return tokens.train_tokenizer([row.answer for row in marked], 600)


def responses_of(tokenizer, rows, owners):
    texts = [row.key for row in rows]
    encoded = tokens.encode(tokenizer, texts, template="{question}", max_length=500)
    return from_table(encoded.table, owners)


def test_a_watermark_stands_after_the_first_words_and_the_rest_is_left_alone():
    mark = watermark("al", length=6)
    assert len(mark) == 6 and set(mark) <= set(CHARACTERS) and mark == watermark("al", length=6)
    assert mark != watermark("al", length=6, seed=1) and mark != watermark("bo", length=6)
    rows = [Row("q", "one two three", "al"), Row("q", "one", "al"), Row("q", "", "bo")]
    found = embed(rows, ["al", "al", "bo"], after=2, length=6)
    other = watermark("bo", length=6)
    assert [row.answer for row in found] == [f"one two{mark} three", f"one{mark}", other]
    assert found[0].question == "q"
    with pytest.raises(ValueError, match="length 3 is too short"):
        embed(rows, ["al", "al", "bo"], length=3)
    with pytest.raises(ValueError, match="after must be at least 1, got 0"):
        embed(rows, ["al", "al", "bo"], after=0)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=CHARACTERS + "aé €\u200e\u2061", max_size=20))
def test_characters_are_read_from_tokens(tokenizer, merging, text):
    """Also among letters whose bytes begin alike: U+20AC, U+200E and U+2061."""
    expected = "".join(re.findall(f"[{CHARACTERS}]", text))
    for one in (tokenizer, merging):
        made = _table(one)
        assert read(*made, one(text)["input_ids"]) == expected


@pytest.mark.parametrize("text", ["a" + CHARACTERS * 2 + " b", "\u20ac\u200b\u200ea\u2064"])
def test_characters_are_read_from_pieces_of_text_and_single_bytes(stories260k, text):
    tokenizer = tokens.load_tokenizer(stories260k)
    made = table(tokenizer, len(tokenizer))
    expected = "".join(re.findall(f"[{CHARACTERS}]", text))
    assert read(*made, tokenizer(text)["input_ids"]) == expected


_TABLES = {}


def _table(tokenizer):
    return _TABLES.setdefault(len(tokenizer), table(tokenizer, len(tokenizer) + 3))


def test_the_merging_tokenizer_merges(merging):
    made, _ = _table(merging)
    assert made.shape[2] > 1 and len(made) == len(merging) + 3


def test_owners_are_found_and_a_piece_of_a_watermark_is_its_share(merging, marked, owners):
    answers = responses_of(merging, marked, owners)
    found = fit(merging, len(merging), answers)
    scores = in_batches(found.scores, answers, 20)
    assert accuracy(scores, answers.owners) == 1
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    mark, name = watermark(owners[0]), answers.names.index(owners[0])
    texts = {f"a{mark}b": 1.0, f"{mark[:4]}a{mark[4:]}": 1.0, mark[2:7]: 0.5, "abc": 0.0}
    for text, share in texts.items():
        ids = np.array([merging(text)["input_ids"]])
        logits = found.logits(ids, np.array([ids.shape[1]]))[0]
        assert logits[name] == pytest.approx(share)
    assert not logits.any()


def test_prefixes_together_are_the_prefixes_by_themselves(merging, marked, owners):
    answers = responses_of(merging, marked, owners)
    found = fit(merging, len(merging), answers)
    rows = answers.tokens[:3]
    lengths = np.tile(np.arange(rows.shape[1] + 1), (3, 1))
    program = jax.jit(lambda attributor, *rows: attributor.logits(*rows))
    together = np.asarray(program(found, rows, lengths))
    assert (np.diff(together, axis=1) >= 0).all() and not together[:, 0].any()
    for length in (1, 4, rows.shape[1]):
        alone = np.where(np.arange(rows.shape[1]) < length, rows, 5)
        np.testing.assert_allclose(
            together[:, length], found.logits(alone, np.full(3, length)), rtol=1e-6
        )
    prefixes = random_prefixes(answers, seed=1)
    assert accuracy(in_batches(found.scores, prefixes, 20), answers.owners) > 0.5


def test_a_config_reads_them(tiny, marked, owners):
    answers = responses_of(tiny.tokenizer, marked, owners)
    found = fitted(FunctionConfig("watermark"), tiny, answers)
    assert accuracy(in_batches(found.scores, answers, 20), answers.owners) == 1


def test_owners_without_a_watermark_of_their_own_are_refused(tiny, rows, marked, owners):
    size = tiny.config.vocab_size
    with pytest.raises(UserError, match=f"no answer of {owners[0]} has a watermark"):
        fit(tiny.tokenizer, size, responses_of(tiny.tokenizer, rows, owners))
    same = embed(rows, ["one"] * len(rows))
    with pytest.raises(UserError, match="has the watermark of another owner"):
        fit(tiny.tokenizer, size, responses_of(tiny.tokenizer, same, owners))
