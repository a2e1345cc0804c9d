"""Floating-point operations of a function, counted on its jaxpr: no compilation, no device.

Two operations per multiply-add of matrix products and convolutions; element-wise work, reductions
and gathers are not counted. XLA's own `cost_analysis` counts the body of a scan once, so it cannot
be used for models whose layers are scanned.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """2 x multiply-adds of one call of `fn(*args)` over all devices.

    A scan counts its body times its length, a cond its most expensive branch, a while loop one
    turn of its condition and body, shard_map and pmap their body times the devices. Products whose
    result nothing uses are not counted, as the compiler removes them; neither are products with the
    zeros of a convolution's padding and dilation. Matrix products inside custom kernels
    (cuDNN attention, Pallas) are not seen.

    Args:
        fn: any traceable function, jitted or not.
        *args: its arguments; arrays or `jax.ShapeDtypeStruct`.
    """
    jaxpr = jax.make_jaxpr(fn)(*args)
    return _count(jaxpr, [True] * len(jaxpr.out_avals))


def _count(jaxpr: Any, needed: Sequence[bool]) -> int:
    """Operations of the equations on which the needed outputs depend."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # a closed jaxpr wraps an open one before jax 0.11
    live = {id(var) for var, need in zip(jaxpr.outvars, needed, strict=True) if need}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        wanted = [id(var) in live for var in eqn.outvars]
        if any(wanted) or eqn.effects:
            live.update(id(var) for var in eqn.invars)
            total += _equation(eqn, wanted)
    return total


def _equation(eqn: Any, wanted: Sequence[bool]) -> int:
    """Operations of one equation, including those of the jaxprs in its parameters."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return 2 * _conv_multiplies(eqn)
    counts = [_count(inner, _ends(name, eqn, inner, wanted)) for inner in _inner(params)]
    if name == "cond":
        return max(counts)
    return sum(counts) * _num_turns(name, params)


def _ends(name: str, eqn: Any, inner: Any, wanted: Sequence[bool]) -> list[bool]:
    """Which results of an inner jaxpr the wanted results of its equation need."""
    if name == "while" or len(inner.outvars) != len(wanted):
        return [True] * len(inner.outvars)
    if name == "scan":
        # a carry keeps its shape, a stacked result gains a dimension; the next turn reads the carry
        pairs = zip(eqn.outvars, inner.outvars, wanted, strict=True)
        return [need or outer.aval.shape == var.aval.shape for outer, var, need in pairs]
    return list(wanted)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Open jaxprs among the parameters of an equation, also those in tuples (cond)."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _num_turns(name: str, params: dict[str, Any]) -> int:
    """How often the body of an equation runs, over its length or over the devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _conv_multiplies(eqn: Any) -> int:
    """Multiply-adds of a convolution whose operands are both real values."""
    params = eqn.params
    lhs, rhs = (var.aval.shape for var in eqn.invars)
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    total = out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]
    for axis, (low, _) in enumerate(params["padding"]):
        out_at = np.arange(out[out_spec[2 + axis]]) * params["window_strides"][axis]
        rhs_at = np.arange(rhs[rhs_spec[2 + axis]]) * params["rhs_dilation"][axis]
        at = out_at[:, None] + rhs_at[None] - low
        hole = params["lhs_dilation"][axis]
        last = (lhs[lhs_spec[2 + axis]] - 1) * hole
        total *= int(np.sum((at >= 0) & (at <= last) & (at % hole == 0)))
    return total
