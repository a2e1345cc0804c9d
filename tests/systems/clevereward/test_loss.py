"""Losses against the constants of the specification (CA1) and against plain numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems.clevereward import arrays

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import ALIGNED_NUMBERS, DIMENSIONS
from jaxvsa.systems.clevereward.loss import (
    LossOptions,
    Targets,
    kappa_of,
    log_k,
    own_parameters,
    pair_losses,
    pair_weights,
    score_losses,
    source_weights,
    tie_log_probabilities,
)

pytestmark = pytest.mark.smoke

# k, d -> P(A), P(B), P(tie); CA1.
TIES = [
    (3, 0, 0.25, 0.25, 0.5), (3, 1, 0.475367, 0.109232, 0.415401),
    (3, -2, 0.043165, 0.711235, 0.245601), (5, 0, 1 / 6, 1 / 6, 2 / 3),
    (5, 1.5, 0.472668, 0.042720, 0.484613), (2.054, 0.5, 0.445273, 0.227974, 0.326754),
]  # fmt: skip


def options(**changes: Any) -> LossOptions:
    return build(LossOptions, {**arrays.LOSS, **changes}, "config.loss")


def pairs(
    difference: Any,
    answer: Any,
    valid: Any = None,
    weight: Any = None,
    gap: Any = None,
    **change: Any,
) -> tuple[float, float]:
    """Weighted mean of the losses of rewards (d, 0), and the sum of weights."""
    difference_b = np.asarray(difference, np.float32)
    ones = np.ones(len(difference_b), np.float32)
    gap_b = ones if gap is None else np.asarray(gap, np.float32)
    answer_b, chosen = np.asarray(answer), options(**change)
    reward_bv = jnp.stack([difference_b, 0 * ones], axis=1)
    value_b = pair_losses(chosen, reward_bv, answer_b, gap_b, jnp.float32(kappa_of(chosen.tie_k)))
    valid_b = ones > 0 if valid is None else np.asarray(valid, bool)
    weight_b = pair_weights(
        chosen, ones if weight is None else np.asarray(weight, np.float32), valid_b, answer_b, gap_b
    )
    return float(jnp.sum(weight_b * value_b) / jnp.sum(weight_b)), float(jnp.sum(weight_b))


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, 0.643669),
        ({"kind": "bt_margin", "margin": "constant", "margin_size": 0.57}, 0.932998),
        ({"weight": [2, 1, 1]}, 0.533534),
        ({"label_smoothing": 0.1}, 0.668669),
    ],
)
def test_two_real_pairs_of_three_cost_what_ca1_says(change: dict[str, Any], want: float) -> None:
    found, _ = pairs([1, -0.5, 2], [1, 1, 1], valid=[1, 1, 0], **change)
    assert found == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(("k", "d", "a", "b", "tie"), TIES)
def test_tie_probabilities(k: float, d: float, a: float, b: float, tie: float) -> None:
    found = np.exp(tie_log_probabilities(jnp.float32([d]), jnp.float32(kappa_of(k))))
    np.testing.assert_allclose(found, [[a, b, tie]], atol=1e-5)


def test_tie_probabilities_sum_to_one_in_float64() -> None:
    with jax.enable_x64(True):
        d_b = jnp.linspace(-6, 6, 121)
        for k in (1.5, 2.054, 3, 5, 40):
            found = jnp.exp(tie_log_probabilities(d_b, jnp.float64(kappa_of(k))))
            np.testing.assert_allclose(jnp.sum(found, axis=1), 1, atol=1e-14)
            np.testing.assert_allclose(found, found[::-1, [1, 0, 2]], atol=1e-15)


@pytest.mark.parametrize(("answer", "want"), [(1, 0.743668), (-1, 2.214283), (0, 0.878510)])
def test_ties_cost_and_count_under_btt_alone(answer: int, want: float) -> None:
    assert pairs([1], [answer], kind="btt", tie_k=3.0) == (pytest.approx(want, abs=1e-5), 1)


def test_ties_weigh_nothing_otherwise() -> None:
    for kind in ("bt", "bt_margin", "bt_scaled"):
        assert pairs([1, 3], [1, 0], kind=kind) == pairs([1], [1], kind=kind)


def test_smoothing_is_the_expectation_over_wrong_answers() -> None:
    for kind in ("bt", "bt_margin", "btt"):
        right, wrong = (pairs([0.7], [answer], kind=kind)[0] for answer in (1, -1))
        found, _ = pairs([0.7], [1], kind=kind, label_smoothing=0.2)
        assert found == pytest.approx(0.8 * right + 0.2 * wrong, abs=1e-6)
    assert pairs([0.7], [0], kind="btt", label_smoothing=0.2) == pairs([0.7], [0], kind="btt")


def test_margin_is_the_gap_or_the_constant() -> None:
    gap = {"kind": "bt_margin", "gap": [0.5, 2.0]}
    by_hand = np.mean(np.logaddexp(0, np.array([0.5, 2.0]) - np.array([1, 0.2])))
    assert pairs([1, -0.2], [1, -1], **gap)[0] == pytest.approx(by_hand, abs=1e-6)
    by_hand = np.mean(np.logaddexp(0, 0.3 - np.array([1, 0.2])))
    constant = {**gap, "margin": "constant", "margin_size": 0.3}
    assert pairs([1, -0.2], [1, -1], **constant)[0] == pytest.approx(by_hand, abs=1e-6)


def test_scaled_weighs_by_the_gap_and_an_unknown_one_as_one() -> None:
    value = np.logaddexp(0, -np.array([1, 0.2, -1]))
    found, weight = pairs([1, -0.2, -1], [1, -1, 1], gap=[0.5, 2.0, 0], kind="bt_scaled")
    assert weight == 3.5
    assert found == pytest.approx(np.dot(value, [0.5, 2, 1]) / 3.5, abs=1e-6)


def test_center_adds_the_mean_square_of_the_rewards() -> None:
    plain, _ = pairs([1, -0.5], [1, 1])
    found, _ = pairs([1, -0.5], [1, 1], center=0.1)
    assert found - plain == pytest.approx(0.1 * np.mean([1 / 2, 0.25 / 2]), abs=1e-6)


def test_kappa_begins_at_two_and_is_clipped() -> None:
    assert kappa_of(2.0) == pytest.approx(0.541325, abs=1e-6)
    assert kappa_of(2.0) == pytest.approx(math.log(math.e - 1), abs=1e-12)
    own = own_parameters(options(kind="btt"), 1, jnp.float32)
    assert float(jnp.exp(log_k(own["tie_bias"]))) == pytest.approx(2, abs=1e-6)
    assert own_parameters(options(kind="btt", learn_tie_k=False), 1, jnp.float32) == {}

    def tie(kappa: jax.Array) -> jax.Array:
        return tie_log_probabilities(jnp.float32([0.3]), kappa)[0, 2]

    value, slope = jax.value_and_grad(tie)(jnp.float32(-1000))
    assert np.isfinite(value) and slope == 0
    assert value == tie(jnp.float32(-10))


def test_source_weights_are_read() -> None:
    np.testing.assert_array_equal(source_weights(("b=0.25", "a=0"), ("a", "b", "c")), [0, 0.25, 1])
    np.testing.assert_array_equal(source_weights(("x=y=2",), ("x=y",)), [2])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("t2vqq=1",), "source_weights: unknown source 't2vqq'; did you mean 't2vqa'"),
        (("t2vqa",), "'t2vqa' is not name=weight"),
        (("t2vqa=-1",), "is not name=weight"),
        (("t2vqa=nan",), "is not name=weight"),
        (("t2vqa=1", "t2vqa=2"), "is there twice"),
        (("t2vqa=0", "genai=0"), "no source has a weight above 0"),
    ],
)
def test_source_weights_refuse(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        source_weights(entries, ("t2vqa", "genai"))


# Mean, deviation, lowest, highest score of two sources.
ENDS = [[50, 16, 0, 100], [2.5, 0.9, 1, 4]]


def targets(kind: str) -> Targets:
    found = np.repeat(np.array(ENDS, float)[..., None], len(DIMENSIONS), axis=2)
    return Targets.of(kind, *(found[:, column] for column in range(4)))


@pytest.mark.parametrize(
    ("kind", "want"),
    [("raw", [66, 4]), ("minmax", [0.66, 1]), ("zscore", [1, 1.5 / 0.9])],
)
def test_squared_error_is_of_the_target(kind: str, want: list[float]) -> None:
    score_bv, reward_bv = np.array([[66, np.nan], [np.nan, 4]], np.float32), np.zeros((2, 2))
    found, known = score_losses(
        targets(kind), {}, jnp.asarray(reward_bv, jnp.float32) + 0.5, score_bv, np.array([0, 1]),
        np.array([6, 2]),
    )  # fmt: skip
    np.testing.assert_array_equal(known, [[True, False], [False, True]])
    hand = (0.5 - np.array([[want[0], 0], [0, want[1]]])) ** 2 * known
    np.testing.assert_allclose(found, hand, rtol=1e-5)


def test_per_source_affine_maps_each_source_and_dimension_by_its_own() -> None:
    own = {name: jnp.zeros((2, 7)) for name in ("source_scale", "source_bias")}
    own = {
        "source_scale": own["source_scale"].at[1, 3].set(math.log(2)),
        "source_bias": own["source_bias"].at[1, 3].set(-0.5),
    }
    score_bv = np.array([[50, 66], [2.5, 3.4]], np.float32)

    def total(own: Any, at: int) -> jax.Array:
        reward_bv = jnp.float32([[0.2, 0.4], [0.2, 0.4]])
        place = np.array([0, 1]), np.array([at, at])
        return score_losses(targets("per_source_affine"), own, reward_bv, score_bv, *place)[0]

    np.testing.assert_allclose(total(own, 3)[0], [0.04, 0.36], rtol=1e-5)
    np.testing.assert_allclose(total(own, 3)[1], [0.01, 0.49], rtol=1e-4)
    np.testing.assert_allclose(total(own, 2)[1], [0.04, 0.36], rtol=1e-4)
    grads = jax.grad(lambda own: jnp.sum(total(own, 3)))(own)
    for grad in grads.values():
        np.testing.assert_array_equal(np.argwhere(grad)[:, 1], [3, 3])


def test_head_begins_at_the_mean_target_and_spread_of_sources_that_have_scores() -> None:
    assert targets("raw").middle_c[0] == pytest.approx(26.25)
    assert targets("zscore").middle_c[0] == 0 and targets("zscore").spread_c[0] == 1
    mean, std, low, high = (
        np.array([[a], [b]], float) for a, b in ((50, 0), (16, 1), (0, 0), (100, 1))
    )
    only_one = Targets.of("raw", mean, std, low, high)
    assert (only_one.middle_c[0], only_one.spread_c[0]) == (50, 16)
    np.testing.assert_array_equal(Targets.of("zscore", mean, 0 * std, low, high).size_sc, 1)


def test_aligned_dimensions() -> None:
    assert [DIMENSIONS[n] for n in ALIGNED_NUMBERS] == ["text_alignment", "overall"]
