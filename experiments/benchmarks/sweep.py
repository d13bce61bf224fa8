"""A sweep of 32 settings in one process, side by side, and as a process for each setting.

    python experiments/benchmarks/sweep.py --output sweep.jsonl

NPO on a LoRA adapter of the quickstart's model: four learning rates, four betas, two seeds, each a
whole run with evaluation, report and exported model. Each way is a command in a fresh process, one
after another, with a compilation cache that is empty at first. Of the 32 separate processes only a
few are started: the first, which fills the cache, counts once, the mean of the others 31 times.
Wall-clock time counts other work on the machine, CPU time does not.

    python experiments/benchmarks/sweep.py --only steps

times the update steps alone, of one adapter after another and of all in one program.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

CONFIG = {
    "finetune": {"epochs": 48, "batch_size": 32, "learning_rate": 3e-3},
    "method": {"name": "npo", "beta": 0.3, "retain_weight": 5.0},
    "adapter": {"rank": 8, "alpha": 16},
    "training": {"epochs": 30, "batch_size": 20, "learning_rate": 1e-3},
    "evaluation": {"max_new_tokens": 24},
}
GRID = {
    "training.learning_rate": [5e-4, 1e-3, 2e-3, 3e-3],
    "method.beta": [0.1, 0.3, 1.0, 3.0],
    "seed": [0, 1],
}
SETTINGS = 32
STAGES = {
    "before unlearning": ("target", "retrained"),
    "training": ("npo training",),
    "evaluation": ("npo evaluation",),
}

CHILD = """
import json, sys, time
from jaxunlearn.cli import main
begin = time.perf_counter()
status = main(sys.argv[2:])
wall = time.perf_counter() - begin
from jaxunlearn.training.step import steps_in_jit
found = {"wall": wall, "cpu": time.process_time(), "status": status,
         "alone": steps_in_jit._cache_size()}
if "jaxunlearn.training.together" in sys.modules:
    from jaxunlearn.training.together import run_steps_together
    found["together"] = run_steps_together._cache_size()
