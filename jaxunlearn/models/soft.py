"""Soft prompts: vectors before a prompt, as if they were the embeddings of tokens."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.language_model import LanguageModel


def with_soft_prompts(
    model: LanguageModel, prompts: np.ndarray
) -> tuple[LanguageModel, list[list[int]]]:
    """The model with further ids, whose embeddings are the given vectors.

    A text that has such ids is forwarded, and generated from, like any other; the head does not
    predict them. Where a family scales its embeddings, these vectors are what comes out of that,
    like the `inputs_embeds` of transformers; learned positions are added to them.

    Args:
      model: without soft prompts.
      prompts: [N, P, D], of the model's hidden size D. Programs are compiled for N * P.

    Returns:
      The model, and the P ids of each of the N prompts.

    Raises:
      ValueError: the vectors are not of the model's size, or the model has soft prompts already.
    """
    count, length, size = np.shape(prompts)
    config = model.config
    if size != config.hidden_size or config.soft_rows:
        raise ValueError(
            f"soft prompts of shape {np.shape(prompts)} for a model of hidden size "
            f"{config.hidden_size} with {config.soft_rows} soft rows; give it [N, P, hidden size]"
        )
    rows = count * length
    soft = jnp.asarray(prompts, jnp.float32).reshape(rows, size)
    embed = {**model.params["embed"], "soft": soft}
    ids = config.vocab_size + np.arange(rows).reshape(count, length)
    softened = replace(
        model, config=replace(config, soft_rows=rows), params={**model.params, "embed": embed}
    )
    return softened, ids.tolist()
