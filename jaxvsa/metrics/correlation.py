"""Rank and linear correlation of scores with people's, over all videos and inside each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kendall(score_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    """Kendall's tau-b, which corrects for ties; None if either side is constant.

    Raises:
        ValueError: arrays of different length, or values that are not finite.
    """
    return _statistic("kendalltau", score_n, truth_n)


def spearman(score_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    """Spearman's rho, ties with their mean rank; None and ValueError as in `kendall`."""
    return _statistic("spearmanr", score_n, truth_n)


def pearson(score_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    """Pearson's r; None and ValueError as in `kendall`."""
    return _statistic("pearsonr", score_n, truth_n)


def correlations(
    score_n: np.ndarray, truth_n: np.ndarray, group: Sequence[str] | None = None
) -> dict[str, float | None]:
    """The three figures over all videos; with `group` also their means over prompts.

    Args:
        score_n: the model's scores.
        truth_n: people's, of one source and dimension.
        group: prompt of each video.

    Returns:
        "kendall", "spearman", "pearson"; with `group` "kendall_by_group" and so on, means over the
        prompts where the figure is defined (two videos, neither side constant), and "groups", the
        number of these.

    Raises:
        ValueError: arguments of different length, or values that are not finite.
    """
    names = {"kendall": kendall, "spearman": spearman, "pearson": pearson}
    found: dict[str, float | None] = {n: figure(score_n, truth_n) for n, figure in names.items()}
    if group is None:
        return found
    if len(group) != len(score_n):
        raise ValueError(f"{len(group)} groups for {len(score_n)} scores")
    score_n, truth_n = np.asarray(score_n), np.asarray(truth_n)
    group_n = np.unique(np.asarray(group, np.str_), return_inverse=True)[1]
    order_n = np.argsort(group_n, kind="stable")
    members = np.split(order_n, np.flatnonzero(np.diff(group_n[order_n])) + 1)
    for name, figure in names.items():
        values = [figure(score_n[at], truth_n[at]) for at in members]
        known = [value for value in values if value is not None]
        found[f"{name}_by_group"] = float(np.mean(known)) if known else None
        found["groups"] = len(known)
    return found


def _statistic(name: str, score_n: np.ndarray, truth_n: np.ndarray) -> float | None:
    score_n, truth_n = np.asarray(score_n, np.float64), np.asarray(truth_n, np.float64)
    if score_n.shape != truth_n.shape or score_n.ndim != 1:
        raise ValueError(f"scores {score_n.shape} and truth {truth_n.shape} differ")
    if not (np.isfinite(score_n).all() and np.isfinite(truth_n).all()):
        raise ValueError("correlations need finite scores")
    if len(score_n) < 2 or np.ptp(score_n) == 0 or np.ptp(truth_n) == 0:
        return None
    from scipy import stats  # a second of import

    return float(getattr(stats, name)(score_n, truth_n).statistic)
