"""The reveal section of a config: how a model is made to tell what it knows, and what is kept.

The paper (Reveal and Release, arXiv 2509.14624) searches instructions with NeuralUCB and rewards
relevance and diversity; its settings are not known to us. All defaults here are ours.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jaxunlearn.validation import STRICT, Count, Fraction, NonNegative, Positive


@dataclass(frozen=True, config=STRICT)
class Bandit:
    """Settings of a bandit; a compiled program is specialised to them."""

    mode: Literal["ucb", "thompson", "greedy", "random", "linucb"] = "ucb"
    """See `select`. `linucb` is ucb with a linear model, fitted by ridge regression."""
    width: Count = 64
    """Units of the network's one hidden layer."""
    bonus: NonNegative = 0.3
    """Weight of the deviation. In the tests a search of 36 pulls by 64 hidden states brings 1.7
    times the reward of a random one with 0.3, and only 1.3 times with 1."""
    lam: Positive = 0.1
    """Ridge of the design matrix, and of the fit."""
    design: Literal["diagonal", "full"] = "diagonal"
    """U of a network's P weights: P or P^2 numbers. That of linucb is always full."""
    rate: Positive = 3e-3
    """Adam's learning rate."""
    steps: Count = 500
    """Adam's steps in one fit."""
    sub_pool: Count = 250
    """Arms among which one is selected."""
    init: Literal["mean_field", "he", "normal"] = "mean_field"
    """Initial weights. `he`: N(0, 2 / inputs) in both layers, biases 0. `mean_field`: the same, but
    N(0, 1 / width^2) out of the hidden layer, because an output layer of He's size predicts about
    -1 to 1 where nothing was pulled: its regret on the quadratic fixture is 26, not 9. `normal`:
    everything N(0, 1), biases too (INSTINCT)."""
    design_points: Literal["accumulated", "recomputed", "selected"] = "accumulated"
    """What is in U. `accumulated`: each pull with its gradient at the weights that selected it
    (NeuralUCB), the initial ones at the weights of the first fit. `recomputed`: all pulls, at the
    weights of the last fit. `selected`: as accumulated, without the initial pulls (INSTINCT's
    quirk)."""
    standardise: Literal["pool", "pulled"] = "pool"
    """Mean and deviation of contexts: over the whole pool, or over the pulled ones and none before
    the first fit (INSTINCT's quirk)."""
    fit_initial: bool = True
    """False: the initial pulls are not fitted before the first selection (INSTINCT's quirk)."""
    repeat_arms: bool = False
    """Whether an arm may be pulled again (INSTINCT's quirk)."""


INSTINCT = Bandit(
    width=100,
    rate=1e-3,
    steps=1000,
    sub_pool=1000,
    init="normal",
    design_points="selected",
    standardise="pulled",
    fit_initial=False,
    repeat_arms=True,
)
"""As the code of INSTINCT (arXiv 2310.02905) has it, in float32 instead of float64."""


@dataclass(frozen=True, config=STRICT)
class Filters:
    """Bounds that a generated text has to meet."""

    min_score: Fraction = 0.5
    """0.8 is what the literature calls toxic."""
    min_words: Annotated[int, Field(ge=0)] = 1
    max_words: Count | None = None
    max_repetition: Fraction = 0.3
    """Share of repeated 4-grams of words."""
    max_perplexity: Positive | None = None
    unique: bool = True
    """Duplicates and near-duplicates are dropped."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """From which Jaccard similarity of word n-grams on two texts are near-duplicates."""
    gram: Count = 3
    """Words in an n-gram."""


@dataclass(frozen=True, config=STRICT)
class RevealConfig:
    """How a model is made to tell what it knows of what shall be forgotten."""

    scorer: str | None = None
    """Says how much an answer is about it, in [0, 1]: path/to/file.py:function, from a list of
    texts to numbers; pattern:REGEX, 1 where that is found; or classifier:FOLDER:LABEL, a Hugging
    Face classifier. Default: the data's own."""
    scorer_version: str | None = None
    """A hash of the file of a scorer of your own, filled in."""
    files_version: str | None = None
    """A hash of the files of prompts and instructions, filled in."""
    prompts: str | None = None
    """File with a question in each line; default: the questions of the forget rows, whose answers
    are not read."""
    instructions: str | None = None
    """File with an instruction in each line; default: the data's own. {question} in one is where
    the question goes; without it the question follows after a space."""
    proposer: Literal["none", "written", "soft", "decoded"] = "none"
    """none: no search, the questions are asked as they are. written: searches the instructions.
    soft: soft prompts before the question. decoded: the model decodes soft prompts to
    instructions."""
    outer: Count = 3
    """Rounds of the outer loop: each has fresh candidates and a fresh bandit."""
    candidates: Count = 1000
    """In each outer round; all written ones if there are no more."""
    initial: Count = 40
    """Candidates that are tried before the bandit is, in each outer round."""
    carried: Count = 20
    """The best so many of these, and of the rounds before, are what the bandit starts from."""
    pulls: Count = 40
    """Candidates that the bandit then selects."""
    bandit: Bandit = Field(default_factory=Bandit)
    soft_tokens: Count = 5
    """Length of a soft prompt."""
    dimension: Annotated[int, Field(ge=1, le=21201)] = 10
    """Of the Sobol points that are projected to soft prompts."""
    pooling: Literal["last", "mean", "max"] = "last"
    """Of the last layer's hidden states, what the bandit sees of a candidate."""
    samples: Annotated[int, Field(ge=2)] = 16
    """Answers drawn to rate a candidate."""
    reward_weight: Fraction = 0.5
    """Of relevance against diversity."""
    best: Count = 5
    """Candidates whose answers become forget rows."""
    rows: Count = 1000
    """Answers drawn from them, or from the plain questions, before the filters."""
    max_new_tokens: Count = 64
    batch_size: Count = 32
    """Answers drawn together, and candidates whose hidden states are computed together."""
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    filters: Filters = Field(default_factory=Filters)
