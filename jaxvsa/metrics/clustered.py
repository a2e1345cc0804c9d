"""Uncertainty of accuracies when pairs of one prompt belong together, and paired comparisons.

Source: A6 and CA1; Cochran, Sampling Techniques (1977), section 6.3, for the linearised error;
Efron and Tibshirani (1993), chapters 6 and 13, for the bootstrap; McNemar (1947).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 10_000
_BLOCK = 1 << 22  # counts of a block of resamples


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        value: the mean over pairs.
        error: linearised standard error, nan with a single cluster.
        low: lower end of the 95 % percentile interval of the bootstrap, nan likewise.
        high: upper end.
        pairs: how many.
        clusters: how many of them have a pair.
    """

    value: float
    error: float
    low: float
    high: float
    pairs: int
    clusters: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems on the same pairs.

    Attributes:
        difference: first minus second mean, with its uncertainty by cluster.
        only_first: pairs on which the first has more credit.
        only_second: likewise.
        mcnemar_p: exact two-sided sign test on these pairs; it takes pairs for independent.
        cluster_p: two-sided p of the normal test with the linearised error, 1 for no difference,
            nan with a single cluster.
    """

    difference: Estimate
    only_first: int
    only_second: int
    mcnemar_p: float
    cluster_p: float


def linearised_error(credit_b: np.ndarray, cluster: Sequence[str]) -> float:
    """Standard error of the mean of `credit_b`, clusters taken as drawn at random.

    sqrt(G / (G - 1) sum_g (s_g - n_g p)^2) / n, with s_g the sum and n_g the size of cluster g.

    Args:
        credit_b: 0 to 1 for each pair; nan leaves the pair out.
        cluster: prompt of each pair.

    Returns:
        nan with a single cluster.

    Raises:
        ValueError: no pair, or arguments of different length.
    """
    sum_g, count_g = _totals(credit_b, cluster)
    return _linearised(sum_g, count_g)


def estimate(
    credit_b: np.ndarray,
    cluster: Sequence[str],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of `credit_b` with its uncertainty; arguments and errors as in `linearised_error`.

    A resample draws as many clusters as there are, with replacement, and divides their sum by their
    number of pairs. The same seed and clusters give the same resamples.
    """
    sum_g, count_g = _totals(credit_b, cluster)
    value, low, high = sum_g.sum() / count_g.sum(), np.nan, np.nan
    if len(sum_g) > 1:
        rng = np.random.default_rng(seed)
        step = max(_BLOCK // len(sum_g), 1)
        means = []
        for at in range(0, num_resamples, step):
            size = min(step, num_resamples - at)
            weight_rg = rng.multinomial(len(sum_g), np.full(len(sum_g), 1 / len(sum_g)), size)
            means.append((weight_rg @ sum_g) / (weight_rg @ count_g))
        low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    error = _linearised(sum_g, count_g)
    pairs, clusters = int(count_g.sum()), len(sum_g)
    return Estimate(float(value), error, float(low), float(high), pairs, clusters)


def compare(
    first_b: np.ndarray,
    second_b: np.ndarray,
    cluster: Sequence[str],
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Whether the first system is better than the second, on the same pairs.

    Args:
        first_b: credit of each pair, 0 to 1; a pair that is nan for either is left out.
        second_b: likewise.
        cluster: prompt of each pair.
        num_resamples: of the interval.
        seed: of the resamples.

    Raises:
        ValueError: no pair, or arguments of different length.
    """
    first_b, second_b = np.asarray(first_b, np.float64), np.asarray(second_b, np.float64)
    if first_b.shape != second_b.shape:
        raise ValueError(f"{first_b.shape} and {second_b.shape} pairs: both need the same ones")
    difference = estimate(first_b - second_b, cluster, num_resamples, seed)
    only_first, only_second = int(np.sum(first_b > second_b)), int(np.sum(first_b < second_b))
    z = 0.0
    if difference.value:
        z = abs(difference.value) / difference.error if difference.error else math.inf
    return Comparison(
        difference,
        only_first,
        only_second,
        sign_test(only_first, only_second),
        math.nan if math.isnan(difference.error) else math.erfc(z / math.sqrt(2)),
    )


def sign_test(first: int, second: int) -> float:
    """Exact two-sided p of `first` against `second` successes of a fair coin; 1 without any."""
    from scipy.stats import binomtest  # a second of import

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def _totals(credit_b: np.ndarray, cluster: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of each cluster that has a pair."""
    credit_b = np.asarray(credit_b, np.float64)
    if len(credit_b) != len(cluster):
        raise ValueError(
            f"{len(credit_b)} pairs and {len(cluster)} clusters: one of each is needed"
        )
    keep_b = ~np.isnan(credit_b)
    if not keep_b.any():
        raise ValueError("no pair to estimate from")
    cluster_b = np.unique(np.asarray(cluster, np.str_)[keep_b], return_inverse=True)[1]
    return np.bincount(cluster_b, credit_b[keep_b]), np.bincount(cluster_b)


def _linearised(sum_g: np.ndarray, count_g: np.ndarray) -> float:
    num, total = len(sum_g), count_g.sum()
    if num < 2:
        return float("nan")
    rest_g = sum_g - count_g * (sum_g.sum() / total)
    return float(np.sqrt(num / (num - 1) * np.sum(rest_g**2)) / total)
