"""U-LiRA: membership inference that is calibrated for each row by shadow models.

K shadow models learn a random half of the candidate rows each and unlearn it again. So every
candidate was unlearned by some of them and never seen by the others, and how likely each of both
makes the value of an attacked model is its score, `[n]`: higher = more likely a member.

Reference:
  Hayes et al., Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy,
  arXiv 2403.01218; Carlini et al., Membership Inference Attacks From First Principles,
  arXiv 2112.03570.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxunlearn.evaluation.entries import summarise_two
from jaxunlearn.evaluation.privacy import auc, tpr_at_fpr
from jaxunlearn.evaluation.results import Table

LEAST_SHADOWS = 2
"""Of either kind for each candidate."""
OWN_DEVIATION = 8
"""From as many shadows of either kind on, each candidate has a deviation of its own."""

_LEAST_DOUBT = 1e-6
"""Below it float32 log-probabilities cannot say what 1 - p is."""
_LEAST_DEVIATION = 1e-3


def log_odds(mean_log_probs: np.ndarray) -> np.ndarray:
    """The statistic: log(p / (1 - p)), which is closer to normal than p.

    Args:
      mean_log_probs: `[n]`, log p as `metrics.mean_log_prob` gives it; p counts as at most
        1 - 1e-6.

    Returns:
      `[n]`; `nan` stays.

    >>> log_odds(np.log([0.5, 0.75])).round(4)
    array([0.    , 1.0986])
    """
    log_p = np.minimum(np.asarray(mean_log_probs, np.float64), np.log1p(-_LEAST_DOUBT))
    return log_p - np.log(-np.expm1(log_p))


def halves(entities: Sequence[str], shadows: int, seed: int) -> np.ndarray:
    """Which candidates each shadow model learns and unlearns: half of the entities, at random.

    Shadows come in pairs, the second with the other half: with an even number of them each
    candidate is in exactly half of them. More shadows of one seed begin with the same ones.

    Args:
      entities: of n candidates; those of one entity stay together, one without ("") is by itself.
      shadows: K.
      seed: of the draws.

    Returns:
      bool `[K, n]`.

    >>> halves(["a", "a", "b", "b"], 2, seed=0).sum(axis=0)
    array([1, 1, 1, 1])
    """
    numbers: dict[Any, int] = {}
    of_row = [numbers.setdefault(name or row, len(numbers)) for row, name in enumerate(entities)]
    rng = np.random.default_rng(seed)
    inside = np.zeros((shadows + shadows % 2, len(of_row)), bool)
    for pair in range(0, shadows, 2):
        chosen = rng.permutation(len(numbers)) < len(numbers) // 2
        inside[pair], inside[pair + 1] = chosen[of_row], ~chosen[of_row]
    return inside[:shadows]


def likelihood_ratio(values: np.ndarray, inside: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """How much likelier a value is of a model that unlearned the candidate than of one that never
    saw it.

    `log N(x_i; mu_in_i, s_in²) - log N(x_i; mu_out_i, s_out²)`. The deviation is pooled over all
    candidates, around the mean of each, where some candidate has fewer than OWN_DEVIATION shadows
    of either kind.

    Args:
      values: `[K, n]`, `log_odds` of each candidate in each shadow model.
      inside: bool `[K, n]`, whether that shadow model learned and unlearned it.
      attacked: `[n]`, of the attacked model.

    Returns:
      `[n]`; `nan` for a candidate with a `nan` among its values.

    Raises:
      ValueError: a candidate has fewer than LEAST_SHADOWS shadows of either kind.
    """
    from scipy.stats import norm

    inside = np.asarray(inside, bool)
    fewest = min(inside.sum(axis=0).min(), (~inside).sum(axis=0).min())
    if fewest < LEAST_SHADOWS:
        raise ValueError(f"each candidate needs {LEAST_SHADOWS} shadows of either kind")
    pooled = bool(fewest < OWN_DEVIATION)
    likely_in, likely_out = (
        norm.logpdf(attacked, *_normal(values, chosen, pooled)) for chosen in (inside, ~inside)
    )
    return likely_in - likely_out


def measure(members: np.ndarray, others: np.ndarray) -> Table:
    """AUC, and TPR at 1 % and 0.1 % FPR, of the scores of members and others, as entries.

    Their intervals are over rows; rows about one entity go together, so that they are too narrow
    where there are few entities.
    """
    found = {"auc": summarise_two(members, others, statistic=auc)}
    for name, fpr in (("tpr_at_1", 0.01), ("tpr_at_0.1", 0.001)):
        statistic = partial(tpr_at_fpr, fpr=fpr)
        found[name] = summarise_two(members, others, statistic=statistic)
    return found


def _normal(values: np.ndarray, chosen: np.ndarray, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation, each `[n]`, of the chosen values of every candidate."""
    count = chosen.sum(axis=0)
    mean = np.where(chosen, values, 0.0).sum(axis=0) / count
    squares = np.where(chosen, (values - mean) ** 2, 0.0).sum(axis=0)
    if pooled:
        known = np.isfinite(squares)
        variance = squares[known].sum() / (count - 1)[known].sum()
    else:
        variance = squares / (count - 1)
    deviation = np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
    return mean, np.broadcast_to(deviation, mean.shape)
