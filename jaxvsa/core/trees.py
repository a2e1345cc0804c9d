"""Trees of arrays by path: names, total rules, the learn/held split, sizes and digests.

A path is the sequence of keys, attributes and positions that lead to a leaf, joined by "/":
`heads/opinion/kernel`, or `opt/0/mu/heads/opinion/kernel` inside an optimiser state. As in JAX,
None is an empty branch, not a leaf.
"""

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvsa.core.errors import UserError

Tree = Any
T = TypeVar("T")
Rules = Sequence[tuple[str, T]]


def named(tree: Tree) -> dict[str, Any]:
    """Leaves of any tree by path, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in leaves:
            raise ValueError(f"two leaves of the tree have the path '{path}'")
        leaves[path] = leaf
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path; the inverse of `named` for trees of dicts.

    Raises:
        ValueError: a path is also the beginning of another one, so it would be leaf and branch.
    """
    tree: dict[str, Any] = {}
    branches = {id(tree)}  # a leaf may be a dict of its own, so the type cannot tell them apart
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            if key not in node:
                node[key] = {}
                branches.add(id(node[key]))
            node = node[key]
            if id(node) not in branches:
                raise ValueError(f"path '{path}' goes through '{key}', which is a leaf")
        if last in node:
            raise ValueError(f"path '{path}' is both a leaf and a branch")
        node[last] = leaf
    return tree


def decide(paths: Iterable[str], rules: Rules[T]) -> dict[str, T]:
    """Value of the first rule whose regular expression matches the whole path, for every path.

    The declaration is total in both directions: a path without a rule was forgotten, and a rule
    that decides nothing is misspelt or stands behind a wider one.

    Raises:
        UserError: a path no rule matches, a rule that decides nothing, not a regular expression.
    """
    patterns = []
    for rule, value in rules:
        try:
            patterns.append((re.compile(rule), value))
        except re.error as error:
            raise UserError(f"rule '{rule}' is not a regular expression: {error}") from error
    decided: dict[str, T] = {}
    used: set[int] = set()
    for path in paths:
        matches = (i for i, (pattern, _) in enumerate(patterns) if pattern.fullmatch(path))
        index = next(matches, None)
        if index is None:
            raise UserError(f"no rule decides '{path}'; rules: {[rule for rule, _ in rules]}")
        decided[path] = patterns[index][1]
        used.add(index)
    for index, (pattern, _) in enumerate(patterns):
        if index not in used:
            behind = any(pattern.fullmatch(path) for path in decided)
            why = "earlier rules match the same paths" if behind else "it matches no path"
            raise UserError(f"rule '{pattern.pattern}' decides nothing: {why}")
    return decided


def split(params: Tree, rules: Rules[bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters that learn and parameters that are held, each as nested dicts.

    Branches that end up empty vanish.

    Args:
        params: nested dicts of arrays.
        rules: ordered (regular expression, learns) over parameter paths; see `decide`.

    Raises:
        UserError: the rules are not total, see `decide`.
    """
    leaves = named(params)
    learns = decide(leaves, rules)
    learn = {path: leaf for path, leaf in leaves.items() if learns[path]}
    held = {path: leaf for path, leaf in leaves.items() if not learns[path]}
    return nest(learn), nest(held)


def join(learn: Tree, held: Tree) -> dict[str, Any]:
    """The tree that `split` took apart; works on traced arrays too.

    Raises:
        ValueError: a path is in both trees, or a leaf of one is a branch of the other.
    """
    left, right = named(learn), named(held)
    if both := left.keys() & right.keys():
        raise ValueError(f"'{min(both)}' is in both trees")
    return nest({**left, **right})


def num_values(tree: Tree) -> int:
    """Number of array elements; leaves may be arrays or `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
    """Bytes of the whole tree, as if on one device; leaves as in `num_values`."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def digests(tree: Tree) -> dict[str, str]:
    """CRC-32 of dtype, shape and bytes of every array, as eight hexadecimal digits by path.

    It finds damage, not tampering. The value does not depend on devices, sharding or on whether
    the array lies on the host; a typed key counts as its key data. Arrays that span processes are
    gathered, so all processes must call this together.
    """
    return {path: _digest(to_host(leaf)) for path, leaf in named(tree).items()}


def to_host(leaf: Any) -> np.ndarray:
    """One array on the host, whole: typed keys as their key data, spread arrays gathered."""
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _digest(array: np.ndarray) -> str:
    crc = zlib.crc32(f"{array.dtype.name}{array.shape}".encode())
    return f"{zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc):08x}"
