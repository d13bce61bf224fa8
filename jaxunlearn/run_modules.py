"""The adapter modules of a run folder: opened, listed, and put together anew."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxunlearn import config_file
from jaxunlearn.errors import UserError
from jaxunlearn.experiment import labels
from jaxunlearn.methods.orthogonality import delta_cosine
from jaxunlearn.models.adapter_algebra import inner_products
from jaxunlearn.models.checkpoint_hf import Quantize
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import ModuleStore, composed, modules_folder


@dataclass(frozen=True)
class RunModules:
    """One method's modules of a run, and the model that they are for."""

    run: Path
    base: str | Path
    """Folder or Hub id of the target, the model before any of them."""
    store: ModuleStore
    quantize: Quantize | None = None
    """How the run held that model."""

    def weights(self, changes: Mapping[str, float]) -> dict[str, float]:
        """Name to weight of every module, in their order, some of them changed.

        Raises:
          UserError: there is no module of such a name.
        """
        changed = {self.store.module(name).name: weight for name, weight in changes.items()}
        return {module.name: module.weight for module in self.store.modules()} | changed

    def model(self, weights: Mapping[str, float]) -> LanguageModel:
        """The target with the modules at these weights as its one adapter; with none of them, or at
        weight 0, the target itself.

        Raises:
          UserError: there is no module of such a name, or a folder is damaged.
        """
        used = {name: weight for name, weight in weights.items() if weight != 0}
        parts = [(weight, self.store.adapter(name)) for name, weight in used.items()]
        return composed(load_model(self.base, quantize=self.quantize), parts)

    def some(self, names: Iterable[str]) -> LanguageModel:
        """The target with these modules only, at their own weights.

        Raises:
          UserError: as `model`.
        """
        return self.model({name: self.store.module(name).weight for name in names})


def open_run(run: str | Path, method: str | None = None) -> RunModules:
    """The modules of a run's method.

    Args:
      run: its folder.
      method: label of the method; default: the main one.

    Raises:
      UserError: it is no run folder, has no such method or no modules, or its target is gone.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no config.yaml here; give a run folder")
    experiment = config_file.load(run / "config.yaml")
    known = list(labels(experiment))
    label = known[-1] if method is None else method
    if label not in known:
        raise UserError(f"--method: {run} has no {label!r}; it has {', '.join(known)}")
    store = ModuleStore(modules_folder(run, label))
    if not store.modules():
        if experiment.adapter is None:
            raise UserError(
                f"{run}: has no modules, because its config has no adapter section; run it with one"
                " under another --name"
            )
        if (run / "summary.json").is_file():
            raise UserError(f"{run}: {label} ended without training an adapter; its notes say why")
        raise UserError(f"{store.folder}: no modules yet; run {run / 'config.yaml'} to the end")
    if (run / "target" / "config.json").is_file():
        return RunModules(run, run / "target", store)
    if experiment.finetune is not None or experiment.model.path is None:
        raise UserError(f"{run / 'target'}: is gone, and its modules cannot be used without it")
    return RunModules(run, experiment.model.path, store, experiment.model.quantize)


def listing(modules: RunModules) -> list[dict[str, Any]]:
    """What there is to know of each module without the model.

    Returns:
      For each its name, weight and about; rank, the largest of its targets; kernels, how many it
      changes, layer by layer; norm, Frobenius, of all that it adds at weight 1; overlap, the mean
      cosine (over the targets that both have, in all layers) with the module that it overlaps with
      most, or 0; overlaps_with, the name of that one, or ""; and its folder.
    """
    store, found = modules.store, modules.store.modules()
    adapters = {module.name: store.adapter(module.name) for module in found}
    cosines = {
        frozenset(pair): _mean_cosine(*(adapters[name] for name in pair))
        for pair in itertools.combinations(adapters, 2)
    }
    rows = []
    for module in found:
        adapter = adapters[module.name]
        squares = jnp.concatenate(list(inner_products(adapter, adapter).values()))
        others = {n: cosines[frozenset((n, module.name))] for n in adapters if n != module.name}
        most = max(others, key=lambda name, others=others: abs(others[name]), default="")
        rows.append(
            {
                **vars(module),
                "rank": store.rank(module.name),
                "kernels": int((squares > 0).sum()),
                "norm": float(jnp.sqrt(squares.sum())),
                "overlap": others.get(most, 0.0),
                "overlaps_with": most,
                "folder": str(store.path(module.name)),
            }
        )
    return rows


def _mean_cosine(first: Adapter, second: Adapter) -> float:
    """Over layers of the targets that both have; 0 where there are none."""
    found = delta_cosine(first, second)
    return float(jnp.concatenate(list(found.values())).mean()) if found else 0.0
