"""What must not change a result: devices, where features lie, accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core import mesh as meshes
from jaxvsa.core.config import load_config
from jaxvsa.systems.base import expand
from jaxvsa.training.step import gradients, make_step
from jaxvsa.workflows import fit as fitting


def trajectory(root: Path, run: Path, count: int, *more: str) -> tuple[Any, ...]:
    """Losses of 5 updates, then gradients and predictions, on `count` devices."""
    one_shape = ("--config.data.text_rungs=(24,)", "--config.data.frame_rungs=(12,)")
    config = load_config("configs/vccsa.py:tiny", [f"--config.data.root={root}", *one_shape, *more])
    setup = fitting.prepare_run(config, run, jax.devices()[:count])
    placed = meshes.shardings(
        setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
    )
    state = fitting.first_state(setup, placed)
    features = setup.data.features
    assert features is not None
    tables = {"video": jnp.asarray(features.values_nf)} if setup.data.batching.resident else {}
    step = make_step(setup.system, setup.tx, setup.mesh, setup.mesh_options.step, placed)
    losses = []
    for number in range(5):
        state, terms = step(state, tables, setup.stream[number])
        losses.append(terms["loss"].compute())
    batch = meshes.put_batch(setup.stream[5], setup.mesh, axis=1)
    grads, _ = jax.jit(lambda s, m: gradients(setup.system, s, tables, m))(state, batch)
    whole = {k: v.reshape(-1, *v.shape[2:]) for k, v in setup.stream[5].items()}
    outputs = setup.system.tasks["classify"].outputs
    probs = jax.jit(lambda p, t, b: outputs(p, expand(setup.system, t, b)))(
        jax.device_get(state.params()), tables, whole
    )
    return losses, jax.device_get(grads), jax.device_get(probs)


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The trajectory on one device, dropout on."""
    return trajectory(root, tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize(
    "more",
    [
        ("--config.mesh.data=4",),
        ("--config.mesh.data=2", "--config.mesh.fsdp=2"),
        ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
    ],
    ids=["data", "data-fsdp", "fsdp-tensor"],
)
def test_device_count_is_invisible(
    root: Path, tmp_path: Path, alone: tuple[Any, ...], more: tuple[str, ...]
) -> None:
    many = trajectory(root, tmp_path, 4, *more)
    np.testing.assert_allclose(many[0], alone[0], rtol=1e-5)
    for part in (1, 2):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            many[part],
            alone[part],
        )


def test_pmap_equals_jit_without_dropout(root: Path, tmp_path: Path) -> None:
    off = (
        "--config.model.dropout=0.0",
        "--config.model.text.dropout=0.0",
        "--config.model.text.attention_dropout=0.0",
    )
    jit = trajectory(root, tmp_path / "jit", 1, *off)
    pmap = trajectory(root, tmp_path / "pmap", 4, "--config.mesh.step=pmap", *off)
    np.testing.assert_allclose(pmap[0], jit[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), pmap[2], jit[2]
    )


@pytest.mark.parametrize("more", ["--config.data.resident=False", "--config.train.accumulate=2"])
def test_place_of_features_and_accumulation_change_nothing_without_dropout(
    root: Path, tmp_path: Path, more: str
) -> None:
    off = (
        "--config.model.dropout=0.0",
        "--config.model.text.dropout=0.0",
        "--config.model.text.attention_dropout=0.0",
    )
    want, got = trajectory(root, tmp_path, 1, *off), trajectory(root, tmp_path, 1, *off, more)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
