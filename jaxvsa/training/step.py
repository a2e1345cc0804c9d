"""The one training step, for every system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxvsa.core import compiler, memory, trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.mesh import put_batch
from jaxvsa.systems.base import Mean, System, expand
from jaxvsa.training.state import State


def gradients(
    system: System,
    state: State,
    tables: Mapping[str, jax.Array],
    micro: Mapping[str, jax.Array],
    axis_name: str | None = None,
) -> tuple[Any, dict[str, Mean]]:
    """Gradient of the mean loss over all micro-batches, and the loss terms.

    Args:
        system: whose loss is differentiated with respect to `state.learn`.
        state: read only.
        tables: arrays of `system.tables`.
        micro: batch with leading axes (accumulation, b).
        axis_name: of a mapped device axis to add over; None under jit, where arrays are global.

    Raises:
        ValueError: accumulation > 1 for a loss that looks across examples: each micro-batch would
            see its own examples only, and the result would be silently wrong.
    """
    count = jax.tree.leaves(micro)[0].shape[0]
    if system.couples_batch and count > 1:
        raise ValueError(f"{system.name}: its loss looks across examples; accumulation must be 1")
    rng = jax.random.fold_in(state.rng, state.step)

    def total(learn: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, Mean]]:
        full = {**expand(system, tables, batch), "update": state.step}
        terms = system.loss(trees.join(learn, state.held), full, rng)
        loss = terms["loss"]
        if count > 1:
            return loss.total, terms
        # Divided before the gradient, not after, which would be one more pass over all of them.
        weight = loss.weight if axis_name is None else jax.lax.psum(loss.weight, axis_name)
        return loss.total / _or_one(weight), terms

    def one(carry: Any, batch: Any) -> tuple[Any, None]:
        found = jax.grad(total, has_aux=True)(state.learn, batch)
        return jax.tree.map(jnp.add, carry, found), None

    first = jax.tree.map(lambda x: x[0], micro)
    if count == 1:
        found = jax.grad(total, has_aux=True)(state.learn, first)
    else:
        shapes = jax.eval_shape(jax.grad(total, has_aux=True), state.learn, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        found, _ = jax.lax.scan(one, zeros, micro)
    if axis_name is not None:
        found = jax.lax.psum(found, axis_name)
    grads, terms = found
    if count == 1:
        return grads, terms
    weight = _or_one(terms["loss"].weight)
    return jax.tree.map(lambda g: g / weight.astype(g.dtype), grads), terms


def _or_one(weight: jax.Array) -> jax.Array:
    """The weight to divide by; 1 where nothing was counted. Weights may be below 1."""
    return jnp.where(weight > 0, weight, jnp.ones((), weight.dtype))


def train_step(
    system: System,
    tx: optax.GradientTransformation,
    state: State,
    tables: Mapping[str, jax.Array],
    micro: Mapping[str, jax.Array],
    axis_name: str | None = None,
) -> tuple[State, dict[str, Any]]:
    """One update; pure. A gradient that is not finite leaves parameters and moments as they are.

    Returns:
        The next state, and the loss terms as `Mean`s with the scalars "grad_norm" and "finite".
    """
    grads, terms = gradients(system, state, tables, micro, axis_name)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)

    def update(grads: Any, opt: Any, learn: Any) -> tuple[Any, Any]:
        updates, opt = tx.update(grads, opt, learn)
        return optax.apply_updates(learn, updates), opt

    # A condition, not a selection: the latter keeps old and new moments at once, which took five
    # times as long on CPU.
    learn, opt = jax.lax.cond(
        finite, update, lambda grads, opt, learn: (learn, opt), grads, state.opt, state.learn
    )
    skipped = state.skipped + jnp.logical_not(finite)
    after = state.replace(step=state.step + 1, learn=learn, opt=opt, skipped=skipped)
    return after, {**terms, "grad_norm": norm, "finite": finite}


def make_step(
    system: System,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    kind: Literal["jit", "pmap"],
    shardings: State,
) -> Callable[[State, Mapping[str, jax.Array], Mapping[str, Any]], tuple[State, dict[str, Any]]]:
    """`train_step` on the devices: (state, tables, host batch) -> (state, terms).

    Args:
        system: of the step.
        tx: of the step.
        mesh: where it runs.
        kind: "jit" over the whole mesh, the state donated; "pmap" maps the data axis of a mesh
            without other axes. Both compute the same function.
        shardings: of the state.

    Raises:
        UserError: "pmap" on a mesh with fsdp or tensor axes, or a batch that does not divide.
    """
    if kind == "jit":
        return JittedStep(system, tx, mesh, shardings)
    if mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        raise UserError("config.mesh.step='pmap' maps data only; set fsdp and tensor to 1, or jit")
    count = mesh.shape["data"]
    mapped = jax.pmap(
        _update(system, tx, "data"),
        axis_name="data",
        in_axes=(None, None, 1),
        out_axes=None,
        devices=list(mesh.devices.flat),
    )

    def call(
        state: State, tables: Mapping[str, jax.Array], batch: Mapping[str, Any]
    ) -> tuple[State, dict[str, Any]]:
        size = next(iter(batch.values())).shape[1]
        if size % count:
            raise UserError(f"batch size {size} cannot be split over {count} devices")
        split = {k: v.reshape(v.shape[0], count, -1, *v.shape[2:]) for k, v in batch.items()}
        return mapped(state, tables, split)

    return call


class JittedStep:
    """`train_step` over the whole mesh, the state donated.

    Attributes:
        programs: compiled, one for each shape of the batches seen so far.
    """

    def __init__(
        self, system: System, tx: optax.GradientTransformation, mesh: Mesh, shardings: State
    ) -> None:
        """Compiles nothing yet; `shardings` are those of the state."""
        self.programs: dict[Any, jax.stages.Compiled] = {}
        self._system, self._tx, self._mesh, self._shardings = system, tx, mesh, shardings
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"

    def __call__(
        self, state: State, tables: Mapping[str, jax.Array], batch: Mapping[str, Any]
    ) -> tuple[State, dict[str, Any]]:
        """(state, tables, host batch) -> (state, terms)."""
        placed = put_batch(batch, self._mesh, axis=1)
        shapes = tuple(array.shape for array in batch.values())
        if self._on_cpu:  # every step that waits there holds its temporary arrays already
            jax.block_until_ready(state.step)
        if shapes not in self.programs:
            self.programs[shapes] = self._compile(state, tables, placed)
        return self.programs[shapes](state, tables, placed)

    def _compile(self, *args: Any) -> jax.stages.Compiled:
        memory.give_back()  # what steps have freed is of little use to a compiler
        update = _update(self._system, self._tx, None)  # of its own: its traces go with it
        compiled = (
            jax.jit(
                update,
                donate_argnums=0,
                out_shardings=(self._shardings, None),
                compiler_options=compiler.step_options(),
            )
            .lower(*args)
            .compile()
        )
        memory.give_back()  # a GiB
        return compiled


def _update(
    system: System, tx: optax.GradientTransformation, axis_name: str | None
) -> Callable[..., tuple[State, dict[str, Any]]]:
    """`train_step` as a function of arrays alone."""

    def update(  # profiles know the program by this name
        state: State, tables: Mapping[str, jax.Array], micro: Mapping[str, jax.Array]
    ) -> tuple[State, dict[str, Any]]:
        return train_step(system, tx, state, tables, micro, axis_name)

    return update
