"""One typed experiment config: a YAML file plus dotted overrides, validated before anything loads.

The classes are frozen; building one validates it. `load` turns every fault into a `UserError`
that names the key, what was found there and what is allowed.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from jaxunlearn.validation import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Scalar,
    one_of,
    validate,
)

Sampler = Literal["sequential", "random", "cyclic", "melu", "cross_wired", "exposure_matched"]

Steps = Annotated[int, Field(ge=1, le=1_000_000)]
_STEPS = f"a number of steps from 1 to 1000000, or one of {', '.join(map(repr, get_args(Sampler)))}"

# Keys of the data section that not every format has, and the formats that have them.
_FILES = ("tofu", "melu", "jsonl", "csv", "parquet")
_NAMED_FILES = ("lume", "muse")  # whose files have names of their own
_DATA_KEYS = {
    **dict.fromkeys(("path", "forget", "retain"), (*_FILES, *_NAMED_FILES)),
    "columns": _FILES,
    "holdout": ("tofu", "jsonl", "csv", "parquet", "lume"),
    "chunk_words": ("muse",),
    "test": ("melu",),
    **dict.fromkeys(("authors", "neighbours"), ("tofu",)),
    **dict.fromkeys(
        ("world", "people", "forget_people", "holdout_people", "scale"), ("synthetic",)
    ),
}
_WORLD_KEYS = {
    **dict.fromkeys(("people", "forget_people", "holdout_people"), ("people",)),
    "scale": ("neighbours",),
}
_SAMPLER_KEYS = {
    "replacement": ("random",),
    **dict.fromkeys(
        ("general", "general_weight", "on_missing"), ("melu", "cross_wired", "exposure_matched")
    ),
}
_PLAIN_NAME = re.compile(r"[\w][\w.+-]*")
_STRICT = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
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
    remat: bool = False
    """Recompute layer activations in the backward pass: less memory, more time."""

    def __post_init__(self):
        if self.path is None and self.hidden_size % (2 * self.num_heads):
            raise ValueError("hidden_size must be an even multiple of num_heads")
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_heads must be a multiple of num_kv_heads")


@dataclass(frozen=True, config=_STRICT)
class SetConfig:
    """A further evaluation set; nothing is trained on its rows."""

    path: str
    """JSON lines, JSON, CSV or Parquet; in data.path if it is there."""
    role: Literal["forget", "retain", "general"] = "general"
    columns: dict[str, str] = Field(default_factory=dict)
    """As data.columns, for this file."""


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Which rows are forgotten, which are kept, and how they become tokens."""

    format: Literal["synthetic", "tofu", "melu", "lume", "muse", "jsonl", "csv", "parquet"] = (
        "synthetic"
    )
    path: str | None = None
    """Folder of the data set; `forget` and `retain` are looked up in it."""
    forget: str | None = None
    """TOFU split (`forget01`) or a file. MUSE: a file in `raw` or `folder/file`, such as
    `scal/forget_2`. LUME and MUSE have defaults."""
    retain: str | None = None
    holdout: str | None = None
    """TOFU split or a file of rows like the forget rows that no model was trained on; what
    membership inference compares those to. Default: none, and no membership inference."""
    test: str | None = None
    """MELU only: file of neighbours and general rows that are learned and evaluated, but are
    in no retain set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Ours to theirs, e.g. {question: prompt, answer: completion}."""
    sets: dict[str, SetConfig] = Field(default_factory=dict)
    """Name to further evaluation set, e.g. {mmlu: {path: mmlu.jsonl}}."""
    chunk_words: Count = 1200
    """MUSE only: most words of one training row. 1200 words of English have about 1800 tokens; the
    paper's rows have 2048."""
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

    def __post_init__(self):
        _refuse_changed(self, _DATA_KEYS, "format", self.format)
        if self.format in _FILES:
            for key in ("forget", "retain"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key} is required for format {self.format}")
        for name in self.sets:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(f"sets: {name!r} must be a plain name without / in it")
        _refuse_changed(self, _WORLD_KEYS, "world", self.world)
        if self.forget_people >= self.people:
            raise ValueError("forget_people must be smaller than people")
        if "{question}" not in self.template:
            raise ValueError("template must contain {question}")


@dataclass(frozen=True, config=_STRICT)
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
    optimizer_options: dict[str, float] = Field(default_factory=dict)
    """Its own numbers, such as {gamma: 0.05, rho: 1, every: 10} of sophia."""
    train_only: str | None = None
    """Regular expression over parameter paths such as layers/mlp/down/kernel, or
    layers/5/mlp/down/kernel for one layer; default: all."""
    checkpoint_every: Count = 200
    """Steps between checkpoints; the last step is always saved."""

    def __post_init__(self):
        if self.batch_size % self.micro_batches:
            raise ValueError("batch_size must be a multiple of micro_batches")


@dataclass(frozen=True, config=_STRICT)
class AdapterConfig:
    """Low-rank adapters on the linear layers; the scale of the branch is alpha / rank."""

    rank: Count = 8
    alpha: Positive = 16.0
    rslora: bool = False
    """Rank-stabilised: the scale is alpha / sqrt(rank)."""
    targets: str | None = None
    """Regular expression over the kernels' paths, such as attention/(q|v), or layers/5/ for one
    layer; default: every linear layer."""

    @property
    def scale(self) -> float:
        """What the branch is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, config=_STRICT)
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
        if self.label is not None and not _PLAIN_NAME.fullmatch(self.label):
            raise ValueError(f"label {self.label!r} must be a plain name without / in it")


@dataclass(frozen=True, config=_STRICT)
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
        _refuse_changed(self, keys, "name", self.name)

    def options_of(self, sampler: str) -> dict[str, Any]:
        """What this sampler itself is to know."""
        return {key: getattr(self, key) for key, of in _SAMPLER_KEYS.items() if sampler in of}


@dataclass(frozen=True, config=_STRICT)
class RequestsConfig:
    """How forget rows come as requests, one after another; each starts from the last result."""

    by: Literal["entity", "rows"] = "entity"
    size: Count = 1
    """Entities, or rows, in one request."""


@dataclass(frozen=True, config=_STRICT)
class StopConfig:
    """When to end a training before its last step, because too much is lost."""

    metric: Literal["retain_nll", "utility"] = "retain_nll"
    """Mean NLL of an answer token of retain rows, or the evaluation's model utility."""
    above: float | None = None
    below: float | None = None
    """Training ends once the metric is above the one or below the other."""
    every: Count = 20
    """Steps between two looks."""
    action: Literal["rollback", "stop"] = "rollback"
    """rollback: the result is the last state that was still good; stop: the one that was not."""

    def __post_init__(self):
        if (self.above is None) == (self.below is None):
            raise ValueError("exactly one of above and below must be given")


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
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


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """Everything that decides a run."""

    name: str | None = None
    """Run folder under `output`; default: the config file's name."""
    output: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    def __post_init__(self):
        if self.name is not None and not _PLAIN_NAME.fullmatch(self.name):
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


def _refuse_changed(section: Any, keys: Mapping[str, Sequence[str]], by: str, chosen: str) -> None:
    """A key that means something only for other choices must be what it is when left out."""
    for key, choices in keys.items():
        if chosen in choices:
            continue
        default = section.__dataclass_fields__[key].default
        if isinstance(default, FieldInfo):
            default = default.get_default(call_default_factory=True)
        if getattr(section, key) != default:
            raise ValueError(
                f"{key} means nothing for {by} {chosen}; remove it, or choose {by} "
                f"{' or '.join(choices)}"
            )
