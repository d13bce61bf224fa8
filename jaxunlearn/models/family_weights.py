"""The weight table of each family: names and shapes in the file, places in the params."""

from collections.abc import Mapping

from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.weights import Weight, embedding, linear, norm

Table = tuple[Weight, ...]


def _widths(config: DecoderConfig) -> tuple[int, int]:
    """Widths of all queries together, and of all keys."""
    return config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim


_PRE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
_POST = {
    "post_attention_layernorm": "attention_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_BOTH = {"input_layernorm": "attention_norm", "pre_feedforward_layernorm": "mlp_norm", **_POST}


def llama_weights(config: DecoderConfig, norms: Mapping[str, str] = _PRE) -> Table:
    """Llama's names, which most families share."""
    hidden, inner, layer = config.hidden_size, config.intermediate_size, "model.layers.{layer}."
    queries, keys = _widths(config)
    bias = config.attention_bias
    table = [
        *linear(f"{layer}self_attn.q_proj", hidden, ("attention.q", queries), bias=bias),
        *linear(f"{layer}self_attn.k_proj", hidden, ("attention.k", keys), bias=bias),
        *linear(f"{layer}self_attn.v_proj", hidden, ("attention.v", keys), bias=bias),
        *linear(f"{layer}mlp.gate_proj", hidden, ("mlp.gate", inner), bias=config.mlp_bias),
        *linear(f"{layer}mlp.up_proj", hidden, ("mlp.up", inner), bias=config.mlp_bias),
    ]
    if config.qk_norm is not None:
        whole = config.qk_norm == "all"
        sizes = (queries, keys) if whole else (config.head_dim, config.head_dim)
        table += norm(f"{layer}self_attn.q_norm", "attention.q_norm", sizes[0], config)
        table += norm(f"{layer}self_attn.k_norm", "attention.k_norm", sizes[1], config)
    return (*table, *_llama_rest(config, norms))


def phi3_weights(config: DecoderConfig) -> Table:
    """q, k and v in one tensor, gate and up in another."""
    layer, (queries, keys) = "model.layers.{layer}.", _widths(config)
    qkv = ("attention.q", queries), ("attention.k", keys), ("attention.v", keys)
    both = ("mlp.gate", config.intermediate_size), ("mlp.up", config.intermediate_size)
    return (
        *linear(f"{layer}self_attn.qkv_proj", config.hidden_size, *qkv),
        *linear(f"{layer}mlp.gate_up_proj", config.hidden_size, *both),
        *_llama_rest(config, _PRE),
    )


def _llama_rest(config: DecoderConfig, norms: Mapping[str, str]) -> Table:
    """What Phi-3, with its fused projections, still shares with Llama."""
    hidden, layer = config.hidden_size, "model.layers.{layer}."
    out, down = ("attention.o", hidden), ("mlp.down", hidden)
    inner = config.intermediate_size
    table = [
        *embedding("model.embed_tokens.weight", "embed.embedding", config.vocab_size, config),
        *linear(f"{layer}self_attn.o_proj", _widths(config)[0], out, bias=config.output_bias),
        *linear(f"{layer}mlp.down_proj", inner, down, bias=config.mlp_bias),
        *norm("model.norm", "final_norm", hidden, config),
    ]
    for theirs, ours in norms.items():
        table += norm(f"{layer}{theirs}", ours, hidden, config)
    return (*table, *_head("lm_head", config))


def _head(module: str, config: DecoderConfig) -> list[Weight]:
    tied = config.tie_embeddings
    return [] if tied else linear(module, config.hidden_size, ("lm_head", config.vocab_size))


def gpt_neox_weights(config: DecoderConfig) -> Table:
    """q, k and v of each head in turn, in one tensor."""
    hidden, inner, layer = config.hidden_size, config.intermediate_size, "gpt_neox.layers.{layer}."
    qkv = [(f"attention.{name}", hidden) for name in "qkv"]
    fused = {"bias": config.attention_bias, "groups": config.num_heads}
    out = ("attention.o", hidden)
    return (
        *embedding("gpt_neox.embed_in.weight", "embed.embedding", config.vocab_size, config),
        *norm("gpt_neox.final_layer_norm", "final_norm", hidden, config),
        *norm(f"{layer}input_layernorm", "attention_norm", hidden, config),
        *norm(f"{layer}post_attention_layernorm", "mlp_norm", hidden, config),
        *linear(f"{layer}attention.query_key_value", hidden, *qkv, **fused),
        *linear(f"{layer}attention.dense", hidden, out, bias=config.output_bias),
        *linear(f"{layer}mlp.dense_h_to_4h", hidden, ("mlp.up", inner), bias=True),
        *linear(f"{layer}mlp.dense_4h_to_h", inner, ("mlp.down", hidden), bias=True),
        *_head("embed_out", config),
    )


def gpt2_weights(config: DecoderConfig) -> Table:
    """Conv1D tensors [in, out]; q, k and v in one."""
    hidden, inner, layer = config.hidden_size, config.intermediate_size, "transformer.h.{layer}."
    qkv = [(f"attention.{name}", hidden) for name in "qkv"]
    conv1d = {"bias": True, "conv1d": True}
    return (
        *embedding("transformer.wte.weight", "embed.embedding", config.vocab_size, config),
        *embedding("transformer.wpe.weight", "embed.positions", config.max_positions, config),
        *norm("transformer.ln_f", "final_norm", hidden, config),
        *norm(f"{layer}ln_1", "attention_norm", hidden, config),
        *norm(f"{layer}ln_2", "mlp_norm", hidden, config),
        *linear(f"{layer}attn.c_attn", hidden, *qkv, **conv1d),
        *linear(f"{layer}attn.c_proj", hidden, ("attention.o", hidden), **conv1d),
        *linear(f"{layer}mlp.c_fc", hidden, ("mlp.up", inner), **conv1d),
        *linear(f"{layer}mlp.c_proj", inner, ("mlp.down", hidden), **conv1d),
        *_head("lm_head", config),
    )


def gemma2_weights(config: DecoderConfig) -> Table:
    """Norms on both sides."""
    return llama_weights(config, _BOTH)


def olmo2_weights(config: DecoderConfig) -> Table:
    """Norms after attention and MLP."""
    return llama_weights(config, _POST)
