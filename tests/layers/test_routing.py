"""Routing masks and their three combinations, by hand and against loops over masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.routing import (
    Router,
    RoutingOptions,
    band_masks,
    joint_masks,
    open_uniform,
    routed_softmax,
)

COMBINE = pytest.mark.parametrize("combine", ["hadamard", "mixture", "log"])


def options(**changes: Any) -> RoutingOptions:
    fields: dict[str, Any] = {
        "enabled": True, "combine": "mixture", "orders": (0, 1, 2, 3), "schedule": "grow",
        "cross_modal": "full", "temporal": True, "pool": "query", "hidden": 5, "norm": "softmax",
        "routing": "soft", "tau": 1.0, "tau_last": 0.1, "tau_updates": 0, "first_bias": 3.0,
    }  # fmt: skip
    return RoutingOptions(**{**fields, **changes})


def random_case(num_masks: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (2,3,6,6), real keys, weights of the masks that sum to one."""
    rng = np.random.default_rng(0)
    keep_bz = np.arange(6)[None] < np.array([6, 4])[:, None]
    weight_bm = rng.dirichlet(np.ones(num_masks), 2)
    return rng.normal(size=(2, 3, 6, 6)), keep_bz, weight_bm


def test_bands_by_hand() -> None:
    got = band_masks(4, (0, 1)).astype(int)
    np.testing.assert_array_equal(got[0], np.ones((4, 4)))
    np.testing.assert_array_equal(got[1], [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("cross_modal,across", [("full", 1), ("none", 0)])
def test_joint_masks_leave_queries_and_words_apart(cross_modal: str, across: int) -> None:
    """Three queries, two words; bands do not count across the border."""
    full, band = joint_masks(3, 2, (0, 1), cross_modal).astype(int)
    np.testing.assert_array_equal(full, np.ones((5, 5)))
    a = across
    want = [[1, 1, 0, a, a], [1, 1, 1, a, a], [0, 1, 1, a, a], [a, a, a, 1, 1], [a, a, a, 1, 1]]
    np.testing.assert_array_equal(band, want)


def test_masks_grow_with_the_layers() -> None:
    grown = [options().num_masks(i, 12) for i in range(12)]
    assert grown == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [options(schedule="all").num_masks(i, 3) for i in range(3)] == [4, 4, 4]
    assert options(enabled=False).num_masks(11, 12) == 1


@COMBINE
def test_masks_of_ones_and_the_first_mask_alone_change_nothing(combine: str) -> None:
    logits, keep_bz, weight_bm = random_case()
    plain = masked_softmax(jnp.asarray(logits), keep_bz[:, None, None])
    ones = np.ones((3, 6, 6), bool)
    got = routed_softmax(jnp.asarray(logits), keep_bz, jnp.asarray(weight_bm), ones, combine)
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)
    first = jnp.array([[1.0, 0, 0]] * 2)
    got = routed_softmax(jnp.asarray(logits), keep_bz, first, band_masks(6, (0, 1, 2)), combine)
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-6)


@COMBINE
def test_one_band_alone_masks_but_not_under_hadamard(combine: str) -> None:
    logits, keep_bz, _ = random_case()
    sees = band_masks(6, (0, 1, 2))
    want = masked_softmax(jnp.asarray(logits), keep_bz[:, None, None] & sees[1][None, None])
    second = jnp.array([[0, 1.0, 0]] * 2)
    got = routed_softmax(jnp.asarray(logits), keep_bz, second, sees, combine)
    outside = np.where(sees[1][None, None], 0, got).sum(-1)[0].mean()
    if combine == "hadamard":
        assert outside > 0.2
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert outside == 0


@COMBINE
def test_combinations_against_loops(combine: str) -> None:
    """Written out in float64, one query at a time; padded keys get nothing anywhere."""
    logits, keep_bz, weight_bm = random_case()
    sees = np.asarray(band_masks(6, (0, 1, 2)))
    want = np.zeros_like(logits)
    for b, h, q in np.ndindex(*logits.shape[:3]):
        weight_mz = weight_bm[b][:, None] * sees[:, q]
        score_z, keep_z = logits[b, h, q], keep_bz[b]
        if combine == "mixture":
            for m in range(3):
                shown = np.where(sees[m, q] & keep_z, np.exp(score_z), 0)
                want[b, h, q] += weight_bm[b, m] * shown / max(shown.sum(), 1e-300)
            continue
        mixed_z = weight_mz.sum(0)
        power = np.exp(score_z * mixed_z) if combine == "hadamard" else np.exp(score_z) * mixed_z
        shown = np.where(keep_z, power, 0)
        want[b, h, q] = shown / shown.sum()
    got = routed_softmax(jnp.asarray(logits), keep_bz, jnp.asarray(weight_bm), sees, combine)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    assert (np.asarray(got)[1, :, :, 4:] == 0).all()


