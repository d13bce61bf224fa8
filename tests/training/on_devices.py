"""Trains on one device and on eight in every layout, for test_parallel; prints what it finds."""

import dataclasses
import json
import sys

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxunlearn.config import AdapterConfig, MethodConfig, TrainingConfig
from jaxunlearn.config_parallel import MeshConfig
from jaxunlearn.data import sampling, synthetic, tokens
from jaxunlearn.methods import registry
from jaxunlearn.models import transformer
from jaxunlearn.models.families import read_config
from jaxunlearn.models.int8 import with_int8_kernels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.loop import train
from jaxunlearn.training.parallel import ONE_DEVICE, layout_of

LAYOUTS = {
    "data": "auto",
    "fsdp": MeshConfig(fsdp=8),
    "tensor": MeshConfig(tensor=8),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
    "pmap": "pmap",
}
ADAPTER = AdapterConfig(rank=4, alpha=8)
CASES = {
    "grad_diff": ("grad_diff", {}, None, {}),
    "npo": ("npo", {}, None, {}),
    "rmu": ("rmu", {"layer": 1}, None, {"learning_rate": 5e-5}),
    "lora npo": ("npo", {}, ADAPTER, {}),
}
PARTS = {"micro_batches": 3, "batch_size": 6}
FEWER = {
    "npo in parts": ("npo", {}, None, PARTS, ("mixed",)),
    "gru in parts": ("gru", {}, None, PARTS, ("data", "pmap")),
    "kl, one layer": ("kl", {}, None, {"train_only": "layers/1/mlp"}, ("mixed",)),
    "muon": ("grad_diff", {}, None, {"optimizer": "muon"}, ("fsdp",)),
    "sophia": ("grad_diff", {}, None, {"optimizer": "sophia"}, ("data",)),
    "lora npo beside int8": ("npo", {}, ADAPTER, {}, ("mixed",)),
}
"""With the layouts that each is tried in."""


def build():
    """A model whose sizes eight divides in part, and token tables of uneven rows."""
    world = synthetic.build(people=6, forget_people=2, seed=0)
    texts = [f"{r.question} {r.answer}" for r in (*world.forget, *world.retain)]
    tokenizer = tokens.train_tokenizer(texts, 400)
    hf_config = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
    }  # fmt: skip
    config = read_config(hf_config, "tiny")
    params = jax.tree.map(lambda x: x * 2, transformer.init_params(config, jax.random.key(1)))
    model = LanguageModel(config, params, tokenizer, hf_config=hf_config)
    tables = {
        group: tokens.encode(
            tokenizer, [row.key for row in rows], template="{question}\n", max_length=32
        ).table
        for group, rows in (("forget", world.forget), ("retain", world.retain))
    }
    tables = dict(zip(tables, tokens.same_width(*tables.values()), strict=True))
    return model, tables


def in_int8(model):
    return dataclasses.replace(model, params=with_int8_kernels(dict(model.params)))


def trained(model, tables, case, layout, steps=20, **options):
    """Losses, gradient norms and parameters after some steps."""
    name, hyper, adapter, changes = case[:4]
    training = TrainingConfig(**{"batch_size": 5, "learning_rate": 1e-4, **changes})
    objective, hyper = registry.objective(MethodConfig(name, hyper))
    size = training.batch_size
    order = {
        group: sampling.epochs(len(tables[group].tokens), 20, size, seed)[:steps]
        for seed, group in enumerate(objective.groups)
    }
    order["forget"][3, 2:] = sampling.EMPTY
    log = []
    found = train(
        model,
        {group: tables[group] for group in objective.groups},
        order,
        objective,
        hyper,
        training,
        adapter=adapter,
        layout=layout,
        on_steps=lambda done, total, rows: log.extend(rows),
        **options,
    )
    tree = found.params if adapter is None else found.adapter.factors
    return log, jax.device_get(flatten_dict(dict(tree))), found


def distances(ours, theirs):
    """Largest relative distance of a term's loss, and of a tensor."""
    (log, params, _), (log1, params1, _) = ours, theirs
    terms = [key for key in log[0] if key.endswith("_loss")]
    losses = max(
        # A term may be 0: RMU's for retain rows, at first.
        abs(a[term] - b[term]) / max(abs(b[other]) for other in terms)
        for a, b in zip(log, log1, strict=True)
        for term in terms
    )
    tensors = max(
        np.linalg.norm(params[path] - one) / np.linalg.norm(one) for path, one in params1.items()
    )
    return float(losses), float(tensors)


def shares(tree, devices=8):
    """Leaf to the share of it that a device holds."""
    flat = jax.tree.leaves_with_path(dict(tree))
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    return {k: x.addressable_shards[0].data.size / x.size for k, x in flat.items()}


def moved(model, trained):
    """The least relative distance that a layer's kernel has gone."""
    pairs = zip(
        *(jax.tree.leaves(m.params["layers"]["mlp"]) for m in (model, trained)), strict=True
    )
    return float(min(np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs))


def main():
    model, tables = build()
    found = {"devices": jax.device_count(), "distances": {}, "shares": {}, "moved": {}}
    for name, case in {**CASES, **FEWER}.items():
        start = in_int8(model) if "int8" in name else model
        one = trained(start, tables, case, ONE_DEVICE)
        if case[2] is None:
            found["moved"][name] = moved(model, one[2])
        for kind, parallel in LAYOUTS.items():
            if name in FEWER and kind not in FEWER[name][-1]:
                continue
            eight = trained(start, tables, case, layout_of(parallel))
            found["distances"][f"{name}, {kind}"] = distances(eight, one)
            print(name, kind, *distances(eight, one), file=sys.stderr, flush=True)
            if name in ("grad_diff", "lora npo beside int8"):
                found["shares"][f"{name}, {kind}"] = shares(eight[2].params)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
