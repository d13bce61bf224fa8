"""One typed experiment config: a YAML file plus dotted overrides, validated before anything loads.

The classes are frozen; building one validates it. `load` turns every fault into a `UserError`
that names the key, what was found there and what is allowed.
"""

import dataclasses
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from jaxunlearn.config_adapter import AdapterConfig
from jaxunlearn.config_attribution import AttributionConfig
from jaxunlearn.config_data import DataConfig
from jaxunlearn.config_parallel import ParallelConfig
from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.validation import (
    PLAIN_NAME,
    STRICT,
    Count,
    Fraction,
    Integer,
    NonNegative,
    Number,
    Positive,
    Scalar,
    one_of,
    refuse_changed,
    validate,
)

Sampler = Literal["sequential", "random", "cyclic", "melu", "cross_wired", "exposure_matched"]

Remat = Literal["none", "full", "dots"]
Attention = Literal["xla", "cudnn", "splash"]

Steps = Annotated[int, Field(ge=1, le=1_000_000)]
_STEPS = f"a number of steps from 1 to 1000000, or one of {', '.join(map(repr, get_args(Sampler)))}"

_SAMPLER_KEYS = {
    "replacement": ("random",),
    **dict.fromkeys(
        ("general", "general_weight", "on_missing"), ("melu", "cross_wired", "exposure_matched")
    ),
}


