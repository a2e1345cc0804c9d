"""Runs tasks of a system over a split: outputs of every example, and states that merge."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvsa.core.mesh import put_batch
from jaxvsa.systems.base import Batch, Params, System, Task, expand

# Outputs of a task, which rows are no padding, and the number of the example.
_Fetched = tuple[dict[str, jax.Array], jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=("system",))
def shared_step(
    system: System, params: Params, tables: Mapping[str, jax.Array], batch: Batch
) -> dict[str, jax.Array]:
    """What all tasks begin with; compiled once per system and batch shape."""
    assert system.shared is not None
    return system.shared(params, expand(system, tables, batch))


@functools.partial(jax.jit, static_argnames=("system", "task", "mesh"))
def evaluation_step(
    system: System,
    task: Task,
    mesh: Mesh,
    params: Params,
    tables: Mapping[str, jax.Array],
    batch: Batch,
) -> tuple[_Fetched, dict[str, Any]]:
    """Outputs, `valid_b` and `index_b` of a batch, on every device, and the batch's states.

    It is compiled once per system, task, mesh and batch shape, however often `run` is called.
    """
    full = expand(system, tables, batch)
    outputs = task.outputs(params, full)
    states = task.measure(outputs, full)
    # Replicated, so that with several processes each can read all rows.
    everywhere = NamedSharding(mesh, PartitionSpec())
    fetched = dict(outputs), batch["valid_b"], batch["index_b"]  # outputs may have any name
    return jax.lax.with_sharding_constraint(fetched, everywhere), states


def run(
    system: System,
    tasks: Sequence[str],
    params: Params,
    tables: Mapping[str, jax.Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Evaluates all batches in every task; what tasks share is computed once.

    Args:
        system: whose tables the batches refer to.
        tasks: names of `system.tasks`.
        params: the whole parameter tree.
        tables: large arrays on the device; see `expand`.
        batches: host batches in any order; `valid_b` is False for padding rows, `index_b` the
            number of the example.
        mesh: where the batches go.

    Returns:
        outputs: {name: (num_valid, ...)} of all tasks, real examples in the order of their numbers.
        states: {name: state}, merged over all batches; padding is never counted.

    Raises:
        ValueError: there is no batch.
    """
    rows: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    merged: dict[str, Any] = {}
    pending: _Fetched | None = None
    for batch in batches:
        placed = put_batch(dict(batch), mesh)
        if system.shared is not None:
            placed |= shared_step(system, params, tables, placed)
        outputs: dict[str, jax.Array] = {}
        states: dict[str, Any] = {}
        for task in tasks:
            given = system, system.tasks[task], mesh, params, tables, placed
            (more, valid_b, index_b), counted = evaluation_step(*given)
            outputs, states = outputs | more, states | counted
        fetched = outputs, valid_b, index_b
        merged = {name: merged[name].merge(states[name]) for name in merged} or states
        for array in jax.tree.leaves(fetched):
            array.copy_to_host_async()
        if pending is not None:  # one batch late, so that reading never leaves the device idle
            rows.append(_valid_rows(pending))
        pending = fetched
    if pending is None:
        raise ValueError("nothing to evaluate: the split has no batch")
    rows.append(_valid_rows(pending))
    order = np.argsort(np.concatenate([index_b for _, index_b in rows]), kind="stable")
    names = rows[0][0]
    return {name: np.concatenate([row[name] for row, _ in rows])[order] for name in names}, merged


def flat_metrics(
    states: Mapping[str, Any], split: str, label_names: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Every figure of {task: state} by its full name: {"dev/opinion/micro_f1": 0.73, ...}."""
    flat: dict[str, float] = {}
    for task, state in states.items():
        flat |= flat_values(state.compute(), f"{split}/{task}", label_names[task])
    return flat


def flat_values(
    values: Mapping[str, Any], prefix: str, class_names: Sequence[str]
) -> dict[str, float]:
    """Name values by `prefix`; an array of classes such as `f1_c` becomes "f1/<class>" each."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if name.endswith("_c"):
            for class_name, class_value in zip(class_names, value, strict=True):
                flat[f"{prefix}/{name[:-2]}/{class_name}"] = class_value.item()
        else:
            flat[f"{prefix}/{name}"] = float(value)
    return flat


def _valid_rows(fetched: _Fetched) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Host arrays without the padding rows, and the numbers of the examples."""
    outputs, valid_b, index_b = jax.device_get(fetched)
    return {name: array[valid_b] for name, array in outputs.items()}, index_b[valid_b]
