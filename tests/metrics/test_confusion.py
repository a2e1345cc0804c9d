"""Confusion counts and the figures that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.metrics.confusion import Confusion, measures

pytestmark = pytest.mark.smoke

# Five examples of three classes (true -> predicted): 0->0, 0->1, 1->1, 1->1, 2->0.
SCORES_BC = np.array(
    [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.0, 0.6, 0.4], [0.5, 0.3, 0.2]],
    np.float32,
)
LABEL_B = np.array([0, 0, 1, 1, 2], np.int32)
COUNTS_CC = [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_confusion_of_five_examples_by_hand():
    state = Confusion.from_batch(SCORES_BC, LABEL_B, np.ones(5, bool))
    assert state.counts_cc.dtype == jnp.int32
    np.testing.assert_array_equal(state.counts_cc, COUNTS_CC)
    values = state.compute()
    assert values["accuracy"] == values["micro_f1"] == 3 / 5
    np.testing.assert_allclose(values["precision_c"], [1 / 2, 2 / 3, 0], rtol=1e-15)
    np.testing.assert_allclose(values["recall_c"], [1 / 2, 1, 0], rtol=1e-15)
    np.testing.assert_allclose(values["f1_c"], [1 / 2, 4 / 5, 0], rtol=1e-15)
    np.testing.assert_array_equal(values["support_c"], [2, 2, 1])
    assert values["macro_f1"] == pytest.approx((1 / 2 + 4 / 5) / 3, abs=1e-15)
    assert values["weighted_f1"] == pytest.approx((2 * 1 / 2 + 2 * 4 / 5) / 5, abs=1e-15)


def test_confusion_ignores_padding_whatever_it_holds():
    scores_bc = np.concatenate([SCORES_BC, np.full((2, 3), np.nan, np.float32)])
    label_b = np.concatenate([LABEL_B, np.array([0, 7], np.int32)])
    state = Confusion.from_batch(scores_bc, label_b, np.arange(7) < 5)
    np.testing.assert_array_equal(state.counts_cc, COUNTS_CC)


def test_confusion_ignores_unlabelled_examples():
    state = Confusion.from_batch(SCORES_BC, np.array([0, -1, 1, -1, 2]), np.ones(5, bool))
    np.testing.assert_array_equal(state.counts_cc, [[1, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_confusion_ties_go_to_the_lowest_index():
    scores_bc = np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.5]], np.float32)
    state = Confusion.from_batch(scores_bc, np.array([2, 2]), np.ones(2, bool))
    np.testing.assert_array_equal(state.counts_cc, [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_confusion_does_not_depend_on_batching_or_jit():
    rng = np.random.default_rng(0)
    scores_bc = rng.normal(size=(96, 8)).astype(np.float32)
    label_b = rng.integers(8, size=96, dtype=np.int32)
    valid_b = rng.random(96) < 0.8
    whole = Confusion.from_batch(scores_bc, label_b, valid_b)
    count = jax.jit(Confusion.from_batch)
    parts = Confusion.empty(8)
    for rows in np.split(rng.permutation(96), 4):
        parts = parts.merge(count(scores_bc[rows], label_b[rows], valid_b[rows]))
    np.testing.assert_array_equal(whole.counts_cc, parts.counts_cc)
    host = Confusion.from_labels(label_b[valid_b], scores_bc[valid_b].argmax(axis=1), 8)
    np.testing.assert_array_equal(whole.counts_cc, host.counts_cc)
    assert whole.counts_cc.sum() == valid_b.sum()


@pytest.mark.parametrize(
    "truth,predicted",
    [
        (range(8), range(8)),
        (range(8), (0, 1)),  # classes never predicted
        ((2, 5), range(8)),  # classes predicted that never occur
        ((0, 1, 2), (2, 3)),  # class 4 to 7 nowhere
        ((3,), (3,)),
        ((3,), (4,)),  # nothing right
    ],
)
def test_measures_agree_with_scikit_learn(truth, predicted):
    from sklearn import metrics

    rng = np.random.default_rng(1)
    label_b = rng.choice(truth, size=200)
    predicted_b = rng.choice(predicted, size=200)
    state = Confusion.from_labels(label_b, predicted_b, 8)
    values = state.compute()
    np.testing.assert_array_equal(
        state.counts_cc, metrics.confusion_matrix(label_b, predicted_b, labels=range(8))
    )
    assert values["accuracy"] == pytest.approx(
        metrics.accuracy_score(label_b, predicted_b), abs=1e-12
    )
    for average in ("micro", "macro", "weighted"):
        want = metrics.f1_score(label_b, predicted_b, average=average, zero_division=0)
        assert values[f"{average}_f1"] == pytest.approx(want, abs=1e-12)
    want = metrics.precision_recall_fscore_support(
        label_b, predicted_b, labels=range(8), zero_division=0
    )
    for name, want_c in zip(("precision_c", "recall_c", "f1_c", "support_c"), want, strict=True):
        np.testing.assert_allclose(values[name], want_c, rtol=0, atol=1e-12)


def test_measures_of_stacked_matrices_are_those_of_each():
    counts = np.random.default_rng(2).integers(0, 4, size=(2, 5, 3, 3))
    stacked = measures(counts)
    for at in np.ndindex(2, 5):
        for name, value in measures(counts[at]).items():
            np.testing.assert_array_equal(stacked[name][at], value)


def test_measures_of_nothing_are_zero():
    values = Confusion.empty(3).compute()
    assert values["accuracy"] == values["macro_f1"] == values["weighted_f1"] == 0.0


def test_measures_survive_more_counts_than_int32_can_add():
    values = Confusion(np.full((2, 2), 2**31 - 1, np.int32)).compute()
    assert values["accuracy"] == 0.5
    np.testing.assert_array_equal(values["support_c"], [2**32 - 2, 2**32 - 2])


def test_confusion_refuses_unequal_batches():
    with pytest.raises(ValueError, match="label_b: dim 'b' is 4"):
        Confusion.from_batch(SCORES_BC, LABEL_B[:4], np.ones(5, bool))
