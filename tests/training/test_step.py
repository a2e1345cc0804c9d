"""The one training step on a system small enough to compute by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvsa.core import mesh as meshes
from jaxvsa.core.errors import UserError
from jaxvsa.systems.base import Mean, System, expand
from jaxvsa.training.state import State, start
from jaxvsa.training.step import gradients, make_step, train_step

pytestmark = pytest.mark.smoke


def linear(**more: Any) -> System:
    """Mean squared error of w * x against y, with rows of a table as x; `frozen` is added."""

    def loss(params: Any, batch: Any, rng: Any) -> dict[str, Mean]:
        guess_b = jnp.sum(batch["x_bf"][:, 0] * params["w"][None], axis=-1) + params["frozen"]
        value_b = (guess_b - batch["y_b"]) ** 2
        if rng is not None:
            value_b = value_b + 0.0 * jax.random.normal(rng, value_b.shape)
        return {"loss": Mean.of(value_b, batch["valid_b"])}

    fields = {
        "name": "linear",
        "fields": {},
        "init": lambda rng, batch: {"w": jnp.zeros(2), "frozen": jnp.ones(())},
        "loss": loss,
        "tasks": {},
        "tables": {"x_bf": ("rows", "row_bt")},
        "trainable": ((r"w", True), (r"frozen", False)),
    }
    return System(**{**fields, **more})


TABLE = np.arange(12, dtype=np.float32).reshape(6, 2) / 10
BATCH = {
    "row_bt": np.array([[[0], [2], [5], [-1]]]),
    "y_b": np.array([[1.0, 0.0, 2.0, 9.0]], np.float32),
    "valid_b": np.array([[True, True, True, False]]),
}


def begin(system: System, tx: Any) -> State:
    return start(system, tx, system.init(None, None), jax.random.key(0))


def test_loss_is_told_the_number_of_the_update() -> None:
    """A factor that grows with it, for which the loss of an update is known."""
    tx, plain = optax.sgd(0.0), linear()

    def loss(params: Any, batch: Any, rng: Any) -> dict[str, Mean]:
        found = plain.loss(params, batch, rng)["loss"]
        return {"loss": Mean(found.total * (1 + batch["update"]), found.weight)}

    system, tables = linear(loss=loss), {"rows": jnp.asarray(TABLE)}
    state, losses = begin(system, tx), []
    for _ in range(3):
        state, terms = jax.jit(lambda s: train_step(system, tx, s, tables, BATCH))(state)
        losses.append(terms["loss"].compute())
    np.testing.assert_allclose(losses, losses[0] * np.array([1, 2, 3]), rtol=1e-6)


def test_gradient_is_the_mean_over_real_examples() -> None:
    tx = optax.sgd(1.0)
    grads, terms = gradients(linear(), begin(linear(), tx), {"rows": jnp.asarray(TABLE)}, BATCH)
    x = TABLE[[0, 2, 5]]
    error = np.ones(3) - np.array([1.0, 0.0, 2.0])
    np.testing.assert_allclose(grads["w"], (2 * error[:, None] * x).mean(0), rtol=1e-6)
    np.testing.assert_allclose(terms["loss"].compute(), (error**2).mean(), rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_below_one_divide_as_they_are_and_none_gives_no_gradient(accumulate: int) -> None:
    def loss(params: Any, batch: Any, rng: Any) -> dict[str, Mean]:
        value_b = (batch["x_bf"][:, 0] @ params["w"] + params["frozen"] - batch["y_b"]) ** 2
        return {"loss": Mean(jnp.sum(batch["share_b"] * value_b), jnp.sum(batch["share_b"]))}

    system, tables = linear(loss=loss), {"rows": jnp.asarray(TABLE)}
    for share, want in ((np.array([0.1, 0.3, 0, 0]), 1.0), (np.zeros(4), 0.0)):
        batch = {**BATCH, "share_b": np.array([share], np.float32)}
        micro = {k: v.reshape(accumulate, -1, *v.shape[2:]) for k, v in batch.items()}
        grads, _ = gradients(system, begin(system, optax.sgd(1.0)), tables, micro)
        hand = want * (0.1 * 0 * TABLE[0] + 0.3 * 2 * TABLE[2]) / 0.4
        np.testing.assert_allclose(grads["w"], hand, rtol=1e-6)


def test_padding_row_of_a_table_is_zero() -> None:
    batch = {name: jnp.asarray(leaf[0]) for name, leaf in BATCH.items()}
    taken = expand(linear(), {"rows": jnp.asarray(TABLE)}, batch)["x_bf"]
    np.testing.assert_array_equal(taken[3], 0)
    np.testing.assert_array_equal(taken[2, 0], TABLE[5])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing(accumulate: int) -> None:
    tx = optax.adam(0.1)
    tables = {"rows": jnp.asarray(TABLE)}
    whole, _ = train_step(linear(), tx, begin(linear(), tx), tables, BATCH)
    micro = {k: v.reshape(accumulate, -1, *v.shape[2:]) for k, v in BATCH.items()}
    parts, terms = train_step(linear(), tx, begin(linear(), tx), tables, micro)
    np.testing.assert_allclose(parts.learn["w"], whole.learn["w"], rtol=1e-6)
    assert float(terms["loss"].weight) == 3


def test_all_micro_batches_of_a_step_get_one_key_and_every_step_another() -> None:
    def loss(params: Any, batch: Any, rng: Any) -> dict[str, Mean]:
        noise_b = jax.random.uniform(rng) * batch["y_b"] * jnp.sum(params["w"] + 1)
        return {"loss": Mean.of(noise_b, batch["valid_b"])}

    system, found = linear(loss=loss), []
    for accumulate, step in ((1, 0), (2, 0), (4, 0), (1, 1)):
        state = begin(system, optax.sgd(1.0)).replace(step=jnp.int32(step))
        micro = {k: v.reshape(accumulate, -1, *v.shape[2:]) for k, v in BATCH.items()}
        grads, _ = gradients(system, state, {"rows": jnp.asarray(TABLE)}, micro)
        found.append(grads["w"][0])
    np.testing.assert_allclose(found[1:3], found[0], rtol=1e-6)
    assert abs(found[3] - found[0]) > 0.01


def test_frozen_parameters_get_no_moment_and_do_not_move() -> None:
    tx = optax.adam(0.1)
    state = begin(linear(), tx)
    assert set(state.learn) == {"w"} and set(state.held) == {"frozen"}
    after, _ = train_step(linear(), tx, state, {"rows": jnp.asarray(TABLE)}, BATCH)
    np.testing.assert_array_equal(after.held["frozen"], 1.0)
    assert sum(leaf.size for leaf in jax.tree.leaves(after.opt)) == 2 * 2 + 1


def test_gradient_that_is_not_finite_leaves_the_state() -> None:
    tx = optax.adam(0.1)
    state = begin(linear(), tx)
    bad = {**BATCH, "y_b": np.array([[np.inf, 0, 0, 0]], np.float32)}
    after, terms = train_step(linear(), tx, state, {"rows": jnp.asarray(TABLE)}, bad)
    assert not terms["finite"]
    assert (int(after.step), int(after.skipped)) == (1, 1)
    for new, old in zip(
        jax.tree.leaves((after.learn, after.opt)),
        jax.tree.leaves((state.learn, state.opt)),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)


def test_loss_that_couples_the_batch_refuses_accumulation() -> None:
    tx = optax.sgd(1.0)
    micro = {k: v.reshape(2, -1, *v.shape[2:]) for k, v in BATCH.items()}
    with pytest.raises(ValueError, match="accumulation must be 1"):
        gradients(
            linear(couples_batch=True), begin(linear(), tx), {"rows": jnp.asarray(TABLE)}, micro
        )


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_step_on_four_devices_equals_one(kind: Any) -> None:
    system, tx = linear(), optax.adam(0.1)
    found = []
    for count in (1, 4):
        options = meshes.MeshOptions(-1, 1, 1, kind if count > 1 else "jit")
        mesh = meshes.make_mesh(options, jax.devices()[:count])
        state = begin(system, tx)
        shardings = meshes.shardings(state, system.partition, mesh, params=state.params())
        step = make_step(system, tx, mesh, options.step, shardings)
        tables = {"rows": jnp.asarray(TABLE)}
        for _ in range(3):
            state, terms = step(state, tables, BATCH)
        found.append((np.asarray(state.learn["w"]), terms["loss"].compute(), int(state.step)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
    assert found[0][2] == found[1][2] == 3


def test_pmap_refuses_a_mesh_with_fsdp_and_a_batch_that_does_not_divide() -> None:
    system, tx = linear(), optax.sgd(1.0)
    state = begin(system, tx)
    mesh = meshes.make_mesh(meshes.MeshOptions(2, 2, 1, "pmap"))
    with pytest.raises(UserError, match="maps data only"):
        make_step(system, tx, mesh, "pmap", state)
    mesh = meshes.make_mesh(meshes.MeshOptions(3, 1, 1, "pmap"))
    with pytest.raises(UserError, match="cannot be split over 3"):
        make_step(system, tx, mesh, "pmap", state)(state, {"rows": jnp.asarray(TABLE)}, BATCH)
