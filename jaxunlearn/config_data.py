"""The data section of a config: which rows are forgotten and kept, and how they become tokens."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxunlearn.validation import PLAIN_NAME, STRICT, Count, Positive, refuse_changed

# Keys of the data section that not every format has, and the formats that have them.
_FILES = ("tofu", "melu", "jsonl", "csv", "parquet")
_NAMED_FILES = ("lume", "muse", "toxicity", "ner", "code")  # whose files have names of their own
_DATA_KEYS = {
    **dict.fromkeys(("path", "forget", "retain"), (*_FILES, *_NAMED_FILES)),
    "columns": _FILES,
    "holdout": ("tofu", "jsonl", "csv", "parquet", "lume"),
    "chunk_words": ("muse",),
    "test": ("melu", "ner"),
    "threshold": ("toxicity",),
    "task": ("toy",),
    "execute": ("code",),
    **dict.fromkeys(("authors", "neighbours"), ("tofu",)),
    **dict.fromkeys(
        ("world", "people", "forget_people", "holdout_people", "scale"), ("synthetic",)
    ),
}
_WORLD_KEYS = {
    **dict.fromkeys(("people", "forget_people", "holdout_people"), ("people",)),
    "scale": ("neighbours",),
}


@dataclass(frozen=True, config=STRICT)
class SetConfig:
    """A further evaluation set; nothing is trained on its rows."""

    path: str
    """JSON lines, JSON, CSV or Parquet; in data.path if it is there."""
    role: Literal["forget", "retain", "general"] = "general"
    columns: dict[str, str] = Field(default_factory=dict)
    """As data.columns, for this file."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which rows are forgotten, which are kept, and how they become tokens."""

    format: Literal[
        "synthetic", "toy", "tofu", "melu", "lume", "muse", "toxicity", "ner", "code", "jsonl",
        "csv", "parquet",
    ] = "synthetic"  # fmt: skip
    path: str | None = None
    """Folder of the data set; `forget` and `retain` are looked up in it."""
    forget: str | None = None
    """TOFU split (`forget01`) or a file. MUSE: a file in `raw` or `folder/file`, such as
    `scal/forget_2`. Toxicity: a file of scored prompts and continuations; NER: one of tagged
    sentences. LUME, MUSE, toxicity, NER and code have defaults."""
    retain: str | None = None
    """Toxicity and NER: another file of the same layout whose clean lines, or places, organisations
    and other names, are kept; default: that of forget."""
    holdout: str | None = None
    """TOFU split or a file of rows like the forget rows that no model was trained on; what
    membership inference compares those to. Default: none, and no membership inference."""
    test: str | None = None
    """MELU: file of neighbours and general rows that are learned and evaluated, but are in no
    retain set. NER: file of the sentences that are evaluated; default: one in five of the others,
    which are then not trained on."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Ours to theirs, e.g. {question: prompt, answer: completion}."""
    sets: dict[str, SetConfig] = Field(default_factory=dict)
    """Name to further evaluation set, e.g. {mmlu: {path: mmlu.jsonl}}."""
    chunk_words: Count = 1200
    """MUSE only: most words of one training row. 1200 words of English have about 1800 tokens; the
    paper's rows have 2048."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Toxicity only: score from which on a continuation is toxic. What scores below half of it is
    clean."""
    template: str = "Question: {question}\nAnswer:"
    """Prompt for tokenizers without a chat template; one space and the answer follow it."""
    max_length: Count | None = None
    """Tokens per row; default: the model's own limit. Longer rows are left out and counted."""
    authors: Annotated[int, Field(ge=2)] | None = None
    """TOFU only: keep the forget authors and those that follow in the file, round its end."""
    neighbours: bool = False
    """TOFU only: each retain author becomes an indirect neighbour of a forget author."""
    world: Literal["people", "neighbours"] = "people"
    """Synthetic world: unrelated people, or people with what is related to them."""
    people: Annotated[int, Field(ge=4)] = 40
    """World of people: how many of them."""
    forget_people: Count = 4
    """World of people: how many of them are forgotten."""
    holdout_people: Annotated[int, Field(ge=0)] = 0
    """World of people: how many further ones no model learns; their rows are the holdout."""
    scale: Positive = 0.2
    """World of neighbours: its size; 1 is that of MELU's data (20 forget entities, 2637 rows)."""

    execute: bool = False
    """Code only: rate generated programs by running them before their tests, in a sandbox (Linux
    only); otherwise they are read and never run."""

    task: Literal["toxicity", "ner", "code"] = "toxicity"
    """Toy world: which of its skills is to be forgotten."""

    def __post_init__(self):
        refuse_changed(self, _DATA_KEYS, "format", self.format)
        if self.format in _FILES:
            for key in ("forget", "retain"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key} is required for format {self.format}")
        for name in self.sets:
            if not PLAIN_NAME.fullmatch(name):
                raise ValueError(f"sets: {name!r} must be a plain name without / in it")
        refuse_changed(self, _WORLD_KEYS, "world", self.world)
        if self.forget_people >= self.people:
            raise ValueError("forget_people must be smaller than people")
        if "{question}" not in self.template:
            raise ValueError("template must contain {question}")
