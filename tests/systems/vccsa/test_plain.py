"""The plain oracle against every golden case: it must be right before it may judge anything."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems.vccsa import golden as helper
from systems.vccsa import plain

CASES = pytest.mark.parametrize("case", helper.cases(), ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.mark.real_data
def test_published_cases_are_all_read() -> None:
    if helper.VARIABLE not in os.environ:
        pytest.skip(f"${helper.VARIABLE} is not set: only the committed case is compared")
    names = {case.name for case in helper.cases()}
    assert {"small", "tiny", "tiny-unmasked", "mixed"} <= names


@CASES
@DTYPES
def test_plain_equals_the_golden_outputs_and_gradients(case: Path, dtype: helper.Dtype) -> None:
    golden = helper.load(case)
    with jax.enable_x64(dtype == "float64"):
        (_, outputs), grads = value_and_grad(case, dtype)(cast(golden.state, dtype))
        assert all(value.dtype == dtype for value in outputs.values())
    helper.check_outputs(golden, outputs, dtype)
    helper.check_grads(golden, grads, dtype)


@CASES
@DTYPES
@pytest.mark.parametrize("rule", ["hf", "torch"])
def test_plain_follows_the_golden_trajectory(case: Path, dtype: helper.Dtype, rule: str) -> None:
    golden = helper.load(case)
    settings = golden.config["trajectory"] | {"lr": golden.io["traj_lr"]}
    with jax.enable_x64(dtype == "float64"):
        run = value_and_grad(case, dtype)

        def loss_and_grads(state: plain.State) -> tuple:
            (loss, _), grads = run(state)
            return loss, grads

        losses = plain.adamw_losses(loss_and_grads, cast(golden.state, dtype), settings, rule)
    helper.check_trajectory(golden, rule, losses, dtype)


@CASES
def test_shapes_are_those_of_the_published_state_dict(case: Path) -> None:
    golden = helper.load(case)
    want = {name: value.shape for name, value in golden.state.items()}
    assert plain.shapes(golden.model, golden.roberta) == want


def test_focal_loss_by_hand() -> None:
    state = {"opinion_loss.weight": jnp.ones(2), "emotion_loss.weight": jnp.full(2, 0.5)}
    outputs = {"opinion_predict": jnp.array([[0.25, 0.75], [0.5, 0.5]])}
    outputs["emotion_predict"] = jnp.array([[0.9, 0.1], [1.0, 0.0]])
    label_bc = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    batch = {"opinion_label": label_bc, "emotion_label": label_bc}
    got = plain.losses(state, outputs, batch)
    opinion = (0.75**2 * np.log(4) + 0.5**2 * np.log(2)) / 2
    emotion = 0.5 * (0.1**2 * np.log(1 / 0.9) + np.log(1e7)) / 2
    np.testing.assert_allclose(got["opinion_loss"], opinion, rtol=1e-6)
    np.testing.assert_allclose(got["emotion_loss"], emotion, rtol=1e-6)


def test_consensus_mask_moves_nothing_in_one_layer() -> None:
    golden = helper.load(helper.COMMITTED)
    state, batch = cast(golden.state, "float32"), inputs(golden, "float32")
    masked, free = (
        plain.forward(state, golden.model | {"consensus_mask": flag}, golden.roberta, batch)
        for flag in (True, False)
    )
    assert golden.model["consensus_mask"]
    np.testing.assert_allclose(masked["opinion_predict"], free["opinion_predict"], atol=1e-6)


def test_checks_name_what_is_wrong() -> None:
    golden = helper.load(helper.COMMITTED)
    good = dict(golden.outputs)
    with pytest.raises(AssertionError, match="visual_encoded"):
        helper.check_outputs(golden, good | {"visual_encoded": good["cnn_features"]}, "float32")
    with pytest.raises(AssertionError, match="cg_score"):
        helper.check_outputs(golden, good | {"cg_score": good["cg_score"] + 3e-5}, "float32")
    with pytest.raises(AssertionError, match=r"missing: .*total_loss"):
        helper.check_outputs(golden, {}, "float32")
    with pytest.raises(AssertionError, match="consensus_token"):
        grads = dict(golden.grads)
        grads["consensus_token"] = grads["consensus_token"][:, ::-1]
        helper.check_grads(golden, grads, "float32")
    with pytest.raises(AssertionError, match=r"where there is none: .*opinion_loss.weight"):
        helper.check_grads(golden, {"opinion_loss.weight": np.ones(7)}, "float32")
    losses = golden.io["traj_loss_hf_adamw"]
    with pytest.raises(AssertionError, match="AdamW"):
        helper.check_trajectory(golden, "hf", losses + 1e-5, "float32")


def cast(tree: plain.State, dtype: str) -> dict:
    """Floating arrays in `dtype`, the others as they are."""
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in tree.items()}


def inputs(golden: helper.Golden, dtype: str) -> dict:
    """The inputs and labels of a case."""
    stored = {k: v for k, v in golden.io.items() if not k.startswith(("out_", "traj_"))}
    return cast(stored, dtype)


@functools.cache
def value_and_grad(case: Path, dtype: str) -> Callable[[plain.State], tuple]:
    """state -> ((total loss, outputs), gradients), compiled once for all tests of a case."""
    golden = helper.load(case)
    batch = inputs(golden, dtype)

    def run(state: plain.State) -> tuple:
        return plain.run(state, golden.model, golden.roberta, batch)

    return jax.jit(jax.value_and_grad(run, has_aux=True))
