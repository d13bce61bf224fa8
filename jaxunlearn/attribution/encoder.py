"""A small bidirectional transformer that names the owner of a response, trained from nothing.

The mean of its last hidden states goes through a linear head. As every token sees all others, each
prefix of a response is a forward pass of its own.

Reference: the sentence-transformer classifier of Lu et al., De-attribute to Forget for LLM
Unlearning (DareU), arXiv 2605.30919, 2026, which is a pretrained DeBERTaV3; this one knows nothing
but the answers, and needs no file of weights.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.heads import Classifier, Tree, fit
from jaxunlearn.attribution.responses import Responses
from jaxunlearn.config_attribution import EncoderSettings
from jaxunlearn.errors import UserError
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class MeanToken:
    """See `heads.Network`: everything is trained."""

    vocab_size: int
    layers: int
    width: int
    heads: int

    @property
    def config(self) -> DecoderConfig:
        """The shape of its layers, which are a decoder's but for what a token sees."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_dim=self.width // self.heads,
            max_positions=0,  # not read: rotary positions have no end
            gated=False,
            activation="gelu",
        )

    def init(self, key: jax.Array) -> Tree:
        """Random float32 parameters."""
        return _Layers(self.config).init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))[
            "params"
        ]

    def states(
        self, trained: Tree, frozen: Tree, tokens: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        """See `Network.states`; of an empty response 0."""
        flat = lengths.reshape(-1)
        every = jnp.repeat(jnp.asarray(tokens), flat.size // len(tokens), axis=0)
        hidden_XTD = _Layers(self.config).apply({"params": trained}, every, flat)
        seen_XT = jnp.arange(every.shape[1])[None] < flat[:, None]
        total_XD = jnp.where(seen_XT[..., None], hidden_XTD, 0.0).sum(axis=1)
        return (total_XD / jnp.maximum(flat, 1)[:, None]).reshape(*lengths.shape, self.width)


class _Layers(nn.Module):
    """Tokens [B, T] and lengths [B] -> hidden states [B, T, D]; padding is not seen."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        config, positions = self.config, jnp.arange(tokens.shape[1])[None]
        x_BTD = transformer.Embedding(config, name="embed")(tokens, positions)
        causal = transformer.layer_context(config, positions, positions, tokens.shape[1])
        seen_BS = positions < lengths[:, None]
        context = causal._replace(mask_BTS=seen_BS[None, :, None])
        for layer in range(config.num_layers):
            x_BTD, _ = transformer.Block(config, name=f"layer_{layer}")(x_BTD, context, 0)
        return transformer.Norm(config, name="final_norm")(x_BTD)


def train(
    vocab_size: int, responses: Responses, settings: EncoderSettings, *, seed: int = 0
) -> tuple[Classifier, np.ndarray]:
    """Trains an encoder and a head on the answers of all owners; see `heads.fit`.

    Args:
      vocab_size: of the tokenizer of the responses.
      responses: ground-truth answers.
      settings: its sizes and how it is trained.
      seed: of its start, the order of rows, the prefixes and the corruptions.

    Returns:
      The classifier with temperature 1, and the loss of every step.

    Raises:
      UserError: a token that is not in the vocabulary.
    """
    largest = int(responses.tokens.max())
    if largest >= vocab_size:
        raise UserError(
            f"attribution: the responses have token id {largest}, but the vocabulary has ids 0 to "
            f"{vocab_size - 1}; take the model whose tokenizer made them"
        )
    network = MeanToken(vocab_size, settings.layers, settings.width, settings.heads)
    key_start, key_steps = jax.random.split(jax.random.key(seed))
    start = network.init(key_start)
    return fit(network, start, {}, responses, settings, seed=seed, key=key_steps)
