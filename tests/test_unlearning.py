"""What the run pipeline and the Python interface share."""

import pytest

from jaxunlearn.config import TrainingConfig
from jaxunlearn.unlearning import batch_slots


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "rows", "slots"),
    [(32, 1, 100, 32), (32, 1, 5, 5), (32, 4, 5, 8), (100_000, 2, 41, 42), (8, 8, 1, 8)],
)
def test_a_batch_has_no_more_slots_than_rows(batch_size, micro_batches, rows, slots):
    training = TrainingConfig(batch_size=batch_size, micro_batches=micro_batches)
    assert batch_slots(training, rows) == slots
