"""Temporal layers against plain numpy loops, and the shortened tower against the full one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.precision import Precision
from jaxvsa.layers.temporal import FinalCell, TemporalPyramid, full_rows, tower_length

WIDE = Precision("float64", "float64")


def test_full_rows_by_hand() -> None:
    """3 real rows, 2 scales, tower of 8 for 12: head to row 5, constant, the last two rows."""
    got = full_rows(jnp.array([3]), 2, tower_length(3, 2, 12), 12)
    np.testing.assert_array_equal(got, [[0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7]])


def test_tower_is_never_longer_than_the_full_one() -> None:
    assert [tower_length(rows, 2, 12) for rows in (1, 3, 7, 8, 12)] == [6, 8, 12, 12, 12]


@pytest.mark.parametrize("mask_frames", [False, True])
@pytest.mark.parametrize("longest", [1, 4, 9, 20])
def test_short_tower_reproduces_every_row_of_the_full_one(longest: int, mask_frames: bool) -> None:
    rng = np.random.default_rng(longest)
    full, scales = 20, 3
    count_b = np.array([longest, 1, max(1, longest - 2)])
    keep_bt = np.arange(full)[None] < count_b[:, None]
    video_btf = rng.normal(size=(3, full, 4)) * keep_bt[..., None]
    module = TemporalPyramid(scales, 5, mask_frames, WIDE)
    with jax.enable_x64(True):
        params = module.init(jax.random.key(0), video_btf, keep_bt)
        _, want_sbtd = module.apply(params, video_btf, keep_bt)
        short = tower_length(longest, scales, full)
        _, x_sbtd = module.apply(params, video_btf[:, :short], keep_bt[:, :short])
        row_bv = np.asarray(full_rows(jnp.asarray(count_b), scales, short, full))
    got = np.take_along_axis(np.asarray(x_sbtd), row_bv[None, :, :, None], axis=2)
    np.testing.assert_array_equal(got, want_sbtd)


def test_pyramid_equals_loops() -> None:
    rng = np.random.default_rng(0)
    video_btf = rng.normal(size=(1, 4, 2))
    keep_bt = np.ones((1, 4), bool)
    module = TemporalPyramid(2, 3, False, WIDE)
    with jax.enable_x64(True):
        p = module.init(jax.random.key(1), video_btf, keep_bt)["params"]
        p = jax.tree.map(np.asarray, p)
        projected, scales = module.apply({"params": p}, video_btf, keep_bt)
    x = video_btf[0] @ p["project_kernel"] + p["project_bias"]
    np.testing.assert_allclose(projected[0], x, rtol=1e-12)
    for scale in range(2):
        taps = np.asarray(p[f"conv_kernel_{scale}"]).reshape(3, 3, 3)  # tap, in, out
        out = np.zeros((4, 3))
        for t in range(4):
            for tap in range(3):
                if 0 <= t + tap - 1 < 4:
                    out[t] += np.asarray(x)[t + tap - 1] @ taps[tap]
        x = np.maximum(out + p[f"conv_bias_{scale}"], 0)
        np.testing.assert_allclose(scales[scale, 0], x, rtol=1e-12)


def test_final_cell_equals_loops_and_stops_where_told() -> None:
    rng = np.random.default_rng(0)
    x_bth = rng.normal(size=(2, 5, 3))
    keep_bt = np.array([[True] * 5, [True] * 3 + [False] * 2])
    module = FinalCell(4, WIDE)
    with jax.enable_x64(True):
        p = jax.tree.map(np.asarray, module.init(jax.random.key(0), x_bth, keep_bt)["params"])
        got = module.apply({"params": p}, x_bth, keep_bt)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for b, steps in enumerate((5, 3)):
        cell, out = np.zeros(4), np.zeros(4)
        for t in range(steps):
            gates = x_bth[b, t] @ p["input_kernel"] + p["input_bias"]
            gates = gates + out @ p["hidden_kernel"] + p["hidden_bias"]
            i, f, g, o = np.split(np.asarray(gates), 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            out = sigmoid(o) * np.tanh(cell)
        np.testing.assert_allclose(got[b], cell, rtol=1e-12)


def test_pyramid_refuses_lengths_that_differ() -> None:
    module = TemporalPyramid(1, 2, False, Precision("float32", "float32"))
    with pytest.raises(ValueError, match="keep_bt: dim 't' is 3"):
        module.init(jax.random.key(0), jnp.ones((1, 4, 2)), jnp.ones((1, 3), bool))
