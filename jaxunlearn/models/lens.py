"""What a model holds after each of its layers: the residual stream, and what the head reads in it.

Axes: L layers, B batch, T time, D model, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.head import head_log_probs
from jaxunlearn.models.transformer import Decoder, Norm, Params, head_kernel, variables


def residual_streams(
    config: DecoderConfig, params: Params, tokens: jax.Array, *, lora: Params | None = None
) -> jax.Array:
    """What flows out of every layer, [L, B, T, D] in the compute dtype, by one forward pass.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T].
      lora: adapter tree, already scaled; None for the bare model.
    """
    decoder = Decoder(config, normed=False)
    _, kept = decoder.apply(variables(params, lora), tokens, mutable=["intermediates"])
    (streams_LBTD,) = kept["intermediates"]["layers"]["residual"]
    return streams_LBTD


def residual_stream(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    layer: int,
    *,
    lora: Params | None = None,
) -> jax.Array:
    """The stream behind one layer (0 is the first), [B, T, D]; those above are not computed."""
    count = layer + 1
    config = dataclasses.replace(
        config, num_layers=count, kind_of_layer=config.kind_of_layer[:count]
    )

    def lower(tree: Params | None) -> Params | None:
        return tree and {**tree, "layers": jax.tree.map(lambda x: x[:count], tree["layers"])}

    return Decoder(config, normed=False).apply(variables(lower(params), lower(lora)), tokens)


def lens_log_probs(
    config: DecoderConfig, params: Params, tokens: jax.Array, *, lora: Params | None = None
) -> jax.Array:
    """The logit lens: log-probability of every token, as if each layer were the last one.

    The final norm and the head are applied to the residual stream after each layer, one layer after
    the other: [L, B, T, V] never exists. After the last layer it is `transformer.token_log_probs`.

    Args:
      config: the model's shape.
      params: its parameters.
      tokens: int32 [B, T].
      lora: adapter tree, already scaled; None for the bare model.

    Returns:
      float32 [L, B, T], aligned with ``tokens``; entry 0 along T is 0.

    Reference: nostalgebraist, interpreting GPT: the logit lens, 2020.
    """
    kernel_DV, next_tokens = head_kernel(config, params), jnp.roll(tokens, -1, axis=1)

    def of_layer(stream_BTD: jax.Array) -> jax.Array:
        hidden_BTD = Norm(config).apply({"params": params["final_norm"]}, stream_BTD)
        return head_log_probs(hidden_BTD, kernel_DV, next_tokens, config.logit_softcap)

    streams_LBTD = residual_streams(config, params, tokens, lora=lora)
    log_probs_LBT = jax.lax.map(of_layer, streams_LBTD)
    return jnp.pad(log_probs_LBT[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
