"""Losses by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.systems.vccsa.loss import LossOptions, class_weights, focal, log_prior, task_loss

LOGITS = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32))
LABELS = np.array([0, 1])


def options(**more: Any) -> LossOptions:
    fields = {"kind": "focal", "gamma": 2.0, "class_weight": "uniform", "logit_adjustment": 0.0}
    return LossOptions(**{**fields, **more})


def test_focal_loss_by_hand() -> None:
    got = task_loss(options(), LOGITS, LABELS, (5, 3, 2))
    want = [(1 - p) ** 2 * (-np.log(p + 1e-7) + 1e-7) / 3 for p in (0.5, 0.1)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_focal_loss_of_a_certain_mistake_is_finite_with_finite_gradient() -> None:
    logits = jnp.array([[200.0, -200.0]])
    value, grad = jax.value_and_grad(lambda x: focal(x, jnp.array([1]), 2.0)[0])(logits)
    np.testing.assert_allclose(value, -np.log(1e-7), rtol=1e-4)
    assert np.isfinite(grad).all()


def test_cross_entropy_with_balanced_weights_by_hand() -> None:
    got = task_loss(
        options(kind="cross_entropy", class_weight="balanced"), LOGITS, LABELS, (6, 3, 1)
    )
    weights = np.array([10 / 18, 10 / 9, 10 / 3])
    np.testing.assert_allclose(got, weights[LABELS] * -np.log([0.5, 0.1]), rtol=1e-5)


def test_balanced_weights_average_to_one_over_train_examples() -> None:
    counts = np.array([6, 3, 1])
    weights = class_weights(options(class_weight="balanced"), counts)
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1.0)


def test_logit_adjustment_adds_the_log_prior() -> None:
    counts = (6, 3, 1)
    adjusted = task_loss(
        options(kind="cross_entropy", logit_adjustment=1.0), LOGITS, LABELS, counts
    )
    shifted = task_loss(
        options(kind="cross_entropy"), LOGITS + log_prior(counts).astype("f4"), LABELS, counts
    )
    np.testing.assert_allclose(adjusted, shifted, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_prior(counts)), [0.6, 0.3, 0.1])


@pytest.mark.parametrize("kind", ["focal", "cross_entropy"])
def test_label_of_a_padding_row_cannot_break_the_others(kind: Any) -> None:
    got = task_loss(options(kind=kind), LOGITS, np.array([0, -1]), (1, 1, 1))
    assert np.isfinite(got).all()