def _remat(value: Any) -> Any:
    """Its name, of what was true or false once."""
    return {False: "none", True: "full"}[value] if isinstance(value, bool) else value


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Which model is unlearned."""

    path: str | None = None
    """Hugging Face folder, PEFT adapter folder, or Hub id (`org/name`, `org/name@revision`). Left
    out: a small Llama-style model is made from the sizes below."""
    retrained: str | None = None
    """The same, of a model that never saw the forget set, if you have one."""
    vocab_size: Count = 1024
    """Upper bound of the tokenizer that is trained when there is no path."""
    hidden_size: Count = 128
    num_layers: Count = 4
    num_heads: Count = 4
    num_kv_heads: Count = 2
    intermediate_size: Count = 352
    remat: Annotated[Remat, BeforeValidator(_remat)] = "none"
    """Recompute layers in the backward pass, for less memory and more time: none, full, or dots,
    which keeps the outputs of their matrix products. True is full, false is none."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the computation; parameters in training and log-probabilities are float32 all the same.
    Default: bfloat16 if the model folder's weights are, else float32."""
    quantize: Literal["int8"] | None = None
    """Holds the frozen base of an adapter in a byte a weight: the kernels of its layers, with a
    scale for each output. The retrained model is held so too."""
    attention: Attention = "xla"
    """What computes it in training: XLA, or the fused kernel of NVIDIA GPUs (cudnn) or TPUs
    (splash), which never holds the scores of all pairs of tokens. Where that cannot be, XLA does,
    and a note says so."""

    def __post_init__(self):
        if self.path is None and self.quantize is not None:
            raise ValueError("quantize is for a model that is loaded; give its path")
        if self.path is None and self.hidden_size % (2 * self.num_heads):
            raise ValueError("hidden_size must be an even multiple of num_heads")
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads must be a multiple of num_kv_heads")


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """How parameters change. One epoch is one pass over the forget rows (or the training rows)."""

    epochs: Count = 10
    batch_size: Count = 32
    """Forget rows in one update; as many retain rows come beside them."""
    micro_batches: Count = 1
    """Gradient accumulation: the batch is worked through in this many equal parts."""
    learning_rate: Positive = 1e-5
    warmup: Fraction = 0.1
    """Share of all steps in which the learning rate climbs linearly."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegative = 0.01
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    optimizer: Literal["adamw", "lion", "muon", "sophia", "sophia_h", "schedule_free", "sam"] = (
        "adamw"
    )
    optimizer_options: dict[str, Number] = Field(default_factory=dict)
    """Its own numbers, such as {gamma: 0.05, rho: 1, every: 10} of sophia."""
    train_only: str | None = None
    """Regular expression over parameter paths such as layers/mlp/down/kernel, or
    layers/5/mlp/down/kernel for one layer; default: all."""
    checkpoint_every: Count = 200
    """Steps between checkpoints; the last step is always saved."""

    def __post_init__(self):
        if self.batch_size % self.micro_batches:
            raise ValueError("batch_size must be a multiple of micro_batches")


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """A method by name; in YAML all its keys but these are hyper-parameters of the method.

    `jaxunlearn methods` lists them; the method registry checks them.
    """

    name: str = "npo"
    """As listed, or path/to/file.py:function for one of your own."""
    hyper: dict[str, Scalar | None] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    """Keys of the training section that are different for this method; with another optimizer
    come its own options, or its defaults."""
    sampling: dict[str, Scalar] = Field(default_factory=dict)
    """Keys of the sampling section that are different for this method."""
    label: str | None = None
    """What tables call it; default: its name."""
    version: str | None = None
    """Of a method of your own: a hash of its file, filled in."""

    def __post_init__(self):
        if self.label is not None and not PLAIN_NAME.fullmatch(self.label):
            raise ValueError(f"label {self.label!r} must be a plain name without / in it")


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """Which forget row meets which retain rows; `jaxunlearn samplers` says how."""

    name: Sampler = "random"
    subset: Literal["full", "direct", "indirect", "balanced"] = "full"
    """The neighbours in use: of one kind, or as many of both; general rows always are."""
    order: Literal["shuffle", "contiguous", "entity_batch", "round_robin"] = "shuffle"
    """Of the pairs of an epoch: at random, as made, by entity, or from each entity in turn."""
    ratio: Count = 1
    """Retain rows beside each forget row."""
    match_steps: Annotated[Steps | Sampler, one_of(_STEPS)] | None = None
    """As many steps as this, or as this sampler takes; default: as training.epochs gives."""
    replacement: bool = False
    """random: draw each partner from all retain rows, also from those drawn already."""
    general: Literal["static", "per_epoch"] = "static"
    """melu and its controls: which forget row a general row meets is drawn once, or per epoch."""
    general_weight: Literal["uniform", "exposure"] = "uniform"
    """melu and its controls: it is drawn evenly, or by how often the forget rows are shown."""
    on_missing: Literal["raise", "general"] = "raise"
    """melu and its controls: what an entity without neighbours meets."""

    def __post_init__(self):
        # What means nothing to the sampler may mean something to the one whose steps are counted.
        used = self.options_of(str(self.match_steps))
        keys = {key: of for key, of in _SAMPLER_KEYS.items() if key not in used}
        refuse_changed(self, keys, "name", self.name)

    def options_of(self, sampler: str) -> dict[str, Any]:
        """What this sampler itself is to know."""
        return {key: getattr(self, key) for key, of in _SAMPLER_KEYS.items() if sampler in of}


@dataclass(frozen=True, config=STRICT)
class RequestsConfig:
    """How forget rows come as requests, one after another; each starts from the last result."""

    by: Literal["entity", "rows"] = "entity"
    size: Count = 1
    """Entities, or rows, in one request."""


@dataclass(frozen=True, config=STRICT)
class StopConfig:
    """When to end a training before its last step, because too much is lost."""

    metric: Literal["retain_nll", "utility"] = "retain_nll"
    """Mean NLL of an answer token of retain rows, or the evaluation's model utility."""
    above: Number | None = None
    below: Number | None = None
    """Training ends once the metric is above the one or below the other."""
    every: Count = 20
    """Steps between two looks."""
    action: Literal["rollback", "stop"] = "rollback"
    """rollback: the result is the last state that was still good; stop: the one that was not."""

    def __post_init__(self):
        if (self.above is None) == (self.below is None):
            raise ValueError("exactly one of above and below must be given")


