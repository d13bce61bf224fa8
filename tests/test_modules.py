"""Adapter modules: what is written comes back to the bit, and a kill leaves the old or the new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxunlearn.errors import UserError
from jaxunlearn.models import lora, transformer
from jaxunlearn.models.lora import Adapter
from jaxunlearn.modules import Module, ModuleStore

logits_of = jax.jit(transformer.logits, static_argnums=0)
TOKENS = np.random.default_rng(0).integers(3, 90, (3, 12))


def random_adapter(model, rank=4, scale=1.5, targets=None, seed=0):
    """Both factors random wherever the adapter is."""
    fresh = lora.init(model.params, rank, key=jax.random.key(seed), targets=targets)
    flat, made = flatten_dict(fresh), {}
    for number, (path, leaf) in enumerate(sorted(flat.items())):
        key = jax.random.fold_in(jax.random.key(seed + 1), number)
        there = flat[(*path[:-1], "a")].any((1, 2), keepdims=True)
        made[path] = there * jax.random.normal(key, leaf.shape) * 0.1
    return Adapter(jax.tree.unflatten(jax.tree.structure(fresh), _in_order(fresh, made)), scale)


def _in_order(tree, flat):
    return [flat[tuple(key.key for key in path)] for path, _ in jax.tree.leaves_with_path(tree)]


def assert_same(ours, theirs):
    """Factors and scale, to the bit."""
    assert ours.scale == theirs.scale
    ours, theirs = flatten_dict(ours.factors), flatten_dict(theirs.factors)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, theirs[path])


@pytest.fixture
def store(tmp_path):
    return ModuleStore(tmp_path / "modules")


def test_an_empty_store(store):
    assert store.modules() == []
    with pytest.raises(UserError, match="no module 'x'; there are: none"):
        store.adapter("x")
    assert not store.folder.exists()


KINDS = {
    "all": {},
    "odd rank, scale 1": {"rank": 5, "scale": 1.0},
    "odd rank, odd scale": {"rank": 7, "scale": 0.3 / 7},
    "some targets": {"targets": "attention/(q|v)"},
    "one layer": {"rank": 3, "scale": 1.0, "targets": "layers/1/mlp/down"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_comes_back_to_the_bit(store, tiny, tiny_folder, kind):
    adapter = random_adapter(tiny, **KINDS[kind])
    store.write(Module("one", -0.5, "Ada, Bo"), adapter, tiny, tiny_folder)
    assert_same(store.adapter("one"), adapter)
    assert store.modules() == [Module("one", -0.5, "Ada, Bo")]
