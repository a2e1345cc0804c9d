"""Prompts: keys, exact similarity, near-duplicates, groups and their splits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxvsa.data.prompts import (
    components,
    group_names,
    jaccard,
    near_duplicates,
    pairs_within,
    prompt_key,
    shingles,
    split_of,
)
from jaxvsa.data.sources.reward_demo import leaking_prompts


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("  A  Cat\tRuns. ", "a cat runs"),
        ("a cat runs !", "a cat runs"),
        ("ＣＡＴ … ?!", "cat"),
        ("Straße", "strasse"),
        ("?!", "?!"),
        ("a | b", "a | b"),
    ],
)
def test_key_forgets_case_width_spaces_and_final_punctuation(prompt, key):
    assert prompt_key(prompt) == key
    assert prompt_key(key) == key


def test_similarity_by_hand():
    assert shingles("abcdef") == {"abcde", "bcdef"}
    assert shingles("abc") == {"abc"}
    assert jaccard("abcdef", "abcdeg") == 1 / 3
    assert jaccard("abc", "abc") == 1 and jaccard("abc", "abcd") == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_duplicates_are_those_of_all_pairs_compared(seed):
    prompts = leaking_prompts(seed)
    keys = list(dict.fromkeys(map(prompt_key, prompts["train"][250:] + prompts["test"])))
    want = [
        pair
        for pair in itertools.combinations(range(len(keys)), 2)
        if jaccard(keys[pair[0]], keys[pair[1]]) >= 0.8
    ]
    assert [tuple(pair) for pair in near_duplicates(keys).tolist()] == want
    assert len(want) == 8  # of the 20 twins 12 have the very key


def test_few_prompts_have_no_near_duplicates():
    assert near_duplicates([]).shape == (0, 2)
    assert near_duplicates(["one"]).shape == (0, 2)


def test_pairs_within_labels():
    label = np.random.default_rng(0).integers(0, 30, 200)
    want = {(i, j) for i, j in itertools.combinations(range(200), 2) if label[i] == label[j]}
    found = [
        (min(pair), max(pair))
        for first, second in pairs_within(label)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(found) == len(want) and set(found) == want
    assert list(pairs_within(np.empty(0, np.int64))) == []
    whole = sum(len(first) for first, _ in pairs_within(np.zeros(1500, int)))
    assert whole == 1500 * 1499 // 2


def test_groups_are_transitive_and_named_by_their_members():
    group = components(5, np.array([[3, 1], [1, 4]]))
    assert group.tolist() == [0, 1, 2, 1, 1]
    names = group_names(["c", "e", "d", "b", "f"], group)
    assert names[1] == group_names(["b"], np.array([0]))[0] and len(set(names)) == 3


def test_splits_have_their_shares_and_follow_the_seed():
    names = [str(n) for n in range(20_000)]
    share = np.bincount([split_of(name, 0) for name in names]) / len(names)
    np.testing.assert_allclose(share, [0.9, 0.05, 0.05], atol=0.006)
    assert [split_of(name, 0) for name in names] == [split_of(name, 0) for name in names]
    assert [split_of(name, 0) for name in names] != [split_of(name, 1) for name in names]
