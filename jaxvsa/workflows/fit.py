"""Trains a system from a configuration, resumes it, and reports what it reached."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.core.signals import Interrupts
from jaxvsa.data.pipeline import Batch, iterate
from jaxvsa.evaluation.evaluator import run
from jaxvsa.evaluation.tables import Row
from jaxvsa.systems.base import Params
from jaxvsa.training.log import MetricsLog, Progress
from jaxvsa.training.loop import Hooks, Interrupted, Loop, Memory
from jaxvsa.training.profile import profiled
from jaxvsa.training.state import State
from jaxvsa.training.step import make_step
from jaxvsa.workflows.report import read_rows, report, show
from jaxvsa.workflows.runs import describe
from jaxvsa.workflows.setup import Setup, first_state, prepare_run

SAVED = ("step", "rng", "learn", "opt", "skipped")


def saved(state: State) -> dict[str, Any]:
    """What of a state goes into a checkpoint: all but the frozen parameters."""
    return {name: getattr(state, name) for name in SAVED}


def resume(setup: Setup, checkpoints: Checkpoints, shardings: State) -> tuple[State, Memory, Any]:
    """The state, the loop's memory and the stream's state of the newest checkpoint, or new ones.

    Raises:
        UserError: no checkpoint is intact, or they are of another model or other frozen weights.
    """
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        saved(setup.abstract),
        saved(shardings),
    )
    found = checkpoints.restore_newest(target)
    if found is None:
        return first_state(setup, shardings), Memory(), None
    _, restored, meta = found
    held: Params = {}
    if meta["held"]:
        # Frozen parameters are not in a checkpoint: they are made again as at the start.
        held = first_state(setup, shardings).held
        if trees.digests(held) != meta["held"]:
            raise UserError(
                f"the frozen parameters are not those that {setup.folder.path} was trained with; "
                "restore config.weights.text or config.init_from as it was"
            )
    return State(held=held, **restored), Memory(**meta["memory"]), meta["stream"]


def fit(
    config: ConfigDict,
    run_path: str | Path,
    console: Console,
    devices: Any = None,
    tables: bool = True,
) -> list[Row]:
    """Trains to the end, or resumes, or finds the run complete; then the table.

    Args:
        config: from `core.config.load_config`.
        run_path: the run directory.
        console: where progress and tables go.
        devices: a subset of the devices; all by default.
        tables: the table is printed.

    Returns:
        the rows of the table: the model at its selected checkpoint, then the baselines.

    Raises:
        UserError: everything that the user can mend.
        SystemExit: code 0, after SIGTERM; what was trained is saved.
        KeyboardInterrupt: after Ctrl-C, likewise.
    """
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    with Interrupts(say) as interrupts:
        rows, setup = _fit(config, Path(run_path), console, devices, interrupts)
    if tables:
        show(rows, setup.folder, setup.data, console)
    return rows


def _fit(
    config: ConfigDict, run_path: Path, console: Console, devices: Any, interrupts: Interrupts
) -> tuple[list[Row], Setup]:
    setup = prepare_run(config, run_path, devices)
    data = setup.data
    identity = data.config, data.record()
    existed = setup.folder.check(*identity)
    checkpoints = setup.folder.checkpoints()
    if existed and setup.folder.results.exists():
        console.print(f"{run_path} is complete; its results:", markup=False)
        return read_rows(setup.folder.results), setup
    with setup.folder.held():
        say_start(setup, console)
        shardings = meshes.shardings(
            setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
        )
        log = MetricsLog(setup.folder.path, setup.options.tensorboard, setup.options.wandb)
        started = resume(setup, checkpoints, shardings)
        setup.folder.begin(*identity)  # only now is nothing left that could refuse the run
        if step := int(started[0].step):
            console.print(f"resuming {run_path} at step {step} of {setup.num_steps}", markup=False)
        with interrupts.waiting():
            try:
                state = train(
                    setup, checkpoints, shardings, *started, log, console, interrupts.poll
                )
            finally:
                checkpoints.close()
            if interrupts.poll():
                interrupts.leave(f"at step {int(state.step)}")
        held = state.held
        del state  # moments are not needed any more
        return report(setup, checkpoints, held), setup


def train(
    setup: Setup,
    checkpoints: Checkpoints,
    shardings: State,
    state: State,
    memory: Memory,
    stream_state: Any,
    log: MetricsLog,
    console: Console,
    stop: Callable[[], bool] = lambda: False,
) -> State:
    """Runs the loop with this run's files and functions, until `stop` says so."""
    system, mesh, data = setup.system, setup.mesh, setup.data
    tables = meshes.put_whole(data.tables(system), mesh)
    stream = iterate(setup.stream, stream_state)
    jitted = make_step(system, setup.tx, mesh, setup.mesh_options.step, shardings)
    held = describe(data.config, data.facts, data.codec, data.manifest, state.held)
    first = int(state.step)

    def step(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Mapping[str, Any]]:
        return jitted(state, tables, batch)

    def save(state: State, memory: Memory, value: float | None) -> None:
        meta = {**held, "memory": dataclasses.asdict(memory), "stream": stream.get_state()}
        if int(state.step) == first:  # an evaluation that was owed: the arrays are on the disk
            checkpoints.amend(first, meta, value)
        else:
            checkpoints.save(int(state.step), saved(state), meta, value)

    def newest() -> int | None:
        checkpoints.wait()  # one that is being written counts as soon as it is complete
        return checkpoints.newest()

    log.cut_after(first)
    with Progress(setup.num_steps, first, True, console) as progress:
        traced = setup.folder.path / "profile"
        with profiled(setup.profile, first, traced, progress.say, step, stream) as (call, feed):
            loop = Loop(
                setup.options,
                setup.num_steps,
                setup.eval_every,
                Hooks(call, dev_metrics(setup, tables, stop), save, setup.rate, newest, stop),
                log,
                progress,
                memory,
            )
            try:
                return loop.run(state, feed)
            finally:
                log.close()


def dev_metrics(
    setup: Setup, tables: Mapping[str, jax.Array], stop: Callable[[], bool]
) -> Callable[[State], dict[str, float]]:
    """Function: state -> metrics on dev, among them the one that selects; {} without dev.

    It asks `stop` before every batch, because a long evaluation would outlast the patience of
    whoever sent a signal.
    """
    data, system, mesh = setup.data, setup.system, setup.mesh
    if "dev" not in data.splits or data.task not in system.tasks:
        return lambda state: {}
    dev = data.in_order("dev", setup.options.eval_batch_size, mesh)

    def until_stop() -> Iterator[Batch]:
        for batch in iterate(dev):
            if stop():
                raise Interrupted
            yield batch

    def evaluate(state: State) -> dict[str, float]:
        _, states = run(system, [data.task], state.params(), tables, until_stop(), mesh)
        return data.dev_values(states)

    return evaluate


def say_start(setup: Setup, console: Console) -> None:
    """One line each on model, text and devices."""
    data, system = setup.data, setup.system
    learn, held = setup.abstract.learn, setup.abstract.held
    shape = "x".join(str(size) for size in setup.mesh.devices.shape)
    lines = [
        f"{system.name}: {trees.num_values(learn):,} parameters learn, "
        f"{trees.num_values(held):,} are frozen; mesh {shape} of "
        f"{setup.mesh.devices.flat[0].device_kind}",
        *data.about(),
        f"{setup.num_steps:,} updates of {setup.options.batch_size} {data.noun}",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
