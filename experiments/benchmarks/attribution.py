"""Time of attribution functions: milliseconds to score a response, on the built-in world.

    python experiments/benchmarks/attribution.py --output attribution.jsonl

The default model with random weights, and the answers of eight people, one owner each. A function
scores a batch of them whole, or as a rollout's reward does: 15 prefixes of each. Attention is
causal, so that a classifier gets all prefixes in one forward pass; gradients need a backward pass
for each. Time does not depend on weights, so that nothing need be learned. Functions take turns.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version

import jax
import numpy as np

from jaxunlearn.attribution import classifier, gradients, overlap
from jaxunlearn.attribution.responses import from_table
from jaxunlearn.config import Experiment
from jaxunlearn.config_attribution import ClassifierSettings
from jaxunlearn.data import synthetic, tokens
from jaxunlearn.models.starting import base_model

BATCH, SLICES = 16, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="file to append a JSON line to")
    args = parser.parse_args()

    data = synthetic.build(people=8, forget_people=2, seed=0)
    model = base_model(Experiment(), data)
    rows = (*data.retain, *data.forget)
    texts = [row.text(row.answer) for row in rows]
    encoded = tokens.encode(model.tokenizer, texts, template="{question}", max_length=256)
    known = from_table(encoded.table, [row.entity for row in rows])
    functions = {
        "classifier": classifier.train(model, known, ClassifierSettings(epochs=1))[0],
        "tracin_cosine": gradients.fit([model], known, kind="cosine"),
        "trak": gradients.fit([model], known, kind="trak"),
        "overlap": overlap.fit(known),
    }

    # Arguments, as what is closed over is a constant, which XLA tries to fold.
    score = jax.jit(lambda function, *batch: function.scores(*batch))
    some = known.take(np.arange(BATCH))
    shares = np.arange(1, SLICES + 1) / SLICES
    lengths = {
        "whole": some.lengths,
        "prefixes": np.ceil(some.lengths[:, None] * shares).astype(np.int32),
    }
    taken = {(name, seen): [] for name in functions for seen in lengths}
    for _ in range(1 + args.repeats):
        for (name, seen), found in taken.items():
            begin = time.perf_counter()
            jax.block_until_ready(score(functions[name], some.tokens, lengths[seen]))
            found.append((time.perf_counter() - begin) * 1000 / BATCH)
    median = {place: statistics.median(found[1:]) for place, found in taken.items()}  # 1st: compile

    print("| function | ms, whole | of classifier's | ms, 15 prefixes | of classifier's |")
    print("|---" * 5 + "|")
    for name in functions:
        pairs = ((median[name, seen], median["classifier", seen]) for seen in lengths)
        print(f"| `{name}` |", " | ".join(f"{a:.3g} | {a / b:.3g}" for a, b in pairs), "|")
    result = {
        "work": f"{BATCH} responses of {some.tokens.shape[1]} tokens, {len(known.names)} owners",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "milliseconds": {f"{name}, {seen}": value for (name, seen), value in median.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "load": round(os.getloadavg()[0], 1),
        "versions": {"jax": version("jax")},
    }
    print(json.dumps(result, indent=2))
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
