"""A run before its first update: what follows from its configuration, and its first state."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.config import build, to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.data.pipeline import batches
from jaxvsa.interop.names import Place
from jaxvsa.systems import module
from jaxvsa.systems.base import System, abstract_batch
from jaxvsa.training.loop import TrainOptions
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.profile import parse_span
from jaxvsa.training.state import State, begin, start
from jaxvsa.workflows.assemble import Data, assemble
from jaxvsa.workflows.runs import RunFolder, read_trained


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A run before its first update: everything that follows from the configuration."""

    folder: RunFolder
    data: Data
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
            f"{data.root} has no dev split to select on; set config.train.select_on='' "
            "to report the last step"
        )
    system = module(plain["system"]).build(data.config, data.facts)
    if system.couples_batch:
        _check_coupled(system.name, options, mesh_options)
    mesh = meshes.make_mesh(mesh_options, devices)
    meshes.check_batch(options.batch_size // options.accumulate, mesh)
    examples, shards = data.examples("train"), meshes.local_shards(mesh)
    per_epoch = -(-len(examples) // options.batch_size)
    num_steps = options.steps or max(1, round(options.epochs * per_epoch))
    plan = data.shuffled(
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


def _check_coupled(name: str, options: TrainOptions, mesh: meshes.MeshOptions) -> None:
    """Refuses what would show a loss that looks across examples only some of them."""
    why = f"but the loss of {name} looks across examples"
    if options.accumulate > 1:
        raise UserError(
            f"config.train.accumulate is {options.accumulate}, {why}, so that parts of a batch "
            "give another result; set it to 1"
        )
    if mesh.step == "pmap":
        raise UserError(
            f"config.mesh.step is 'pmap', {why}, and each device would see its own alone; set it "
            "to 'jit'"
        )


def _example(data: Data, system: System, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
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
            _check_frozen(setup, found, source)
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


def _check_frozen(setup: Setup, found: Mapping[str, Any], source: str) -> None:
    """Refuses a start whose frozen parameters no checkpoint of the run could be read with.

    Checkpoints hold none of them: they are read again from the weights that the run names.
    """
    held = trees.named(setup.abstract.held)
    if not held:
        return
    given, name = setup.data.given(None)
    for path, leaf in held.items():
        base = given.get(path, np.zeros(leaf.shape))
        start, base = (np.asarray(array).astype(leaf.dtype) for array in (found[path], base))
        if not np.array_equal(start, base):
            raise UserError(
                f"'{path}' is frozen and differs between {source} and "
                f"{name or 'the weights of the run (none)'}; start from a run on the same weights"
            )


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
