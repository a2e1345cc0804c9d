"""Pairs from scores: closed forms, thresholds, caps, and what a negative may be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxvsa.data.pairing import count_same_prompt, cross_prompt, label_gaps, mismatch, same_prompt
from jaxvsa.data.prompts import jaccard


def test_distinct_scores_give_every_pair_of_a_prompt():
    """A5: P prompts with n videos each give P n (n - 1) / 2."""
    prompts, videos = 7, 10
    key = np.repeat(np.arange(prompts), videos)
    score = np.random.default_rng(0).permutation(len(key)).astype(float)
    first, second = same_prompt(key)
    answer, keep = label_gaps(score[first] - score[second], 0, 0)
    assert keep.all() and (answer != 0).all()
    assert len(first) == prompts * videos * (videos - 1) // 2 == count_same_prompt(key)


@pytest.mark.parametrize("levels", [(3, 2, 4, 1), (5, 0, 0, 0), (1, 1, 1, 1)])
def test_levels_give_strict_pairs_and_ties(levels):
    """A5: sum over a < b of c_a c_b strict pairs, sum of C(c_a, 2) ties; (3,2,4,1): 35 and 10."""
    score = np.repeat([1.0, 2, 3, 4], levels)
    first, second = same_prompt(np.zeros(len(score), int))
    answer, keep = label_gaps(score[first] - score[second], 0.5, 0)
    strict = sum(a * b for n, a in enumerate(levels) for b in levels[:n])
    assert keep.all()
    assert np.sum(answer != 0) == strict
    assert np.sum(answer == 0) == sum(math.comb(count, 2) for count in levels)


def test_gap_decides_sign_tie_or_nothing():
    answer, keep = label_gaps(np.array([8.4, -8.4, 8.3, 1.66, -1.67, 0]), 8.3, 1.66)
    assert keep.tolist() == [True, True, False, True, False, True]
    assert answer[keep].tolist() == [1, -1, 0, 0]
    with pytest.raises(ValueError, match="larger than delta"):
        label_gaps(np.zeros(1), 1, 2)


def test_cross_prompt_pairs_keep_every_promise():
    rng = np.random.default_rng(0)
    score, group = rng.integers(1, 5, 400).astype(float), rng.integers(0, 60, 400)
    video = np.arange(400)
    video[-20:] = video[:20]  # videos that are scored twice
    first, second = cross_prompt(score, group, video, 0.5, 3, np.random.default_rng(1))
    assert (group[first] != group[second]).all()
    assert (np.abs(score[first] - score[second]) > 0.5).all()
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == len(first)
    assert np.bincount(video[np.concatenate([first, second])]).max() <= 3
    assert len(first) > 500  # of at most 570
    again = cross_prompt(score, group, video, 0.5, 3, np.random.default_rng(1))
    np.testing.assert_array_equal(again, (first, second))


def test_cross_prompt_of_one_group_or_nothing_is_empty():
    rng = np.random.default_rng(0)
    one = np.zeros(5, int)
    for size, cap in ((5, 8), (0, 8), (1, 8), (5, 0)):
        part = cross_prompt(np.arange(5.0)[:size], one[:size], np.arange(size), 0, cap, rng)
        assert [len(side) for side in part] == [0, 0]


def test_negative_is_of_another_group_and_unlike():
    keys = ["a cat runs over a wet street", "a cat runs over a dry street", "two boats at sea"]
    assert jaccard(keys[0], keys[1]) > 0.3 > jaccard(keys[0], keys[2])
    place = np.arange(3)
    found = mismatch(
        np.repeat([0, 1], 50), place, keys, place, place, place, np.random.default_rng(0)
    )
    assert len(found[0]) >= 90 and set(found[1].tolist()) == {2}
    same = np.zeros(3, int)
    for group, video in ((same, place), (place, same)):
        none = mismatch(np.array([0]), place, keys, place, group, video, np.random.default_rng(0))
        assert [len(side) for side in none] == [0, 0]
