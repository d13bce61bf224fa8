"""Settings of DareU, which trains on what the model itself says and not with a loss on rows."""

from dataclasses import replace
from typing import Literal

from pydantic.dataclasses import dataclass

from jaxunlearn.validation import STRICT, Count, Fraction, NonNegative, Positive, refuse_changed

_OF_ALGORITHM = {
    **dict.fromkeys(
        ("gae_lambda", "whiten", "value_clip", "value_weight", "value_learning_rate"), ("ppo",)
    ),
    "group_std": ("grpo",),
}
_OF_LEVEL = {"kappa": ("token",), "slices": ("token",)}


@dataclass(frozen=True, config=STRICT)
class DareU:
    """How a model is rewarded for answers that are not attributed to whom it should forget.

    "The paper" is arXiv 2605.30919; the defaults are its own for TOFU where it gives one, and
    training.epochs: 1, training.batch_size: 32 and training.learning_rate: 1.5e-4 go with them.
    """

    algorithm: Literal["ppo", "grpo", "rloo"] = "ppo"
    """Where advantages come from: a value head (the paper's), or how much better a response is than
    the others to the same prompt."""
    samples: Count = 1
    """Responses to each prompt in a batch; grpo and rloo need several."""
    updates: Count = 20
    """On each batch of responses."""
    old_refresh: Literal["epoch", "batch"] = "epoch"
    """When the policy that draws responses becomes the current one; epoch is the paper's algorithm.
    What the KL term keeps near to is with epoch that policy, and with batch the start model."""
    max_new_tokens: Count = 64
    """Longest response."""
    temperature: Positive = 0.8
    """Of the responses, and of all log-probabilities of them."""
    level: Literal["token", "sequence"] = "token"
    """Rewards for each token by the prefixes up to it, or one for the whole response."""
    slices: Count = 15
    """k: prefixes of a response that are scored."""
    kappa: Count | None = None
    """Tokens between two of these; default: as slices gives for each response. 1: every token."""
    scale: Positive = 1.05
    """C of the reward's transform: the larger, the less a middling score costs."""
    against: Literal["own", "any"] = "own"
    """Whose attribution counts: the owner of the question (the paper's), or of all forget owners
    together."""
    incoherence: bool = True
    """A class of incoherent texts counts like a forget owner where the function has one; see
    attribution.function.classifier.incoherent_rows. Not in the paper."""
    missing_cost: NonNegative = 0.0
    """Cost of each token that a response lacks to the length of the row's own answer; 1 is what a
    wholly attributed token costs. Not in the paper, whose rewards pay for saying little."""
    kl_weight: NonNegative = 0.1
    kl_estimator: Literal["k1", "k3"] = "k1"
    gamma: Fraction = 0.99
    """Discount of later rewards; the paper says only that it is below 1."""
    gae_lambda: Fraction = 1.0
    """1 is the paper's advantage."""
    whiten: bool = True
    """Advantages of ppo have mean 0 and deviation 1 over a batch."""
    group_std: bool = True
    """Advantages of grpo are divided by the deviation in their group."""
    clip: Positive = 0.2
    value_clip: Positive = 0.2
    value_weight: NonNegative = 0.2
    value_learning_rate: Positive | None = None
    """Of the value head; default: training.learning_rate."""
    entropy_weight: NonNegative = 0.0
    """Of a bonus for undecided predictions; not in the paper."""
    distill_weight: NonNegative = 2.0
    """lambda_dis: of the divergence from the start model on retain rows; 0: nothing holds them."""
    schedule: Literal["joint", "alternate"] = "joint"
    """Both terms in each update, or one update for the reward and then one for the retain rows; the
    paper's algorithm has the one and its text the other."""
    max_kl: Positive | None = None
    """Training ends once the responses of a batch say that the divergence of a token from the start
    model is above this, with the last policy whose responses did not; default: never. What the last
    batch of all makes of the policy is not looked at."""
    max_repetition: Fraction | None = None
    """The same, once so large a share of the pairs of neighbouring tokens in responses are
    repeats."""
    target_attribution: Fraction | None = None
    """Training ends once the held-out function attributes no more than this; default: never."""

    def __post_init__(self):
        if self.algorithm != "ppo" and self.samples < 2:
            raise ValueError(
                f"samples must be at least 2 for {self.algorithm}, which compares responses to one"
                " prompt; 8 is usual"
            )
        refuse_changed(self, _OF_ALGORITHM, "algorithm", self.algorithm)
        refuse_changed(self, _OF_LEVEL, "level", self.level)
        if self.kappa is not None and self.slices != DareU.slices:
            raise ValueError("slices means nothing beside kappa; remove one of them")

    @property
    def prefixes(self) -> int:
        """Most prefixes of one response that are scored."""
        if self.level == "sequence":
            return 1
        return self.slices if self.kappa is None else -(-self.max_new_tokens // self.kappa)

    @property
    def numbers(self) -> dict[str, float]:
        """What a compiled program takes as values, so that a sweep compiles nothing anew."""
        return {name: getattr(self, name) for name in _NUMBERS}

    @property
    def choices(self) -> "DareU":
        """What a compiled program is specialised to: numbers and bounds are the default ones."""
        plain = {name: getattr(DareU, name) for name in (*_NUMBERS, *_OUTSIDE)}
        return replace(self, **plain)


_NUMBERS = (
    "temperature", "scale", "missing_cost", "kl_weight", "gamma", "gae_lambda", "clip",
    "value_clip", "value_weight", "entropy_weight", "distill_weight",
)  # fmt: skip
_OUTSIDE = ("value_learning_rate", "max_kl", "max_repetition", "target_attribution")