@dataclass(frozen=True, config=STRICT)
class SelectConfig:
    """Which state of a training is its result: the best of those that are evaluated meanwhile.

    If none keeps enough utility: the one with the most. `stop` may end the training earlier; a
    state from which it rolls back is none of those.
    """

    metric: str
    """What decides: any metric of the suite on the run's data, also one that compares with the
    retrained model."""
    goal: Literal["min", "max"]
    every: Count = 20
    """Steps between two looks, each of them an evaluation; there is one at the end too."""
    keep_utility: Fraction | None = None
    """Share of the target's model utility that the result must have; default: no bound."""
    patience: Count | None = None
    """Training ends after so many looks without a better one; default: at its last step."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """What is measured."""

    suite: str = "tofu"
    """A name that `jaxunlearn suites` lists, path/to/file.yaml, or several with + between them."""
    batch_size: Count = 32
    max_new_tokens: Count = 200
    limit: Count | None = None
    """At most this many rows of each evaluation set; default: all."""
    embedder: str | None = None
    """Suites that compare meanings: path/to/file.py:function, from a list of n texts to an array
    [n, D], such as a sentence encoder's; default: hidden states of the model before unlearning."""
    compat: Literal["paper", "melu", "open-unlearning"] = "paper"
    """melu: ROUGE-L counts the words of the generation, not of the answer, as MELU's code does;
    open-unlearning: its formulas where they differ from the papers'."""
    retain_log: str | None = None
    """TOFU_EVAL.json that open-unlearning wrote of a retrained model, in the place of one."""
    embedder_version: str | None = None
    """A hash of the embedder's file, filled in."""
    suite_version: str | None = None
    """A hash of the suite's own files, filled in."""


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """Everything that decides a run."""

    name: str | None = None
    """Run folder under `output`; default: the config file's name."""
    output: str = "runs"
    seed: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    finetune: TrainingConfig | None = None
    """Make the target (on forget + retain) and the retrained reference (on retain) first."""
    retrain: bool = True
    """Whether finetune makes the retrained reference too; without one, no forget quality."""
    method: MethodConfig = Field(default_factory=MethodConfig)
    baselines: tuple[MethodConfig, ...] = ()
    """Further methods, run and evaluated beside the main one."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    adapter: AdapterConfig | None = None
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    requests: RequestsConfig | None = None
    """Forget in parts, one after another; default: everything at once."""
    stop: StopConfig | None = None
    """Ends an unlearning whose retain rows suffer too much; default: never."""
    select: SelectConfig | None = None
    """Chooses the result among the states of an unlearning; default: the last one."""
    reveal: RevealConfig | None = None
    """For methods that make their forget rows themselves; default: as such a method has it."""
    attribution: AttributionConfig | None = None
    """Whose training texts a response comes from; for methods that reward by it and suites that
    measure it; default: as they have it."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    parallel: ParallelConfig = "auto"
    """How trainings use the devices; a run that was begun on some goes on on others."""

    def __post_init__(self):
        if self.name is not None and not PLAIN_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be a plain folder name without / in it")


def sampling_of(experiment: Experiment, method: MethodConfig) -> SamplingConfig:
    """The sampling section with what a method changes in it.

    Raises:
      UserError: it changes a key that there is not, or to a value that cannot be.
    """
    tree = dataclasses.asdict(experiment.sampling)
    if method.sampling.get("name", tree["name"]) != tree["name"]:
        # What was set for another sampler means nothing for this one.
        tree = {key: value for key, value in tree.items() if key not in _SAMPLER_KEYS}
    tree |= method.sampling
    return validate(SamplingConfig, tree, where=f"method {method.name}: sampling")


def training_of(experiment: Experiment, method: MethodConfig) -> TrainingConfig:
    """The training section with what a method changes in it.

    Raises:
      UserError: it changes a key that there is not, or to a value that cannot be.
    """
    shared = dataclasses.asdict(experiment.training)
    if method.training.get("optimizer", shared["optimizer"]) != shared["optimizer"]:
        # They are the other optimiser's.
        del shared["optimizer_options"]
    tree = {**shared, **method.training}
    return validate(TrainingConfig, tree, where=f"method {method.name}: training")
