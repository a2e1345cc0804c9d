"""Pairwise accuracy: worked cases, the order of pairs, ties of scorers and of voters."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.metrics.pairwise import (
    MISSING,
    PairCounts,
    accuracy_by,
    accuracy_with_ties,
    accuracy_without_ties,
    fit_eps,
    fit_rho,
    four_way,
    gap_bins,
    pair_credit,
    position_bias,
    vote_accuracy,
)

# Answers, differences -> best accuracy with ties, its threshold, accuracy without ties (CA1).
WORKED = [
    ([1, 1, 1], [0.2, 0.4, 0.9], 1, 0, 1),
    ([0, 1], [0.5, 0.5], 0.5, 0, 1),
    ([1, 0], [0.5, 0.5], 0.5, 0, 1),
    ([1, -1, 0, 0], [0.9, -0.8, 0.1, -0.2], 1, 0.2, 1),
    ([0, 0], [0.3, 0.1], 1, 0.3, None),
    ([1, 0, 0, -1, 1], [0.1, 0.2, -0.2, -0.6, 0.6], 0.8, 0.2, 1),
    ([0, 1, -1], [0, 0, 0], 1 / 3, 0, 0.5),
    ([1, -1, 1, 0, 0, -1], [0.5, 0.5, 0.5, -0.5, 0.1, -0.9], 2 / 3, 0.1, 0.75),
]


@pytest.mark.parametrize(("answer", "difference", "with_ties", "eps", "without_ties"), WORKED)
def test_worked_cases(answer, difference, with_ties, eps, without_ties):
    found = accuracy_with_ties(np.array(answer), np.array(difference))
    assert (found.accuracy, found.eps) == (pytest.approx(with_ties), pytest.approx(eps))
    assert accuracy_without_ties(np.array(answer), np.array(difference)) == without_ties
    again = accuracy_with_ties(np.array(answer), np.array(difference), eps=found.eps)
    assert again.accuracy == found.accuracy


def _sample(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 2, num), np.round(rng.normal(size=num), 1)


def test_best_threshold_agrees_with_trying_all_of_them():
    for seed in range(20):
        answer, difference = _sample(40, seed)
        tried = {}
        for eps in sorted({0.0, *np.abs(difference)}):
            said = [0 if abs(m) <= eps else np.sign(m) for m in difference]
            tried[eps] = np.mean(np.array(said) == answer)
        best = max(tried.values())
        found = accuracy_with_ties(answer, difference)
        assert found.accuracy == best
        assert found.eps == min(eps for eps, value in tried.items() if value == best)


def test_order_and_swapped_sides_change_nothing():
    answer, difference = _sample(200)
    order = np.random.default_rng(1).permutation(200)
    assert accuracy_with_ties(answer[order], difference[order]) == accuracy_with_ties(
        answer, difference
    )
    assert accuracy_with_ties(-answer, -difference) == accuracy_with_ties(answer, difference)
    assert accuracy_without_ties(-answer, -difference) == accuracy_without_ties(answer, difference)


def test_zero_difference_is_half_or_wrong_and_nan_is_wrong():
    answer = np.array([1, -1, 1, 0, 1])
    difference = np.array([0.0, -1, 2, 0, np.nan])
    np.testing.assert_array_equal(pair_credit(answer, difference), [0.5, 1, 1, np.nan, 0])
    assert accuracy_without_ties(answer, difference) == 2.5 / 4
    assert accuracy_without_ties(answer, difference, strict=True) == 2 / 4
    assert accuracy_with_ties(answer, difference).accuracy == 3 / 5


def test_only_ties_have_no_accuracy_without_ties():
    counts = PairCounts.from_pairs(np.zeros(3, int), np.ones(3)).compute()
    assert counts["without_ties"] is None and counts["ties"] == 3
    assert accuracy_with_ties(np.array([], int), np.array([])).accuracy is None


def test_states_merge_and_leave_padding_out():
    answer, difference = _sample(50)
    difference[:3] = np.nan
    whole = PairCounts.from_pairs(answer, difference)
    state = PairCounts.empty()
    for at in range(0, 50, 20):
        a, m = np.zeros(20, int), np.full(20, 5.0)
        size = len(answer[at : at + 20])
        a[:size], m[:size] = answer[at : at + 20], difference[at : at + 20]
        valid = jnp.arange(20) < size
        state = state.merge(PairCounts.from_batch(jnp.asarray(a), jnp.asarray(m), valid))
    np.testing.assert_array_equal(state.counts_aj, whole.counts_aj)
    assert whole.compute()["without_ties"] == accuracy_without_ties(answer, difference)
    assert whole.compute()["without_ties_strict"] == accuracy_without_ties(
        answer, difference, strict=True
    )
    with pytest.raises(ValueError, match="difference_b: dim 'b'"):
        PairCounts.from_batch(jnp.zeros(3, int), jnp.zeros(2), jnp.ones(3, bool))


def test_counts_by_hand():
    answer = np.array([1, 1, -1, 0, -1])
    difference = np.array([1.0, -1, -1, 2, 0])
    counts = PairCounts.from_pairs(answer, difference)
    np.testing.assert_array_equal(counts.counts_aj, [[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    assert counts.compute() == {
        "without_ties": 2.5 / 4, "without_ties_strict": 2 / 4, "a_share": 1.5 / 4,
        "decided": 4, "ties": 1,
    }  # fmt: skip


def test_random_scorer_with_the_best_threshold():
    """CA1: 325 / 375 / 369 votes, mean .3552, deviation .0079; test range [.33, .38]."""
    answer = np.repeat([1, -1, 0], [325, 375, 369])
    rng = np.random.default_rng(0)
    found = [accuracy_with_ties(answer, rng.normal(size=len(answer))).accuracy for _ in range(50)]
    assert min(found) > 0.33 and max(found) < 0.38
    assert np.mean(found) == pytest.approx(0.3552, abs=0.004)
    always_tie = accuracy_with_ties(answer, np.zeros(len(answer)))
    assert always_tie.accuracy == 369 / 1069
    assert accuracy_without_ties(answer, -np.ones(len(answer))) == 375 / 700


def test_honest_threshold_comes_from_other_pairs():
    dev = np.array([0, 0, 1]), np.array([0.1, -0.3, 0.9])
    eps = fit_eps(*dev)
    assert eps == 0.3
    test = np.array([0, 1, 0]), np.array([0.5, 0.2, 0.1])
    assert accuracy_with_ties(*test, eps=eps).accuracy == 1 / 3
    assert accuracy_with_ties(*test).accuracy == 2 / 3


def test_four_way_of_a_scorer():
    vote = np.array([2, 2, 3, 3, 0])
    assert fit_rho(vote, np.array([0.9, 0.6, 0.5, 0.1, 0.0])) == 0.6
    assert fit_rho(np.array([3, 3]), np.array([0.9, 0.6])) == np.inf
    said = four_way(
        np.array([0.1, -0.2, 0.8, -0.8, np.nan]), np.array([0.7, 0.2, 0.0, 0.9, 0.9]), 0.2, 0.6
    )
    assert said.tolist() == [2, 3, 0, 1, MISSING]


def test_votes_of_a_voter():
    vote = np.array([0, 1, 0, 2, 3, 3, 1])
    said = np.array([0, 0, 2, 3, 3, MISSING, MISSING])
    found = vote_accuracy(vote, said)
    assert found == {
        "four_way": 2 / 7, "with_ties": 3 / 7, "without_ties": 1 / 4, "without_ties_half": 1.5 / 4,
        "pairs": 7, "decided": 4, "missing": 2,
    }  # fmt: skip
    assert vote_accuracy(np.array([2]), np.array([2]))["without_ties"] is None


def test_tie_votes_on_decided_pairs_are_wrong_or_half():
    """CA2, 1: 482 right and 75 ties of 700 are 68.86, and 74.21 with half credit."""
    found = vote_accuracy(np.zeros(700, int), np.repeat([0, 2, 1], [482, 75, 143]))
    assert round(100 * found["without_ties"], 2) == 68.86
    assert round(100 * found["without_ties_half"], 2) == 74.21


def test_uniform_voter_has_a_quarter_and_a_half():
    """CA2, 1: 25.43 strict, 50.36 half, on 700 votes; here the expectation on many."""
    rng = np.random.default_rng(0)
    found = vote_accuracy(rng.integers(0, 2, 100_000), rng.integers(0, 4, 100_000))
    assert found["without_ties"] == pytest.approx(0.25, abs=0.01)
    assert found["without_ties_half"] == pytest.approx(0.5, abs=0.01)


def test_figures_by_part():
    answer = np.array([1, -1, 0, 1])
    difference = np.array([0.5, 0.5, 0.1, 0.0])
    found = accuracy_by(answer, difference, ["x", "y", "x", "y"], eps=0.2)
    assert list(found) == ["x", "y"]
    assert found["x"]["without_ties"] == 1 and found["x"]["with_ties"] == 1
    assert found["y"]["without_ties"] == 0.25 and found["y"]["with_ties"] == 0
    assert found["x"]["eps_oracle"] == 0.1 and found["y"]["decided"] == 2
    assert gap_bins(np.array([0.1, 0.5, 1.5, 9, np.nan])) == [
        "<0.5", "0.5-1", "1-2", ">=2", "unknown",
    ]  # fmt: skip


def test_position_bias_of_one_who_always_says_a():
    bias = position_bias(np.array([1, 1, -1]), np.ones(3))
    assert bias == {"when_a": 1, "when_b": 0, "bias": 1}
    assert position_bias(np.array([1]), np.ones(1))["bias"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_with_ties(np.array([2]), np.array([0.0])), "answers are 1"),
        (lambda: pair_credit(np.array([1]), np.zeros(2)), "differ"),
        (lambda: vote_accuracy(np.array([4]), np.array([0])), "votes run from 0 to 3"),
        (lambda: vote_accuracy(np.array([1]), np.array([0, 1])), "differ"),
        (lambda: accuracy_by(np.array([1]), np.zeros(1), []), "0 names of parts"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
