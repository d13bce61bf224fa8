"""Model families: how a Hugging Face config and its tensors map onto the decoder, both ways.

A family is one entry of `FAMILIES`: two functions between config.json and `DecoderConfig`, and one
table of weights that import and export share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.models.transformer import DecoderConfig, RopeScaling


@dataclass(frozen=True)
class Weight:
    """One row of a weight table: a tensor of the file and its place in the params tree."""

    name: str
    """Tensor name; {layer} stands for the layer number of a tensor that is stacked over layers."""
    path: tuple[str, ...]
    """Keys into the params tree."""
    shape: tuple[int, ...]
    """Shape in the file, of one layer."""
    transpose: bool = False
    """The file holds [out, in], the params hold [in, out]."""

    @property
    def stacked(self) -> bool:
        """Whether the params hold all layers of this weight in one array."""
        return "{layer}" in self.name


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps onto the decoder."""

    model_types: tuple[str, ...]
    architecture: str
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    write_config: Callable[[DecoderConfig], dict[str, Any]]
    weights: Callable[[DecoderConfig], tuple[Weight, ...]]
    ignored: tuple[str, ...] = ()
    """Tensors that old files carry and that hold nothing learned (matched by ending)."""


def family_of(hf_config: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json belongs to.

    Raises:
      UserError: for a `model_type` that no family accepts; lists those that are.
    """
    model_type = hf_config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(t for family in FAMILIES.values() for t in family.model_types))
    raise UserError(f"{where}: model_type {model_type!r} is not supported; supported are: {known}")


def _read_llama(hf: Mapping[str, Any], where: str) -> DecoderConfig:
    def count(key: str, default: int | None = None) -> int:
        value = hf.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{where}: {key} is missing; a Llama config.json must state it")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {key} must be a whole number of 1 or more, found {value!r}")
        return value

    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {hf['hidden_act']!r} is not supported; only silu is")
    heads, hidden = count("num_attention_heads"), count("hidden_size")
    kv_heads = count("num_key_value_heads", heads)
    head_dim = count("head_dim", max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{where}: num_attention_heads {heads} must be a multiple of num_key_value_heads "
            f"{kv_heads}, and head_dim {head_dim} must be even"
        )
    eps = hf.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, float | int) or not 0 <= eps < 1:
        raise UserError(f"{where}: rms_norm_eps must be a small number, found {eps!r}")
    theta, scaling = _read_rope(hf, where)
    return DecoderConfig(
        vocab_size=count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=count("intermediate_size"),
        num_layers=count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=count("max_position_embeddings", 2048),
        norm_eps=float(eps),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        attention_bias=bool(hf.get("attention_bias", False)),
        mlp_bias=bool(hf.get("mlp_bias", False)),
    )


def _read_rope(hf: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """RoPE base and scaling, from transformers 4 keys or transformers 5 `rope_parameters`."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{where}: the RoPE settings must be a mapping, found {rope!r}")
    theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    if not isinstance(theta, float | int) or theta <= 0:
        raise UserError(f"{where}: rope_theta must be a number above 0, found {theta!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise UserError(
            f"{where}: RoPE scaling {kind!r} is not supported; supported are: default, llama3"
        )
    try:
        return float(theta), RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_positions=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as missing:
        raise UserError(f"{where}: llama3 RoPE scaling needs {missing.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: llama3 RoPE scaling: {error}") from None


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    """config.json keys, with RoPE in both spellings: transformers 4 ignores `rope_parameters`."""
    scaling = config.rope_scaling and {
        "rope_type": "llama3",
        "factor": config.rope_scaling.factor,
        "low_freq_factor": config.rope_scaling.low_freq_factor,
        "high_freq_factor": config.rope_scaling.high_freq_factor,
        "original_max_position_embeddings": config.rope_scaling.original_max_positions,
    }
    rope = {**(scaling or {"rope_type": "default"}), "rope_theta": config.rope_theta}
    return {
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


def _llama_weights(config: DecoderConfig) -> tuple[Weight, ...]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    linear = [  # module in the file, ours, out, in, bias
        ("self_attn.q_proj", ("attention", "q"), queries, hidden, config.attention_bias),
        ("self_attn.k_proj", ("attention", "k"), keys, hidden, config.attention_bias),
        ("self_attn.v_proj", ("attention", "v"), keys, hidden, config.attention_bias),
        ("self_attn.o_proj", ("attention", "o"), hidden, queries, config.attention_bias),
        ("mlp.gate_proj", ("mlp", "gate"), inner, hidden, config.mlp_bias),
        ("mlp.up_proj", ("mlp", "up"), inner, hidden, config.mlp_bias),
        ("mlp.down_proj", ("mlp", "down"), hidden, inner, config.mlp_bias),
    ]
    layer = "model.layers.{layer}."
    table = [
        Weight("model.embed_tokens.weight", ("embed", "embedding"), (config.vocab_size, hidden)),
        Weight("model.norm.weight", ("final_norm", "scale"), (hidden,)),
    ]
    for theirs, ours in (
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "mlp_norm"),
    ):
        table.append(Weight(f"{layer}{theirs}.weight", ("layers", ours, "scale"), (hidden,)))
    for module, path, rows, columns, bias in linear:
        kernel = ("layers", *path, "kernel")
        table.append(Weight(f"{layer}{module}.weight", kernel, (rows, columns), transpose=True))
        if bias:
            table.append(Weight(f"{layer}{module}.bias", ("layers", *path, "bias"), (rows,)))
    if not config.tie_embeddings:
        head = ("lm_head", "kernel")
        table.append(Weight("lm_head.weight", head, (config.vocab_size, hidden), transpose=True))
    return tuple(table)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        model_types=("llama",),
        architecture="LlamaForCausalLM",
        read_config=_read_llama,
        write_config=_write_llama,
        weights=_llama_weights,
        ignored=("rotary_emb.inv_freq",),
    ),
}
