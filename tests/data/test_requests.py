"""Requests to forget: who is in which, and what is kept meanwhile."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.config import RequestsConfig
from jaxunlearn.data import neighbours, requests
from jaxunlearn.errors import UserError

WORLD = neighbours.build(0.3, 0)


@given(size=st.integers(1, 40), by=st.sampled_from(["entity", "rows"]))
@settings(max_examples=40, deadline=None)
def test_every_forget_row_is_in_one_request(size, by):
    parts = requests.split(WORLD, RequestsConfig(by, size))
    assert sorted(row.key for part in parts for row in part.forget) == sorted(
        row.key for row in WORLD.forget
    )
    assert len({part.name for part in parts}) == len(parts)
    for part in parts[:-1]:
        count = len(part.forget) if by == "rows" else len({row.entity for row in part.forget})
        assert count == size


def test_a_request_keeps_general_rows_and_its_own_neighbours():
    for part in requests.split(WORLD, RequestsConfig()):
        (entity,) = {row.entity for row in part.forget}
        assert part.name == entity
        kept = [row for row in WORLD.retain if row.kind == "general" or row.entity == entity]
        assert list(part.retain) == kept
        assert any(row.kind == "direct" for row in kept)


def test_requests_by_entity_need_entities():
    nameless = dataclasses.replace(WORLD.forget[1], entity="", source="forget.csv:3")
    data = dataclasses.replace(WORLD, forget=(WORLD.forget[0], nameless))
    with pytest.raises(UserError, match=r"forget\.csv:3.*entity.*requests\.by to rows"):
        requests.split(data, RequestsConfig())
    assert len(requests.split(data, RequestsConfig("rows", 1))) == 2