def test_a_new_router_prefers_the_first_mask() -> None:
    router = Router(4, options())
    rows = jnp.ones((2, 7)), jnp.arange(2), jnp.arange(2)
    params = router.init(jax.random.key(0), *rows, True)
    weight_bm = router.apply(params, *rows, True)
    want = np.exp([3.0, 0, 0, 0]) / np.exp([3.0, 0, 0, 0]).sum()
    np.testing.assert_allclose(weight_bm, [want, want], rtol=1e-5)
    assert set(params["params"]["inner"]) == {"kernel"}


def test_masks_without_a_router_keep_the_weights_of_a_new_one() -> None:
    rows = jnp.ones((2, 7)), jnp.arange(2), jnp.arange(2)
    new, none = Router(4, options()), Router(4, options(hidden=0))
    assert none.init(jax.random.key(0), *rows, True) == {}
    want = new.apply(new.init(jax.random.key(0), *rows, True), *rows, True)
    np.testing.assert_allclose(none.apply({}, *rows, True), want, rtol=1e-6)


def test_gumbel_numbers_are_finite_whatever_the_bits() -> None:
    bits = jnp.array([0, 511, 512, 0xFFFFFF7F, 0xFFFFFF80, 0xFFFFFFFF], jnp.uint32)
    uniform = open_uniform(bits, jnp.float32)
    assert (uniform > 0).all() and (uniform < 1).all()
    assert jnp.isfinite(-jnp.log(-jnp.log(uniform))).all()
    np.testing.assert_allclose(uniform, (np.asarray(bits) // 512 + 0.5) / 2**23, rtol=0)


def test_hard_routing_takes_one_mask_and_draws_by_its_odds() -> None:
    router = Router(2, options(routing="hard", combine="log", tau=0.01, first_bias=1.0))
    rows = jnp.zeros((4000, 7)), jnp.arange(4000), jnp.zeros(4000, int)
    params = router.init(jax.random.key(0), *rows, True)
    np.testing.assert_array_equal(router.apply(params, *rows, True), [[1, 0]] * 4000)
    draw = router.apply(params, *rows, False, rngs={"dropout": jax.random.key(1)})
    share = 1 / (1 + np.exp(-1.0))
    assert abs(np.mean(draw[:, 0]) - share) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert np.mean((draw > 0.01) & (draw < 0.99)) < 0.05
    again = router.apply(
        params, *(x[::-1] for x in rows), False, rngs={"dropout": jax.random.key(1)}
    )
    np.testing.assert_array_equal(again, draw[::-1])  # keyed by the example, not by the row


def test_temperature_falls_to_its_last_value() -> None:
    falling = {"tau": 10.0, "tau_last": 0.1, "tau_updates": 50}
    given = options(routing="hard", combine="log", **falling)
    at = [float(given.temperature(jnp.asarray(t))) for t in (0, 25, 50, 80)]
    np.testing.assert_allclose(at, [10, 5.05, 0.1, 0.1], rtol=1e-5)
    assert given.temperature(None) == options(tau=10.0).temperature(jnp.asarray(80)) == 10
    rows = jnp.ones((6, 7)), jnp.arange(6), jnp.arange(6)
    router, rngs = Router(3, given), {"dropout": jax.random.key(1)}
    params = router.init(jax.random.key(0), *rows, True)
    for update, tau in ((0, 10.0), (25, 5.05), (70, 0.1)):
        got = router.apply(params, *rows, False, jnp.asarray(update), rngs=rngs)
        still = Router(3, options(routing="hard", combine="log", tau=tau))
        want = still.apply(params, *rows, False, rngs=rngs)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes,match",
    [
        ({"orders": (1, 2)}, "the first must be 0"),
        ({"routing": "hard", "combine": "hadamard"}, "masks nothing"),
        ({"tau": 0.0}, "routing.tau and routing.tau_last must be above 0"),
        ({"tau_last": -1.0}, "routing.tau and routing.tau_last must be above 0"),
        ({"hidden": -1}, "routing.hidden and routing.tau_updates must be at least 0"),
        ({"tau_updates": -1}, "routing.hidden and routing.tau_updates must be at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        options(**changes)
