"""Uncertainty of classification figures: a bootstrap over videos.

Comments of one video are not independent, so videos are resampled, with all their comments.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6, 8 and 13.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvsa.metrics.confusion import measures


@dataclasses.dataclass(frozen=True, eq=False)
class Interval:
    """A figure with its uncertainty; scalars (), or one entry per class (c,).

    Attributes:
        value: the figure on the examples themselves.
        error: standard error, the deviation between resamples.
        low: lower end of the 95 % percentile interval.
        high: upper end.
    """

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap(
    label_b: np.ndarray,
    predicted_b: np.ndarray,
    cluster: Sequence[str],
    num_classes: int,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of every figure of `metrics.confusion.measures` but the support.

    Each resample draws as many clusters as there are, with replacement, and is measured like the
    examples themselves. So a class that a resample lacks altogether does not enter its macro-F1.
    With a single cluster errors and intervals are unknown: nan.

    Args:
        label_b: true class of each example, int; -1 = unlabelled, left out with its cluster.
        predicted_b: predicted class of each example.
        cluster: video of each example.
        num_classes: c.
        num_resamples: at least 2; the error of a standard error is about 1/sqrt(2 num_resamples).
        seed: of numpy's generator; the same seed and clusters give the same resamples, which
            makes the intervals of two systems comparable.

    Raises:
        ValueError: no labelled example, or arguments of different length.
    """
    if not len(label_b) == len(predicted_b) == len(cluster):
        raise ValueError(
            f"{len(label_b)} labels, {len(predicted_b)} predictions and {len(cluster)} clusters: "
            "there must be one of each per example"
        )
    keep_b = label_b >= 0
    if not keep_b.any():
        raise ValueError("no labelled example to resample")
    names, cluster_b = np.unique(np.asarray(cluster, np.str_)[keep_b], return_inverse=True)
    pair_b = label_b[keep_b].astype(np.int64) * num_classes + predicted_b[keep_b]
    rng = np.random.default_rng(seed)
    size = num_classes**2
    counts = np.empty((num_resamples, size), np.int64)
    for resample in counts:
        draws = rng.integers(len(names), size=len(names))
        weight_g = np.bincount(draws, minlength=len(names))
        resample[:] = np.bincount(pair_b, weight_g[cluster_b], minlength=size)
    shape = (num_classes, num_classes)
    sample = measures(np.bincount(pair_b, minlength=size).reshape(shape))
    resampled = measures(counts.reshape(num_resamples, *shape))
    if len(names) == 1:  # nothing to resample: the error is unknown, not zero
        resampled = {name: np.full(value.shape, np.nan) for name, value in resampled.items()}
    return {
        name: _interval(value, resampled[name])
        for name, value in sample.items()
        if name != "support_c"
    }


def _interval(value: np.ndarray, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Interval(value, resampled.std(axis=0, ddof=1), low, high)
