"""How much each generated answer is about what shall be forgotten: what `reveal.scorer` names."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxunlearn.data.rows import Scorer, Text
from jaxunlearn.errors import UserError, one_line
from jaxunlearn.extras import need
from jaxunlearn.models.hub import model_folder
from jaxunlearn.user_file import names_user_function, user_function

SPELLINGS = "path/to/file.py:function, pattern:REGEX or classifier:FOLDER:LABEL"
_BATCH = 32
_LONGEST = 2**20  # tokens; tokenizers without a limit say 1e30, which they cannot cut to


def load(name: str, *, key: str) -> Scorer:
    """A scorer by name; what it returns is checked.

    Args:
      name: path/to/file.py:function, where the function gets a list of answers and returns their
        scores; pattern:REGEX, 1 for answers in which that is found; classifier:FOLDER:LABEL, the
        probability that a Hugging Face sequence classifier, in a folder or on the Hub, gives that
        label.
      key: the config key that holds the name, for messages.

    Raises:
      UserError: now, if there is no such scorer; when it is called, if it fails or does not return
        one number in [0, 1] per text.
    """
    kind, _, rest = name.partition(":")
    if kind == "pattern":
        of_answers = _pattern(rest, key)
    elif kind == "classifier":
        of_answers = _classifier(rest, key)
    elif names_user_function(name):
        of_answers = user_function(name, key=key)
    else:
        raise UserError(f"{key}: found {name!r}; give {SPELLINGS}")
    return checked(lambda texts: of_answers([text.answer for text in texts]), f"{key}: {name}")


def _pattern(regex: str, key: str) -> Callable[[list[str]], list[float]]:
    if not regex or not regex.isprintable():
        raise UserError(
            f"{key}: pattern:{regex!r} is empty or holds control characters; in YAML write it"
            " without double quotes, in which a backslash has a meaning of its own"
        )
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"{key}: pattern:{regex} is no regular expression ({error})") from None
    return lambda answers: [float(bool(pattern.search(answer))) for answer in answers]


def _classifier(name: str, key: str) -> Callable[[list[str]], np.ndarray]:
    """The probability of one label; an empty answer, which some models cannot read, has 0."""
    folder, _, label = name.rpartition(":")
    if not folder:
        raise UserError(f"{key}: classifier:{name} names no label; write classifier:FOLDER:LABEL")
    need("torch", by=f"{key}: classifier:{name}", install="torch")
    import transformers

    try:
        path = str(model_folder(folder))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        if not any("SequenceClass" in one for one in config.architectures or ()):
            raise UserError(f"{key}: {folder} holds no sequence classifier; name one that is")
        if label not in config.id2label.values():
            known = ", ".join(config.id2label.values())
            raise UserError(f"{key}: {folder} has no label {label!r}; its labels are {known}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        # On the CPU, because JAX holds the memory of an accelerator.
        classify = transformers.pipeline(
            "text-classification", model=path, tokenizer=tokenizer, device="cpu", dtype="float32"
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {folder} cannot be read: {one_line(error)}") from error
    pads = tokenizer.pad_token_id is not None and config.pad_token_id is not None
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    settings = {
        "batch_size": _BATCH if pads else 1,
        "truncation": True,
        "max_length": min(tokenizer.model_max_length, positions, _LONGEST),
        "top_k": None,
    }

    def of_label(scores: list[dict[str, Any]]) -> float:
        return next(one["score"] for one in scores if one["label"] == label)

    def score(answers: list[str]) -> np.ndarray:
        said = [answer for answer in answers if answer]
        found = iter(classify(said, **settings) if said else ())
        return np.array([of_label(next(found)) if answer else 0.0 for answer in answers])

    return score


def checked(function: Callable[[list[Text]], Any], where: str) -> Scorer:
    """A scorer whose faults are messages.

    They name texts by their row, counted from 0, and do not show them: they may be such as nobody
    should have to read.

    Args:
      function: from a list of n texts to n numbers.
      where: what a message begins with.

    Returns:
      A function from n texts to float64 [n]. It raises UserError if the scorer fails, or does not
      return one number in [0, 1] per text.
    """

    def score(texts: Sequence[Text]) -> np.ndarray:
        n = len(texts)
        if not n:
            return np.zeros(0)
        try:
            found = function(list(texts))
        except UserError:  # says already what is wrong
            raise
        except (Exception, SystemExit) as error:  # a user's code can fail in any way
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
    function: Callable[[list[Text]], Any], texts: Sequence[Text], error: Exception
) -> tuple[str, Exception]:
    """The first text on which the scorer fails alone, and how."""
    for row, text in enumerate(texts):
        try:
            function([text])
        except (Exception, SystemExit) as fault:
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
