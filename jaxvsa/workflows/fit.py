"""Trains a system from a configuration, resumes it, and reports what it reached."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.config import build, to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.core.signals import Interrupts
from jaxvsa.data.pipeline import Batch, batches, iterate
from jaxvsa.evaluation.evaluator import flat_metrics, run
from jaxvsa.evaluation.tables import Row
from jaxvsa.interop.names import Place
from jaxvsa.systems import module
from jaxvsa.systems.base import Params, System, abstract_batch
from jaxvsa.training.log import MetricsLog, Progress
from jaxvsa.training.loop import Hooks, Interrupted, Loop, Memory, TrainOptions
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.profile import parse_span, profiled
from jaxvsa.training.state import State, begin, start
from jaxvsa.training.step import make_step
from jaxvsa.workflows import score as scoring
from jaxvsa.workflows.assemble import assemble
from jaxvsa.workflows.comments import Assembled
from jaxvsa.workflows.report import read_rows, report, show
from jaxvsa.workflows.runs import RunFolder, describe, read_trained

SAVED = ("step", "rng", "learn", "opt", "skipped")


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A run before its first update: everything that follows from the configuration."""

    folder: RunFolder
    data: Assembled
    system: System
    mesh: Mesh
    mesh_options: meshes.MeshOptions
    options: TrainOptions
    num_steps: int
    eval_every: int
    profile: tuple[int, int] | None
    stream: Any
    plan: Any
    tx: optax.GradientTransformation
    rate: Callable[[Any], Any]
    abstract: State


