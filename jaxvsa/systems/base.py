"""The frame: a system is a record of pure functions over plain parameter trees.

Everything that differs between two papers stands in one `System`; everything else (the step, the
loop, the evaluator, the checkpoints) is written once. Nothing here knows a paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

Params = Any
Batch = Mapping[str, jax.Array]


class Mean(struct.PyTreeNode):
    """A weighted mean that adds up over micro-batches and devices and is divided once.

    Attributes:
        total: scalar, sum of weighted values.
        weight: scalar, sum of weights (examples, answer tokens, pairs); carries no gradient.
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, value_b: jax.Array, valid_b: jax.Array) -> Mean:
        """Mean of per-example values (b,) over the examples that are real."""
        zero = jnp.zeros((), value_b.dtype)
        weight = jnp.sum(valid_b, dtype=value_b.dtype)
        return cls(jnp.sum(jnp.where(valid_b, value_b, zero)), jax.lax.stop_gradient(weight))

    def compute(self) -> float:
        """Host float64 value; nan where nothing was counted."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One thing that `evaluate` and `predict` can run.

    Attributes:
        outputs: (params, batch) -> {name: array (b, ...)}; deterministic. The batch holds what
            `System.shared` gives; no two tasks of a system give the same name.
        measure: (outputs, batch) -> a tree of states that merge; padding excluded by `valid_b`.
    """

    outputs: Callable[[Params, Batch], dict[str, jax.Array]]
    measure: Callable[[Mapping[str, jax.Array], Batch], dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """What a paper adds to the frame.

    Attributes:
        name: key of `jaxvsa.systems.build`.
        fields: batch field -> (axis letters, dtype); the tracing test and dry runs read it.
        init: (rng, batch) -> params.
        loss: (params, batch, rng) -> {name: Mean}; "loss" is minimised; rng None = no dropout. In
            training the batch holds "update", the number of the update, for what changes with it.
            The key is the same for all micro-batches and devices of an update: whatever is drawn
            must also be keyed by `index_b`, the number of the example, as `layers.dropout` does.
        tasks: what can be evaluated.
        shared: (params, batch) -> {name: array}: what the tasks begin with, computed once for all
            of them and added to the batch; None = they have nothing in common.
        tables: batch field -> (table name, field of row numbers): arrays that enter the step as
            arguments and are gathered inside it; row -1 is padding and gives zeros.
        trainable: ordered (regex, bool) over parameter paths, total.
        parts: ordered (name, regex) over parameter paths, total; each has a learning-rate factor.
        partition: ordered (regex, PartitionSpec) over parameter paths, total.
        couples_batch: the loss looks across examples, so that accumulation > 1 is refused.
    """

    name: str
    fields: Mapping[str, tuple[str, Any]]
    init: Callable[[jax.Array, Batch], Params]
    loss: Callable[[Params, Batch, jax.Array | None], dict[str, Mean]]
    tasks: Mapping[str, Task]
    shared: Callable[[Params, Batch], dict[str, jax.Array]] | None = None
    tables: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    trainable: tuple[tuple[str, bool], ...] = ((".*", True),)
    parts: tuple[tuple[str, str], ...] = (("all", ".*"),)
    partition: tuple[tuple[str, PartitionSpec], ...] = ((".*", PartitionSpec()),)
    couples_batch: bool = False


def expand(system: System, tables: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """Adds the gathered table rows to a batch; the only place that knows where features live.

    A field whose table is absent must already be in the batch (gathered on the host).
    """
    full = dict(batch)
    for field, (table, rows) in system.tables.items():
        if table in tables:
            index = batch[rows]
            taken = tables[table][jnp.maximum(index, 0)]
            full[field] = jnp.where((index >= 0)[..., None], taken, jnp.zeros((), taken.dtype))
    return full


def outputs(system: System, task: str, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """What one task alone makes of a whole batch."""
    begun = {} if system.shared is None else system.shared(params, batch)
    return system.tasks[task].outputs(params, {**batch, **begun})


def abstract_batch(system: System, sizes: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch, for tracing at full size without memory.

    Args:
        system: whose `fields` are read.
        sizes: axis letter -> length.
    """
    return {
        field: jax.ShapeDtypeStruct(tuple(sizes[axis] for axis in axes), dtype)
        for field, (axes, dtype) in system.fields.items()
    }
