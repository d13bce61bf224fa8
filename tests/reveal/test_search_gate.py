"""Does the search find what brings out most? A model that two words of instruction steer."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.config_reveal import Bandit, RevealConfig
from jaxunlearn.reveal.candidates import written
from jaxunlearn.reveal.search import search

SEEDS = range(6)


@pytest.fixture(scope="module")
def toy():
    """A module of this folder, which is not a package."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("instructed.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def searched(toy, model, mode, seed, **others):
    """Arms and observed rewards of all 12 + 24 pulls."""
    settings = RevealConfig(
        outer=1, initial=12, carried=12, pulls=24, samples=32, max_new_tokens=8, top_p=1.0,
        bandit=Bandit(mode=mode, **others),
    )  # fmt: skip
    found = search(
        model, toy.QUESTIONS, toy.score, written(toy.ARMS, settings, seed=seed), settings,
        template="{question}", seed=seed, embed=toy.embed, say=lambda line: None,
    )  # fmt: skip
    arms = [int(one.candidate.name.removeprefix("written-")) for one in found]
    assert len(set(arms)) == 36
    return arms, np.array([one.reward for one in found])


@pytest.mark.slow
def test_the_search_beats_a_random_one(toy):
    effects = toy.effects()
    true = toy.true_rewards(*effects)
    model = toy.trained(*effects)
    print(f"true rewards: mean {true.mean():.3f}, best {true.max():.3f}")
    means = {}
    for mode in ("random", "ucb", "greedy", "linucb", "thompson"):
        found = [searched(toy, model, mode, seed) for seed in SEEDS]
        means[mode] = np.array([true[arms].mean() for arms, _ in found])
        close = np.corrcoef(true[found[0][0]], found[0][1])[0, 1]
        ratio = means[mode] / means["random"]
        print(f"{mode}: {means[mode].mean():.3f}, ratio {ratio.round(2)}, mean {ratio.mean():.2f}")
        assert close > 0.8  # the model has learned what the instructions do
    ratio = means["ucb"] / means["random"]
    assert ratio.mean() >= 1.35 and ratio.min() >= 1.15


@pytest.mark.slow
def test_without_an_effect_of_instructions_there_is_nothing_to_find(toy):
    alike = [np.full(256, value) for value in (0.4, 0.3)]
    model = toy.trained(*alike, steps=200)
    ucb, random = (
        [searched(toy, model, mode, seed)[1].mean() for seed in SEEDS[:3]]
        for mode in ("ucb", "random")
    )
    print(f"observed rewards: ucb {np.round(ucb, 3)}, random {np.round(random, 3)}")
    assert np.mean(ucb) / np.mean(random) == pytest.approx(1, abs=0.06)
