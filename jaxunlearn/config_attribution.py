"""Settings of attribution functions: whose training texts a response comes from."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxunlearn.config_adapter import AdapterConfig
from jaxunlearn.validation import (
    STRICT,
    Count,
    Fraction,
    Integer,
    NonNegative,
    Positive,
    Whole,
    refuse_changed,
)

_KEYS = {
    **dict.fromkeys(("model", "classifier"), ("classifier",)),
    "dimension": ("tracin", "tracin_cosine", "trak"),
    "encoder": ("encoder",),
    "label_noise": ("classifier", "encoder"),
}


@dataclass(frozen=True, config=STRICT)
class ClassifierSettings:
    """How a classifier is trained; the defaults are the paper's but for the prefixes."""

    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig(rank=16, alpha=32.0))
    epochs: Count = 5
    """Passes over the rows of the owner that has the most of them; others' come more often."""
    rows_per_owner: Count = 1
    """In every step, of each owner."""
    learning_rate: Positive = 1e-4
    """AdamW's; constant."""
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1.0
    """Most norm of a gradient."""
    prefix_share: Fraction = 0.5
    """Of the rows in a step; they are cut to a random prefix, as prefixes are what is scored."""
    incoherent_rows: Whole = 0
    """In every step, beside the owners': corrupted answers, of a class of their own. 0: there is no
    such class."""


@dataclass(frozen=True, config=STRICT)
class EncoderSettings:
    """Sizes of an encoder, and how it is trained, which is as a classifier is."""

    layers: Count = 2
    width: Count = 128
    heads: Count = 4
    epochs: Count = 20
    rows_per_owner: Count = 1
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1.0
    prefix_share: Fraction = 0.5
    incoherent_rows: Whole = 0

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ValueError("width must be an even multiple of heads")


@dataclass(frozen=True, config=STRICT)
class FunctionConfig:
    """One attribution function; it is fitted to the training answers of all owners."""

    kind: Literal[
        "classifier", "encoder", "tracin", "tracin_cosine", "trak", "overlap", "watermark"
    ] = "classifier"
    """classifier: a language model with a head (the paper's). encoder: a small bidirectional one
    with a head, trained from nothing. tracin, tracin_cosine, trak: by gradients of the model that
    is to forget. overlap: BM25 over n-grams, which needs no model. watermark: by invisible
    characters that stand in the training answers."""
    model: str | None = None
    """Classifier: Hugging Face folder of the model that it is made of, with the tokenizer of the
    model that is to forget; default: that model itself."""
    seed: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    """Added to the experiment's: another one makes another function of the same kind."""
    classifier: ClassifierSettings = Field(default_factory=ClassifierSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    dimension: Count = 512
    """Of the random projection of gradients."""
    label_noise: Fraction = 0.0
    """Classifier and encoder: share of the training answers that are given a random owner, to see
    what a bad function does."""

    def __post_init__(self):
        refuse_changed(self, _KEYS, "kind", self.kind)


@dataclass(frozen=True, config=STRICT)
class AttributionConfig:
    """Who the owners are, what rewards, and what looks on."""

    group: Count = 1
    """Owners are the rows' entities, or so many successive ones together; forget and retain
    entities are never put together."""
    function: FunctionConfig = Field(default_factory=FunctionConfig)
    """What rewards."""
    held_out: FunctionConfig = Field(default_factory=lambda: FunctionConfig(seed=1))
    """What no model is trained on, and tells whether the reward was cheated."""
    min_accuracy: Fraction = 0.6
    """A function that names fewer of the owners of its training answers is refused; 0: none is."""
