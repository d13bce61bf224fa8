"""Loss terms: pure functions of what a model says about the answer tokens.

A term never reduces over the batch: it returns one value per token, [B, T], or per sequence, [B].
The update step averages per-token values over all answer tokens of the global batch, and
per-sequence values over all its sequences; prompt and padding positions never count.

Positional parameters name what a term needs to know; the update step provides just that. Entry t is
about token t given the tokens before it, so entry 0 is predicted by nothing and never counts:

    log_probs               [B, T]     log p(token t) of the trained model
    logits                  [B, T, V]  the logits of the distribution that predicts token t
    targets                 [B, T]     the tokens, as integers; where a method gives other labels to
                                       read along the answer, those, also in `log_probs`
    mask                    [B, T]     whether token t belongs to the answer
    answer_length           [B]        number of answer tokens, |y| >= 1
    seq_log_prob            [B]        S, the sum of log_probs over the answer
    alternative_seq_log_prob  [B]      S of another answer to the same question
    hidden                  [B, T, D]  what one layer makes of token t (not of its prediction)

With `reference_` before the name (`alternative_reference_seq_log_prob` for the other answer), the
same under the frozen start model, and with `reinforced_` under a model trained further on the
forget rows. They are constants: no gradient flows through them.

Keyword-only parameters are hyper-parameters: their annotation is the allowed range, their default
is the paper's, or what is said there. "Open-unlearning" is that project's code; where it computes
something else, `compat` has its formula.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.validation import NonNegative, Positive, Whole

_LN2 = float(np.log(2.0))


def nll(log_probs: jax.Array) -> jax.Array:
    """Negative log-likelihood of each answer token: -log p(y_t).

    Args:
      log_probs: [B, T].

    Returns:
      [B, T], one value per token, >= 0.

    Open-unlearning averages within each micro-batch first, so unequal lengths weigh unequally.

    >>> print(nll(jnp.log(jnp.array([[0.5, 0.25]]))).round(4))
    [[0.6931 1.3863]]
    """
    return -log_probs


def grad_ascent(log_probs: jax.Array) -> jax.Array:
    """Gradient ascent on the forget rows: minimises log p(y_t), the negated NLL.

    Args:
      log_probs: [B, T].

    Returns:
      [B, T], one value per token; unbounded below, so it destroys the model when run for long.

    Reference: Jang et al., Knowledge unlearning for mitigating privacy risks, arXiv 2210.01504;
    TOFU, arXiv 2401.06121, section 4. Open-unlearning: as for `nll`.

    >>> print(grad_ascent(jnp.array([[-2.0, -1.0]])))
    [[-2. -1.]]
    """
    return log_probs


def wga(log_probs: jax.Array, *, beta: NonNegative = 1.0) -> jax.Array:
    """Weighted gradient ascent: p^beta log p, the weight p^beta held constant.

    Tokens that are already unlikely count less. With beta = 0 this is `grad_ascent`.

    Args:
      log_probs: [B, T].
      beta: how strongly confidence weighs, >= 0.

    Returns:
      [B, T], one value per token, from -1 / (e beta) to 0.

    Reference: Wang et al., Rethinking LLM unlearning objectives, arXiv 2502.19301.
    Open-unlearning: the same.

    >>> print(wga(jnp.log(jnp.array([[0.5, 0.25]])), beta=1.0).round(4))
    [[-0.3466 -0.3466]]
    """
    return jax.lax.stop_gradient(jnp.exp(beta * log_probs)) * log_probs


def satimp(
    log_probs: jax.Array, *, beta1: NonNegative = 5.0, beta2: NonNegative = 1.0
) -> jax.Array:
    """Saturation and importance: p^beta1 (1 - p)^beta2 log p, the weight held constant.

    With beta2 = 0 this is `wga`, with both 0 `grad_ascent`.

    Args:
      log_probs: [B, T].
      beta1: weight of saturation: tokens still likely count more, >= 0.
      beta2: weight of importance: tokens far from certain count more, >= 0.

    Returns:
      [B, T], one value per token, <= 0.

    Reference: Yang et al., Exploring criteria of loss reweighting to enhance LLM unlearning, arXiv
    2505.11953. Open-unlearning: the same.

    >>> print(satimp(jnp.log(jnp.array([[0.5, 1.0]])), beta1=1.0, beta2=1.0).round(4))
    [[-0.1733  0.    ]]
    """
    doubt = jnp.maximum(-jnp.expm1(log_probs), 0.0)  # 1 - p; rounding can put log p above 0
    weight = jnp.exp(beta1 * log_probs) * jnp.power(doubt, beta2)
    return jax.lax.stop_gradient(weight) * log_probs


def npo(
    seq_log_prob: jax.Array, reference_seq_log_prob: jax.Array, *, beta: Positive = 0.1
) -> jax.Array:
    """Negative preference optimisation: -(2/beta) log sigmoid(-beta (S - S_ref)).

    S is the log-probability of the whole answer. At the reference the value is (2/beta) ln 2 and
    the gradient is that of S, as in gradient ascent on sequence sums; it fades as S falls.

    Args:
      seq_log_prob: [B], S.
      reference_seq_log_prob: [B], S under the frozen start model.
      beta: inverse temperature, > 0; gradient ascent is the limit beta -> 0.

    Returns:
      [B], one value per sequence, >= 0.

    Reference: Zhang et al., Negative preference optimization, arXiv 2404.05868, equation 3.
    Open-unlearning: the same.

    >>> print(npo(jnp.array([-3.0]), jnp.array([-3.0]), beta=0.5).round(4))
    [2.7726]
    """
    return (2.0 / beta) * jax.nn.softplus(beta * (seq_log_prob - reference_seq_log_prob))


def simnpo(
    seq_log_prob: jax.Array,
    answer_length: jax.Array,
    *,
    beta: Positive = 2.5,
    gamma: NonNegative = 0.0,
) -> jax.Array:
    """NPO without a reference: -(2/beta) log sigmoid(-(beta/|y|) S - gamma).

    With gamma = 0 this is `npo` of the mean log-probability against a reference of 0.

    Args:
      seq_log_prob: [B], S.
      answer_length: [B], |y|.
      beta: inverse temperature, > 0; the default is the authors' for TOFU forget05 (forget10: 4.5).
      gamma: margin of the reward, >= 0; 0 in all of the authors' runs.

    Returns:
      [B], one value per sequence, >= 0.

    Reference: Fan et al., Simplicity prevails, arXiv 2410.07163.
    Open-unlearning puts the margin inside the product with beta: gamma = beta delta.

    >>> print(simnpo(jnp.array([-3.0]), jnp.array([3.0]), beta=2.0).round(4))
    [0.1269]
    """
    return (2.0 / beta) * jax.nn.softplus(beta * seq_log_prob / answer_length + gamma)


def dpo(
    seq_log_prob: jax.Array,
    reference_seq_log_prob: jax.Array,
    alternative_seq_log_prob: jax.Array,
    alternative_reference_seq_log_prob: jax.Array,
    *,
    beta: Positive = 0.1,
) -> jax.Array:
    """Prefers another answer: -log sigmoid(beta [(S_alt - S_alt_ref) - (S - S_ref)]).

    At the reference the value is ln 2.

    Args:
      seq_log_prob: [B], S of the answer to forget.
      reference_seq_log_prob: [B], the same under the frozen start model.
      alternative_seq_log_prob: [B], S of the preferred answer, such as a refusal.
      alternative_reference_seq_log_prob: [B], the same under the frozen start model.
      beta: inverse temperature, > 0.

    Returns:
      [B], one value per sequence, >= 0.

    Reference: Rafailov et al., Direct preference optimization, arXiv 2305.18290, equation 7; on
    refusals: TOFU, arXiv 2401.06121; on invented answers: Mekala et al., arXiv 2409.13474.
    Open-unlearning multiplies it by 2/beta.

    >>> forget, refusal = jnp.array([-3.0]), jnp.array([-9.0])
    >>> print(dpo(forget, forget, refusal, refusal).round(4))
    [0.6931]
    """
    gain = alternative_seq_log_prob - alternative_reference_seq_log_prob
    return jax.nn.softplus(-beta * (gain - (seq_log_prob - reference_seq_log_prob)))


def rmu(
    hidden: jax.Array,
    mask: jax.Array,
    answer_length: jax.Array,
    *,
    steering: Positive = 6.5,
    seed: Whole = 0,
) -> jax.Array:
    """Steers hidden states to one random vector: mean over t and d of (h - steering u)^2.

    u is uniform in [0, 1)^D, scaled to length 1, and the same in every step.

    Args:
      hidden: [B, T, D].
      mask: [B, T].
      answer_length: [B].
      steering: length of the vector, > 0; the default is the authors' for Zephyr-7B. It has to
        exceed the length of the hidden states, which grows with depth and width.
      seed: decides u.

    Returns:
      [B], the mean over the answer tokens of each sequence, >= 0.

    Reference: Li et al., The WMDP benchmark, arXiv 2403.03218, section 4.
    Open-unlearning: the same, with steering 2 in its recipes and 20 in its class.

    >>> h, mask = jnp.full((1, 2, 3), 5.0), jnp.array([[False, True]])
    >>> print(f"{rmu(h, mask, jnp.ones(1), steering=1e-6)[0]:.3f}")
    25.000
    """
    key = jax.random.key(jnp.asarray(seed).astype(jnp.uint32))
    u = jax.random.uniform(key, hidden.shape[-1:], jnp.float32)
    return _hidden_distance(hidden, steering * u / jnp.linalg.norm(u), mask, answer_length)


def hidden_mse(
    hidden: jax.Array, reference_hidden: jax.Array, mask: jax.Array, answer_length: jax.Array
) -> jax.Array:
    """Keeps hidden states where the start model has them: mean over t and d of (h - h_ref)^2.

    The retain term of `rmu`.

    Args:
      hidden: [B, T, D].
      reference_hidden: [B, T, D], under the frozen start model.
      mask: [B, T].
      answer_length: [B].

    Returns:
      [B], the mean over the answer tokens of each sequence, >= 0.

    Reference: as for `rmu`. Open-unlearning: the same (EMBED_DIFF).

    >>> h, mask = jnp.full((1, 2, 3), 5.0), jnp.array([[False, True]])
    >>> print(hidden_mse(h, h - 2.0, mask, jnp.ones(1)))
    [4.]
    """
    return _hidden_distance(hidden, reference_hidden, mask, answer_length)


def jensun(log_probs: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence between the prediction and certainty of token t.

    For p = p(token t) it is ln 2 + (p ln p - (1 + p) ln(1 + p)) / 2: 0 at p = 1, ln 2 at p = 0.
    Unlike that of the NLL, its gradient vanishes as p goes to 0. The model reads the answer that it
    is to forget, and at each of its tokens the token asked about is one of a refusal, whose tokens
    are gone through over and over.

    Args:
      log_probs: [B, T], of the refusal's tokens.

    Returns:
      [B, T], one value per token, in [0, ln 2].

    Reference: Singh et al., Unlearning that lasts, arXiv 2509.02820. The authors' code spreads the
    mass over all of the refusal's tokens at every position, prompt and padding included, without
    bringing it to a sum of 1; this is the paper's one token at each position.
    Open-unlearning has no such method.

    >>> sure, torn = jensun(jnp.log(jnp.array([[1.0, 0.5]])))[0]
    >>> print(f"{sure:.4f}, {torn:.4f}")
    0.0000, 0.2158
    """
    p = jnp.exp(log_probs)
    return _LN2 + 0.5 * (p * log_probs - (1.0 + p) * jnp.log1p(p))


def _hidden_distance(
    hidden: jax.Array, goal: jax.Array, mask: jax.Array, answer_length: jax.Array
) -> jax.Array:
    """[B]: mean squared difference over the answer tokens of each sequence."""
    per_token = jnp.mean(jnp.square(hidden - goal), axis=-1)
    return jnp.sum(jnp.where(mask, per_token, 0.0), axis=-1) / answer_length
