"""What a model says to prompts, as text."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.language_model import LanguageModel

GREEDY = Sampling()


class Answers(NamedTuple):
    """What a model says to n prompts."""

    texts: list[str]
    """Without special tokens and outer blanks; empty where a prompt leaves no room."""
    no_room: int
    """Prompts that leave no room."""
    cut: list[bool]
    """Whether each was still going on when it came to the longest that may be generated."""


def answer_texts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: EvaluationConfig,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    on_rows: Callable[[int], None] | None = None,
) -> Answers:
    """The answer to each prompt.

    Args:
      model: with a tokenizer.
      prompts: token ids of n prompts.
      config: generation length and batch size.
      sampling: greedy by default.
      seed: of the random draws.
      on_rows: called with the number of prompts done after each batch.
    """
    room = model.config.max_positions - config.max_new_tokens
    fits = [i for i, ids in enumerate(prompts) if len(ids) <= room]
    said = generate(
        model.config,
        model.params,
        [prompts[i] for i in fits],
        lora=model.lora,
        max_new_tokens=config.max_new_tokens,
        stop_tokens=model.stop_tokens,
        sampling=sampling,
        seed=seed,
        batch_size=config.batch_size,
        on_rows=on_rows,
    )
    texts, cut = [""] * len(prompts), [False] * len(prompts)
    for i, ids in zip(fits, said, strict=True):
        texts[i] = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        cut[i] = len(ids) == config.max_new_tokens
    return Answers(texts, len(prompts) - len(fits), cut)
