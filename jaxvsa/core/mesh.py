"""The device mesh: axes data, fsdp and tensor, where parameters lie, and how a batch gets there.

Batches are split over data and fsdp, parameters over fsdp and tensor as their system declares. All
axes are `AxisType.Auto`: the compiler inserts the communication, and gathers or similarities within
the batch need no annotation. Everything holds for several processes as well as for one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshOptions:
    """Section `mesh` of a configuration.

    Attributes:
        data: copies of the model that share the batch; -1 takes all devices that are left.
        fsdp: shards of parameters and optimiser state that also share the batch.
        tensor: shards of the width of layers; they see the same examples.
        step: how the training step reaches the devices: "jit" over the mesh, or "pmap".
    """

    data: int
    fsdp: int
    tensor: int
    step: Literal["jit", "pmap"]


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with the axes data, fsdp, tensor over `devices` (default: all devices).

    A product smaller than the number of devices uses the first ones, in one process only: a
    process without a device of the mesh could not take part.

    Raises:
        UserError: an axis below 1, or a product that does not fit the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    shape = {axis: getattr(options, axis) for axis in AXES}
    for axis, size in shape.items():
        if size < 1 and not (axis == "data" and size == -1):
            hint = " or -1 (all that is left)" if axis == "data" else ""
            raise UserError(f"config.mesh.{axis} is {size}; it must be at least 1{hint}")
    if shape["data"] == -1:
        shape["data"] = max(count // (shape["fsdp"] * shape["tensor"]), 1)
        exact = True
    else:
        exact = jax.process_count() > 1
    product = math.prod(shape.values())
    if product > count or (exact and product != count):
        asked = ", ".join(f"{axis}={getattr(options, axis)}" for axis in AXES)
        raise UserError(
            f"config.mesh ({asked}) does not fit {count} device(s); "
            f"the product of the axes must {'be' if exact else 'be at most'} {count}"
        )
    return jax.make_mesh(
        tuple(shape.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:product],
    )


def all_devices() -> Mesh:
    """A mesh that splits the batch over all devices: a trained model runs on any machine."""
    return make_mesh(MeshOptions(data=-1, fsdp=1, tensor=1, step="jit"))


def shardings(
    tree: trees.Tree, rules: trees.Rules[P], mesh: Mesh, params: trees.Tree | None = None
) -> trees.Tree:
    """Sharding of every leaf of `tree`, as a tree of `NamedSharding`.

    The rules speak of parameters: ordered (regular expression, PartitionSpec), total in both
    directions as in `trees.decide`. A leaf of `tree` takes the spec of the parameter whose path its
    own path ends with (the longest such path) if the shapes are equal; every other leaf is
    replicated. So one call places a whole training state: with the parameter `text/kernel`,
    `learn/text/kernel` and the moment `opt/0/mu/text/kernel` lie where it lies, while the step, the
    keys and the counters are replicated.

    A dimension that its mesh axes do not divide is replicated, so small models run on any mesh.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`.
        rules: see above; a spec may be shorter than the array has dimensions.
        mesh: from `make_mesh`.
        params: the parameter tree the rules are total over; `tree` itself by default.

    Raises:
        UserError: rules that are not total; a spec longer than its parameter has dimensions; an
            axis the mesh does not have.
    """
    wanted = trees.named(tree if params is None else params)
    placed = {
        (path, tuple(wanted[path].shape)): _place(path, wanted[path].shape, spec, mesh)
        for path, spec in trees.decide(wanted, rules).items()
    }
    leaves = trees.named(tree)
    found = [_inherit(path, leaf.shape, placed, mesh) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def check_batch(size: int, mesh: Mesh) -> None:
    """Refuses a batch that the devices of `mesh` cannot share evenly.

    Raises:
        UserError: it is no multiple of their number.
    """
    shards = math.prod(mesh.shape[name] for name in BATCH_AXES)
    if size % shards:
        raise UserError(
            f"batch size {size} cannot be split over {shards} devices (config.mesh: data x fsdp); "
            f"choose a multiple of {shards} for config.train.batch_size / accumulate, or fewer "
            "devices"
        )


def local_shards(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Which parts of every global batch this process feeds, and how many parts there are.

    A batch is cut into data x fsdp equal parts, in the order of `put_batch`. Processes that share a
    part, because the tensor axis spans them, both feed it.

    Returns:
        the numbers of the parts, ascending, and the count of all: ((0, 1), 4), for example.
    """
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    own = jax.process_index()
    mine = [n for n, row in enumerate(rows) if any(d.process_index == own for d in row)]
    return tuple(mine), len(rows)


def put_batch(batch: trees.Tree, mesh: Mesh, axis: int = 0) -> trees.Tree:
    """Global arrays from the rows each process holds, dimension `axis` split over data and fsdp.

    Args:
        batch: numpy arrays: the parts of the global batch that `local_shards` names, one after the
            other (all of it in a single process).
        mesh: from `make_mesh`.
        axis: the batch dimension: 0, or 1 behind a leading accumulation dimension.

    Raises:
        UserError: the batch cannot be split evenly over the devices.
        ValueError: an array without that dimension.
    """
    sharding = NamedSharding(mesh, P(*[None] * axis, BATCH_AXES))
    mine, count = local_shards(mesh)
    shards = len(mine)
    for path, array in trees.named(batch).items():
        if array.ndim <= axis:
            raise ValueError(f"'{path}' has shape {array.shape}: no batch dimension {axis}")
        if array.shape[axis] % shards:
            raise UserError(
                f"batch size {array.shape[axis]} of '{path}' cannot be split over {shards} devices "
                f"(config.mesh: data x fsdp); choose a multiple of {shards} or fewer devices"
            )
    if jax.process_count() == 1:  # all arrays at once, in less than half the time
        return jax.device_put(batch, sharding)

    def put(array: Any) -> jax.Array:
        shape = list(array.shape)
        shape[axis] = shape[axis] // shards * count
        return jax.make_array_from_process_local_data(sharding, array, tuple(shape))

    return jax.tree.map(put, batch)


def put_whole(tree: trees.Tree, mesh: Mesh) -> trees.Tree:
    """Every array whole on every device; all processes hold the same values.

    `jax.device_put` would send the arrays from process to process to see that they are the same.
    """
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(everywhere, leaf, leaf.shape), tree
    )


def put_params(params: trees.Tree, rules: trees.Rules[P], mesh: Mesh) -> trees.Tree:
    """Parameters that all processes hold whole, placed as in training; see `shardings`.

    Arrays of a device stay where they are.
    """

    def put(leaf: Any, place: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])

    return jax.tree.map(put, params, shardings(params, rules, mesh))


def _place(path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter; scalars and dimensions that do not divide are replicated."""
    if not shape:
        return NamedSharding(mesh, P())
    if len(spec) > len(shape):
        raise UserError(f"partition rule {spec} has more entries than '{path}' {shape} dimensions")
    entries = []
    for size, entry in zip(shape, spec, strict=False):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for name in names:
            if name not in mesh.shape:
                raise UserError(f"partition rule {spec} of '{path}': axes are {mesh.axis_names}")
        divides = size % math.prod(mesh.shape[name] for name in names) == 0
        entries.append(entry if divides else None)
    return NamedSharding(mesh, P(*entries))


def _inherit(
    path: str,
    shape: tuple[int, ...],
    placed: dict[tuple[str, tuple[int, ...]], NamedSharding],
    mesh: Mesh,
) -> NamedSharding:
    """Sharding of the parameter with this shape whose path is the longest ending of `path`."""
    keys = path.split("/")
    for start in range(len(keys)):
        found = placed.get(("/".join(keys[start:]), tuple(shape)))
        if found is not None:
            return found
    return NamedSharding(mesh, P())
