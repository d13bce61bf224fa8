"""A whole model as an Orbax folder: params by Orbax, config and tokenizer files beside them."""

from pathlib import Path

import jax
import numpy as np

from jaxunlearn.errors import UserError
from jaxunlearn.models.checkpoint_hf import new_folder, read_json, read_tokenizer, write_side_files
from jaxunlearn.models.families import family_of
from jaxunlearn.models.language_model import LanguageModel

_PARAMS = "params"


def is_orbax(folder: Path) -> bool:
    """Whether `save` wrote this folder."""
    return (folder / _PARAMS).is_dir() and (folder / "config.json").is_file()


def save(model: LanguageModel, folder: Path) -> None:
    """Writes a model; an adapter is merged first. The folder appears complete or not at all.

    Raises:
      UserError: the folder is already there.
    """
    import orbax.checkpoint as ocp

    model = model.merged()
    with new_folder(folder, overwrite=False) as out:
        write_side_files(model, out)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((out / _PARAMS).absolute(), model.params)


def load(folder: Path) -> LanguageModel:
    """Reads a model that `save` wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    import orbax.checkpoint as ocp

    hf_config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    family = family_of(hf_config, where)
    config = family.read_config(hf_config, where)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore((folder / _PARAMS).absolute())
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder / _PARAMS}: cannot be read ({first}); convert again") from error
    generation = folder / "generation_config.json"
    return LanguageModel(
        config=config,
        params=jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), params),
        tokenizer=read_tokenizer(folder),
        hf_config=hf_config,
        generation_config=read_json(generation) if generation.is_file() else {},
        folder=folder,
    )
