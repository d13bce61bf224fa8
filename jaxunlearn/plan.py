"""Whether a config's trainings fit on so many devices, and how to lay them out, before any weight
is read: from config.json, the rows, and the shapes of the traced step."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxunlearn.config import Experiment, MethodConfig, TrainingConfig, sampling_of, training_of
from jaxunlearn.config_adapter import AdapterConfig
from jaxunlearn.config_parallel import MeshConfig
from jaxunlearn.data.tokens import TokenTable, batch_width
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import labels, resolve, why_not_int8
from jaxunlearn.methods import registry
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.starting import weightless_model
from jaxunlearn.reveal.theme import load_data
from jaxunlearn.tables import encode_rows, make_tables, max_length
from jaxunlearn.training.batches import referenced
from jaxunlearn.training.footprint import Footprint, Job, Sizes, footprint
from jaxunlearn.training.statistics import Rows
from jaxunlearn.unlearning_job import batch_slots

MOST_DEVICES = 2**20
_UNITS = {
    unit + end: base**power
    for power, unit in enumerate(("", "K", "M", "G", "T"))
    for end, base in (("B", 1000), ("iB", 1024))
}
_WORDS = {
    "model": "start model, which is kept as it is",
    "trainable": "float32 copies of what trains",
    "optimizer": "optimiser state",
    "tables": "rows as tokens",
    "gradients": "gradients",
    "activations": "kept for the backward pass",
    "logits": "logits, and the head's gradient",
    "working": "the backward pass within a layer",
}


@dataclass(frozen=True)
class Plan:
    """A training on a mesh."""

    job: Job
    sizes: Sizes
    need: Footprint
    memory: int

    @property
    def fits(self) -> bool:
        """Whether its fullest moment is within the memory of a device."""
        return self.need.total <= self.memory


def report(experiment: Experiment, devices: int, memory: str) -> Iterator[str]:
    """Lines about each training of a config.

    Args:
      experiment: the config.
      devices: how many there are.
      memory: of each, such as 16GiB.

    Raises:
      UserError: sizes that cannot be, another number of devices than the mesh has, or a fault in
        the config.
    """
    size = _bytes_of(memory)
    if not 1 <= devices <= MOST_DEVICES:
        raise UserError(f"--devices: is {devices}; use 1 to {MOST_DEVICES}")
    experiment = resolve(experiment)
    meshes = list(_meshes(experiment, devices))
    int8 = experiment.model.path is not None and why_not_int8(experiment) is None
    for job in _jobs(experiment):
        best = _best(job, meshes, size)
        yield from _told(best, meshes, int8)
        if experiment.parallel == "auto" and best.sizes["data"] < devices:
            asked = ", ".join(f"{name}: {size}" for name, size in best.sizes.items())
            yield f"  parallel: auto uses data alone; for this mesh write parallel: {{{asked}}}"


def _told(plan: Plan, meshes: list[Sizes], int8: bool) -> Iterator[str]:
    job, need, sizes = plan.job, plan.need, plan.sizes
    mesh = " x ".join(f"{name} {size}" for name, size in sizes.items())
    yield f"{job.label}: {_words(need.total)} of {_words(plan.memory)} on each device; mesh {mesh}"
    for name, words in _WORDS.items():
        yield f"  {_words(getattr(need, name)):>12}  {words}"
    blocks, passes = sizes["data"] * sizes["fsdp"], job.training.micro_batches
    slots = min(job.slots.values())
    if blocks * passes > slots:
        yield (
            f"  {blocks} shares of a batch of {slots} rows in {passes} passes: some devices"
            " have none; raise training.batch_size"
        )
    if plan.fits:
        yield "  fits"
        return
    largest = max(_WORDS, key=lambda name: getattr(need, name))
    yield (
        f"  does not fit, by {_words(need.total - plan.memory)}; the largest part:"
        f" {_WORDS[largest]}, {_words(getattr(need, largest))}"
    )
    changed, mended = job, []
    for words, change in _remedies(job, blocks, int8):
        alone = _best(change(job), meshes, plan.memory)
        if alone.need.total < need.total:
            mended.append(words)
            changed = change(changed)
            yield f"  {words}: {_words(alone.need.total)}{', fits' if alone.fits else ''}"
    if len(mended) > 1:
        together = _best(changed, meshes, plan.memory)
        fits = ", fits" if together.fits else ", does not fit; more devices, or a smaller model"
        yield f"  all of these: {_words(together.need.total)}{fits}"
    elif not mended:
        yield "  no setting mends it: more devices, or a smaller model"


def _remedies(job: Job, blocks: int, int8: bool) -> Iterator[tuple]:
    """What may lower the need: words, and the change of a training."""
    training, config = job.training, job.config
    if config.remat != "full":
        yield "model.remat: full", lambda j: replace(j, config=replace(j.config, remat="full"))
    if config.dtype != "bfloat16":
        yield (
            "model.dtype: bfloat16",
            lambda j: replace(j, config=replace(j.config, dtype="bfloat16")),
        )
    most = max(1, min(job.slots.values()) // blocks)
    parts = max(n for n in range(1, most + 1) if training.batch_size % n == 0)
    if parts > training.micro_batches:
        more = replace(training, micro_batches=parts)
        yield f"training.micro_batches: {parts}", lambda j: replace(j, training=more)
    if int8 and job.quantize is None:
        yield "model.quantize: int8", lambda j: replace(j, quantize="int8")
    if job.adapter is None and training.train_only is None and job.label != "finetune":
        adapter = AdapterConfig()
        yield f"adapter: {{rank: {adapter.rank}}}", lambda j: replace(j, adapter=adapter)


def _best(job: Job, meshes: list[Sizes], memory: int) -> Plan:
    """On the first mesh on which every device has rows and all fits; else on the one that needs
    least."""
    passes = job.training.micro_batches

    def idle(sizes: Sizes) -> bool:
        return sizes["data"] * sizes["fsdp"] * passes > min(job.slots.values())

    plans = []
    for sizes in sorted(meshes, key=idle):
        plans.append(Plan(job, sizes, footprint(job, sizes), memory))
        if plans[-1].fits:
            return plans[-1]
    return min(plans, key=lambda plan: plan.need.total)


def _meshes(experiment: Experiment, devices: int) -> Iterator[Sizes]:
    """The mesh that the config asks for, or those that there are: fewest parts first."""
    asked = experiment.parallel
    if asked == "jit":
        yield {"data": 1, "fsdp": 1, "tensor": 1}
    elif asked == "pmap":
        yield {"data": devices, "fsdp": 1, "tensor": 1}
    elif isinstance(asked, MeshConfig):
        inner = asked.fsdp * asked.tensor
        data = asked.data or max(1, devices // inner)
        if data * inner != devices:
            raise UserError(
                f"parallel: data {data} x fsdp {asked.fsdp} x tensor {asked.tensor} is"
                f" {data * inner} devices, but --devices is {devices}; make the product"
                f" {devices}, or leave parallel out"
            )
        yield {"data": data, "fsdp": asked.fsdp, "tensor": asked.tensor}
    else:
        for tensor in (n for n in (1, 2, 4, 8) if devices % n == 0):
            rest = devices // tensor
            for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
                yield {"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor}


def _jobs(experiment: Experiment) -> Iterator[Job]:
    data = load_data(experiment)
    model, dtype = weightless_model(experiment, data)
    if experiment.finetune is not None:
        rows = (*data.forget, *data.retain, *data.background)
        limit = max_length(model, experiment)
        table = encode_rows(model, rows, experiment, limit, "training rows", _quiet).table
        yield _job(
            "finetune", experiment, model, dtype, registry.FINETUNE, {}, experiment.finetune,
            None, {"train": table},
        )  # fmt: skip
    for label, method in labels(experiment).items():
        if registry.kind_of(method.name) != "loss":
            raise UserError(
                f"method {method.name}: plan knows methods that are one training with a loss; for"
                " the others plan the same adapter and rows with method npo"
            )
        objective, hyper = registry.objective(method)
        tables, _ = make_tables(
            model, data.forget, data.retain, experiment, _without_answers(method), _quiet
        )
        yield _job(
            label, experiment, model, dtype, objective, hyper, training_of(experiment, method),
            experiment.adapter, {group: tables[group] for group in objective.groups},
            sampling_of(experiment, method).ratio,
        )  # fmt: skip


def _job(
    label: str,
    experiment: Experiment,
    model: LanguageModel,
    dtype: str,
    objective: registry.Objective,
    hyper: dict[str, float],
    training: TrainingConfig,
    adapter: AdapterConfig | None,
    tables: dict[str, TokenTable],
    ratio: int = 1,
) -> Job:
    longest = max(int(table.lengths.max()) for table in tables.values())
    width = batch_width(longest, next(iter(tables.values())).tokens.shape[1])
    sizes = {group: len(table.tokens) for group, table in tables.items()}
    slots = dict.fromkeys(tables, batch_slots(training, next(iter(sizes.values()))))
    if "retain" in slots:
        slots["retain"] *= ratio
    reference = referenced(objective)

    def shapes(group: str, table: TokenTable) -> Rows:
        def of(kind: type) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(table.tokens.shape, kind)

        return Rows(
            of(np.int32),
            of(np.bool_),
            None if table.labels is None else of(np.int32),
            of(np.float32) if group in reference else None,
        )

    rows = {group: shapes(group, table) for group, table in tables.items()}
    return Job(
        label, model.config, dtype, objective, hyper, training, adapter, rows, width, slots,
        experiment.seed, experiment.model.quantize,
    )  # fmt: skip


def _without_answers(method: MethodConfig) -> MethodConfig:
    """A method whose rows have the same shape, where the model itself would write the answers."""
    if registry.lookup(method.name).alternative != "generated":
        return method
    return MethodConfig("dpo", {"retain_loss": method.hyper["retain_loss"]})


def _bytes_of(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w+)", text.strip())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise UserError(f"--device-memory: is {text!r}; write a size such as 16GiB or 80GB")
    return int(float(found[1]) * _UNITS[found[2]])


def _words(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _quiet(_: str) -> None:
    """Takes what a run would tell."""
