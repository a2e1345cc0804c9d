"""Calibration: planted temperatures, figures by hand, what has no finite answer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxvsa.metrics.calibration import (
    calibration,
    calibration_slope,
    decided_logit,
    fit_temperature,
    log_losses,
    logit_slope,
    reliability,
    tie_log_probs,
)


def _drawn(temperature: float, num: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Answers that follow sigmoid(difference / temperature)."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=num)
    won = rng.random(num) < 1 / (1 + np.exp(-difference / temperature))
    return np.where(won, 1, -1), difference


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_planted_temperature_is_found(temperature):
    answer, difference = _drawn(temperature)
    fitted = fit_temperature(answer, difference)
    assert fitted == pytest.approx(temperature, rel=0.1)
    figures = calibration(answer, difference, fitted)
    assert figures["slope"] == pytest.approx(1, abs=1e-6)
    assert figures["ece"] < 0.015
    for other in (0.8 * fitted, 1.25 * fitted):
        assert calibration(answer, difference, other)["log_loss"] > figures["log_loss"]


def test_scale_and_sides_change_nothing():
    answer, difference = _drawn(1.0, 2000)
    assert fit_temperature(answer, 1e6 * difference) == pytest.approx(
        1e6 * fit_temperature(answer, difference)
    )
    assert fit_temperature(-answer, -difference) == fit_temperature(answer, difference)


def test_figures_by_hand_and_ties_left_out():
    answer, difference = np.array([1, -1, 1, 0]), np.log([3.0, 3.0, 3.0, 1.0])
    figures = calibration(answer, difference)
    assert figures["log_loss"] == pytest.approx(-(2 * np.log(0.75) + np.log(0.25)) / 3)
    assert figures["brier"] == pytest.approx((2 * 0.25**2 + 0.75**2) / 3)
    # Two of three are won at .75: sigmoid(s ln 3) = 2/3.
    assert figures["slope"] == pytest.approx(np.log(2) / np.log(3))
    (row,) = reliability(answer, difference, num_bins=1)
    assert row["predicted"] == pytest.approx(0.75) and row["observed"] == pytest.approx(2 / 3)
    assert row["pairs"] == 3


def test_cosines_alone_cannot_be_sure():
    """CA1: a difference of two cosines is at most 2, so the loss of a pair is at least .126928."""
    assert calibration(np.array([1]), np.array([2.0]))["log_loss"] == pytest.approx(
        0.126928, abs=1e-6
    )
    (row,) = reliability(np.array([1]), np.array([2.0]))
    assert row["predicted"] == pytest.approx(0.880797, abs=1e-6)


def test_bins_have_equal_mass():
    answer, difference = _drawn(1.0, 1000)
    rows = reliability(answer, difference)
    assert len(rows) == 15 and {row["pairs"] for row in rows} == {66, 67}
    assert sum(row["pairs"] for row in rows) == 1000
    assert all(a["high"] <= b["low"] for a, b in itertools.pairwise(rows))
    assert len(reliability(answer[:4], difference[:4])) == 4


def test_useless_scores_get_an_infinite_temperature():
    assert fit_temperature(np.array([1, -1]), np.array([0.0, 0.0])) == np.inf
    assert fit_temperature(np.array([1, 1, 1]), np.array([-2.0, -3.0, 1.0])) == np.inf


def test_slope_of_a_learned_logit():
    true = np.random.default_rng(0).normal(size=100)
    assert logit_slope(1.05 * true + 3, true) == pytest.approx(1.05)
    assert np.isnan(logit_slope(true, np.ones(100)))


def test_refuses_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="ordered right"):
        fit_temperature(np.array([1, -1]), np.array([2.0, -1.0]))
    with pytest.raises(ValueError, match="no decided pair"):
        calibration_slope(np.array([0]), np.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        calibration(np.array([1]), np.array([np.nan]))
    with pytest.raises(ValueError, match="not above 0"):
        calibration(np.array([1]), np.array([1.0]), 0.0)
    assert np.isnan(calibration(np.array([1]), np.array([1.0]))["slope"])


@pytest.mark.parametrize(
    ("k", "d", "shares"),
    [
        (3, 0, (0.25, 0.25, 0.5)),
        (3, 1, (0.475367, 0.109232, 0.415401)),
        (3, -2, (0.043165, 0.711235, 0.245601)),
        (5, 0, (1 / 6, 1 / 6, 2 / 3)),
        (5, 1.5, (0.472668, 0.042720, 0.484613)),
        (2.054, 0.5, (0.445273, 0.227974, 0.326754)),
    ],
)
def test_probabilities_with_ties(k, d, shares):
    """CA1."""
    (found,) = np.exp(tie_log_probs(np.array([d]), np.log(k)))
    np.testing.assert_allclose(found, shares, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    odds = decided_logit(np.array([d]), np.log(k))
    np.testing.assert_allclose(odds, np.log(shares[0] / shares[1]), atol=1e-4)
    np.testing.assert_allclose(decided_logit(np.array([d]), 0.0), [d], atol=1e-12)


def test_log_losses_leave_ties_out_and_have_the_mean():
    answer, difference = np.array([1, 0, -1, -1]), np.array([0.5, 2.0, 1.0, -3.0])
    losses = log_losses(answer, difference, 2.0)
    assert np.isnan(losses).tolist() == [False, True, False, False]
    assert np.nanmean(losses) == pytest.approx(calibration(answer, difference, 2.0)["log_loss"])
