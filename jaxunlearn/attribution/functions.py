"""Attribution functions by their settings: from a config to a fitted one."""

from dataclasses import replace

import numpy as np

from jaxunlearn.attribution import classifier, encoder, gradients, overlap, watermark
from jaxunlearn.attribution.reports import accuracy
from jaxunlearn.attribution.responses import (
    Attributor,
    Responses,
    calibrated,
    in_batches,
    random_prefixes,
)
from jaxunlearn.config_attribution import FunctionConfig
from jaxunlearn.errors import UserError
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model

GRADIENTS = {"tracin": "dot", "tracin_cosine": "cosine", "trak": "trak"}
"""Kinds by gradients of all weights, as `gradients.fit` calls them."""


def fitted(
    settings: FunctionConfig, model: LanguageModel, responses: Responses, *, seed: int = 0
) -> Attributor:
    """The function, fitted to training answers and calibrated on prefixes of them.

    Args:
      settings: its kind and what belongs to it.
      model: the one that is to forget.
      responses: ground-truth answers of all owners.
      seed: the experiment's.

    Raises:
      UserError: the model of a classifier cannot be loaded or cannot read the responses, or there
        are no watermarks in them.
    """
    seed += settings.seed
    if settings.kind == "overlap":
        return overlap.fit(responses, seed=seed)
    if settings.kind == "watermark":
        return watermark.fit(model.tokenizer, model.config.vocab_size, responses, seed=seed)
    if settings.kind in GRADIENTS:
        return gradients.fit(
            [model], responses, kind=GRADIENTS[settings.kind], dim=settings.dimension, seed=seed
        )
    shown = with_noise(responses, settings.label_noise, seed=seed)
    if settings.kind == "encoder":
        found, _ = encoder.train(model.config.vocab_size, shown, settings.encoder, seed=seed)
    else:
        base = base_of(settings, model)
        found, _ = classifier.train(base, shown, settings.classifier, seed=seed)
    return calibrated(found, random_prefixes(shown, seed=seed))


def base_of(settings: FunctionConfig, model: LanguageModel) -> LanguageModel:
    """What a classifier is made of: a model of its own, or the one that is to forget.

    Raises:
      UserError: it cannot be loaded, or has another tokenizer.
    """
    if settings.model is None:
        return model
    base = load_model(settings.model)
    if base.tokenizer is None or base.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise UserError(
            f"attribution: {settings.model} has another tokenizer than the model that is to forget,"
            " and would misread its answers; take a model with the same one, or leave model out"
        )
    return base


def with_noise(responses: Responses, share: float, *, seed: int) -> Responses:
    """The responses, of which a share is given an owner at random, maybe the right one."""
    rng = np.random.default_rng((seed, 1))
    drawn = rng.integers(0, len(responses.names), len(responses)).astype(np.int32)
    changed = rng.random(len(responses)) < share
    return replace(responses, owners=np.where(changed, drawn, responses.owners))


def check_accuracy(
    attributor: Attributor, responses: Responses, least: float, *, where: str
) -> float:
    """Share of training answers whose owner the function names.

    Args:
      attributor: of the owners of the responses.
      responses: ground-truth answers.
      least: below this it is refused.
      where: which function, for the fault.

    Raises:
      UserError: it names fewer; says how many.
    """
    found = accuracy(in_batches(attributor.scores, responses, 64), responses.owners)
    if found < least:
        raise UserError(
            f"{where}: names the owner of {found:.1%} of the {len(responses)} training answers,"
            f" less than attribution.min_accuracy, {least:.1%}; train it longer"
            " (its epochs and learning_rate), take another kind, or set"
            " attribution.min_accuracy: 0 to go on with it"
        )
    return found
