"""Bytes that a training needs on each device, from shapes alone: nothing is compiled or allocated.

Parameters, optimiser state and tables are counted exactly, cut as the partition table cuts them.
What the forward pass keeps for the backward pass is read off the traced step of one device's share.
How much more the passes need meanwhile is a rule, measured on what XLA's CPU backend compiles.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Jaxpr, Literal, Var

from jaxunlearn.config import AdapterConfig, TrainingConfig
from jaxunlearn.methods.registry import Objective
from jaxunlearn.models import head, lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.int8 import with_int8_kernels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.on_mesh import ROWS
from jaxunlearn.training.loop import prepare, traced_numbers
from jaxunlearn.training.optimizers import OPTIMIZERS
from jaxunlearn.training.parallel import ONE_DEVICE, partition
from jaxunlearn.training.statistics import Rows
from jaxunlearn.training.step import StepSpec, TrainState, _counts, _loss, init_state

Tree = Any
Sizes = Mapping[str, int]
"""Of the mesh's axes."""
WORKING = 1.5
"""What the backward pass needs for the layer that it is at, next to what it keeps of one."""


@dataclass(frozen=True, eq=False)
class Job:
    """One training, without its weights; hashed by identity."""

    label: str
    config: DecoderConfig
    dtype: str
    """Of the model folder's weights."""
    objective: Objective
    hyper: Mapping[str, float]
    training: TrainingConfig
    adapter: AdapterConfig | None
    tables: Mapping[str, Rows]
    """Of shapes; all of one width."""
    width: int
    """Columns of the widest batch."""
    slots: Mapping[str, int]
    """Rows of each group in one batch."""
    seed: int = 0
    quantize: str | None = None
    """How the layers' kernels are held; None: in their dtype."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device at the fullest moment of a training."""

    model: int
    """The start model, in its folder's dtype, and further frozen models."""
    trainable: int
    """Float32 copies of what trains."""
    optimizer: int
    tables: int
    """Rows as tokens."""
    gradients: int
    activations: int
    """What the forward pass keeps for the backward pass, but for logits."""
    working: int
    """Of the layer that the backward pass is at."""
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def footprint(job: Job, sizes: Sizes) -> Footprint:
    """The bytes of a training on each device of a mesh with these axes."""
    state, frozen, params, reinforced = _shapes(job, job.config)
    held = {**frozen, "rest": _not_held(params, frozen)}
    if job.objective.needs("reinforced_logits"):
        held["reinforced"] = reinforced
    trained = _bytes(state.trainable, sizes)
    passes = job.training.micro_batches
    blocks = math.prod(sizes[name] for name in ROWS) * passes
    kept, kept_logits, layer = _kept(job, blocks, sizes["tensor"])
    logits = kept_logits + _logits_meanwhile(job, blocks, sizes)
    copies = 1 + (passes > 1) + OPTIMIZERS[job.training.optimizer].sharpness_aware
    return Footprint(
        model=_bytes(held, sizes),
        trainable=trained,
        optimizer=_bytes(state.opt_state, sizes),
        tables=_bytes(job.tables, sizes),
        gradients=copies * trained,
        activations=kept - kept_logits,
        logits=logits,
        working=max(0, round(WORKING * layer) - logits),
    )


@cache
def _shapes(job: Job, config: DecoderConfig) -> tuple[TrainState, Tree, Tree, Tree]:
    """State, frozen parameters and start parameters of a training, as shapes; and the parameters of
    a model that is trained beforehand."""

    def make() -> Tree:
        params = transformer.init_params(config, jax.random.key(0))
        params = jax.tree.map(lambda x: x.astype(job.dtype), params)
        if job.quantize is not None:
            params = with_int8_kernels(params)
        _, trainable, frozen, _ = prepare(
            LanguageModel(config, params),
            job.objective,
            job.hyper,
            job.training,
            1,
            job.adapter,
            job.seed,
        )
        reinforced = lora.merge(params, trainable["lora"]) if job.adapter else params
        return init_state(trainable, optimizer=job.training.optimizer), frozen, params, reinforced

    return jax.eval_shape(make)


def _not_held(params: Tree, frozen: Tree) -> Tree:
    """What of the start model is there beside the step's own frozen parameters: the step may
    change its copies, and the model must outlive it."""
    if "reference" in frozen:
        return {}
    held = flatten_dict(frozen.get("params", {}))
    rest = {path: leaf for path, leaf in flatten_dict(params).items() if path not in held}
    return unflatten_dict(rest)


