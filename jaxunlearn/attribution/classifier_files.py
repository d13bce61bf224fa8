"""A classifier's folder: what was trained as safetensors, the rest as JSON; and its fingerprint.

A language model's frozen params are not in the folder, only a hash of them: the folder fits that
model alone. An encoder's is complete.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.attribution.classifier import LastToken
from jaxunlearn.attribution.encoder import MeanToken
from jaxunlearn.attribution.heads import Classifier, Network, Tree
from jaxunlearn.errors import UserError
from jaxunlearn.models.folders import new_folder, read_json, write_json
from jaxunlearn.models.language_model import LanguageModel

SETTINGS, TENSORS = "attribution.json", "attribution.safetensors"


def fingerprint(classifier: Classifier) -> str:
    """A hash of everything that decides its scores."""
    return _hash(_settings(classifier), _tensors(classifier))


def save(classifier: Classifier, folder: Path, *, overwrite: bool = False) -> None:
    """Writes the folder, whole or not at all.

    Raises:
      UserError: the folder is already there and `overwrite` is false.
    """
    from safetensors.numpy import save_file

    settings = _settings(classifier)
    tensors = _tensors(classifier)
    with new_folder(folder, overwrite) as out:
        save_file(tensors, out / TENSORS, metadata={"format": "pt"})
        write_json(out / SETTINGS, {**settings, "fingerprint": _hash(settings, tensors)})


def load(folder: Path, base: LanguageModel | None = None) -> Classifier:
    """The classifier of a folder, on the model that it was trained on.

    Args:
      folder: as `save` wrote it.
      base: what the classifier was trained on; an encoder's folder does not need it.

    Raises:
      UserError: a file is missing or damaged, or the model is another one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings = read_json(folder / SETTINGS)
    mark = settings.pop("fingerprint", None)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / TENSORS}: cannot be read ({error}); train it again") from None
    if mark != _hash(settings, tensors):
        raise UserError(f"{folder}: was changed after it was written; train the classifier again")
    network, frozen = _network(folder, settings, base)
    tree = unflatten_dict({tuple(n.split("/")): jnp.asarray(t) for n, t in tensors.items()})
    return Classifier(
        network,
        tuple(settings["owners"]),
        frozen,
        tree["trained"],
        tree["head"],
        jnp.float32(settings["temperature"]),
    )


def _network(
    folder: Path, settings: Mapping[str, Any], base: LanguageModel | None
) -> tuple[Network, Tree]:
    """The network, and its frozen params."""
    if settings["kind"] == "encoder":
        return MeanToken(**settings["network"]), {}
    merged = base and base.merged()
    if merged is None or settings["base"] != _hash_of_base(merged.params):
        raise UserError(
            f"{folder}: this classifier was trained on another model; load the one that it was "
            "trained on"
        )
    return LastToken(merged.config, **settings["network"]), merged.params


def _settings(classifier: Classifier) -> dict[str, Any]:
    network, frozen = classifier.network, classifier.frozen
    found = {"owners": list(classifier.names), "temperature": float(classifier.temperature)}
    if isinstance(network, MeanToken):
        return {**found, "kind": "encoder", "network": dataclasses.asdict(network)}
    own = {"start": network.start, "scale": network.scale}
    return {**found, "kind": "classifier", "network": own, "base": _hash_of_base(frozen)}


def _tensors(classifier: Classifier) -> dict[str, np.ndarray]:
    flat = flatten_dict({"trained": dict(classifier.trained), "head": dict(classifier.head)})
    return {"/".join(path): np.asarray(leaf) for path, leaf in sorted(flat.items())}


def _hash_of_base(params: Mapping[str, Any]) -> str:
    flat = jax.tree.leaves_with_path(dict(params))
    return _hash({}, {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat})


def _hash(settings: Mapping[str, Any], leaves: Mapping[str, Any]) -> str:
    """Of the values, whatever device they are on; one leaf at a time is copied from it."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, leaf in sorted(leaves.items()):
        tensor = np.asarray(leaf)
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return digest.hexdigest()