def prepare_run(config: ConfigDict, run_path: Path, devices: Any = None) -> Setup:
    """Reads and checks everything; writes nothing but the demo corpus.

    Raises:
        UserError: anything wrong with configuration, data or weights.
    """
    plain = to_plain(config)
    _check_outline(plain)
    options = build(TrainOptions, plain["train"], "config.train")
    mesh_options = build(meshes.MeshOptions, plain["mesh"], "config.mesh")
    optim = build(OptimOptions, plain["optim"], "config.optim")
    data = assemble(plain, run_path)
    if options.select_on and "dev" not in data.splits:
        raise UserError(
            f"{data.prepared.root} has no dev split to select on; set config.train.select_on='' "
            "to report the last step"
        )
    system = module(plain["system"]).build(data.config, data.facts)
    if system.couples_batch and options.accumulate > 1:
        raise UserError(
            f"config.train.accumulate is {options.accumulate}, but the loss of {system.name} looks "
            "across examples, so that parts of a batch give another result; set it to 1"
        )
    mesh = meshes.make_mesh(mesh_options, devices)
    meshes.check_batch(options.batch_size // options.accumulate, mesh)
    examples, shards = data.examples("train"), meshes.local_shards(mesh)
    per_epoch = -(-len(examples) // options.batch_size)
    num_steps = options.steps or max(1, round(options.epochs * per_epoch))
    plan = data.batching.shuffled(
        examples,
        options.batch_size,
        groups=options.accumulate * shards[1],
        seed=plain["seed"],
        num_steps=num_steps,
    )
    rng = jax.random.key(plain["seed"])
    params = jax.eval_shape(system.init, rng, _example(data, system))
    learn, _ = trees.split(params, system.trainable)
    tx, rate = make_optimizer(optim, num_steps, system.parts, learn)
    return Setup(
        folder=RunFolder(run_path),
        data=data,
        system=system,
        mesh=mesh,
        mesh_options=mesh_options,
        options=options,
        num_steps=num_steps,
        eval_every=options.eval_every or plan.steps_per_epoch,
        profile=parse_span(plain["profile"], num_steps),
        stream=batches(plan, examples, options.accumulate, shards),
        plan=plan,
        tx=tx,
        rate=rate,
        abstract=jax.eval_shape(functools.partial(start, system, tx), params, rng),
    )


def _check_outline(config: Mapping[str, Any]) -> None:
    """Every section and key at the top is there, and the seed is one of JAX and of NumPy."""
    outline: dict[str, type] = dict.fromkeys(
        ("data", "weights", "model", "loss", "optim", "train", "mesh"), dict
    )
    outline |= {"system": str, "seed": int, "init_from": str, "profile": str}
    for key, kind in outline.items():
        if not isinstance(config.get(key), kind):
            found = "missing" if key not in config else f"{config[key]!r}"
            what = "a section" if kind is dict else f"of type {kind.__name__}"
            raise UserError(f"config.{key} is {found}; it must be {what}, as in configs/vccsa.py")
    if not 0 <= config["seed"] < 1 << 32:
        raise UserError(f"config.seed is {config['seed']}; it must be from 0 to {(1 << 32) - 1}")


def _example(data: Assembled, system: System, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes at the full lengths, so that what does not fit is found before the first step."""
    return abstract_batch(system, data.sizes(batch))


def first_state(setup: Setup, shardings: State) -> State:
    """The state before the first update, placed: random, from weights, or from another run.

    What comes from files goes straight to its devices, and is not made at random first.

    Raises:
        UserError: the weights are those of another model.
    """
    system, data = setup.system, setup.data
    init_rng, run_rng = jax.random.split(jax.random.key(data.config["seed"]))
    mine, where = trees.named(setup.abstract.params()), trees.named(shardings.params())
    source = data.config["init_from"]
    if source:
        try:
            found = trees.named(read_trained(source).params)
            check_fit(mine, found, source, "")
        except UserError as error:
            raise UserError(f"config.init_from: {error}") from error
    else:
        found, name = data.given(_placer(mine, where))
        if found:
            check_fit(mine, found, name, data.fresh)
    placed = {path: _put(leaf, mine[path].dtype, where[path]) for path, leaf in found.items()}
    rest = {path: place for path, place in where.items() if path not in found}

    def init() -> dict[str, Any]:  # a function of its own: its program goes with it
        shapes = _example(data, system)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        made = trees.named(system.init(init_rng, zeros))
        return {path: made[path] for path in rest}

    params = trees.nest({**placed, **jax.jit(init, out_shardings=rest)()})
    learn, held = trees.split(params, system.trainable)
    # Without the frozen parameters, which are where they belong already.
    place = jax.jit(
        lambda learn: begin(setup.tx, learn, {}, run_rng),
        out_shardings=shardings.replace(held={}), donate_argnums=0,
    )  # fmt: skip
    return place(learn).replace(held=held)


def _placer(mine: Mapping[str, Any], where: Mapping[str, Any]) -> Place:
    """Where a parameter goes, and its dtype there."""

    def place(path: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        if path not in mine or mine[path].shape != shape:
            here = mine[path].shape if path in mine else "absent"
            raise UserError(f"the weights do not fit config.model: '{path}' is {shape}, not {here}")
        return where[path], mine[path].dtype

    return place


def _put(leaf: Any, dtype: Any, sharding: Any) -> jax.Array:
    """An array on its devices, those of other processes included; one that is there stays."""
    if isinstance(leaf, jax.Array):
        return leaf
    host = np.asarray(leaf).astype(dtype)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def check_fit(mine: Mapping[str, Any], found: Mapping[str, Any], where: str, fresh: str) -> None:
    """Refuses weights of another model.

    Args:
        mine: parameters by path.
        found: likewise, from `where`.
        where: for the message.
        fresh: pattern of the paths that may be absent.

    Raises:
        UserError: a name or shape differs.
    """
    for path in sorted(mine.keys() | found.keys()):
        here = mine[path].shape if path in mine else "absent"
        there = found[path].shape if path in found else "absent"
        if here != there and not (path not in found and re.fullmatch(fresh, path)):
            raise UserError(f"{where} does not fit config.model: '{path}' is {there}, not {here}")


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
    identity = data.config, data_record(data)
    existed = setup.folder.check(*identity)
    checkpoints = setup.folder.checkpoints()
    if existed and setup.folder.results.exists():
        console.print(f"{run_path} is complete; its results:", markup=False)
        return read_rows(setup.folder.results), setup
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
            state = train(setup, checkpoints, shardings, *started, log, console, interrupts.poll)
        finally:
            checkpoints.close()
        if interrupts.poll():
            interrupts.leave(f"at step {int(state.step)}")
    rows = report(checkpoints, setup.folder, data, setup.mesh, setup.options.eval_batch_size)
    return rows, setup


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
    tables = scoring.place_tables(system, data.batching, data.features, mesh)
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
    """Function: state -> metrics on dev, among them the sum that selects; {} without dev.

    It asks `stop` before every batch, because a long evaluation would outlast the patience of
    whoever sent a signal.
    """
    data, system, mesh = setup.data, setup.system, setup.mesh
    if "dev" not in data.splits or scoring.TASK not in system.tasks:
        return lambda state: {}
    examples = data.examples("dev")
    size = scoring.batch_size(len(examples), setup.options.eval_batch_size, mesh)
    dev = data.batching.in_order(examples, size, meshes.local_shards(mesh))
    task, names = system.tasks[scoring.TASK], data.facts.label_names

    def until_stop() -> Iterator[Batch]:
        for batch in iterate(dev):
            if stop():
                raise Interrupted
            yield batch

    def evaluate(state: State) -> dict[str, float]:
        _, states = run(system, task, state.params(), tables, until_stop(), mesh)
        values = flat_metrics(states, "dev", names)
        return {**values, "dev/all/micro_f1_sum": scoring.sum_of_micro_f1(values, "dev", names)}

    return evaluate


def data_record(data: Assembled) -> dict[str, Any]:
    """What data.json of a run says: where the data is, and what it was."""
    prepared = data.prepared
    return {
        "root": str(prepared.root),
        "digest": prepared.digest,
        "protocol": data.protocol,
        "labels": {task: list(names) for task, names in prepared.labels.items()},
        "features": None if data.manifest is None else data.manifest.to_dict(),
        "report": prepared.report,
    }


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
