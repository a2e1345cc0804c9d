"""Which checkpoints stay, by hand."""

import types

import pytest

from jaxvsa.core.retention import Retention, ranked


def kept(retention, steps):
    checkpoints = [types.SimpleNamespace(step=step) for step in steps]
    answers = retention.should_preserve(checkpoints, context=None)
    return [step for step, answer in zip(steps, answers, strict=True) if answer]


def test_ranked_is_by_score_then_by_step():
    assert ranked({1: 0.2, 2: None, 3: 0.7, 4: 0.2, 5: 0.7}) == [3, 5, 1, 4]


@pytest.mark.parametrize(
    "newest,best,want",
    [(1, 1, [3, 6]), (2, 0, [5, 6]), (1, 3, [1, 3, 5, 6]), (9, 0, [1, 2, 3, 4, 5, 6])],
)
def test_retention_keeps_newest_and_best(newest, best, want):
    retention = Retention(newest, best)
    retention.scores = {1: 0.2, 2: None, 3: 0.7, 4: 0.2, 5: 0.7, 6: 0.1}
    assert kept(retention, [1, 2, 3, 4, 5, 6]) == want


def test_retention_leaves_what_it_does_not_know():
    retention = Retention(1, 0)
    retention.scores = {1: 0.5, 2: 0.5}
    assert kept(retention, [0, 1, 2]) == [0, 2]


def test_retention_refuses_to_keep_nothing():
    with pytest.raises(ValueError, match="keep_newest=0 is below 1"):
        Retention(0, 1)
    with pytest.raises(ValueError, match="keep_best=-1 below 0"):
        Retention(1, -1)


def test_retention_keeps_the_best_up_to_each_of_the_newest():
    retention = Retention(2, 1)
    retention.scores = {1: 0.2, 2: 0.6, 3: 0.1, 4: 0.7}
    assert kept(retention, [1, 2, 3, 4]) == [2, 3, 4]
