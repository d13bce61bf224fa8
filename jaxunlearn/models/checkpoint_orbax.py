"""A whole model as an Orbax folder: params by Orbax, config and tokenizer files beside them."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models.checkpoint_hf import Placement, bare_model, write_side_files
from jaxunlearn.models.families import family_of, read_config
from jaxunlearn.models.folders import new_folder, read_json
from jaxunlearn.models.language_model import LanguageModel

_PARAMS = "params"


def is_orbax(folder: Path) -> bool:
    """Whether `save` wrote this folder."""
    return (folder / _PARAMS).is_dir() and (folder / "config.json").is_file()


def save(model: LanguageModel, folder: Path) -> None:
    """Writes a model, an adapter merged and int8 made floats. The folder appears complete or not
    at all.

    Raises:
      UserError: the folder is already there.
    """
    import orbax.checkpoint as ocp

    model = model.plain()
    with new_folder(folder, overwrite=False) as out:
        write_side_files(model, out)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((out / _PARAMS).absolute(), model.params)


def load(
    folder: Path, *, dtype: str | None = None, placement: Placement | None = None
) -> LanguageModel:
    """Reads a model that `save` wrote, on whatever devices it was written.

    Args:
      folder: the Orbax folder.
      dtype: of the params; default: as saved.
      placement: sharding of each leaf; default: all on the first device.

    Raises:
      UserError: a file is missing or damaged, or the params are not those of config.json.
    """
    import orbax.checkpoint as ocp

    where = folder / _PARAMS
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = flatten_dict(checkpointer.metadata(where.absolute()).item_metadata.tree)
            _check_shapes(folder, {path: tuple(leaf.shape) for path, leaf in saved.items()})
            wanted = {
                path: _wanted(path, tuple(leaf.shape), dtype or leaf.dtype, placement)
                for path, leaf in saved.items()
            }
            params = checkpointer.restore(where.absolute(), unflatten_dict(wanted))
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{where}: cannot be read ({first}); convert again") from error
    return bare_model(folder, params)


def _wanted(
    path: tuple[str, ...], shape: tuple[int, ...], dtype: str, placement: Placement | None
) -> jax.ShapeDtypeStruct:
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = first if placement is None else placement(path, shape)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def _check_shapes(folder: Path, found: dict[tuple[str, ...], tuple[int, ...]]) -> None:
    """The params must be those that config.json describes."""
    hf_config, where = read_json(folder / "config.json"), str(folder / "config.json")
    config = read_config(hf_config, where)
    table = family_of(hf_config, where).weights(config)
    asked = {p: s for weight in table for p, s in weight.leaf_shapes(config.num_layers)}
    for path in sorted(asked.keys() | found.keys()):
        if asked.get(path) != found.get(path):
            raise UserError(
                f"{folder / _PARAMS}: {'/'.join(path)} has shape {found.get(path)}, config.json "
                f"asks for {asked.get(path)}"
            )
