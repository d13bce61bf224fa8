"""Speed of training steps and of generation, beside plain PyTorch in the same run.

    python experiments/benchmarks/step.py --models s m --output speed.jsonl

Both sides do the same work from the same weights, float32, in turns, so that a busy machine slows
both. Ours is the library's own update step, several steps to a dispatch as in training; theirs is a
loop over `transformers` (and `peft`), with a forward pass for forget and one for retain rows as
unlearning trainers have it, and for NPO a reference forward in every step. Losses of the first step
and greedy tokens are compared before anything is timed. Where other work shares the cores, set
OMP_WAIT_POLICY=passive: PyTorch's threads otherwise spin while they wait for a core, which can slow
them tenfold and counts as CPU time. Needs the `bench` extra.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.methods.registry import objective
from jaxunlearn.models.generate import generate
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.training.loop import traced_numbers
from jaxunlearn.training.statistics import Rows, reference_log_probs
from jaxunlearn.training.step import StepSpec, init_state, run_steps
from jaxunlearn.training.trainable import split_params

SIZES = {
    "s": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
          "num_key_value_heads": 2, "intermediate_size": 704, "vocab_size": 4096},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
          "num_key_value_heads": 4, "intermediate_size": 1408, "vocab_size": 8192},
}  # fmt: skip
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS, WIDTH = 8, 128  # of each group in a training step
PROMPTS, PROMPT_WIDTH, NEW_TOKENS = 16, 32, 64
RATE, DECAY, CLIP, BETA = 1e-5, 0.01, 1.0, 0.1
ADAPTER = AdapterConfig(rank=8, alpha=16.0)


@dataclass(frozen=True)
class Work:
    """Something both sides can do; each call does it once and returns what to compare."""

    name: str
    tokens: int  # per call
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one side, per repeat."""

    wall: list[float]
    cpu: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["s", "m"])
    parser.add_argument("--work", default="", help="only work whose name contains this")
    parser.add_argument("--steps", type=int, default=4, help="training steps per timed call")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="file to append a JSON line per result to")
    args = parser.parse_args()
    setting = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load": os.getloadavg()[0],
        "steps_per_call": args.steps,
        "repeats": args.repeats,
        **{name: version(name) for name in ("jax", "torch", "transformers", "peft")},
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'work':24} {'ours tok/s':>18} {'theirs tok/s':>18} {'wall':>6} {'cpu':>6}  first call")
    for size in args.models:
        for make in (training_work, generation_work):
            for work in make(size, args):
                if args.work in work.name:
                    report(work, args, setting)