def _bytes(tree: Tree, sizes: Sizes) -> int:
    """Of one device's share, exactly."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        words = jax.tree_util.keystr(path, simple=True, separator="/")
        cut = partition(words, leaf.shape, dict(sizes))
        parts = math.prod(sizes[name] for name in cut if name is not None)
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // parts
    return total


@cache
def _kept(job: Job, blocks: int, tensor: int) -> tuple[int, int, float]:
    """Bytes that a forward pass over one of `blocks` of the batch keeps on a device, those of them
    that are logits, and what one layer would keep without rematerialisation."""
    config = _share(job.config, tensor)

    def kept(remat: str) -> list[Var]:
        return list(_residuals(job, replace(config, remat=remat), blocks))

    found = kept(job.config.remat)
    logits = [v for v in found if v.aval.shape[-1:] == (config.vocab_size,)]
    none, full = (sum(map(_size, kept(remat))) for remat in ("none", "full"))
    layer = (none - full) / config.num_layers
    return sum(map(_size, found)), sum(map(_size, logits)), layer


def _share(config: DecoderConfig, tensor: int) -> DecoderConfig:
    """The model as a device sees it that has one of `tensor` parts of each layer."""

    def cut(count: int, also: int = 0) -> int:
        return count // tensor if count % tensor == also % tensor == 0 else count

    return replace(
        config,
        num_heads=cut(config.num_heads, config.num_kv_heads),
        num_kv_heads=cut(config.num_kv_heads, config.num_heads),
        intermediate_size=cut(config.intermediate_size),
        vocab_size=cut(config.vocab_size),
    )


def _logits_meanwhile(job: Job, blocks: int, sizes: Sizes) -> int:
    """Bytes of logits, and of the head's gradient, that are there beside those that are kept."""
    vocabulary = _share(job.config, sizes["tensor"]).vocab_size
    rows = sum(-(-slots // blocks) for slots in job.slots.values())
    whole = rows * job.width * vocabulary * 4
    if job.objective.needs("logits") or job.objective.needs("reference_logits"):
        return 3 * whole
    asked = ("log_probs", "seq_log_prob", "alternative_seq_log_prob")
    if whole <= 4 * head.MOST_LOGITS or not any(map(job.objective.needs, asked)):
        return 0
    kernel = 0
    if job.adapter is None:
        # Laid anew for the product; each part of the logits adds to its gradient.
        whole = vocabulary % sizes["fsdp"] > 0
        columns = vocabulary if whole else vocabulary // sizes["fsdp"]
        kernel = job.config.hidden_size * columns * 4 * (2 + (sizes["fsdp"] > 1))
    return 2 * 4 * head.MOST_LOGITS + kernel


def _residuals(job: Job, config: DecoderConfig, blocks: int) -> Iterator[Var]:
    """What the traced forward pass hands to the backward pass, each array once; arguments of the
    step, such as parameters, are not among them."""
    spec = StepSpec(config, job.objective)
    state, frozen, _, reinforced = _shapes(job, config)
    if job.objective.needs("reinforced_logits"):
        frozen = {**frozen, "reinforced": reinforced}
    batch = {}
    for group, table in job.tables.items():
        shape = (-(-job.slots[group] // blocks), job.width)
        batch[group] = jax.tree.map(lambda x, s=shape: jax.ShapeDtypeStruct(s, x.dtype), table)
    numbers = traced_numbers(job.hyper, job.training, 1, job.seed)

    def forward(trainable: Tree, frozen: Tree, batch: Tree) -> list[jax.Array]:
        counts = {group: _counts(part.mask, ONE_DEVICE) for group, part in batch.items()}
        loss = partial(_loss, spec, batch=batch, frozen=frozen, counts=counts, hyper=numbers)
        return jax.tree.leaves(jax.vjp(lambda tree: loss(tree)[0], trainable)[1])

    jaxpr = jax.make_jaxpr(forward)(state.trainable, frozen, batch).jaxpr
    seen: set[Any] = set(jaxpr.invars)
    for var in jaxpr.outvars:
        source = _source(jaxpr, var)
        if source is not None and source not in seen:
            seen.add(source)
            yield var


_SAME = {"reshape", "squeeze", "expand_dims", "copy"}
_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint"}


def _source(jaxpr: Jaxpr, var: Var) -> Any:
    """The variable whose memory a variable has, seen through reshapes and into loops and calls;
    None of a constant."""
    made = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    while not isinstance(var, Literal) and var in made:
        equation = made[var]
        name, place = equation.primitive.name, equation.outvars.index(var)
        if name in _SAME:
            var = equation.invars[0]
            continue
        if name != "scan" and name not in _CALLS:
            return var
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        inner = getattr(inner, "jaxpr", inner)
        first = 0
        if name == "scan":
            if inner.outvars[place].aval.shape == var.aval.shape:
                return var  # what is carried, not stacked
            # Each turn's value is stacked; a slice of what goes in is that again.
            pairs = zip(equation.invars, inner.invars, strict=True)
            first = sum(whole.aval.shape == part.aval.shape for whole, part in pairs)
        source = _source(inner, inner.outvars[place])
        if source is None:
            return None
        if source not in inner.invars[first:]:
            return id(equation), source
        var = equation.invars[inner.invars.index(source)]
    return None if isinstance(var, Literal) else var


def _size(var: Var) -> int:
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize
