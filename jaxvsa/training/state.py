"""The training state: everything that a step reads and writes, and that a checkpoint holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxvsa.core import trees
from jaxvsa.systems.base import Params, System


class State(struct.PyTreeNode):
    """One point of a run.

    Attributes:
        step: int32 scalar, updates tried so far.
        rng: key of the run; folded with the step, never split in place.
        learn: parameters with a gradient, nested dicts.
        held: frozen parameters: no gradient, no moments, and not in the checkpoint (their digest
            is).
        opt: optimiser state over `learn`.
        skipped: int32 scalar, updates refused because a gradient was not finite.
    """

    step: jax.Array
    rng: jax.Array
    learn: Any
    held: Any
    opt: Any
    skipped: jax.Array

    def params(self) -> Params:
        """The whole parameter tree."""
        return trees.join(self.learn, self.held)


def start(
    system: System, tx: optax.GradientTransformation, params: Params, rng: jax.Array
) -> State:
    """The state before the first update."""
    return begin(tx, *trees.split(params, system.trainable), rng)


def begin(tx: optax.GradientTransformation, learn: Params, held: Params, rng: jax.Array) -> State:
    """`start` for parameters that are divided already."""
    # Two buffers: the step donates its state, and a buffer can be given away only once.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return State(step, rng, learn, held, tx.init(learn), skipped)
