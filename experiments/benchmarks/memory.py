"""Peak memory of import and export of a Llama-3.2-1B-shaped model.

    python experiments/benchmarks/memory.py [--layers 16] [--folder DIR]

Makes a random bfloat16 folder in shards, then imports it and exports it again in a process of its
own. Prints peak resident memory over that of the interpreter with everything imported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.families import family_of, read_config
from jaxunlearn.models.folders import write_json
from jaxunlearn.models.tensor_files import Header, write_tensors

LLAMA_32_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}

WORK = """
import json, sys, time
from pathlib import Path
import jax
from jaxunlearn.models.checkpoint_hf import export_model
from jaxunlearn.models.loading import load_model
import safetensors, transformers

def memory(key):
    # Not getrusage: its peak counts the parent process before the start of this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def peak():
    return memory("VmHWM")

source, out = sys.argv[1:]
jax.numpy.zeros(8).block_until_ready()
base, start = memory("VmRSS"), time.perf_counter()
model = jax.block_until_ready(load_model(source))
imported, seconds = peak() - base, time.perf_counter() - start
start = time.perf_counter()
export_model(model, out, max_shard_bytes=10**9)
result = {"import_peak": imported, "import_s": seconds,
          "export_peak": peak() - base, "export_s": time.perf_counter() - start}
print(json.dumps(result))
"""


def make_folder(folder: Path, layers: int) -> int:
    """A random model in shards; returns its bytes."""
    hf_config = {**LLAMA_32_1B, "num_hidden_layers": layers}
    config = read_config(hf_config, "config")
    table = family_of(hf_config, "config").weights(config)
    headers = [Header(n, w.shape, "BF16") for w in table for n in w.names(layers)]
    random = np.random.default_rng(0)
    scale = np.float32(0.02)
    tensors = (
        (random.standard_normal(h.shape, np.float32) * scale).astype(jnp.bfloat16) for h in headers
    )
    folder.mkdir()
    write_json(folder / "config.json", hf_config)
    write_tensors(folder, headers, tensors, 10**9)
    return sum(header.size for header in headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        size = make_folder(source, options.layers)
        started = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-c", WORK, source, out], check=True, capture_output=True, text=True
        )
        result = json.loads(run.stdout)
        shards = sorted(source.glob("*.safetensors"))
        same = all((out / s.name).read_bytes() == s.read_bytes() for s in shards)
        print(f"{size / 1e9:.2f} GB of bfloat16 in {len(shards)} shards")
        for stage in ("import", "export"):
            peak, seconds = result[f"{stage}_peak"], result[f"{stage}_s"]
            print(
                f"{stage}: peak {peak / 1e9:.2f} GB, {peak / size:.3f} of its size, {seconds:.1f} s"
            )
        print(f"exported files identical: {same}; {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
