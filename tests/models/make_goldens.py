"""Writes the golden files: small torch models of every family with the logits that they give.

Run as a script. `test_goldens.py` reads the files, and needs no PyTorch for it.
"""

import json
import tempfile
from pathlib import Path

import torch
import zoo
from safetensors.numpy import load_file, save_file

GOLDENS = Path(__file__).with_name("goldens")
NAMES = (
    "llama",
    "llama_yarn_betas",
    "mistral",
    "qwen2_window",
    "qwen3_bias",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "phi3_longrope",
    "olmo2",
    "gpt_neox",
    "gpt2",
    "smollm3_window",
)
LAST = 4  # positions whose logits are kept


def golden(name: str, folder: Path) -> tuple[dict, dict]:
    """Tensors and metadata of one golden file."""
    model = zoo.make(name)
    model.save_pretrained(folder)
    tokens = zoo.random_tokens(2, 48)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits[:, -LAST:]
    tensors = load_file(folder / "model.safetensors")
    tensors["golden.tokens"] = tokens
    tensors["golden.logits"] = logits.contiguous().numpy()
    config = json.loads((folder / "config.json").read_text())
    return tensors, {"config.json": json.dumps(config, sort_keys=True)}


def main() -> None:
    """Writes every golden file."""
    GOLDENS.mkdir(exist_ok=True)
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            tensors, metadata = golden(name, Path(folder))
        save_file(tensors, GOLDENS / f"{name}.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
