"""Time of one iteration of DareU, beside a PPO loop in plain PyTorch in the same run.

    python experiments/benchmarks/rl.py --output rl.jsonl

An iteration: 32 prompts get 32 tokens each, a classifier with 40 owners says of 15 slices (11
prefixes, as slices of 32 tokens are 3 long) whose they are, and 4 updates follow, with a value head
and distillation on 32 retain rows. The model has the quickstart's sizes and random weights.

Ours is `iteration.iterate`, one compiled program. Theirs (`rl_torch.py`) is `transformers` and
`peft` in the manner of PPO trainers: `generate` with its cache, a forward pass of the policy and
one of the start model, one of the classifier for each prefix, then four passes over the batch. The
teacher's logits are computed once, as ours are. "one pass" is the same loop with all prefixes
scored in one causal pass, which the method as published does not do. Ours also asks a held-out
classifier and measures how far the policy is after the last update, which theirs does not.

Both sides start from the same weights. Before anything is timed, theirs works on the responses that
ours drew, and rewards, losses and log-probabilities are compared. The sides take turns. Needs the
`bench` extra. Where other work shares the cores, set OMP_WAIT_POLICY=passive.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rl_torch import CLASSIFIER, START, Drawn, Metrics, Theirs

from jaxunlearn.attribution.classifier import LastToken
from jaxunlearn.attribution.heads import Classifier
from jaxunlearn.config import AdapterConfig, ModelConfig, TrainingConfig
from jaxunlearn.dareu import driver, iteration, policy, rollout
from jaxunlearn.dareu.rollout import Prompts, Rollout, prompts_of
from jaxunlearn.data.tokens import make_table
from jaxunlearn.methods.dareu_settings import DareU
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.statistics import Rows, combine
from jaxunlearn.training.trainable import split_params

OWNERS = 40
PROMPT, ROW = 16, 32  # longest prompt and longest retain row
ADAPTER = AdapterConfig(rank=8, alpha=16.0)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="train all parameters, no adapter")
    parser.add_argument("--hidden", type=int, default=ModelConfig.hidden_size)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="of every response")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--output", help="file to append a JSON line to")
    args = parser.parse_args(arguments)

    torch.set_num_threads(args.threads)
    job = job_of(args.hidden, args.prompts, args.tokens, None if args.full else ADAPTER)
    ours, drawn = Ours(job), first_responses(job)
    begin = time.perf_counter()
    found = ours.iterate()
    first_call = time.perf_counter() - begin
    factors = start_of(job)[0].get("lora")
    compare(found, Theirs(job, factors).iterate(drawn))

    theirs = Theirs(job, factors)
    sides: Mapping[str, Callable[[], Metrics]] = {
        "ours": ours.iterate,
        "PyTorch": theirs.iterate,
        "PyTorch, one pass": lambda: theirs.iterate(one_pass=True),
    }
    programs = iteration.iterate_in_jit._cache_size()
    wall, cpu = timed(sides, args.repeats)
    median = {side: statistics.median(taken) for side, taken in wall.items()}
    ratio = {
        side: [b / a for a, b in zip(wall["ours"], wall[side], strict=True)]
        for side in list(sides)[1:]
    }
    result = {
        "work": f"DareU, {'all parameters' if args.full else 'LoRA rank 8'}",
        "sizes": {"hidden": args.hidden, "prompts": args.prompts, "tokens": args.tokens},
        "first_call": round(first_call, 2),
        "median": {side: round(seconds, 4) for side, seconds in median.items()},
        "cpu": {side: round(statistics.median(taken), 4) for side, taken in cpu.items()},
        "ratio": {side: round(statistics.median(taken), 2) for side, taken in ratio.items()},
        "programs": iteration.iterate_in_jit._cache_size(),
        "compiled_in_repeats": iteration.iterate_in_jit._cache_size() - programs,
        "repeats": args.repeats,
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "peft")},
    }
    print(f"{'side':20} {'s/iteration':>22} {'s of CPU':>9} {'ratio':>6}")
    for side, taken in wall.items():
        shown = f"{median[side]:.3f} ({min(taken):.3f}-{max(taken):.3f})"
        print(
            f"{side:20} {shown:>22} {result['cpu'][side]:9.3f} {result['ratio'].get(side, 1):6.2f}"
        )
    print(json.dumps(result, indent=2))
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return result


def timed(
    sides: Mapping[str, Callable[[], Metrics]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU seconds of every repeat, after one that does not count, in turns."""
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(1 + repeats):
        for side, work in sides.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            work()
            wall[side].append(time.perf_counter() - begin)
            cpu[side].append(time.process_time() - begin_cpu)
    return tuple({side: taken[1:] for side, taken in both.items()} for both in (wall, cpu))


