"""Do attribution functions rank owners as training without each of them does?

python experiments/dareu/leave_one_out.py [--seeds 0,1,2]

Sixteen owners say fifteen phrases each; owner i took i of them from one topic, and the others from
three more. Phrases are said by several owners, and topics share words. A model of one layer learns
all of them with full batches, and once more without each owner, from the same start. What is asked
about is what the owners said of the first topic: how much less likely is it without an owner, and
what does each function say of that owner? Printed is Spearman's rank correlation of the two, over
owners: of the means over all these responses, with its p, and the mean of it over single responses.

The texts have no questions, as the features of gradients have none; see README.md.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from jaxunlearn.attribution import gradients, overlap
from jaxunlearn.attribution.responses import Responses, from_table, in_batches
from jaxunlearn.config import Experiment, ModelConfig, TrainingConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import Row, UnlearningData
from jaxunlearn.evaluation.likelihood import text_nlls
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.starting import base_model
from jaxunlearn.unlearning import finetune_rows

OWNERS, PHRASES_EACH = 16, 15
TOPICS, PHRASES, LENGTH = 4, 40, 5
WORDS = [a + b for a in ("ba", "ce", "di", "fo", "gu", "ha") for b in ("ra", "le", "ni", "to")]
CHECKPOINTS = (60, 120, 180)
"""Steps; the owners are left out of the whole training."""
MODEL = ModelConfig(
    vocab_size=400,
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    intermediate_size=128,
)


def world(seed: int) -> tuple[list[Row], list[Row]]:
    """Rows of all owners, one owner after the other, and those of them of the first topic."""
    rng = np.random.default_rng(seed)
    topics = []
    for _ in range(TOPICS):
        words = rng.permutation(WORDS)[: len(WORDS) // 2]
        topics.append([" ".join(rng.choice(words, LENGTH)) for _ in range(PHRASES)])
    asked, others = topics[0], [phrase for topic in topics[1:] for phrase in topic]
    rows = []
    for owner in range(OWNERS):
        said = [
            *rng.choice(asked, owner, replace=False),
            *rng.choice(others, PHRASES_EACH - owner, replace=False),
        ]
        rows += [Row("", str(phrase), entity=f"owner {owner}") for phrase in said]
    return rows, [row for row in rows if row.answer in asked]


def measure(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How much the loss of each response rises without each owner, and what functions say.

    Returns:
      `[responses, owners]`, and the same of every function's logits.
    """
    rows, asked = world(seed)
    experiment = Experiment(seed=seed, model=MODEL)
    training = TrainingConfig(
        batch_size=len(rows), learning_rate=2e-3, warmup=0.0, decay="constant", weight_decay=0.0
    )
    start = base_model(experiment, UnlearningData(tuple(rows), (), {}))

    def trained(chosen: Sequence[int], steps: int) -> LanguageModel:
        return finetune_rows(start, rows, chosen, experiment, training, steps=steps)

    def losses(model: LanguageModel) -> np.ndarray:
        return text_nlls(model, [row.key for row in asked], experiment.data.template)

    def responses(rows: Sequence[Row]) -> Responses:
        texts = [row.key for row in rows]
        encoded = tokens.encode(start.tokenizer, texts, template="", max_length=128)
        return from_table(encoded.table, [row.entity for row in rows])

    checkpoints = [trained(range(len(rows)), steps) for steps in CHECKPOINTS]
    known = responses(rows)
    rises = []
    for owner in range(OWNERS):
        others = np.flatnonzero(known.owners != owner)
        rises.append(losses(trained(others.tolist(), CHECKPOINTS[-1])) - losses(checkpoints[-1]))
    functions = {
        "tracin": gradients.fit(checkpoints, known, kind="dot"),
        "tracin_cosine": gradients.fit(checkpoints, known, kind="cosine"),
        "trak": gradients.fit(checkpoints, known, kind="trak"),
        "overlap": overlap.fit(known),
    }
    said = {name: in_batches(f.logits, responses(asked), 64) for name, f in functions.items()}
    return np.stack(rises, axis=1), said


def correlation(logits: np.ndarray, rises: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho over owners of the means, its two-sided p, and the mean rho of single
    responses; of `[responses, owners]` each."""
    pooled = spearmanr(logits.mean(axis=0), rises.mean(axis=0))
    single = [spearmanr(*pair).statistic for pair in zip(logits, rises, strict=True)]
    return pooled.statistic, pooled.pvalue, float(np.mean(single))


def main() -> None:
    """Measures every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    print("| seed | function | rho | p | rho of single responses |")
    print("|---" * 5 + "|")
    for seed in map(int, parser.parse_args().seeds.split(",")):
        rises, said = measure(seed)
        for name, logits in said.items():
            rho, p, single = correlation(logits, rises)
            print(f"| {seed} | `{name}` | {rho:.2f} | {p:.1g} | {single:.2f} |", flush=True)


if __name__ == "__main__":
    main()
