"""What every data set is turned into: rows of text, and who plays which part."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["forget", "direct", "indirect", "general"]


class Text(NamedTuple):
    """What a model reads and what it is to say then."""

    question: str
    """Empty for plain text."""
    answer: str
    raw: bool = False
    """The answer continues the question: no template and no chat is put around it."""


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
    """As of a `Text`."""
    options: tuple[str, ...] = ()
    """Of a multiple-choice question, in the order of its letters; the answer is one of them."""

    @property
    def key(self) -> Text:
        """What makes two rows the same."""
        return Text(self.question, self.answer, self.raw)


@dataclass(frozen=True)
class EvalSet:
    """Rows that are evaluated together."""

    role: Literal["forget", "retain", "general", "holdout"]
    """general: facts that are neither in the forget nor in the retain set; holdout: rows like the
    forget rows that no model was trained on, which only membership inference uses."""
    rows: tuple[Row, ...]
    max_new_tokens: int | None = None
    """Of a generated answer; None: as the config says."""
    until: tuple[str, ...] = ()
    """A generated answer ends before the first of these."""


@dataclass(frozen=True)
class UnlearningData:
    """What is forgotten, what is kept, and what is measured."""

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    evaluation: dict[str, EvalSet]
    """In the order of reports; "forget" and "retain" come first."""
    background: tuple[Row, ...] = ()
    """Rows that the target and the retrained model are trained on as well."""
