"""What a run would cost, before it is started: sizes, FLOPs, and the time of three steps."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.flops import count_flops
from jaxvsa.systems.base import abstract_batch
from jaxvsa.training.log import clock_time
from jaxvsa.training.state import State
from jaxvsa.training.step import make_step, train_step
from jaxvsa.workflows.fit import Setup, first_state, prepare_run

TIMED = 3


def dry_run(config: ConfigDict, run_path: Path, console: Console) -> dict[str, float]:
    """Prints and returns parameters, bytes, FLOPs of a step and the time of an epoch.

    Args:
        config: as for `fit`.
        run_path: where the demo corpus goes; nothing else is written.
        console: where the table goes.
    """
    setup = prepare_run(config, run_path)
    shardings = meshes.shardings(
        setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
    )
    found = {
        "parameters that learn": trees.num_values(setup.abstract.learn),
        "frozen parameters": trees.num_values(setup.abstract.held),
        "state, MiB per device": _bytes_per_device(setup, shardings) / 2**20,
        "features, MiB per device": trees.num_bytes(setup.data.tables(setup.system)) / 2**20,
    }
    shapes = setup.plan.shapes()
    typical = max(shapes, key=lambda shape: shapes[shape])
    found["GFLOP per step (most frequent shape)"] = _flops(setup, typical) / 1e9
    found["shapes of a batch"] = len(shapes)
    seconds = _time_steps(setup, shardings)
    found[f"seconds per step (median of {TIMED})"] = seconds
    found["seconds per epoch"] = seconds * setup.plan.steps_per_epoch
    table = Table(title=f"{setup.system.name}: dry run", show_header=False)
    for name, value in found.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    table.add_row("whole run", clock_time(seconds * setup.num_steps))
    console.print(table)
    return {name: float(value) for name, value in found.items()}


def _bytes_per_device(setup: Setup, shardings: State) -> int:
    """Bytes of the state on one device, as sharded."""
    total = 0
    pairs = zip(jax.tree.leaves(setup.abstract), jax.tree.leaves(shardings), strict=True)
    for leaf, sharding in pairs:
        shape = sharding.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize if hasattr(leaf.dtype, "itemsize") else 8
        count = 1
        for length in shape:
            count *= length
        total += count * size
    return total


def _flops(setup: Setup, shape: tuple[int, ...]) -> int:
    """Operations of one training step at one batch shape."""
    plan, micro = setup.plan, setup.options.accumulate
    sizes = setup.data.sizes() | dict(zip(plan.axes, shape, strict=True))
    sizes |= {"g": plan.groups // micro, "b": plan.batch_size // micro}
    batch = abstract_batch(setup.system, sizes)
    stacked = {
        name: jax.ShapeDtypeStruct((micro, *leaf.shape), leaf.dtype) for name, leaf in batch.items()
    }
    step = functools.partial(train_step, setup.system, setup.tx)
    return count_flops(lambda state, batch: step(state, {}, batch), setup.abstract, stacked)


def _time_steps(setup: Setup, shardings: State) -> float:
    """Median seconds of a step at the most frequent batch shape, compilation apart."""
    shapes = setup.plan.shapes()
    typical = max(shapes, key=lambda shape: shapes[shape])
    same = [
        step
        for step in range(min(len(setup.plan), setup.plan.steps_per_epoch))
        if tuple(setup.plan[step].sizes.values()) == typical
    ]
    batch = setup.stream[same[0]]
    tables = meshes.put_whole(setup.data.tables(setup.system), setup.mesh)
    step = make_step(setup.system, setup.tx, setup.mesh, setup.mesh_options.step, shardings)
    state = first_state(setup, shardings)
    times = []
    for _ in range(TIMED + 1):
        begin = time.perf_counter()
        state, terms = step(state, tables, batch)
        jax.block_until_ready(terms)
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[TIMED // 2]
