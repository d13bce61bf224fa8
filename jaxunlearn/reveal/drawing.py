"""Answers of a model, drawn at random: one to each pair of a candidate and a question."""

from collections.abc import Sequence

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.answering import Answers, answer_texts
from jaxunlearn.models.generate import Sampling
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.reveal.candidates import Candidate, prompted


def draw(
    model: LanguageModel,
    candidates: Sequence[Candidate | None],
    questions: Sequence[Text],
    settings: RevealConfig,
    *,
    template: str,
    seed: int,
) -> Answers:
    """One answer to each question, asked as its candidate says.

    An answer depends on its own prompt, its row and the seed, and on nothing else in the batch.

    Args:
      model: with a tokenizer.
      candidates: n of them; None asks the question as it is.
      questions: n of them; their answers are not read.
      settings: temperature, top_p, max_new_tokens and batch_size.
      template: the prompt of models without a chat template, with {question} in it.
      seed: of the draws.

    Returns:
      n texts without special tokens and outer blanks, an empty one where a prompt is so long that
      it leaves no room for an answer; and which of them were cut at max_new_tokens.

    Raises:
      UserError: no prompt leaves room.
    """
    model, prompts = prompted(model, candidates, questions, template=template)
    limits = EvaluationConfig(
        batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens
    )
    sampling = Sampling(settings.temperature, top_p=settings.top_p)
    found = answer_texts(model, prompts, limits, sampling=sampling, seed=seed)
    if found.no_room and found.no_room == len(prompts):
        shortest = min(map(len, prompts))
        raise UserError(
            f"the shortest of {len(prompts)} prompts has {shortest} tokens, which with "
            f"reveal.max_new_tokens={settings.max_new_tokens} do not fit into the model's "
            f"{model.config.max_positions} positions; shorten the instructions, or lower "
            "reveal.max_new_tokens"
        )
    return found
