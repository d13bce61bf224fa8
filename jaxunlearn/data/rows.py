"""What every data set is turned into: rows of text, and who plays which part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["forget", "direct", "indirect", "general"]


class Text(NamedTuple):
    """What a model reads: a question with one answer."""

    question: str
    """Empty for plain text: then the whole text is the answer."""
    answer: str
    raw: bool = False
    """The answer continues the question as it stands: no template and no chat around them."""


Scorer = Callable[[Sequence[Text]], np.ndarray]
"""From n questions with answers to how much each answer shows what is to be forgotten: [n] in
[0, 1]."""


@dataclass(frozen=True)
class Row:
    """One question with its answer, or one plain text."""

    question: str
    """Empty for plain text: then the whole text is the answer."""
    answer: str
    entity: str = ""
    """Whom the row is about (TOFU: "author 198"). Of a direct or indirect row it is the forget
    entity whose neighbour the row is."""
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers in the wording of the paraphrase."""
    source: str = ""
    """File and line ("forget01.json:3"); file and row for Parquet and for JSON arrays."""
    kind: Kind = "general"
    """forget: about an entity that is to be forgotten; direct: about something that its answers
    name; indirect: about someone like it; general: about neither."""
    refusal: str | None = None
    """What to say instead of the answer; None: any refusal will do; "": there should be one."""
    raw: bool = False
    """As in `Text`; of all answers of the row."""
    options: tuple[str, ...] = ()
    """Of a multiple-choice question: all of them in the order of their letters, the answer too."""

    @property
    def key(self) -> Text:
        """The row as it is forwarded, which is what makes two rows the same."""
        return self.text(self.answer)

    def text(self, answer: str) -> Text:
        """The question with this answer."""
        return Text(self.question, answer, self.raw)


@dataclass(frozen=True)
class EvalSet:
    """Rows that are evaluated together."""

    role: Literal["forget", "retain", "general", "holdout"]
    """general: facts that are neither in the forget nor in the retain set; holdout: rows like the
    forget rows that no model was trained on, which only membership inference uses."""
    rows: tuple[Row, ...]
    max_new_tokens: int | None = None
    """Longest generated answer; None: as the config says."""
    cut: bool = False
    """What is generated is compared to as much of the answer as may be generated."""
    until: tuple[str, ...] = ()
    """A generated answer ends before the first of these strings."""
    temperature: float = 0.0
    """At which answers are drawn; 0: the most likely one."""
    scorer: Scorer | None = None
    """Rates generated answers, where the set has something to rate."""
    attribution: Scorer | None = None
    """How much generated answers come from those who are to be forgotten: the function that a
    training is rewarded by."""
    attribution_held_out: Scorer | None = None
    """The same by a function that no model was trained on."""


@dataclass(frozen=True)
class Theme:
    """What a model is to be made to tell, where a data set knows that."""

    scorer: Scorer
    instructions: tuple[str, ...] = ()
    """That may bring it out. {question} in one is where a question goes; without it the question
    follows after a space."""


@dataclass(frozen=True)
class UnlearningData:
    """What is forgotten, what is kept, and what is measured."""

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    evaluation: dict[str, EvalSet]
    """In the order of reports; what shows forgetting comes first."""
    background: tuple[Row, ...] = ()
    """Rows that the target and the retrained model are trained on as well."""
    theme: Theme | None = None
