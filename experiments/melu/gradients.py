"""Do related pairs lower the gradient variance? arXiv 2509.05316 supposes so and does not test it.

python experiments/melu/gradients.py CONFIG.yaml [--seeds 0,1,2] [--target FOLDER ...]

For each seed the target model is taken from its run folder in the sweep of CONFIG.yaml over seeds,
or is trained there. Of its gradients, before any step of unlearning, the table shows mean and
standard deviation over the seeds, for batches of the config's size, subset, ratio and order. The
batches of `random` hold each forget row once, those of the others may repeat one: what its variance
is below theirs is no matter of retain rows.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxunlearn import sweep
from jaxunlearn.config import Experiment, MethodConfig, SamplingConfig
from jaxunlearn.data import formats
from jaxunlearn.experiment import finetune
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.unlearning import gradient_statistics

METHODS = ("grad_diff", "npo", "dpo")
SAMPLERS = ("random", "cyclic", "melu", "cross_wired", "exposure_matched")
COLUMNS = ("variance / cyclic's", "relative variance", "of forget", "of retain", "cosine", "norm")


def target_of(experiment: Experiment) -> LanguageModel:
    """The model before unlearning."""
    if experiment.finetune is None:
        return load_model(experiment.model.path)
    folder = Path(experiment.output) / experiment.name / "target"
    return load_model(folder if folder.is_dir() else finetune(experiment)[0])


def measure(model: LanguageModel, experiment: Experiment, batches: int) -> np.ndarray:
    """The table's numbers for one seed, [methods, samplers, columns]."""
    data = formats.load(experiment.data, experiment.seed)
    shared = experiment.sampling
    numbers = np.empty((len(METHODS), len(SAMPLERS), len(COLUMNS)))
    for i, method in enumerate(METHODS):
        for j, sampler in enumerate(SAMPLERS):
            # The few rows that `random` pairs in an epoch need not fill one batch by entity.
            order = "shuffle" if sampler == "random" else shared.order
            sampling = SamplingConfig(sampler, shared.subset, order, shared.ratio)
            found = gradient_statistics(
                model,
                data.forget,
                data.retain,
                dataclasses.replace(experiment, sampling=sampling),
                MethodConfig(method),
                batches=batches,
            )
            numbers[i, j] = [
                found.whole.variance,
                found.whole.relative_variance,
                found.forget.relative_variance,
                found.retain.relative_variance,
                found.cosine,
                found.whole.norms.mean(),
            ]
    numbers[..., 0] /= numbers[:, SAMPLERS.index("cyclic"), None, 0]
    return numbers


def show(numbers: np.ndarray) -> None:
    """Prints the table of [seeds, methods, samplers, columns]."""
    print("| method | sampler |", " | ".join(COLUMNS), "|")
    print("|---" * (2 + len(COLUMNS)) + "|")
    mean, spread = numbers.mean(axis=0), numbers.std(axis=0, ddof=min(1, len(numbers) - 1))
    for i, method in enumerate(METHODS):
        for j, sampler in enumerate(SAMPLERS):
            pairs = zip(mean[i, j], spread[i, j], strict=True)
            cells = " | ".join(f"{value:.3f} ± {around:.3f}" for value, around in pairs)
            print(f"| `{method}` | `{sampler}` | {cells} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--target", nargs="+", help="a model folder for each seed")
    parser.add_argument("--batches", type=int, default=64, help="gradients of each sampler")
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    if given.target is not None and len(given.target) != len(seeds):
        parser.error(f"--target: {len(given.target)} folders for {len(seeds)} seeds; give each one")
    numbers = []
    for place, (_, experiment) in enumerate(sweep.expand(given.config, {"seed": seeds}, {})):
        model = load_model(given.target[place]) if given.target else target_of(experiment)
        numbers.append(measure(model, experiment, given.batches))
    show(np.stack(numbers))


if __name__ == "__main__":
    main()
