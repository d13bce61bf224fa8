"""What each family's config.json means: one function per family, fields in, `DecoderConfig` out."""

from typing import Any

from jaxunlearn.models.decoder_config import DecoderConfig, LayerKind
from jaxunlearn.models.hf_config import Fields, read_rope

FULL, SLIDING = "full_attention", "sliding_attention"
_GELU = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", **_GELU}


def _common(fields: Fields, **own: Any) -> dict[str, Any]:
    """What nearly all families state under the same keys."""
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    kv_heads = fields.count("num_key_value_heads", heads)
    head_dim = own.pop("head_dim", None) or fields.count("head_dim", max(1, hidden // heads))
    if heads % kv_heads or head_dim % 2:
        raise fields.error(
            f"num_attention_heads {heads} must be a multiple of num_key_value_heads "
            f"{kv_heads}, and head_dim {head_dim} must be even"
        )
    return {
        "vocab_size": fields.count("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": fields.count("intermediate_size"),
        "num_layers": fields.count("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": fields.count("max_position_embeddings", 2048),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.choice("hidden_act", _ACTIVATIONS, "silu"),
        "tie_embeddings": fields.flag("tie_word_embeddings", own.pop("tied", False)),
        **own,
    }


def _whole_heads(fields: Fields) -> Fields:
    """The fields of a family whose heads make up its width and have keys of their own; as in
    transformers, what a file says otherwise has no effect."""
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    if hidden % heads:
        raise fields.error(f"hidden_size {hidden} must be a multiple of the {heads} heads")
    kept = {"head_dim": hidden // heads, "num_key_value_heads": heads}
    return Fields({**fields.values, **kept}, fields.where)


def _layers(fields: Fields, default: list[str]) -> tuple[int, ...]:
    """Which layers have a sliding window: 1 for those, 0 for the others."""
    types = fields.get("layer_types", default)
    if (
        not isinstance(types, list)
        or len(types) != len(default)
        or any(kind not in (FULL, SLIDING) for kind in types)
    ):
        raise fields.error(f"layer_types must be {len(default)} times {FULL!r} or {SLIDING!r}")
    return tuple(int(kind == SLIDING) for kind in types)


def read_llama(fields: Fields) -> DecoderConfig:
    """Llama and all that share its architecture."""
    common = _common(fields)
    bias = fields.flag("attention_bias")
    return DecoderConfig(
        **common,
        kinds=(LayerKind(read_rope(fields, common["head_dim"])),),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def read_mistral(fields: Fields) -> DecoderConfig:
    """Llama with a sliding window."""
    common = _common(fields)
    fields.refuse("layer_types", None)
    rope = read_rope(fields, common["head_dim"])
    return DecoderConfig(**common, kinds=(LayerKind(rope, fields.window(default=4096)),))


def read_qwen2(fields: Fields) -> DecoderConfig:
    """Llama with biases on q, k and v; some upper layers may have a window."""
    return _qwen(fields, attention_bias=True)


def _qwen(fields: Fields, **own: Any) -> DecoderConfig:
    common = _common(fields, **own)
    rope, layers = read_rope(fields, common["head_dim"]), common["num_layers"]
    if not fields.flag("use_sliding_window"):
        if 1 in _layers(fields, [FULL] * layers):
            raise fields.error("layer_types has sliding layers but use_sliding_window is false")
        return DecoderConfig(**common, kinds=(LayerKind(rope),))
    first = fields.count("max_window_layers", 28, least=0)
    default = [SLIDING if layer >= first else FULL for layer in range(layers)]
    kinds = (LayerKind(rope), LayerKind(rope, fields.count("sliding_window", 4096)))
    return DecoderConfig(**common, kinds=kinds, kind_of_layer=_layers(fields, default))


def read_qwen3(fields: Fields) -> DecoderConfig:
    """Qwen 2 with normed queries and keys, and no biases by default."""
    bias = fields.flag("attention_bias")
    return _qwen(
        fields,
        head_dim=fields.count("head_dim", 128),
        qk_norm="head",
        attention_bias=bias,
        output_bias=bias,
    )


def read_smollm3(fields: Fields) -> DecoderConfig:
    """Llama in which every few layers know no positions."""
    common = _common(fields, tied=True)
    layers, bias = common["num_layers"], fields.flag("attention_bias")
    every = fields.count("no_rope_layer_interval", 4)
    default = [int((layer + 1) % every != 0) for layer in range(layers)]
    rotary = fields.get("no_rope_layers", default)  # 1 where a layer has RoPE
    if not isinstance(rotary, list) or len(rotary) < layers or any(x not in (0, 1) for x in rotary):
        raise fields.error(f"no_rope_layers must be {layers} times 0 or 1")
    window = fields.window() if fields.flag("use_sliding_window") else None
    types = [SLIDING if window and not rotary[layer] else FULL for layer in range(layers)]
    sliding = _layers(fields, types)
    if 1 in sliding and window is None:
        raise fields.error("layer_types has sliding layers but there is no window for them")
    rope = read_rope(fields, common["head_dim"], theta=2e6)
    kinds = tuple(LayerKind(r, w) for r in (None, rope) for w in (None, window))
    return DecoderConfig(
        **common,
        kinds=kinds,
        kind_of_layer=tuple(2 * rotary[layer] + sliding[layer] for layer in range(layers)),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def _gemma(fields: Fields, **own: Any) -> dict[str, Any]:
    """What all Gemmas share."""
    bias = fields.flag("attention_bias")
    if fields.flag("use_bidirectional_attention"):
        raise fields.error("use_bidirectional_attention is not supported; only causal attention is")
    return _common(
        fields,
        head_dim=fields.count("head_dim", 256),
        tied=True,
        norm_offset=1.0,
        embedding_scale=fields.count("hidden_size") ** 0.5,
        attention_bias=bias,
        output_bias=bias,
        **own,
    )


def read_gemma(fields: Fields) -> DecoderConfig:
    """Scaled embeddings, norms of scale + 1, a tanh GELU."""
    # The first files say gelu and mean its tanh form.
    known = {"gelu": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    common = _gemma(fields)
    common["activation"] = fields.choice("hidden_act", known, "gelu_pytorch_tanh")
    return DecoderConfig(**common, kinds=(LayerKind(read_rope(fields, common["head_dim"])),))


def _gemma2(fields: Fields, capped: bool) -> dict[str, Any]:
    """What Gemma 2 and 3 share."""
    return _gemma(
        fields,
        norm_after=True,
        query_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=_softcap(fields, "attn_logit_softcapping", 50.0 if capped else None),
        logit_softcap=_softcap(fields, "final_logit_softcapping", 30.0 if capped else None),
    ) | {"activation": fields.choice("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh")}


def _softcap(fields: Fields, key: str, default: float | None) -> float | None:
    """Null switches it off; a file that says nothing means transformers' default."""
    return fields.number(key, None if key in fields.values else default)


def read_gemma2(fields: Fields) -> DecoderConfig:
    """Gemma with norms on both sides, soft-caps, and a window in every other layer."""
    common = _gemma2(fields, capped=True)
    rope = read_rope(fields, common["head_dim"])
    default = [FULL if layer % 2 else SLIDING for layer in range(common["num_layers"])]
    kinds = (LayerKind(rope), LayerKind(rope, _gemma_window(fields)))
    return DecoderConfig(**common, kinds=kinds, kind_of_layer=_layers(fields, default))


def _gemma_window(fields: Fields) -> int:
    window = fields.window(default=4096)
    if window is None:
        raise fields.error("sliding_window is null, but this family's local layers need one")
    return window


def read_gemma3(fields: Fields) -> DecoderConfig:
    """Gemma 2 without soft-caps, with normed queries and keys and two RoPE bases."""
    common = _gemma2(fields, capped=False)
    size = common["head_dim"]
    whole = read_rope(fields, size, theta=1e6, section=FULL)
    local = read_rope(
        Fields({**fields.values, "rope_scaling": None, "rope_theta": None}, fields.where),
        size,
        theta=fields.number("rope_local_base_freq", 10000.0),
        section=SLIDING,
    )
    every = fields.count("sliding_window_pattern", 6)
    layers = range(common["num_layers"])
    default = [SLIDING if (layer + 1) % every else FULL for layer in layers]
    kinds = (LayerKind(whole), LayerKind(local, _gemma_window(fields)))
    return DecoderConfig(
        **common, qk_norm="head", kinds=kinds, kind_of_layer=_layers(fields, default)
    )


def read_phi3(fields: Fields) -> DecoderConfig:
    """Llama with fused projections."""
    values = {"original_max_position_embeddings": 4096, **fields.values}
    fields = Fields(values, fields.where)
    common = _common(fields)
    rope = read_rope(fields, common["head_dim"], partial_key="partial_rotary_factor")
    return DecoderConfig(
        **common | {"norm_eps": fields.number("rms_norm_eps", 1e-5)},
        kinds=(LayerKind(rope, fields.window()),),
    )


def read_olmo2(fields: Fields) -> DecoderConfig:
    """Norms after attention and MLP only; queries and keys normed as a whole."""
    common, bias = _common(fields), fields.flag("attention_bias")
    return DecoderConfig(
        **common | {"norm_eps": fields.number("rms_norm_eps", 1e-5)},
        kinds=(LayerKind(read_rope(fields, common["head_dim"])),),
        norm_before=False,
        norm_after=True,
        qk_norm="all",
        attention_bias=bias,
        output_bias=bias,
    )


def read_gpt_neox(fields: Fields) -> DecoderConfig:
    """LayerNorm, biases, partial rotary positions, parallel residuals."""
    common, bias = _common(_whole_heads(fields)), fields.flag("attention_bias", True)
    rope = read_rope(
        fields,
        common["head_dim"],
        theta_key="rotary_emb_base",
        partial=0.25,
        partial_key="rotary_pct",
    )
    return DecoderConfig(
        **common
        | {
            "norm_eps": fields.number("layer_norm_eps", 1e-5),
            "activation": fields.choice("hidden_act", _ACTIVATIONS, "gelu"),
        },
        kinds=(LayerKind(rope),),
        norm="layer",
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        gated=False,
        parallel=fields.flag("use_parallel_residual", True),
    )


def read_gpt2(fields: Fields) -> DecoderConfig:
    """LayerNorm, biases, learned positions."""
    for key, usual in {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }.items():
        fields.refuse(key, usual)
    aliases = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
    renamed = {ours: fields.get(theirs, fields.get(ours)) for ours, theirs in aliases.items()}
    for ours, theirs in aliases.items():
        if fields.get(ours, renamed[ours]) != renamed[ours]:
            raise fields.error(f"{theirs} {renamed[ours]} and {ours} {fields.get(ours)} differ")
    width = Fields(renamed, fields.where).count("hidden_size")
    renamed["intermediate_size"] = fields.count("n_inner", 4 * width)
    renamed["max_position_embeddings"] = renamed["max_position_embeddings"] or 1024
    renamed["rms_norm_eps"] = fields.number("layer_norm_epsilon", 1e-5)
    renamed["hidden_act"] = fields.get("activation_function", "gelu_new")
    return DecoderConfig(
        **_common(_whole_heads(Fields({**fields.values, **renamed}, fields.where)), tied=True),
        kinds=(LayerKind(rope=None),),
        norm="layer",
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        learned_positions=True,
    )
