"""How much each generated text is about what shall be forgotten: a user's own scorer, checked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxunlearn.errors import UserError, one_line
from jaxunlearn.user_file import user_function

Scorer = Callable[[Sequence[str]], np.ndarray]
"""From n texts to float64 [n] in [0, 1]."""


def load(name: str, *, key: str) -> Scorer:
    """A user's own scorer; what it returns is checked.

    Args:
      name: path/to/file.py:function; the function gets a list of texts.
      key: the config key that holds the name, for messages.

    Raises:
      UserError: now, if the function cannot be loaded; when it is called, as `checked` says.
    """
    return checked(user_function(name, key=key), f"{key}: {name}")


def checked(function: Callable[[list[Any]], Any], where: str) -> Callable[[Sequence[Any]], Any]:
    """A scorer whose faults are messages.

    They name texts by their row, counted from 0, and do not show them: they may be such as nobody
    should have to read.

    Args:
      function: from a list of n texts, of any kind, to n numbers.
      where: what a message begins with.

    Returns:
      A function from n texts to float64 [n]. It raises UserError if the scorer fails, or does not
      return one number in [0, 1] per text.
    """

    def score(texts: Sequence[Any]) -> np.ndarray:
        n = len(texts)
        try:
            found = function(list(texts))
        except UserError:
            raise
        except Exception as error:  # a user's code can fail in any way
            row, fault = _failing_row(function, texts, error)
            raise UserError(
                f"{where} fails on {row}: {type(fault).__name__}: {one_line(fault)}"
            ) from fault
        wanted = f"return one number in [0, 1] per text, [{n}]"
        try:
            scores = np.asarray(found, np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where} gives {_not_numbers(found)}; {wanted}") from error
        if scores.shape != (n,):
            raise UserError(
                f"{where} gives an array of shape {scores.shape} for {n} texts; {wanted}"
            )
        bad = ~((scores >= 0) & (scores <= 1))  # NaN is in no range
        if bad.any():
            row = int(bad.argmax())
            raise UserError(f"{where} gives {scores[row]} for row {row} of {n} texts; {wanted}")
        return scores

    return score


def _failing_row(
    function: Callable[[list[Any]], Any], texts: Sequence[Any], error: Exception
) -> tuple[str, Exception]:
    """The first text on which the scorer fails alone, and how."""
    for row, text in enumerate(texts):
        try:
            function([text])
        except Exception as fault:
            return f"row {row} of {len(texts)} texts", fault
    return f"{len(texts)} texts together, on none of them alone", error


def _not_numbers(found: Any) -> str:
    """What a scorer gave instead of numbers."""
    rows = list(found) if isinstance(found, list | tuple | np.ndarray) else []
    for row, value in enumerate(rows):
        try:
            float(value)
        except (TypeError, ValueError):
            return f"{type(value).__name__} for row {row}"
    return type(found).__name__
