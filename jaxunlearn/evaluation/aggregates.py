"""The scores that OpenUnlearning ranks methods by, as far as they are published.

Each is in [0, 1], 1 is best, and the overall score is the harmonic mean of memorisation, privacy
and utility. The authors' code for them was not kept (issues 150 and 172 of open-unlearning): what
the paper leaves open is said in each docstring.

Reference: Dorna et al., OpenUnlearning, arXiv 2506.12618, appendix F.
"""

from collections.abc import Mapping

import numpy as np

from jaxunlearn.evaluation.melu import harmonic_mean


def memorisation_score(
    extraction_strength: float,
    exact_memorisation: float,
    paraphrased_probability: float,
    truth_ratio: float,
) -> float:
    """Harmonic mean of 1 - value of the four: how much of the forget rows is not known by heart.

    Args:
      extraction_strength: in [0, 1], of the forget rows, like all of them.
      exact_memorisation: share of the answer's tokens that are predicted.
      paraphrased_probability: length-normalised probability of the paraphrased answer.
      truth_ratio: larger the more is known: `p / (p + p_wrong)`, with p of the right answer. It is
        not the ratio wrong / right that forget quality compares.

    >>> memorisation_score(0.5, 0.5, 0.5, 0.5)
    0.5
    """
    values = (extraction_strength, exact_memorisation, paraphrased_probability, truth_ratio)
    return _mean(*(1 - value for value in values))


def mia_score(auc: float, retrained_auc: float) -> float:
    """s = clip(1 - |AUC - AUC_r| / AUC_r, 0, 1): how near one membership attack's AUC is to that on
    the retrained model.

    The paper says only that it "quantifies how closely the model aligns with the retain model";
    this formula is that of others who rebuilt it, and like PrivLeak relative to AUC_r.

    Raises:
      ValueError: the AUC of the retrained model is 0.

    >>> mia_score(0.75, 0.5), mia_score(0.4, 0.5)
    (0.5, 0.8)
    """
    if retrained_auc <= 0:
        raise ValueError(f"the retrained model's AUC must be above 0, got {retrained_auc}")
    return float(np.clip(1 - abs(auc - retrained_auc) / retrained_auc, 0, 1))


def privacy_score(aucs: Mapping[str, float], retrained_aucs: Mapping[str, float]) -> float:
    """Harmonic mean of `mia_score` over attacks; the paper's are loss, zlib, Min-K% and Min-K%++.

    Args:
      aucs: attack to AUC.
      retrained_aucs: the same attacks on the retrained model.

    >>> privacy_score({"loss": 0.75, "zlib": 0.5}, {"loss": 0.5, "zlib": 0.5}).__round__(3)
    0.667
    """
    return _mean(*(mia_score(auc, retrained_aucs[name]) for name, auc in aucs.items()))


def utility_score(model_utility: float, fluency: float) -> float:
    """Harmonic mean of TOFU's model utility and of fluency.

    Args:
      model_utility: in [0, 1].
      fluency: in [0, 1]; in the paper a classifier's probability that generations on forget rows
        are no gibberish. Without one, 1 leaves model utility as nearly the whole score.

    >>> utility_score(0.5, 1.0).__round__(3)
    0.667
    """
    return _mean(model_utility, fluency)


def overall_score(memorisation: float, privacy: float, utility: float) -> float:
    """Harmonic mean of the three scores.

    >>> overall_score(1.0, 0.5, 0.25).__round__(3)
    0.429
    """
    return _mean(memorisation, privacy, utility)


def _mean(*values: float) -> float:
    return float(harmonic_mean(np.array(values, np.float64)))
