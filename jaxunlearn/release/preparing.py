"""From a config and its data to a Reveal-and-Release that can start, or a fault before it does."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxunlearn.config import Experiment, MethodConfig, sampling_of, training_of
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row, Text, UnlearningData
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.errors import UserError
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.release.iteration import Job
from jaxunlearn.reveal import scorers
from jaxunlearn.reveal.theme import read_lines
from jaxunlearn.tables import encode_rows, max_length, need_tokenizer

WATCHED = 64
"""Rows whose NLL is measured, spread over all."""


def prepare(
    model: LanguageModel,
    data: UnlearningData,
    experiment: Experiment,
    method: MethodConfig,
    *,
    base: str | Path,
    folder: Path,
    checkpoints: Callable[[str], Path],
    logger: Callable[[str], Callable[..., None]],
    say: Callable[[str], None],
) -> Job:
    """All that the iterations share.

    Args:
      model: the one that is to forget.
      data: its forget rows give the questions, unless `reveal.prompts` does.
      experiment: all settings.
      method: the procedure's.
      base: folder or Hub id of the model, for PEFT.
      folder: for what is revealed and found.
      checkpoints: the folder of a training, by its stage.
      logger: what a training of a stage tells its steps to.
      say: called with what the user should know.

    Raises:
      UserError: as `check`.
    """
    check(model, data, experiment, method)
    reveal = experiment.reveal or RevealConfig()
    start, limit = model.merged(), max_length(model, experiment)

    def table(rows: Sequence[Row], what: str) -> TokenTable:
        count = min(WATCHED, len(rows))
        chosen = [rows[i * len(rows) // count] for i in range(count)]
        return encode_rows(start, chosen, experiment, limit, what, say).table

    return Job(
        start=start,
        base=base,
        forget=data.forget,
        retain=data.retain,
        questions=questions(reveal, data),
        scorer=scorers.checked(data.theme.scorer, "reveal.scorer"),
        instructions=data.theme.instructions,
        retain_table=table(data.retain, "retain"),
        forget_table=table(data.forget, "forget"),
        experiment=experiment,
        settings=registry.procedure_settings(method),
        reveal=reveal,
        adapter=experiment.adapter,
        training=training_of(experiment, method),
        steps=sampling_of(experiment, method).match_steps,
        folder=folder,
        checkpoints=checkpoints,
        logger=logger,
        say=say,
    )


def check(
    model: LanguageModel, data: UnlearningData, experiment: Experiment, method: MethodConfig
) -> None:
    """Refuses what would fail only after the first training.

    Raises:
      UserError: there is no adapter section or no scorer, no instruction to search, a file of
        prompts that cannot be used, a question that leaves no room for an answer, or sections that
        exclude each other.
    """
    if experiment.adapter is None:
        raise UserError(
            f"adapter: is missing; method {method.name} trains adapters, so give their rank and"
            " alpha, such as adapter: {rank: 8, alpha: 16}"
        )
    for section in ("requests", "stop", "select"):
        if getattr(experiment, section) is not None:
            raise UserError(
                f"{section}: is for methods that are one training; method {method.name} has"
                " iterations and stop rules of its own, so remove it"
            )
    if isinstance(sampling_of(experiment, method).match_steps, str):
        raise UserError(
            f"sampling.match_steps: method {method.name} pairs no rows; give a number of steps, or"
            " leave it out"
        )
    settings = registry.procedure_settings(method)
    if not (settings.retain_weight or settings.forget_weight or settings.line_search):
        raise UserError(
            f"method {method.name}: retain_weight and forget_weight are both 0, which does nothing"
        )
    reveal = experiment.reveal or RevealConfig()
    bounds = reveal.filters
    if bounds.max_words is not None and bounds.max_words < bounds.min_words:
        raise UserError(
            f"reveal.filters.max_words: {bounds.max_words} is below min_words, {bounds.min_words};"
            " no answer can pass"
        )
    if data.theme is None:
        raise UserError(
            f"reveal.scorer: this data has no scorer of its own; give {scorers.SPELLINGS}"
        )
    if reveal.proposer == "written" and not data.theme.instructions:
        raise UserError(
            "reveal.instructions: is missing, and the data has none of its own; give a file with"
            " an instruction in each line, or another reveal.proposer"
        )
    _check_room(model, questions(reveal, data), data.theme.instructions, reveal, experiment)


def questions(reveal: RevealConfig, data: UnlearningData) -> list[Text]:
    """What is put to the model, each once."""
    if reveal.prompts is None:
        return list(dict.fromkeys(row.text("") for row in data.forget))
    # They are asked as the forget rows are; plain texts have no template either.
    raw = any(row.raw or not row.question for row in data.forget)
    return [Text(line, "", raw) for line in read_lines(reveal.prompts, "reveal.prompts")]


def _check_room(
    model: LanguageModel,
    questions: Sequence[Text],
    instructions: Sequence[str],
    reveal: RevealConfig,
    experiment: Experiment,
) -> None:
    """The longest question with the longest thing before it must leave room for an answer."""
    tokenizer = need_tokenizer(model)
    ids = [
        tokens.prompt_tokens(
            tokenizer, text.question, template=experiment.data.template, raw=text.raw
        )
        for text in questions
    ]
    before = {
        "none": 0,
        "written": max((len(tokenizer(one)["input_ids"]) for one in instructions), default=0),
        "soft": reveal.soft_tokens,
        "decoded": reveal.max_new_tokens,
    }[reveal.proposer]
    longest, positions = max(map(len, ids)) + before, model.config.max_positions
    if longest + reveal.max_new_tokens > positions:
        raise UserError(
            f"reveal.max_new_tokens: {reveal.max_new_tokens} and the longest question with what"
            f" comes before it, {longest} tokens, are more than the model's {positions} positions;"
            " lower it, or shorten the questions"
        )
