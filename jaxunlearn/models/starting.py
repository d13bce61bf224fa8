"""The model that a run starts from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxunlearn.config import Experiment, ModelConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.models import transformer
from jaxunlearn.models.attention import refusal
from jaxunlearn.models.checkpoint_hf import Placement, bare_model
from jaxunlearn.models.families import read_config
from jaxunlearn.models.hub import model_folder
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.peft_adapter import SETTINGS, base_folder

SCRATCH_POSITIONS = 256  # longest row of a model that is made from nothing


def base_model(
    experiment: Experiment, data: UnlearningData, placement: Placement | None = None
) -> LanguageModel:
    """The model that everything starts from: loaded, or made from nothing.

    Args:
      experiment: its model section, template and seed are used.
      data: whose texts a new tokenizer is made of.
      placement: sharding of each leaf that is loaded; default: all on the first device.

    Raises:
      UserError: as `load_model`, or an adapter folder is to be quantised.
    """
    settings = experiment.model
    if settings.path is not None:
        _check_whole(settings)
        return loaded(settings.path, settings, placement)
    model = _new_model(settings, tokens.all_texts(data, template=experiment.data.template))
    params = transformer.init_params(model.config, jax.random.key(experiment.seed))
    return computed(dataclasses.replace(model, params=params), settings)


def weightless_model(experiment: Experiment, data: UnlearningData) -> tuple[LanguageModel, str]:
    """The same without its weights, and the dtype that they have; of a model folder only the small
    files are read. An adapter in the folder counts as merged, as trainings merge it.

    Raises:
      UserError: as `base_model`, but for the weights.
    """
    settings = experiment.model
    if settings.path is None:
        texts = tokens.all_texts(data, template=experiment.data.template)
        model, dtype = _new_model(settings, texts), "float32"
    else:
        _check_whole(settings)
        model = bare_model(base_folder(settings.path), {})
        dtype = model.hf_config.get("torch_dtype") or model.hf_config.get("dtype") or "float32"
    leaf = jax.ShapeDtypeStruct((), dtype)
    shaped = dataclasses.replace(model, params={"embed": {"embedding": leaf}})
    return dataclasses.replace(computed(shaped, settings), params={}), str(dtype)


def _new_model(settings: ModelConfig, texts: Sequence[str]) -> LanguageModel:
    """A small Llama-style model without parameters, for these texts."""
    tokenizer = tokens.train_tokenizer(texts, settings.vocab_size)
    hf_config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "max_position_embeddings": SCRATCH_POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = read_config(hf_config, "the config of a new model")
    return LanguageModel(config, {}, tokenizer, hf_config=hf_config)


def loaded(
    path: str | Path, settings: ModelConfig, placement: Placement | None = None
) -> LanguageModel:
    """A model folder or Hub id, held and computed as the config's model section says.

    Args:
      path: of the start model or the retrained one; what a run exports holds its numbers already.
      settings: of the section all but its paths count.
      placement: as of `load_model`.
    """
    model = load_model(path, placement=placement, quantize=settings.quantize)
    return computed(model, settings)


def _check_whole(settings: ModelConfig) -> None:
    """Trainings merge an adapter into the base, and what is merged is not in int8."""
    if settings.quantize and (model_folder(settings.path, weights=False) / SETTINGS).is_file():
        raise UserError(
            f"model.quantize: {settings.path} is an adapter, and merged with its base it is not"
            f" {settings.quantize}; make one model of them (jaxunlearn convert {settings.path} NEW)"
        )


def computed(model: LanguageModel, settings: ModelConfig) -> LanguageModel:
    """The model, computed as the config's model section says; where its attention cannot be had,
    by XLA's."""
    start = str(model.params["embed"]["embedding"].dtype)
    dtype = settings.dtype or ("bfloat16" if start == "bfloat16" else "float32")
    config = dataclasses.replace(
        model.config, remat=settings.remat, dtype=dtype, attention=settings.attention
    )
    if refusal(config) is not None:
        config = dataclasses.replace(config, attention="xla")
    return dataclasses.replace(model, config=config)


def attention_note(model: LanguageModel, settings: ModelConfig) -> str | None:
    """What to say if a model that `computed` gave has not the attention that was asked for."""
    if model.config.attention == settings.attention:
        return None
    why = refusal(dataclasses.replace(model.config, attention=settings.attention))
    return f"model.attention: {settings.attention} cannot be used here: {why}; xla computes it"
