"""Speed of training steps over 1, 2, 4 and 8 devices, in every layout.

    python experiments/benchmarks/scaling.py --output scaling.jsonl

Each number of devices is a process of its own, with so many devices of the CPU. They share its
cores, so that more of them can't be faster; what shows is what a layout costs. The losses of all
are compared with those of one device. On a host with accelerators, `--here` times all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

import jax
import numpy as np

from jaxunlearn.config import MethodConfig, TrainingConfig
from jaxunlearn.config_parallel import MeshConfig
from jaxunlearn.data.tokens import TokenTable
from jaxunlearn.methods.registry import objective
from jaxunlearn.models import transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.batches import device_rows
from jaxunlearn.training.loop import prepare
from jaxunlearn.training.parallel import layout_of
from jaxunlearn.training.step import init_state, run_steps

MODEL = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 8, "intermediate_size": 704, "vocab_size": 4096,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
ROWS, WIDTH, STEPS = 16, 128, 4  # rows of each group in a step; steps in a timed call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--here", action="store_true", help="time the devices of this process")
    parser.add_argument("--output", help="file to append a JSON line to")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(timed(args.repeats)))
        return
    found = {count: in_a_process(count, args.repeats) for count in args.devices}
    first = next(iter(found.values()))["auto"]
    print("| devices | layout | tokens/s | of one device | of CPU time |\n|---|---|---|---|---|")
    for count, layouts in found.items():
        for name, one in layouts.items():
            np.testing.assert_allclose(one["losses"], first["losses"], rtol=1e-4, err_msg=name)
            ratio, cpu = one["speed"] / first["speed"], first["cpu"] / one["cpu"]
            print(f"| {count} | `{name}` | {one['speed']:.0f} | {ratio:.2f} | {cpu:.2f} |")
    result = {
        "work": f"GradDiff, all parameters, {2 * ROWS} rows of {WIDTH} tokens",
        "layouts": found,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
    }
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def in_a_process(devices: int, repeats: int) -> dict[str, dict]:
    """What `timed` finds on so many devices of the CPU."""
    run = subprocess.run(
        [sys.executable, __file__, "--here", "--repeats", str(repeats)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def timed(repeats: int) -> dict[str, dict]:
    """Layout to its losses, tokens per second, and seconds of CPU time of a call."""
    count = jax.device_count()
    layouts = {"auto": "auto"}
    if count > 1:
        meshes = {"fsdp": {"fsdp": count}, "tensor": {"tensor": count}}
        if count > 4:
            meshes["mixed"] = {"data": count // 4, "fsdp": 2, "tensor": 2}
        layouts |= {name: MeshConfig(**sizes) for name, sizes in meshes.items()}
        layouts["pmap"] = "pmap"
    config = read_config(MODEL, "the benchmark's model")
    model = LanguageModel(config, transformer.init_params(config, jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (2, ROWS, WIDTH), np.int32)
    mask = np.broadcast_to(np.arange(WIDTH) > 0, (ROWS, WIDTH))
    lengths, prompts = np.full(ROWS, WIDTH, np.int32), np.ones(ROWS, np.int32)
    tables = {
        group: TokenTable(rows, mask, lengths, prompts)
        for group, rows in zip(("forget", "retain"), tokens, strict=True)
    }
    schedule = {group: np.tile(np.arange(ROWS, dtype=np.int32), (STEPS, 1)) for group in tables}
    terms, hyper = objective(MethodConfig("grad_diff"))
    training = TrainingConfig(learning_rate=1e-5, decay="constant", warmup=0)
    found = {}
    for name, parallel in layouts.items():
        layout = layout_of(parallel)
        start = layout.placed(model)
        spec, trainable, frozen, numbers = prepare(
            start, terms, hyper, training, 1000, None, 0, layout
        )
        frozen, rows = layout.place(frozen), device_rows(start, tables, terms, layout)
        state = layout.place(init_state(layout.place(trainable)))
        wall, cpu, losses = [], [], []
        for _ in range(1 + repeats):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            state, log = run_steps(spec, state, frozen, rows, schedule, np.int32(STEPS), numbers)
            losses += jax.device_get(log)["retain_loss"].tolist()
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - begin_cpu)
        found[name] = {
            "losses": losses,
            "speed": STEPS * 2 * ROWS * WIDTH / statistics.median(wall[1:]),
            "cpu": statistics.median(cpu[1:]),
        }
    return found


if __name__ == "__main__":
    main()
