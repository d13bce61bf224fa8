"""Answers made incoherent: what a policy writes that has found a hole in its reward."""

import jax
import jax.numpy as jnp

LONGEST_SPAN = 4
"""Tokens, at most, that a repeated answer says over and over."""


def corrupt(
    tokens: jax.Array,
    lengths: jax.Array,
    others: jax.Array,
    other_lengths: jax.Array,
    *,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each answer shuffled, repeated or spliced, with equal chances.

    Shuffled: its tokens in any order. Repeated: from somewhere in its first half on, the next 1 to
    LONGEST_SPAN tokens over and over, up to its own length. Spliced: its beginning, then the end of
    the other answer, from anywhere in it.

    Args:
      tokens: int32 [B, T], right-padded.
      lengths: int32 [B], at least 1.
      others: int32 [B, T], other answers.
      other_lengths: int32 [B], at least 1.
      key: of the draws.

    Returns:
      Tokens [B, T] with zeros as padding, lengths [B], and bool [B]: whether anything has changed,
      as a short answer may come out as it went in.
    """
    keys = jax.random.split(key, len(tokens))
    return jax.vmap(_corrupt)(tokens, lengths, others, other_lengths, keys)


def _corrupt(
    tokens_T: jax.Array, length: jax.Array, other_T: jax.Array, other_length: jax.Array, key
) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(key, 6)
    column_T = jnp.arange(len(tokens_T))
    order_T = jnp.argsort(
        jnp.where(column_T < length, jax.random.uniform(keys[0], column_T.shape), 1.0)
    )
    begin = jax.random.randint(keys[1], (), 0, jnp.maximum(length // 2, 1))
    span = jax.random.randint(keys[2], (), 1, LONGEST_SPAN + 1)
    repeat_T = begin + (column_T - begin) % jnp.minimum(span, length - begin)
    cut = jax.random.randint(keys[3], (), 1, jnp.maximum(length, 2))
    offset = jax.random.randint(keys[4], (), 0, other_length)
    tail_T = other_T[jnp.clip(column_T - cut + offset, 0, len(other_T) - 1)]
    made_3T = jnp.stack([
        tokens_T[order_T],
        tokens_T[jnp.where(column_T < begin, column_T, repeat_T)],
        jnp.where(column_T < cut, tokens_T, tail_T),
    ])  # fmt: skip
    spliced_length = jnp.minimum(cut + other_length - offset, len(tokens_T))
    which = jax.random.randint(keys[5], (), 0, 3)
    new_length = jnp.stack([length, length, spliced_length])[which]
    new_T = jnp.where(column_T < new_length, made_3T[which], 0)
    same = jnp.all((new_T == tokens_T) | (column_T >= length)) & (new_length == length)
    return new_T, new_length, ~same
