"""Foreign tensor names <-> our parameter paths, read piece by piece.

A table says where each of our leaves comes from. Leaves are placed one after another, each device
reading only its part, so that weights larger than the host's memory can be loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named, nest


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one of our parameters comes from.

    Attributes:
        names: of the tensors; several are stacked on a leading axis.
        stacked: whether there is such an axis.
        transposed: the kernel is stored as (out, in), as torch does.
    """

    names: tuple[str, ...]
    stacked: bool = False
    transposed: bool = False

    @classmethod
    def per_layer(cls, pattern: str, num_layers: int, transposed: bool = False) -> Leaf:
        """`pattern` holds {} for the number of the layer."""
        names = tuple(pattern.format(layer) for layer in range(num_layers))
        return cls(names, True, transposed)


Place = Callable[[str, tuple[int, ...]], tuple[Sharding, Any]]
"""(path, shape) -> where the leaf goes, and its dtype there."""


def read_leaves(
    leaves: Mapping[str, Leaf],
    tensors: Mapping[str, Any],
    place: Place | None = None,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """Our tree from foreign tensors; every one of them is used or ignored.

    Args:
        leaves: path -> source.
        tensors: arrays, or what `open_safetensors` gives.
        place: puts each leaf on the devices; None leaves them on the host, in their own dtype.
        ignored: names that may be left over.

    Raises:
        UserError: a tensor is missing or left over, or the layers of a stack differ in shape.
    """
    used = {name for leaf in leaves.values() for name in leaf.names}
    missing = sorted(used - tensors.keys())
    if missing:
        raise UserError(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    over = sorted(name for name in tensors.keys() - used if not ignored(name))
    if over:
        raise UserError(f"tensor '{over[0]}' has no place in the model ({len(over)} in all)")
    return nest({path: _read(path, leaf, tensors, place) for path, leaf in leaves.items()})


def _read(path: str, leaf: Leaf, tensors: Mapping[str, Any], place: Place | None) -> Any:
    sources = [tensors[name] for name in leaf.names]
    if len({tuple(source.shape) for source in sources}) > 1:
        raise UserError(f"tensors '{leaf.names[0]}' and its like differ in shape")
    shape = tuple(sources[0].shape)
    shape = shape[::-1] if leaf.transposed else shape
    shape = (len(sources), *shape) if leaf.stacked else shape

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or tuple(slice(None) for _ in shape)
        rest = index[1:] if leaf.stacked else index
        stored = rest[::-1] if leaf.transposed else rest
        picked = [source[stored] for source in (sources[index[0]] if leaf.stacked else sources)]
        picked = [array.T for array in picked] if leaf.transposed else picked
        return np.stack(picked) if leaf.stacked else picked[0]

    if place is None:
        return part(None)
    sharding, dtype = place(path, shape)
    return jax.make_array_from_callback(
        shape, sharding, lambda index: np.asarray(part(index), dtype, order="C")
    )


def write_leaves(leaves: Mapping[str, Leaf], params: Any) -> dict[str, np.ndarray]:
    """The foreign tensors of our tree: the way back."""
    flat, tensors = named(params), {}
    for path, leaf in leaves.items():
        array = np.asarray(flat[path])
        for name, piece in zip(leaf.names, array if leaf.stacked else [array], strict=True):
            tensors[name] = piece.T if leaf.transposed else piece
    return tensors
