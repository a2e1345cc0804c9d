"""Losses over the classes of one task; pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How an example's loss is computed from its logits.

    Attributes:
        kind: "focal" on probabilities (published) or "cross_entropy".
        gamma: focusing exponent of the focal loss.
        class_weight: "uniform" (published: 1 / number of classes for the focal loss) or
            "balanced": inverse to the class frequency in train, mean 1 over train examples.
        logit_adjustment: tau >= 0; tau * log(class frequency in train) is added to the logits
            inside the loss, so that rare classes are not drowned (Menon et al. 2021). 0 = off.
    """

    kind: Literal["focal", "cross_entropy"]
    gamma: float
    class_weight: Literal["uniform", "balanced"]
    logit_adjustment: float


def class_weights(options: LossOptions, count_c: Sequence[int]) -> np.ndarray:
    """Relative weight of every class, (c,) float64; mean 1 over the train examples."""
    counts = np.asarray(count_c, np.float64)
    if options.class_weight == "uniform":
        return np.ones_like(counts)
    seen = np.maximum(counts, 1)
    return counts.sum() / (np.count_nonzero(counts) * seen)


def log_prior(count_c: Sequence[int]) -> np.ndarray:
    """Log of the class frequency in train, (c,) float64; an unseen class counts as half one."""
    counts = np.maximum(np.asarray(count_c, np.float64), 0.5)
    return np.log(counts / counts.sum())


def focal(logits_bc: jax.Array, label_b: jax.Array, gamma: float) -> jax.Array:
    """Focal loss on softmax probabilities, (b,), before class weights.

    Source: VC-CSA code: (1 - p)^gamma * (-log(p + 1e-7) + 1e-7), both epsilons.
    """
    prob_bc = jax.nn.softmax(logits_bc, axis=-1)
    prob_b = jnp.take_along_axis(prob_bc, label_b[:, None], axis=-1)[:, 0]
    return (1.0 - prob_b) ** gamma * (-jnp.log(prob_b + 1e-7) + 1e-7)


def cross_entropy(logits_bc: jax.Array, label_b: jax.Array) -> jax.Array:
    """Negative log likelihood, (b,), before class weights."""
    logp_bc = jax.nn.log_softmax(logits_bc, axis=-1)
    return -jnp.take_along_axis(logp_bc, label_b[:, None], axis=-1)[:, 0]


def task_loss(
    options: LossOptions, logits_bc: jax.Array, label_b: jax.Array, count_c: Sequence[int]
) -> jax.Array:
    """Weighted loss of every example, (b,), in the dtype of the logits.

    Args:
        options: see `LossOptions`.
        logits_bc: float32 or wider.
        label_b: int32; values outside the classes are clipped, and masked by the caller.
        count_c: train examples of every class.
    """
    num_classes = logits_bc.shape[-1]
    label_b = jnp.clip(label_b, 0, num_classes - 1)
    weight_b = jnp.asarray(class_weights(options, count_c), logits_bc.dtype)[label_b]
    if options.logit_adjustment:
        logits_bc += (
            options.logit_adjustment * jnp.asarray(log_prior(count_c), logits_bc.dtype)[None]
        )
    if options.kind == "focal":
        # Kept: the published class weight is 1 / classes as float32 holds it, in any precision.
        share = float(np.float32(1 / num_classes))
        return share * weight_b * focal(logits_bc, label_b, options.gamma)
    return weight_b * cross_entropy(logits_bc, label_b)
