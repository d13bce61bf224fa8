"""Sequential unlearning: the numbers after each request, by hand."""

from jaxunlearn.data.requests import Request
from jaxunlearn.data.rows import Row
from jaxunlearn.evaluation import over_requests
from jaxunlearn.evaluation.suite import Evaluation

ROWS = [Row(f"q{i}", "a") for i in range(4)]


def evaluated(utility, probability):
    metrics = {"model_utility": {"value": utility, "n": 1, "ci": None}}
    rows = {"forget_probability": probability, "forget_rouge": [1.0] * 4}
    return Evaluation(metrics, rows, {"forget": "forget"}, {}, 0, 0)


def test_history_and_lines_by_hand():
    parts = [Request("first", (ROWS[2], ROWS[0]), ()), Request("second", (ROWS[1],), ())]
    evaluations = [
        evaluated(0.9, [0.8, 0.6, 1.0, 0.5]),  # the last row is in no request
        evaluated(0.8, [0.2, 0.5, None, 0.5]),
        evaluated(None, [0.3, None, 0.1, 0.5]),
    ]
    history = over_requests.history(parts, ROWS, evaluations)
    assert history["requests"] == ["first", "second"] and history["evaluated_rows"] == [2, 1]
    assert history["model_utility"] == [0.9, 0.8, None]
    assert history["probability"] == [[0.9, 0.6], [0.2, 0.5], [0.2, None]]
    lines = over_requests.lines({"npo": history})
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "probability of requests done" not in lines[0]
    assert lines[0]["probability of requests to come"] == 0.75
    assert lines[1]["probability of requests done"] == 0.2
    assert lines[1]["probability of requests to come"] == 0.5
    assert lines[2]["probability of requests done"] == 0.2
    assert lines[2]["rouge of requests done"] == 1.0
    assert "rouge of requests to come" not in lines[2]
