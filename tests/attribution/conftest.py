"""The people of the tiny world as owners of their answers."""

import pytest

from jaxunlearn.attribution.responses import from_table
from jaxunlearn.data import tokens


@pytest.fixture(scope="session")
def answers(world, tiny):
    """60 answers of 6 owners."""
    rows = (*world.retain, *world.forget)
    texts = [row.text(row.answer) for row in rows]
    encoded = tokens.encode(tiny.tokenizer, texts, template="{question}", max_length=128)
    assert not encoded.left_out
    return from_table(encoded.table, [row.entity for row in rows])
