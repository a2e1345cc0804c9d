"""Pairs drawn from scores, as positions in columns: same prompt, cross prompt, mismatch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvsa.data.prompts import jaccard, pairs_within

UNLIKE = 0.3
"""Jaccard similarity below which a prompt is another's negative."""
_ROUNDS = 4  # rounds of drawing for each pair that a video may have
_TRIES = 8

Positions = tuple[np.ndarray, np.ndarray]


def label_gaps(gap_n: np.ndarray, delta: float, tie_eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers from differences of scores, in the units of the source.

    A gap larger than `delta` is decided by its sign, one of at most `tie_eps` is a tie, what lies
    between is left out.

    Source: A5, step 2.

    Returns:
        int8 answers, 1, -1 or 0; bool, False for what is left out.

    Raises:
        ValueError: `tie_eps` is larger than `delta`.
    """
    if tie_eps > delta:
        raise ValueError(f"tie_eps {tie_eps:g} is larger than delta {delta:g}")
    size_n = np.abs(gap_n)
    decided_n = size_n > delta
    answer_n = np.where(decided_n, np.sign(gap_n), 0).astype(np.int8)
    return answer_n, decided_n | (size_n <= tie_eps)


def same_prompt(key_n: np.ndarray) -> Positions:
    """All pairs of positions with the same key, int64 (m,) each."""
    blocks = [*pairs_within(key_n)] or [(np.empty(0, np.int64), np.empty(0, np.int64))]
    first_m, second_m = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return first_m, second_m


def count_same_prompt(key_n: np.ndarray) -> int:
    """How many pairs `same_prompt` makes."""
    size_g = np.unique(key_n, return_counts=True)[1].astype(np.int64)
    return int(np.sum(size_g * (size_g - 1) // 2))


def cross_prompt(
    score_n: np.ndarray,
    group_n: np.ndarray,
    video_n: np.ndarray,
    delta: float,
    cap: int,
    rng: np.random.Generator,
) -> Positions:
    """Random pairs of different groups with a gap over `delta`; no video is in more than `cap`.

    In a round all videos with room are shuffled and taken two by two, so that a round gives each at
    most one pair; pairs that do not qualify are lost. Rounds end when no video has room, at the
    latest after 4 `cap` of them.

    Source: A5, step 3a.

    Args:
        score_n: of one source, dimension and split.
        group_n: prompt group of each.
        video_n: number of its video.
        delta: in units of the score.
        cap: pairs of a video.
        rng: decides all.

    Returns:
        int64 (m,) positions, none twice.
    """
    place_n = np.unique(video_n, return_inverse=True)[1]
    count_g = np.zeros(place_n.max(initial=-1) + 1, np.int64)
    codes = [np.empty(0, np.int64)]
    for _ in range(_ROUNDS * cap):
        order_n = rng.permutation(np.flatnonzero(count_g[place_n] < cap))
        order_n = order_n[np.sort(np.unique(place_n[order_n], return_index=True)[1])]
        if len(order_n) < 2:
            break
        first_m, second_m = order_n[: len(order_n) // 2 * 2].reshape(-1, 2).T
        keep_m = group_n[first_m] != group_n[second_m]
        keep_m &= np.abs(score_n[first_m] - score_n[second_m]) > delta
        first_m, second_m = first_m[keep_m], second_m[keep_m]
        count_g[place_n[first_m]] += 1
        count_g[place_n[second_m]] += 1
        codes.append(np.minimum(first_m, second_m) * len(score_n) + np.maximum(first_m, second_m))
    pair_m = np.unique(np.concatenate(codes))
    return pair_m // max(len(score_n), 1), pair_m % max(len(score_n), 1)


def mismatch(
    asked_m: np.ndarray,
    pool_n: np.ndarray,
    keys: Sequence[str],
    key_n: np.ndarray,
    group_n: np.ndarray,
    video_n: np.ndarray,
    rng: np.random.Generator,
) -> Positions:
    """For each asked video another one, whose prompt is a different text.

    Source: A5, step 3b: another group, and prompts with a Jaccard similarity under `UNLIKE`.
    Chosen: 8 draws, then a video goes without.

    Args:
        asked_m: positions whose prompt is the question; may hold one several times.
        pool_n: positions that the other video is drawn from.
        keys: `prompt_key` of each number of a prompt.
        key_n: number of the prompt at each position.
        group_n: prompt group at each position.
        video_n: number of the video at each position.
        rng: decides all.

    Returns:
        int64 (m,) positions of the asked ones that found another, and of these.
    """
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for _ in range(_TRIES if len(pool_n) else 0):
        other_m = pool_n[rng.integers(len(pool_n), size=len(asked_m))]
        keep_m = (group_n[asked_m] != group_n[other_m]) & (video_n[asked_m] != video_n[other_m])
        for m in np.flatnonzero(keep_m):
            keep_m[m] = jaccard(keys[key_n[asked_m[m]]], keys[key_n[other_m[m]]]) < UNLIKE
        first.append(asked_m[keep_m])
        second.append(other_m[keep_m])
        asked_m = asked_m[~keep_m]
    return np.concatenate(first), np.concatenate(second)
