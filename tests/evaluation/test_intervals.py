"""Cluster bootstrap: standard errors and intervals."""

import time

import numpy as np
import pytest

from jaxvsa.evaluation.evaluator import flat_values
from jaxvsa.evaluation.intervals import bootstrap
from jaxvsa.metrics.confusion import Confusion

pytestmark = pytest.mark.smoke


def _examples(num, num_classes, num_videos, seed=0):
    rng = np.random.default_rng(seed)
    label_b = rng.integers(num_classes, size=num)
    right_b = rng.random(num) < 0.7
    predicted_b = np.where(right_b, label_b, rng.integers(num_classes, size=num))
    return label_b, predicted_b, [f"v{i}" for i in rng.integers(num_videos, size=num)]


def test_bootstrap_of_single_comments_is_the_binomial_error():
    label_b = np.zeros(400, np.int64)
    predicted_b = (np.arange(400) >= 280).astype(np.int64)  # 70 % right
    got = bootstrap(label_b, predicted_b, [str(i) for i in range(400)], 2, num_resamples=4000)
    want = np.sqrt(0.7 * 0.3 / 400)
    assert got["accuracy"].value == pytest.approx(0.7, abs=1e-15)
    assert got["accuracy"].error == pytest.approx(want, rel=0.04)  # 1/sqrt(2 * 4000) = 1.1 %
    assert got["accuracy"].low == pytest.approx(0.7 - 1.96 * want, abs=0.005)
    assert got["accuracy"].high == pytest.approx(0.7 + 1.96 * want, abs=0.005)


def test_bootstrap_error_grows_with_the_cluster():
    """Four equal comments a video carry the information of one."""
    label_b = np.zeros(400, np.int64)
    predicted_b = (np.arange(400) // 4 >= 70).astype(np.int64)
    got = bootstrap(label_b, predicted_b, [f"v{i // 4}" for i in range(400)], 2, 4000)
    assert got["accuracy"].error == pytest.approx(np.sqrt(0.7 * 0.3 / 100), rel=0.04)


def test_bootstrap_agrees_with_resampling_rows_one_by_one():
    label_b, predicted_b, video = _examples(120, 3, 30)
    got = bootstrap(label_b, predicted_b, video, 3, num_resamples=50, seed=4)
    rng = np.random.default_rng(4)
    names = sorted(set(video))
    rows = {name: [i for i, v in enumerate(video) if v == name] for name in names}
    samples = []
    for _ in range(50):
        at = [i for g in rng.integers(len(names), size=len(names)) for i in rows[names[g]]]
        samples.append(Confusion.from_labels(label_b[at], predicted_b[at], 3).compute())
    for metric in ("accuracy", "micro_f1", "macro_f1", "weighted_f1", "f1_c", "recall_c"):
        values = np.array([sample[metric] for sample in samples])
        interval = got[metric]
        np.testing.assert_allclose(interval.error, np.std(values, axis=0, ddof=1), rtol=1e-12)
        np.testing.assert_allclose(interval.low, np.quantile(values, 0.025, axis=0), rtol=1e-12)
        np.testing.assert_allclose(interval.high, np.quantile(values, 0.975, axis=0), rtol=1e-12)


def test_bootstrap_is_seeded_and_leaves_out_unlabelled_examples():
    label_b, predicted_b, video = _examples(100, 3, 20)
    first = bootstrap(label_b, predicted_b, video, 3, 20, seed=1)
    more = bootstrap(
        np.append(label_b, -1), np.append(predicted_b, 0), [*video, "zz"], 3, 20, seed=1
    )
    other = bootstrap(label_b, predicted_b, video, 3, 20, seed=2)
    for metric, interval in first.items():
        np.testing.assert_array_equal(interval.error, more[metric].error)
    assert first["accuracy"].error != other["accuracy"].error
    assert "support_c" not in first


def test_bootstrap_of_the_full_test_split_takes_seconds():
    label_b, predicted_b, video = _examples(21_454, 8, 7_360)
    start_s = time.process_time()
    got = bootstrap(label_b, predicted_b, video, 8)
    assert time.process_time() - start_s < 3.0
    assert got["f1_c"].error.shape == (8,)


def test_bootstrap_refuses_bad_input():
    with pytest.raises(ValueError, match="no labelled example"):
        bootstrap(np.array([-1]), np.array([0]), ["v"], 2)
    with pytest.raises(ValueError, match="2 labels, 1 predictions and 2 clusters"):
        bootstrap(np.array([0, 1]), np.array([0]), ["v", "w"], 2)


def test_bootstrap_errors_carry_the_names_of_the_metrics():
    label_b, predicted_b, video = _examples(100, 2, 20)
    intervals = bootstrap(label_b, predicted_b, video, 2, 20)
    errors = flat_values({name: it.error for name, it in intervals.items()}, "dev/mood", "ab")
    assert errors["dev/mood/f1/b"] == intervals["f1_c"].error[1]
    assert errors["dev/mood/accuracy"] == intervals["accuracy"].error > 0


def test_error_over_one_video_is_unknown_not_zero():
    found = bootstrap(np.array([0, 1, 1]), np.array([0, 1, 0]), ["v"] * 3, 2)
    assert found["accuracy"].value == 2 / 3
    assert np.isnan(found["accuracy"].error)
