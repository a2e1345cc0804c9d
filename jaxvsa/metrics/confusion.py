"""Confusion counts, and every classification figure that follows from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxvsa.core.shapes import bind_dims


class Confusion(struct.PyTreeNode):
    """Number of examples per (true class, predicted class); states add up with `merge`.

    Attributes:
        counts_cc: int32 (c,c); rows are the true class, columns the predicted one.
    """

    counts_cc: jax.Array | np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> Confusion:
        """The state of no examples."""
        return cls(jnp.zeros((num_classes, num_classes), jnp.int32))

    @classmethod
    def from_batch(cls, scores_bc: jax.Array, label_b: jax.Array, valid_b: jax.Array) -> Confusion:
        """Count one batch on the device.

        Args:
            scores_bc: logits or probabilities; the largest wins, ties go to the lowest index.
            label_b: int32 class index; -1 = unlabelled, which counts nowhere.
            valid_b: bool; rows of padding (False) count nowhere, whatever they hold.

        Raises:
            ValueError: the arguments differ in b.
        """
        dims = bind_dims(scores_bc=scores_bc, label_b=label_b, valid_b=valid_b)
        predicted_b = jnp.argmax(scores_bc, axis=-1)
        counted_b = valid_b & (label_b >= 0)
        row_b = jnp.where(counted_b, label_b, 0)  # a negative index would wrap around
        zeros_cc = jnp.zeros((dims["c"], dims["c"]), jnp.int32)
        return cls(zeros_cc.at[row_b, predicted_b].add(counted_b.astype(jnp.int32)))

    @classmethod
    def from_labels(
        cls, label_b: np.ndarray, predicted_b: np.ndarray, num_classes: int
    ) -> Confusion:
        """Count on the host, from class indices alone; label -1 = unlabelled, counts nowhere."""
        keep_b = label_b >= 0
        pair_b = label_b[keep_b].astype(np.int64) * num_classes + predicted_b[keep_b]
        counts = np.bincount(pair_b, minlength=num_classes**2)
        return cls(counts.reshape(num_classes, num_classes).astype(np.int32))

    def merge(self, other: Confusion) -> Confusion:
        """The state of both sets of examples together."""
        return self.replace(counts_cc=self.counts_cc + other.counts_cc)

    def compute(self) -> dict[str, Any]:
        """The figures of `measures`, on the host; scalars are plain floats."""
        values = measures(np.asarray(self.counts_cc))
        return {name: value if value.ndim else float(value) for name, value in values.items()}


def measures(counts_cc: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of one confusion matrix, or of many stacked along leading axes.

    Zero divided by zero is 0. `macro_f1` is the mean over the classes that occur as truth or as
    prediction, which is scikit-learn's default label set; the weighted figures are its "weighted
    avg", by support. With one label and one prediction per example, `micro_f1` equals `accuracy`.

    Args:
        counts_cc: integers (..., c, c); rows true, columns predicted.

    Returns:
        float64 (...): accuracy, micro_f1, macro_f1, weighted_f1, weighted_precision,
        weighted_recall; float64 (..., c): f1_c, precision_c, recall_c; int64 (..., c): support_c,
        the number of true examples.
    """
    counts_cc = np.asarray(counts_cc, np.int64)
    hits_c = np.diagonal(counts_cc, axis1=-2, axis2=-1)
    support_c = counts_cc.sum(axis=-1)
    predicted_c = counts_cc.sum(axis=-2)
    total = support_c.sum(axis=-1)
    by_class = {
        "f1_c": _ratio(2 * hits_c, support_c + predicted_c),
        "precision_c": _ratio(hits_c, predicted_c),
        "recall_c": _ratio(hits_c, support_c),
    }
    f1_c = by_class["f1_c"]
    accuracy = _ratio(hits_c.sum(axis=-1), total)
    return {
        "accuracy": accuracy,
        "micro_f1": accuracy,
        "macro_f1": _ratio(f1_c.sum(axis=-1), (support_c + predicted_c > 0).sum(axis=-1)),
        **{
            f"weighted_{name[:-2]}": _ratio((value_c * support_c).sum(axis=-1), total)
            for name, value_c in by_class.items()
        },
        **by_class,
        "support_c": support_c,
    }


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom in float64, 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=np.asarray(bottom) > 0)
