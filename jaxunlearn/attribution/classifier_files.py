"""A classifier's folder: what was trained as safetensors, the rest as JSON; and its fingerprint.

The frozen model is not in the folder, only a hash of it: the folder fits that model alone.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.attribution.classifier import Classifier
from jaxunlearn.errors import UserError
from jaxunlearn.models.folders import new_folder, read_json, write_json
from jaxunlearn.models.language_model import LanguageModel

SETTINGS, TENSORS = "attribution.json", "attribution.safetensors"


def fingerprint(classifier: Classifier) -> str:
    """A hash of everything that decides its scores."""
    return _hash(_settings(classifier, _hash_of_base(classifier.params)), _tensors(classifier))


def save(classifier: Classifier, folder: Path, *, overwrite: bool = False) -> None:
    """Writes the folder, whole or not at all.

    Raises:
      UserError: the folder is already there and `overwrite` is false.
    """
    from safetensors.numpy import save_file

    settings = _settings(classifier, _hash_of_base(classifier.params))
    tensors = _tensors(classifier)
    with new_folder(folder, overwrite) as out:
        save_file(tensors, out / TENSORS, metadata={"format": "pt"})
        write_json(out / SETTINGS, {**settings, "fingerprint": _hash(settings, tensors)})


def load(folder: Path, base: LanguageModel) -> Classifier:
    """The classifier of a folder, on the model that it was trained on.

    Raises:
      UserError: a file is missing or damaged, or the model is another one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings, base = read_json(folder / SETTINGS), base.merged()
    mark = settings.pop("fingerprint", None)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / TENSORS}: cannot be read ({error}); train it again") from None
    if mark != _hash(settings, tensors):
        raise UserError(f"{folder}: was changed after it was written; train the classifier again")
    if settings["base"] != _hash_of_base(base.params):
        raise UserError(
            f"{folder}: this classifier was trained on another model; load the one that it was "
            "trained on"
        )
    tree = unflatten_dict({tuple(n.split("/")): jnp.asarray(t) for n, t in tensors.items()})
    return Classifier(
        base.config,
        tuple(settings["owners"]),
        settings["start"],
        base.params,
        tree["factors"],
        tree["head"],
        jnp.float32(settings["temperature"]),
    )


def _settings(classifier: Classifier, base: str) -> dict[str, Any]:
    return {
        "owners": list(classifier.names),
        "start": classifier.start,
        "temperature": float(classifier.temperature),
        "base": base,
    }


def _tensors(classifier: Classifier) -> dict[str, np.ndarray]:
    flat = flatten_dict({"factors": dict(classifier.factors), "head": dict(classifier.head)})
    return {"/".join(path): np.asarray(leaf) for path, leaf in sorted(flat.items())}


def _hash_of_base(params: Mapping[str, Any]) -> str:
    flat = flatten_dict(dict(params))
    return _hash({}, {"/".join(path): leaf for path, leaf in flat.items()})


def _hash(settings: Mapping[str, Any], leaves: Mapping[str, Any]) -> str:
    """Of the values, whatever device they are on; one leaf at a time is copied from it."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, leaf in sorted(leaves.items()):
        tensor = np.asarray(leaf)
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return digest.hexdigest()