def compare(ours: Metrics, theirs: Metrics) -> None:
    """Prints both sides' numbers of the first iteration, and stops if they are not the same."""
    for name, value in theirs.items():
        print(f"{name:<22} {ours[name]:12.6f} {value:12.6f}")
        # Adam's first steps are signs of gradients, so that rounding grows with the updates.
        if not abs(ours[name] - value) <= 1e-4 + 2e-2 * abs(value):
            raise SystemExit(f"{name} differs: the two sides do different work")


def job_of(hidden: int, prompts: int, tokens: int, adapter: AdapterConfig | None) -> driver.Job:
    """A model of random weights, a classifier of random factors, and random rows."""
    sizes = ModelConfig(hidden_size=hidden)
    hf_config = {
        "model_type": "llama", "vocab_size": sizes.vocab_size, "hidden_size": hidden,
        "intermediate_size": hidden * sizes.intermediate_size // ModelConfig.hidden_size,
        "num_hidden_layers": sizes.num_layers, "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    config = read_config(hf_config, "the benchmark's model")
    # Larger than at the start of a training, so that predictions are not all alike.
    params = jax.tree.map(lambda x: x * 3, transformer.init_params(config, jax.random.key(0)))
    model = LanguageModel(config, params, hf_config=hf_config)
    rng = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return rng.integers(START + 1, sizes.vocab_size, length).tolist()

    asked = [(ids(n), ids(1)) for n in rng.integers(PROMPT // 2, PROMPT, prompts, endpoint=True)]
    known = [(ids(ROW // 2 - 2), ids(n)) for n in rng.integers(8, ROW // 2 + 2, prompts)]
    retain = make_table(known, ROW)
    order = np.arange(prompts, dtype=np.int32)[None]
    return driver.Job(
        start=model,
        attributors=(classifier(model, 1), classifier(model, 2)),
        forget_owners=tuple(owner < OWNERS // 10 for owner in range(OWNERS)),
        prompts=prompts_of(make_table(asked, 2 * PROMPT), np.arange(prompts) % (OWNERS // 10)),
        retain=Rows(jnp.asarray(retain.tokens), jnp.asarray(retain.answer_mask)),
        schedule={"forget": order, "retain": order},
        per_epoch=1,
        settings=DareU(updates=4, old_refresh="batch", max_new_tokens=tokens),
        training=TrainingConfig(
            batch_size=prompts, learning_rate=1.5e-4, decay="constant", warmup=0.0
        ),
        adapter=adapter,
        seed=0,
    )


def classifier(model: LanguageModel, seed: int) -> Classifier:
    """One that was not trained, but whose answers depend on the text."""
    keys = jax.random.split(jax.random.key(seed), 3)
    factors = lora.init(model.params, CLASSIFIER.rank, key=keys[0])
    factors = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(keys[1], x.shape), factors)
    kernel = jax.random.normal(keys[2], (model.config.hidden_size, OWNERS)) / 8
    network = LastToken(model.config, START, CLASSIFIER.scale)
    names = tuple(f"owner {i}" for i in range(OWNERS))
    head = {"kernel": kernel, "bias": jnp.zeros(OWNERS)}
    return Classifier(network, names, model.params, factors, head, jnp.float32(1.0))


class Ours:
    """The library's iteration, as `driver.train` calls it."""

    def __init__(self, job: driver.Job):
        self.job, self.spec, self.numbers = job, job.spec(), job.numbers()
        trainable, self.frozen = start_of(job)
        self.state = policy.init_state(self.spec, trainable)
        self.chosen = {group: jnp.asarray(rows[0]) for group, rows in job.schedule.items()}

    def iterate(self) -> Metrics:
        """One iteration."""
        self.state, log = iteration.iterate(
            self.spec,
            self.state,
            self.frozen,
            self.job.attributors,
            self.job.prompts,
            self.job.retain,
            self.chosen,
            np.bool_(False),
            self.numbers,
        )
        return {name: float(value) for name, value in jax.device_get(log).items()}


def start_of(job: driver.Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trains and what does not, before the first iteration."""
    trainable, frozen = split_params(job.start, None, job.adapter, job.seed)
    return trainable, frozen if job.adapter else {**frozen, "reference": job.start.params}


def first_responses(job: driver.Job) -> Drawn:
    """Those of our first iteration."""
    spec, numbers = job.spec(), job.numbers()

    @jax.jit
    def draw(prompts: Prompts) -> tuple[Rollout, jax.Array]:
        behaviour = combine(*start_of(job))
        found = rollout.respond(
            spec.config,
            *behaviour,
            prompts,
            jnp.ones(len(prompts.starts), bool),
            limit=spec.choices.max_new_tokens,
            stop_tokens=jnp.array((), jnp.int32),
            temperature=numbers["temperature"],
            key=jax.random.fold_in(jax.random.key(job.seed), 0),
        )
        read = rollout.read(spec.config, *behaviour, found, numbers["temperature"])
        return found, read.log_probs

    found, log_probs = jax.device_get(draw(job.prompts))
    return Drawn(torch.tensor(found.tokens).long(), log_probs)


if __name__ == "__main__":
    main()
