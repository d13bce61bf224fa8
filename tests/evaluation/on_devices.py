"""Evaluates a model on however many devices there are, for test_devices."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import synthetic, tokens
from jaxunlearn.evaluation import embed, forward, gradient_norm, suite
from jaxunlearn.models import generate, lora
from jaxunlearn.models.generate import Sampling
from jaxunlearn.models.loading import load_model
from jaxunlearn.models.placement import spread

TEMPLATE = "Question: {question}\nAnswer:"
PROGRAMS = {
    "statistics": (forward, "_statistics"),
    "decode": (generate, "decode"),
    "mean hidden": (embed, "_mean_hidden"),
    "gradient norms": (gradient_norm, "_norms"),
}
COLLECTIVE = r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


class Watched:
    """A compiled program that notes on how many devices its results lie, and what these talk."""

    def __init__(self, program):
        self.program, self.parts, self.talk = program, set(), set()

    def __call__(self, *args):
        found = self.program(*args)
        first = jax.tree.leaves(found)[0]
        # How many rows there are for each row that a device has, and how many devices have any.
        shares = {first.shape[0] / shard.data.shape[0] for shard in first.addressable_shards}
        if not self.parts:
            text = self.program.lower(*args).compile().as_text()
            self.talk = set(re.findall(COLLECTIVE, text))
        self.parts |= {(len(first.sharding.device_set), share) for share in shares}
        return found


def watch():
    """Every program, watched from now on."""
    watched = {}
    for name, (module, attribute) in PROGRAMS.items():
        program = getattr(module, attribute)
        watched[name] = Watched(getattr(program, "program", program))
        setattr(module, attribute, watched[name])
    return watched


def adapted(model):
    """The model with an adapter that changes what it says."""
    factors = lora.init(model.params, 2, key=jax.random.key(0))
    factors = jax.tree.map(lambda x: x + 0.1, factors)
    return dataclasses.replace(model, adapter=lora.Adapter(factors, 0.5))


def sharded(model, axis_type):
    """The model with its params, not its adapter, sharded over four by two devices."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(axis_type,) * 2)

    def place(path, leaf):
        kernel = path[0].key == "layers" and path[-1].key == "kernel"
        spec = P(None, "fsdp", "tensor") if kernel else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(place, model.params))


def evaluated(model, sets, name, batch_size):
    config = EvaluationConfig(suite=name, max_new_tokens=9, batch_size=batch_size)
    found = suite.evaluate(model, sets, config, template=TEMPLATE, max_length=128)
    return dataclasses.asdict(found)


def continued(model, prompts, sampling):
    options = {"max_new_tokens": 9, "stop_tokens": model.stop_tokens, "batch_size": 6}
    return generate.generate(
        model.config, model.params, prompts, lora=model.lora, sampling=sampling, seed=5, **options
    )


def measured(model, sets, suites, samplings):
    """All that must not depend on the devices, and what the programs did on these."""
    rows = [row for chosen in sets.values() for row in chosen.rows]
    ids = prompts_of(model, rows)
    pairs = [row.key for row in rows[:11]]
    table = tokens.encode(model.tokenizer, pairs, template=TEMPLATE, max_length=128).table
    watched = watch()
    numbers = {
        **{name: evaluated(model, sets, name, size) for name, size in suites.items()},
        **{name: continued(model, ids, sampling) for name, sampling in samplings.items()},
        "gradient norms": gradient_norm.gradient_norm_score(
            model.config, model.params, table, lora=model.lora
        ).tolist(),
    }
    programs = {name: [sorted(w.parts), sorted(w.talk)] for name, w in watched.items()}
    return {"numbers": numbers, "programs": programs}


def prompts_of(model, rows):
    return [tokens.prompt_tokens(model.tokenizer, r.question, template=TEMPLATE) for r in rows[:13]]


def moved(tree):
    """Whether spreading a tree a second time moves any of it."""
    once = spread(tree)
    twice = spread(once.tree)
    return any(
        ours.data.unsafe_buffer_pointer() != theirs.data.unsafe_buffer_pointer()
        for a, b in zip(jax.tree.leaves(once.tree), jax.tree.leaves(twice.tree), strict=True)
        for ours, theirs in zip(a.addressable_shards, b.addressable_shards, strict=True)
    )


def main(folder, out):
    model = load_model(folder)
    # Plain norms and larger matrices: what it says varies, and rounding errors stay small.
    params = jax.tree.map(lambda x: jnp.where(x == 4, 1, x * 2), model.params)
    model = dataclasses.replace(model, params=params)
    sets = synthetic.build(people=6, forget_people=2, seed=0, holdout_people=2).evaluation
    sets = suite.limit_sets(sets, 7)
    found = {"devices": jax.device_count(), "rows": sum(len(s.rows) for s in sets.values())}
    samplings = {
        "greedy": Sampling(),
        "sampled": Sampling(1.0),
        "filtered": Sampling(0.8, 40, 0.9),
    }
    found["bare"] = measured(model, sets, {"tofu": 16, "melu": 6}, samplings)
    found["adapter"] = measured(adapted(model), sets, {"melu": 6}, {})
    found["copies left"] = sum(len(leaf.devices()) > 1 for leaf in jax.live_arrays())
    found["moved"] = moved(model.params)
    sizes = [1, 6, 8, 13]
    found["batch sizes"] = [spread(model.params).batch_size(size) for size in sizes]
    if jax.device_count() == 8:
        auto = sharded(adapted(model), AxisType.Auto)
        explicit = sharded(model, AxisType.Explicit)
        rows = [row for chosen in sets.values() for row in chosen.rows]
        found["sharded"] = evaluated(auto, sets, "melu", 6)
        found["explicit"] = continued(explicit, prompts_of(model, rows), Sampling())
        found["sharded batch sizes"] = [spread(auto.params).batch_size(size) for size in sizes]
        found["sharded moved"] = moved(auto.params)
        kernel = spread((auto.params, np.ones(3))).tree[0]["layers"]["mlp"]["up"]["kernel"]
        found["kernel"] = list(kernel.addressable_shards[0].data.shape), list(kernel.shape)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