open(sys.argv[1], "w").write(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectorize", type=int, default=16)
    parser.add_argument("--processes", type=int, default=3, help="of the 32 that are started")
    parser.add_argument("--only", choices=("sequence", "together", "processes", "steps"))
    parser.add_argument("--output", help="file to append a JSON line per way to")
    args = parser.parse_args()
    import jax

    setting = {
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "vectorize": args.vectorize,
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    if args.only == "steps":
        for batch_size in (1, 4, 20):
            found = steps(args.vectorize, batch_size)
            print(found)
            if args.output:
                with open(args.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps({**found, **setting, "load": os.getloadavg()[0]}) + "\n")
        return
    ways = {
        "sequence": lambda folder: swept(folder),
        "together": lambda folder: swept(folder, "--vectorize", str(args.vectorize)),
        "processes": lambda folder: launched(folder, args.processes),
    }
    print(f"{'way':10} {'wall s':>8} {'CPU s':>8}  parts, s")
    for name, work in ways.items():
        if args.only not in (None, name):
            continue
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            found = work(Path(folder))
        found = {"way": name, **found, "load": [load, os.getloadavg()[0]]}
        parts = ", ".join(f"{key} {value}" for key, value in found.items() if key != "way")
        print(f"{name:10} {found['wall']:8.1f} {found['cpu']:8.1f}  {parts}", flush=True)
        if args.output:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(json.dumps({**found, **setting}) + "\n")


def swept(folder: Path, *options: str) -> dict[str, Any]:
    """All settings by one command."""
    words = [
        word
        for key, values in GRID.items()
        for word in ("--grid", f"{key}={','.join(map(str, values))}")
    ]
    found = command(folder, "sweep", *words, *options)
    runs = sorted((folder / "runs" / "config").glob("*/timing.json"))
    assert len(runs) == SETTINGS
    times = [json.loads(path.read_text()) for path in runs]
    # What is shared is in the folder of every run of its seed.
    shared = [json.loads(path.read_text()) for path in folder.glob("runs/*/shared/*/*/timing.json")]
    parts = {
        name: round(sum(s for one in whose for what, s in one.items() if what.startswith(words)), 1)
        for name, words in STAGES.items()
        for whose in [shared if name == "before unlearning" else times]
    }
    each = [one["npo training"] for one in times]
    return {
        **found,
        **parts,
        "rest": round(found["wall"] - sum(parts.values()), 1),
        "one training, median": statistics.median(each),
        "one training, greatest": max(each),
    }


def launched(folder: Path, count: int) -> dict[str, Any]:
    """A process for each setting, of which only some are started."""
    points = [(rate, beta) for rate in (1e-3, 2e-3, 5e-4, 3e-3) for beta in GRID["method.beta"]]
    each = []
    for number, (rate, beta) in enumerate(points[:count]):
        options = {"training.learning_rate": rate, "method.beta": beta, "name": f"run{number}"}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        each.append(command(folder, "run", *words))

    def all_of(kind: str) -> float:
        first, *others = (one[kind] for one in each)
        return first + (SETTINGS - 1) * statistics.fmean(others)

    return {
        "wall": all_of("wall"),
        "cpu": all_of("cpu"),
        "started": count,
        "each wall": [round(one["wall"], 1) for one in each],
        "each cpu": [round(one["cpu"], 1) for one in each],
    }


def steps(count: int, batch_size: int, length: int = 12, turns: int = 3) -> dict[str, Any]:
    """Milliseconds of CPU and of wall-clock time for a step of one adapter, medians of turns."""
    from jaxunlearn import config_file
    from jaxunlearn import experiment as experiments
    from jaxunlearn.models.starting import base_model
    from jaxunlearn.reveal.theme import load_data
    from jaxunlearn.training.loop import train
    from jaxunlearn.training.together import Member, train_together
    from jaxunlearn.unlearning_job import unlearning_job

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        changes = {"sampling.match_steps": length, "training.batch_size": batch_size}
        one = experiments.resolve(config_file.load(config, changes))
        data = load_data(one)
        model = base_model(one, data)
        job = unlearning_job(model, data.forget, data.retain, one, one.method)
        parts = (job.tables, job.indices, job.objective, job.hyper, job.training)
        tables, indices = ({g: part[g] for g in job.objective.groups} for part in parts[:2])
        places = iter(range(10**6))

        def alone() -> None:
            for seed in range(count):
                where = Path(folder) / str(next(places))
                train(
                    model, tables, indices, *parts[2:], adapter=one.adapter, seed=seed,
                    checkpoints=where, on_steps=lambda *_: None,
                )  # fmt: skip

        def together() -> None:
            members = [
                Member(
                    tables, indices, *parts[2:], seed, Path(folder) / str(next(places)),
                    lambda *_: None,
                )
                for seed in range(count)
            ]  # fmt: skip
            assert all(train_together(model, members, one.adapter))

        found: dict[str, Any] = {"adapters": count, "rows": 2 * batch_size, "width": 32}
        times: dict[str, list[float]] = {}
        for work in (alone, together):
            work()  # compiles
        for _ in range(turns):
            for name, work in (("alone", alone), ("together", together)):
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                for kind, begin, now in (
                    ("wall", wall, time.perf_counter()),
                    ("cpu", cpu, time.process_time()),
                ):
                    each = 1000 * (now - begin) / (count * length)
                    times.setdefault(f"{name} {kind} ms", []).append(each)
        medians = {key: round(statistics.median(values), 2) for key, values in times.items()}
        return {"way": "steps", **found, **medians}


def command(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """One command in a process of its own: seconds with its start, and programs of the step."""
    config, result = folder / "config.yaml", folder / "result.json"
    config.write_text(yaml.safe_dump(CONFIG))
    words = [str(result), name, str(config), "--output", str(folder / "runs"), *options]
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    begin = time.perf_counter()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-c", CHILD, *words],
            stdout=log, stderr=log, check=False, env=os.environ | cache,
        )  # fmt: skip
    wall = time.perf_counter() - begin
    found = json.loads(result.read_text()) if result.exists() else {"status": None}
    if found["status"] != 0:
        raise SystemExit((folder / "log.txt").read_text()[-4000:])
    programs = {f"programs {key}": found[key] for key in ("alone", "together") if key in found}
    return {"wall": wall, "cpu": found["cpu"], **programs}


if __name__ == "__main__":
    main()
