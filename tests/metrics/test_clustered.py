"""Errors by cluster: constants, what clustering does, paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxvsa.metrics.clustered import compare, estimate, linearised_error, sign_test

CREDIT = np.array([1, 1, 0, 1, 0, 0, 1, 1.0])
CLUSTER = ["0", "0", "0", "1", "1", "2", "3", "3"]


def test_toy_of_the_specification():
    assert linearised_error(CREDIT, CLUSTER) == pytest.approx(0.146575, abs=1e-6)
    found = estimate(CREDIT, CLUSTER)
    assert (found.value, found.pairs, found.clusters) == (0.625, 8, 4)


def test_clusters_of_one_give_the_binomial_error():
    rng = np.random.default_rng(0)
    credit = (rng.random(500) < 0.7).astype(float)
    names = [str(n) for n in range(500)]
    p = credit.mean()
    assert linearised_error(credit, names) == pytest.approx(math.sqrt(p * (1 - p) / 499))
    found = estimate(credit, names)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.error, rel=0.05)
    # Each pair ten times over, in its own cluster, is no news.
    again = linearised_error(np.repeat(credit, 10), np.repeat(names, 10))
    assert again == pytest.approx(linearised_error(credit, names))


def test_bootstrap_agrees_with_the_linearised_error():
    rng = np.random.default_rng(1)
    size = rng.integers(1, 8, 196)
    cluster = np.repeat(np.arange(196), size).astype(str)
    skill = np.repeat(rng.uniform(0.4, 1, 196), size)
    credit = (rng.random(len(skill)) < skill).astype(float)
    found = estimate(credit, cluster)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.error, rel=0.06)
    assert found == estimate(credit, cluster)


def test_ties_and_order_change_nothing():
    order = np.random.default_rng(0).permutation(8)
    shuffled = [CLUSTER[n] for n in order]
    assert linearised_error(CREDIT[order], shuffled) == pytest.approx(
        linearised_error(CREDIT, CLUSTER)
    )
    assert linearised_error(np.append(CREDIT, np.nan), [*CLUSTER, "9"]) == linearised_error(
        CREDIT, CLUSTER
    )


def test_one_cluster_tells_no_error():
    found = estimate(CREDIT, ["x"] * 8)
    assert found.value == 0.625 and math.isnan(found.error) and math.isnan(found.low)


def test_paired_comparison_by_hand():
    first = np.array([1, 1, 1, 0, 1, np.nan])
    second = np.array([0, 0, 1, 1, 0, 1.0])
    found = compare(first, second, list("aabbcd"))
    assert (found.only_first, found.only_second) == (3, 1)
    assert found.difference.value == pytest.approx(2 / 5) and found.difference.pairs == 5
    assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 16)
    assert found.difference.error == pytest.approx(linearised_error(first - second, list("aabbcd")))
    assert 0 < found.cluster_p < 1


def test_equal_systems_do_not_differ():
    """CA1: the two public voters have 87 discordant pairs each way and difference 0."""
    first = np.repeat([1, 0, 1.0], [87, 87, 526])
    second = np.repeat([0, 1, 1.0], [87, 87, 526])
    found = compare(first, second, [str(n) for n in range(700)])
    assert found.difference.value == 0 and found.mcnemar_p == 1 and found.cluster_p == 1
    assert found.difference.low < 0 < found.difference.high
    assert sign_test(0, 0) == 1


def test_refuses():
    with pytest.raises(ValueError, match="no pair"):
        estimate(np.array([np.nan]), ["a"])
    with pytest.raises(ValueError, match="2 pairs and 1 clusters"):
        linearised_error(np.ones(2), ["a"])
    with pytest.raises(ValueError, match="same ones"):
        compare(np.ones(2), np.ones(3), ["a", "b"])
