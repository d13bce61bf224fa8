"""The data of a run, with what the `reveal` section says of what is to be told."""

import dataclasses
from pathlib import Path

from jaxunlearn.config import Experiment
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data import formats
from jaxunlearn.data.rows import EvalSet, Scorer, Theme, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.reveal import scorers


def load_data(experiment: Experiment) -> UnlearningData:
    """The data set that the config names.

    With `reveal.scorer` its theme has that scorer, and so have the sets of forget rows that have
    none: their answers are then drawn at `reveal.temperature`, as those that the scorer sees
    otherwise. With `reveal.instructions` the theme has those.

    Raises:
      UserError: as `formats.load`; a scorer or a file of instructions that cannot be used.
    """
    data = formats.load(experiment.data, experiment.seed)
    asked = experiment.reveal
    if asked is None:
        return data
    theme, evaluation = data.theme, data.evaluation
    if asked.scorer is not None:
        scorer = scorers.load(asked.scorer, key="reveal.scorer")
        theme = Theme(scorer, () if theme is None else theme.instructions)
        evaluation = {
            name: _rated(one, scorer, asked) if one.role == "forget" else one
            for name, one in evaluation.items()
        }
    if theme is not None and asked.instructions is not None:
        theme = dataclasses.replace(
            theme, instructions=tuple(read_lines(asked.instructions, "reveal.instructions"))
        )
    return dataclasses.replace(data, theme=theme, evaluation=evaluation)


def read_lines(path: str, key: str) -> list[str]:
    """The distinct lines of a text file that are not blank.

    Raises:
      UserError: it cannot be read, or has none; names the config key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{key}: {path} cannot be read ({error}); give a text file with one in each line"
        ) from None
    found = list(dict.fromkeys(line for line in text.split("\n") if line.strip()))
    if not found:
        raise UserError(f"{key}: {path} has no lines; give a text file with one in each line")
    return found


def _rated(one: EvalSet, scorer: Scorer, asked: RevealConfig) -> EvalSet:
    if one.scorer is not None:
        return one
    return dataclasses.replace(one, scorer=scorer, temperature=asked.temperature)
