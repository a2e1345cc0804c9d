"""Correlations: by hand, with ties, inside prompts, and where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvsa.metrics.correlation import correlations, kendall, pearson, spearman


def test_kendall_by_hand_and_with_ties():
    assert kendall(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3])) == pytest.approx(4 / 6)
    # 5 concordant of 6, one tie on one side: 5 / sqrt(6 * 5).
    score, truth = np.array([1.0, 2, 3, 3]), np.array([1.0, 2, 3, 4])
    assert kendall(score, truth) == pytest.approx(5 / np.sqrt(30))


def test_spearman_is_pearson_of_mean_ranks():
    score, truth = np.array([1.0, 5, 5, 9]), np.array([2.0, 1, 8, 8])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([2, 1, 3.5, 3.5])
    assert spearman(score, truth) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert pearson(score, truth) == pytest.approx(np.corrcoef(score, truth)[0, 1])
    assert spearman(np.exp(score), truth) == pytest.approx(spearman(score, truth))


def test_constant_scores_have_no_correlation():
    assert kendall(np.ones(3), np.arange(3)) is None
    assert spearman(np.arange(3), np.ones(3)) is None
    assert pearson(np.ones(1), np.ones(1)) is None


def test_means_over_prompts_leave_undefined_ones_out():
    score = np.array([1, 2, 2, 1, 5, 1, 1])
    truth = np.array([1, 2, 1, 2, 5, 1, 2])
    found = correlations(score, truth, ["p", "p", "q", "q", "r", "s", "s"])
    assert found["groups"] == 2 and found["kendall_by_group"] == 0
    assert found["kendall"] == kendall(score, truth)
    assert correlations(np.ones(2), np.ones(2), ["p", "q"])["spearman_by_group"] is None


def test_refuses_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="finite"):
        kendall(np.array([1, np.nan]), np.arange(2))
    with pytest.raises(ValueError, match="differ"):
        spearman(np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match="1 groups for 2"):
        correlations(np.arange(2), np.arange(2), ["p"])