def report(work: Work, args: argparse.Namespace, setting: dict[str, Any]) -> None:
    """Times a piece of work in turns and prints the medians and their ratios."""
    begin = time.perf_counter()
    ours = work.ours()
    first_call = time.perf_counter() - begin
    np.testing.assert_allclose(ours, work.theirs(), rtol=2e-3, err_msg=work.name)
    timings = {"ours": Timing([], []), "theirs": Timing([], [])}
    for _ in range(args.repeats):
        for side, run in (("ours", work.ours), ("theirs", work.theirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            timings[side].wall.append(time.perf_counter() - wall)
            timings[side].cpu.append(time.process_time() - cpu)
    speed = {side: [work.tokens / s for s in timing.wall] for side, timing in timings.items()}
    wall = [b / a for a, b in zip(timings["ours"].wall, timings["theirs"].wall, strict=True)]
    cpu = [b / a for a, b in zip(timings["ours"].cpu, timings["theirs"].cpu, strict=True)]
    shown = [
        f"{statistics.median(s):.0f} ({min(s):.0f}-{max(s):.0f})".rjust(18) for s in speed.values()
    ]
    ratios = f"{statistics.median(wall):6.2f} {statistics.median(cpu):6.2f}"
    print(f"{work.name:24} {' '.join(shown)} {ratios}  {first_call:.1f} s", flush=True)
    if args.output:
        record = {"work": work.name, "tokens_per_second": speed, "wall_ratio": wall,
                  "cpu_ratio": cpu, "first_call_seconds": first_call, **setting}  # fmt: skip
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def training_work(size: str, args: argparse.Namespace) -> list[Work]:
    """GradDiff and NPO, on all parameters and on LoRA factors of all linear layers."""
    theirs, ours = models(size)
    tokens = np.random.default_rng(0).integers(0, ours.config.vocab_size, (2, ROWS, WIDTH))
    tokens = tokens.astype(np.int32)
    return [
        Work(
            f"{size} {name}",
            args.steps * 2 * ROWS * WIDTH,
            our_steps(ours, method, adapter, tokens, args.steps),
            their_steps(theirs, method, adapter, tokens, args.steps),
        )
        for name, method, adapter in (
            ("grad_diff", "grad_diff", None),
            ("npo", "npo", None),
            ("grad_diff lora", "grad_diff", ADAPTER),
            ("npo lora", "npo", ADAPTER),
        )
    ]


def generation_work(size: str, args: argparse.Namespace) -> list[Work]:
    """Greedy continuation of equally long prompts, to the full length."""
    theirs, ours = models(size)
    rng = np.random.default_rng(1)
    prompts = rng.integers(1, ours.config.vocab_size, (PROMPTS, PROMPT_WIDTH))
    rows, ids = prompts.tolist(), torch.tensor(prompts)

    def run_ours() -> list[list[int]]:
        return generate(ours.config, ours.params, rows, max_new_tokens=NEW_TOKENS, stop_tokens=[])

    def run_theirs() -> list[list[int]]:
        with torch.no_grad():
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[:, PROMPT_WIDTH:].tolist()

    return [Work(f"{size} generate", PROMPTS * NEW_TOKENS, run_ours, run_theirs)]


def models(size: str) -> tuple[torch.nn.Module, LanguageModel]:
    """The same random model on both sides."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES[size], max_position_embeddings=256, tie_word_embeddings=True
    )
    theirs = transformers.LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, load_model(folder)


def our_steps(
    model: LanguageModel, method: str, adapter: AdapterConfig | None, tokens: np.ndarray, steps: int
) -> Callable[[], float]:
    """The library's step; the returned call does `steps` of them and returns the first loss."""
    config = MethodConfig(name=method, hyper={"beta": BETA} if method == "npo" else {})
    terms, hyper = objective(config)
    trainable, frozen = split_params(model, None, adapter, seed=0)
    mask = np.ones(tokens.shape[1:], bool)
    mask[:, 0] = False
    tables = {}
    for group, rows in zip(("forget", "retain"), tokens, strict=True):
        reference = None
        if method == "npo" and group == "forget":
            reference = reference_log_probs(model.config, model.params, rows[None])[0]
        tables[group] = Rows(jnp.asarray(rows), jnp.asarray(mask), None, reference)
    training = TrainingConfig(
        learning_rate=RATE, weight_decay=DECAY, clip_norm=CLIP, warmup=0, decay="constant"
    )
    numbers = traced_numbers(hyper, training, 1000, seed=0)
    schedule = {group: np.tile(np.arange(ROWS, dtype=np.int32), (32, 1)) for group in tables}
    spec = StepSpec(model.config, terms, decay="constant")
    state = init_state(trainable)

    def run() -> float:
        nonlocal state
        state, log = run_steps(spec, state, frozen, tables, schedule, np.int32(steps), numbers)
        return float(jax.device_get(log)["loss"][0])

    return run


def their_steps(
    start: torch.nn.Module,
    method: str,
    adapter: AdapterConfig | None,
    tokens: np.ndarray,
    steps: int,
) -> Callable[[], float]:
    """A plain PyTorch loop over the same work."""
    model = copy.deepcopy(start).train()
    if adapter is not None:
        import peft

        settings = peft.LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=LINEAR)
        model = peft.get_peft_model(model, settings)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=DECAY)
    forget, retain = torch.tensor(tokens, dtype=torch.long)

    def loss() -> torch.Tensor:
        retain_loss = model(input_ids=retain, labels=retain).loss
        if method == "grad_diff":
            return retain_loss - model(input_ids=forget, labels=forget).loss
        with torch.no_grad():
            before = sequence_log_probs(start, forget)
        ratio = sequence_log_probs(model, forget) - before
        return retain_loss - 2 / BETA * torch.nn.functional.logsigmoid(-BETA * ratio).mean()

    def run() -> float:
        losses = []
        for _ in range(steps):
            value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(trainable, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        return losses[0]

    return run


def sequence_log_probs(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Sum of log p(token | tokens before it) per row."""
    logits = model(input_ids=tokens).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return -nll.sum(-1)


if __name__ == "__main__":
    main()
