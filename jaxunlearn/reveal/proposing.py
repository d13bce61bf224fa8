"""Where candidates come from, as the settings say; and instructions that the model itself writes.

In the decoded mode the model reads a soft prompt and some questions with answers, and goes on after
"The instruction was to": soft prompts become text. INSTINCT (arXiv 2310.02905) does so with true
answers; here there are none, so the answers are the model's own.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Scorer, Text
from jaxunlearn.data.tokens import prompt_tokens
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.answering import answer_texts
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.soft import with_soft_prompts
from jaxunlearn.reveal import candidates, scorers
from jaxunlearn.reveal.candidates import Candidate, Proposer
from jaxunlearn.reveal.drawing import draw

_DEMONSTRATIONS = 5
_LONGEST = 64  # tokens of a decoded instruction
_BEFORE = "\nSomebody was given one instruction, and then answered these questions."
_AFTER = "\n\nThe instruction was to"
_SENTENCE = re.compile(r"[^\n]*?[.!?](?=\s|$)|[^\n]*")


def proposer(
    model: LanguageModel,
    questions: Sequence[Text],
    scorer: Scorer,
    settings: RevealConfig,
    *,
    instructions: Sequence[str] = (),
    template: str,
    seed: int,
) -> Proposer:
    """The proposer that `settings.proposer` names.

    Args:
      model: whose hidden size soft prompts have, and which decodes them.
      questions: what is asked.
      scorer: chooses the demonstrations of the decoded mode.
      settings: not with the proposer none.
      instructions: the written ones.
      template: the prompt of models without a chat template, with {question} in it.
      seed: of all that is random.
    """
    if settings.proposer == "written":
        return candidates.written(instructions, settings, seed=seed)
    soft = candidates.soft(model.config.hidden_size, settings, seed=seed)
    if settings.proposer == "soft":
        return soft
    if settings.proposer == "none":
        raise ValueError("reveal.proposer is none: there is nothing to search")
    shown = demonstrations(model, questions, scorer, settings, template=template, seed=seed)
    return decoded(model, soft, shown, settings)


def demonstrations(
    model: LanguageModel,
    questions: Sequence[Text],
    scorer: Scorer,
    settings: RevealConfig,
    *,
    template: str,
    seed: int,
) -> list[Text]:
    """Of `settings.samples` questions and answers without an instruction, the 5 of best score."""
    rng = np.random.default_rng(seed)
    chosen = np.resize(rng.permutation(len(questions)), settings.samples)
    asked = [questions[i] for i in chosen]
    answers = draw(
        model,
        [None] * len(asked),
        asked,
        settings,
        template=template,
        seed=int(rng.integers(2**31)),
    )
    texts = [text._replace(answer=one) for text, one in zip(asked, answers.texts, strict=True)]
    scores = scorers.checked(scorer, "the scorer")(texts)
    return [texts[i] for i in np.argsort(-scores, kind="stable")[:_DEMONSTRATIONS]]


def decoded(
    model: LanguageModel, soft: Proposer, shown: Sequence[Text], settings: RevealConfig
) -> Proposer:
    """Instructions that the model decodes greedily from soft prompts, up to the first sentence.

    Soft prompts that give one text give one candidate.

    Args:
      model: with a tokenizer.
      soft: proposes the soft prompts.
      shown: demonstrations; as many as fit are shown.
      settings: batch_size.

    Raises:
      UserError: when it is asked, if the prompt does not fit or nothing is decoded.
    """

    def propose(outer: int) -> list[Candidate]:
        points = soft(outer)
        softened, before = with_soft_prompts(model, np.stack([point.soft for point in points]))
        prompt = _prompt(model, shown, room=model.config.max_positions - _LONGEST - len(before[0]))
        limits = EvaluationConfig(batch_size=settings.batch_size, max_new_tokens=_LONGEST)
        said = answer_texts(softened, [ids + prompt for ids in before], limits).texts
        first: dict[str, Candidate] = {}
        for point, text in zip(points, map(first_sentence, said), strict=True):
            if text:
                name = point.name.replace("soft", "decoded")
                first.setdefault(text, Candidate(name, text))
        if not first:
            raise UserError(
                "reveal.proposer: the model decodes no instruction from any soft prompt; set it to "
                "soft or written"
            )
        return list(first.values())

    return propose


def first_sentence(text: str) -> str:
    """The first sentence, or the first line if it ends sooner, with a capital letter."""
    sentence = _SENTENCE.match(text.strip())[0].strip()
    return sentence[:1].upper() + sentence[1:]


def _prompt(model: LanguageModel, shown: Sequence[Text], room: int) -> list[int]:
    """Tokens of the prompt with as many demonstrations as leave it within the room."""
    for count in range(len(shown), 0, -1):
        pairs = "".join(f"\n\nQuestion: {t.question}\nAnswer: {t.answer}" for t in shown[:count])
        text = f"{_BEFORE}{pairs}{_AFTER}"
        ids = prompt_tokens(model.tokenizer, text, template="", raw=True)
        if len(ids) <= room:
            return ids
    raise UserError(
        f"reveal.proposer: the shortest prompt to decode an instruction has {len(ids)} tokens, "
        f"but the model has room for {max(room, 0)}; set it to soft or written"
    )
