"""G1 to G4 of CA3: the trained system reaches what is known to be possible, and no more.

Thresholds are those of CA3; figures in the docstrings are of seeds 0, 1, 2 on CPU.
"""

from __future__ import annotations

import numpy as np
import pytest
from systems.clevereward.generators import cosine, mismatches, scales

from jaxvsa.data.sources.reward_demo import two_scales

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
REGRESSION = {"head": "regression"}


def test_a_short_run_learns_what_quality_cannot_tell() -> None:
    """G3 in 200 steps with the contrastive term, and chance without any gradient."""
    assert mismatches(0, steps=200, negatives="inbatch") >= 0.99
    assert mismatches(0, ties=True, steps=50) <= 0.70


@pytest.mark.slow
@SEEDS
def test_g1_reaches_bayes_and_its_slope(seed: int) -> None:
    """Accuracy .818, .826, .823 (Bayes .826, .831, .829); log-loss .396, .378, .389 (.379, .361,
    .376); slope 1.085, 1.052, 1.035."""
    found = cosine(seed)
    assert found["accuracy"] >= found["bayes_accuracy"] - 0.02
    assert found["log_loss"] <= found["bayes_log_loss"] + 0.03
    assert 0.90 <= found["slope"] <= 1.15


@pytest.mark.slow
@SEEDS
def test_g1_without_scale_orders_almost_as_well_and_is_not_calibrated(seed: int) -> None:
    """Accuracy .809, .814, .810; log-loss .568, .563, .564."""
    found = cosine(seed, model={"scale": "none"})
    assert found["log_loss"] >= found["bayes_log_loss"] + 0.10
    assert found["accuracy"] >= found["bayes_accuracy"] - 0.035


@pytest.mark.slow
@SEEDS
def test_g4_recovers_k(seed: int) -> None:
    """k 2.913, 2.899, 2.876; log-loss .685, .674, .677 (Bayes .668, .653, .657); mean P(tie) .250,
    .247, .245 for shares of .263, .258, .259."""
    found = cosine(seed, true_k=3.0, kind="btt")
    assert 2.7 <= found["k"] <= 3.3
    assert found["log_loss"] <= found["bayes_log_loss"] + 0.03
    assert abs(found["tie"] - found["tie_share"]) <= 0.03


@pytest.mark.slow
@SEEDS
def test_g4_with_the_wrong_k_is_worse(seed: int) -> None:
    """Log-loss .715, .703, .705."""
    found = cosine(seed, true_k=3.0, kind="btt", tie_k=5.0, learn_tie_k=False)
    assert found["log_loss"] >= found["bayes_log_loss"] + 0.04


@pytest.mark.slow
@SEEDS
def test_g2_preferences_hold_within_and_across_sources(seed: int) -> None:
    """Within A .972, .973, .973; within B .973, .978, .972; across .988, .984, .990."""
    found = scales(seed)
    assert min(found) > 0.95


@pytest.mark.slow
@SEEDS
def test_g2_preferences_in_a_fifth_of_the_steps(seed: int) -> None:
    """Within A .946, .944, .949; within B .943, .944, .941; across .975, .978, .981."""
    found = scales(seed, steps=800)
    assert min(found) > 0.92


@pytest.mark.slow
@SEEDS
def test_g2_without_scale_fails_across_sources(seed: int) -> None:
    """Across .782, .768, .773."""
    found = scales(seed, {"scale": "none"})
    assert found[2] < 0.88


@pytest.mark.slow
@SEEDS
def test_g2_regression_fails_across_sources_but_for_the_affine_one(seed: int) -> None:
    """CA2, 9: with a scale of its own for each source regression is the equal of preferences.

    1,500 steps for all: with 4,000 the network fits the noise of single scores (affine: .976 within
    A, .964 within B, .976 across, seed 0). Across: raw .164, .157, .141; minmax .696, .672, .682;
    zscore .760, .750, .747; affine .990, .991, .990, within A .987, .980, .983, within B .974,
    .982, .975.
    """
    found = {
        target: scales(seed, REGRESSION, steps=1500, kind="mse", target=target)
        for target in ("raw", "minmax", "zscore", "per_source_affine")
    }
    assert found["raw"][2] < 0.30
    assert found["zscore"][2] < 0.85
    assert min(found["per_source_affine"]) > 0.97


@SEEDS
def test_g2_linear_affine_regression_is_the_equal_of_preferences(seed: int) -> None:
    """CA3 has its figures from linear models; by alternating least squares, one slope a source."""
    data = two_scales(seed)
    parts = [data[name, "train"] for name in "AB"]
    target = [(part.score_n - part.score_n.mean()) / part.score_n.std() for part in parts]
    a = np.ones(2)
    for _ in range(50):
        own = np.repeat(np.eye(2), 2000, axis=0)
        scaled = np.concatenate([a[n] * part.video_nf for n, part in enumerate(parts)])
        weight = np.linalg.lstsq(np.hstack([scaled, own]), np.concatenate(target))[0]
        for n, part in enumerate(parts):
            x = part.video_nf @ weight[:16]
            a[n] = (x - x.mean()) @ target[n] / ((x - x.mean()) @ x)
    rng, found = np.random.default_rng(9), []
    for names in ("AA", "BB", "AB"):
        first, second = (data[name, "test"] for name in names)
        i, j = rng.integers(2000, size=(2, 4000))
        truth = first.quality_n[i] - second.quality_n[j]
        score = first.video_nf[i] @ weight[:16] - second.video_nf[j] @ weight[:16]
        found.append(np.mean((np.sign(score) == np.sign(truth))[truth != 0]))
    assert min(found) > 0.97


@pytest.mark.slow
@SEEDS
def test_g3_needs_the_contrastive_term(seed: int) -> None:
    """With it 1.000 everywhere; without .516, .560, .592, and .388, .592, .540 where ties drop."""
    found = {
        "clip": mismatches(seed, weight=0.0, negatives="inbatch"),
        "clip_and_coin": mismatches(seed, negatives="inbatch"),
        "coin": mismatches(seed),
        "dropped": mismatches(seed, ties=True),
    }
    assert min(found["clip"], found["clip_and_coin"]) >= 0.99
    assert max(found["coin"], found["dropped"]) <= 0.70
