"""What a training's batches are made of: rows on the devices, and the shapes of each step."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.tokens import TokenTable, batch_width
from jaxunlearn.methods.registry import Objective
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.training.parallel import ONE_DEVICE, Layout
from jaxunlearn.training.statistics import Rows, reference_log_probs

ALTERNATIVE = "alternative_reference_seq_log_prob"


def device_rows(
    model: LanguageModel,
    tables: Mapping[str, TokenTable],
    objective: Objective,
    layout: Layout = ONE_DEVICE,
) -> dict[str, Rows]:
    """The tables on the devices, with the reference's log-probs where a term asks for them."""
    needed = referenced(objective)
    rows = {
        group: Rows(
            jnp.asarray(table.tokens),
            jnp.asarray(table.answer_mask),
            None if table.labels is None else jnp.asarray(table.labels),
            _reference(model, table, layout) if group in needed else None,
        )
        for group, table in tables.items()
    }
    return layout.place(rows)


def referenced(objective: Objective) -> set[str]:
    """The groups whose log-probs under the start model the terms ask for."""
    groups = {term.group for term in objective.terms if "reference_seq_log_prob" in term.needs}
    return groups | ({"alternative"} if objective.needs(ALTERNATIVE) else set())


def _reference(model: LanguageModel, table: TokenTable, layout: Layout) -> jax.Array:
    n, width = table.tokens.shape
    batch = math.lcm(16, layout.shards)
    tokens = padded(table.tokens, -(-n // batch) * batch, 0).reshape(-1, batch, width)
    tokens = layout.shares(tokens, axis=1)
    with layout.known():
        found = reference_log_probs(model.config, model.params, tokens)
    return found.reshape(-1, width)[:n]


def step_widths(tables: Mapping[str, TokenTable], schedule: Mapping[str, np.ndarray]) -> np.ndarray:
    """[steps]: columns that each step's batch needs, by its longest row."""
    width = next(iter(tables.values())).tokens.shape[1]
    longest = [
        np.where(schedule[group] >= 0, table.lengths[schedule[group]], 0).max(axis=1)
        for group, table in tables.items()
    ]
    return np.array([batch_width(int(n), width) for n in np.max(longest, axis=0)])


def padded_slots(schedule: Mapping[str, np.ndarray], parts: int) -> dict[str, np.ndarray]:
    """A schedule with empty slots added, until each group's are a multiple of the parts."""
    return {
        group: np.pad(rows, ((0, 0), (0, -rows.shape[1] % parts)), constant_values=-1)
        for group, rows in schedule.items()
    }


def padded(rows: np.ndarray, length: int, fill: int) -> np.ndarray:
    """So many rows, the further ones full of one value."""
    extra = np.full((length - len(rows), *rows.shape[1:]), fill, rows.dtype)
    return np.concatenate([rows, extra])


def batch_tokens(
    tables: Mapping[str, TokenTable], schedule: Mapping[str, np.ndarray], step: int
) -> int:
    """Real tokens, padding not counted, that a step works through."""
    chosen = {group: index[step][index[step] >= 0] for group, index in schedule.items()}
    return int(sum(tables[group].lengths[index].sum() for group, index in chosen.items()))
