"""The run folder as others read it."""

import json

import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.runs import read_finished

SUMMARY = {"name": "x", "models": {}, "primary": "npo"}


def folder(tmp_path, summary, **evaluations):
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    for number, name in enumerate(evaluations):
        parts = {"rows": {}, "roles": {}, "generations": {}, "left_out": number, "no_room": 0}
        kept = {"metrics": {}, **parts} if evaluations[name] else {}
        (tmp_path / "evaluations" / f"{name.replace('_', '@')}.json").write_text(json.dumps(kept))
    return tmp_path


def test_the_main_method_is_read_after_its_last_request(tmp_path):
    requests = {"npo": {"requests": ["first", "second"]}}
    place = folder(tmp_path, {**SUMMARY, "requests": requests}, npo_1=True, npo_2=True, kl_2=True)
    summary, evaluation = read_finished(place)
    assert summary["requests"] == requests and evaluation.left_out == 1


def test_an_evaluation_that_was_not_kept_is_none(tmp_path):
    assert read_finished(folder(tmp_path, SUMMARY, kl=True)) == (SUMMARY, None)


def test_a_damaged_evaluation_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluations/npo.json: damaged \(.*metrics"):
        read_finished(folder(tmp_path, SUMMARY, npo=False))
