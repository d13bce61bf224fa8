"""Model families: how a Hugging Face config and its tensors map onto the one decoder.

A family is one entry of `FAMILIES`: a function from config.json to `DecoderConfig`, and a table of
weights that import and export share. A new family is one more entry and one golden file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.models import family_configs as configs
from jaxunlearn.models import family_weights as tables
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.hf_config import Fields

# What config.json files of mixture-of-experts models say.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps onto the decoder."""

    model_type: str
    """The `model_type` of config.json."""
    architecture: str
    """The class in transformers."""
    covers: str
    """Released models of it, for people."""
    read_config: Callable[[Fields], DecoderConfig]
    weights: Callable[[DecoderConfig], tables.Table]
    ignored: tuple[str, ...] = ()
    """Tensors that old files carry and that hold nothing learned (matched by ending)."""
    prefix: str = ""
    """What the tensor names of some files lack at their beginning."""


def family_of(hf_config: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json belongs to.

    Raises:
      UserError: for a `model_type` that no family accepts; lists those that are.
    """
    model_type = hf_config.get("model_type")
    experts = [key for key in _EXPERTS if (hf_config.get(key) or 1) != 1]
    if experts:
        raise UserError(
            f"{where}: {model_type} is a mixture-of-experts model ({experts[0]} "
            f"{hf_config[experts[0]]}); only dense models are supported"
        )
    if hf_config.get("quantization_config"):
        raise UserError(
            f"{where}: the weights are quantised (quantization_config); use the model in "
            "bfloat16, float16 or float32"
        )
    if hf_config.get("is_causal") is False:
        raise UserError(f"{where}: is_causal is false; only causal attention is supported")
    if hf_config.get("vision_config") is not None:
        raise UserError(
            f"{where}: {model_type} is a model of images and text; only text models are supported"
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"{where}: model_type {model_type!r} is not supported; supported are: {known}"
        )
    return FAMILIES[model_type]


def read_config(hf_config: Mapping[str, Any], where: str) -> DecoderConfig:
    """The decoder that a config.json describes.

    Raises:
      UserError: unsupported model_type, a value that is missing or cannot be, or an option that is
        not supported; names the key.
    """
    return family_of(hf_config, where).read_config(Fields(hf_config, where))


_OLD_ROPE = ("rotary_emb.inv_freq",)
_OLD_MASKS = ("attention.bias", "attention.masked_bias", *_OLD_ROPE)

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            "Llama 1, 2, 3.x, TinyLlama, SmolLM 1 and 2",
            configs.read_llama,
            tables.llama_weights,
            _OLD_ROPE,
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            "Mistral 7B, Nemo, Small",
            configs.read_mistral,
            tables.llama_weights,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            "Qwen 1.5, 2, 2.5",
            configs.read_qwen2,
            tables.llama_weights,
        ),
        Family("qwen3", "Qwen3ForCausalLM", "Qwen 3", configs.read_qwen3, tables.llama_weights),
        Family("gemma", "GemmaForCausalLM", "Gemma 1", configs.read_gemma, tables.llama_weights),
        Family(
            "gemma2", "Gemma2ForCausalLM", "Gemma 2", configs.read_gemma2, tables.gemma2_weights
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            "Gemma 3, text only",
            configs.read_gemma3,
            tables.gemma2_weights,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            "Phi 3, 3.5, 4, 4 mini",
            configs.read_phi3,
            tables.phi3_weights,
        ),
        Family("olmo2", "Olmo2ForCausalLM", "OLMo 2", configs.read_olmo2, tables.olmo2_weights),
        Family(
            "smollm3", "SmolLM3ForCausalLM", "SmolLM 3", configs.read_smollm3, tables.llama_weights
        ),
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            "Pythia, GPT-NeoX",
            configs.read_gpt_neox,
            tables.gpt_neox_weights,
            _OLD_MASKS,
        ),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            "GPT-2",
            configs.read_gpt2,
            tables.gpt2_weights,
            (".attn.bias", ".attn.masked_bias"),
            "transformer.",
        ),
    )
}
