"""A language model that names the owner of a response: frozen, with an adapter and a linear head.

It reads the last token's hidden state. As attention is causal, one forward pass gives the scores of
every prefix of a response.

Reference: Lu et al., De-attribute to Forget for LLM Unlearning (DareU), arXiv 2605.30919, 2026. The
paper trains on whole answers and has no incoherent class: `prefix_share=0` and
`incoherent_rows=0`. Its dropout of 0.1 in the adapter is left out.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.heads import Classifier, Tree, fit
from jaxunlearn.attribution.responses import Responses, at_lengths, check_readable, start_token
from jaxunlearn.config_attribution import ClassifierSettings
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel


@dataclass(frozen=True)
class LastToken:
    """See `heads.Network`: the params are frozen, the factors of an adapter are trained."""

    config: DecoderConfig
    start: int
    """Token before every response."""
    scale: float
    """Of the adapter."""

    @property
    def width(self) -> int:
        """See `Network.width`."""
        return self.config.hidden_size

    def states(
        self, trained: Tree, frozen: Tree, tokens: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        """See `Network.states`; all prefixes of a response cost what one of them does."""
        tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=self.start)
        factors = lora.scale(trained, self.scale)
        hidden_BTD = transformer.hidden_states(self.config, frozen, tokens, lora=factors)
        return at_lengths(hidden_BTD.astype(jnp.float32), lengths)


def train(
    base: LanguageModel, responses: Responses, settings: ClassifierSettings, *, seed: int = 0
) -> tuple[Classifier, np.ndarray]:
    """Trains an adapter and a head on the answers of all owners; see `heads.fit`.

    Args:
      base: with the tokenizer of the responses; it stays as it is. An adapter is merged first.
      responses: ground-truth answers.
      settings: how it is trained.
      seed: of the adapter, the order of rows, the prefixes and the corruptions.

    Returns:
      The classifier with temperature 1, and the loss of every step.

    Raises:
      UserError: a token that the model does not have, or answers longer than its limit.
    """
    base = base.merged()
    check_readable(base.config, responses)
    key_adapter, key_steps = jax.random.split(jax.random.key(seed))
    adapter = settings.adapter
    factors = lora.init(base.params, adapter.rank, key=key_adapter, targets=adapter.targets)
    network = LastToken(base.config, start_token(base.tokenizer), adapter.scale)
    return fit(network, factors, base.params, responses, settings, seed=seed, key=key_steps)
