"""The model that a run starts from."""

import dataclasses

import jax

from jaxunlearn.config import Experiment
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import UnlearningData
from jaxunlearn.models import transformer
from jaxunlearn.models.checkpoint_hf import Placement
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model

SCRATCH_POSITIONS = 256  # longest row of a model that is made from nothing


def base_model(
    experiment: Experiment, data: UnlearningData, placement: Placement | None = None
) -> LanguageModel:
    """The model that everything starts from: loaded, or made from nothing.

    Args:
      experiment: its model section, template and seed are used.
      data: whose texts a new tokenizer is made of.
      placement: sharding of each leaf that is loaded; default: all on the first device.
    """
    settings = experiment.model
    if settings.path is not None:
        model = load_model(settings.path, placement=placement)
        config = dataclasses.replace(model.config, remat=settings.remat)
        return dataclasses.replace(model, config=config)
    texts = tokens.all_texts(data, template=experiment.data.template)
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
    config = dataclasses.replace(config, remat=settings.remat)
    params = transformer.init_params(config, jax.random.key(experiment.seed))
    return LanguageModel(config, params, tokenizer, hf_config=hf_config)
