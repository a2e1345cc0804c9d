"""Temporal layers against plain numpy loops, and the shortened tower against the full one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.precision import Precision
from jaxvsa.layers.packed import Packing
from jaxvsa.layers.temporal import (
    FinalCell,
    TemporalPyramid,
    convolve_towers,
    full_rows,
    tower_margin,
)

WIDE = Precision("float64", "float64")


def whole(video_btf: np.ndarray, count_b: np.ndarray) -> tuple[Any, ...]:
    """Arguments of the pyramid for towers of the full length."""
    rows, full, _ = video_btf.shape
    keep_bt = np.arange(full)[None] < np.asarray(count_b)[:, None]
    packing = Packing.rectangle(rows, full)
    return video_btf.reshape(rows * full, -1), packing, keep_bt.reshape(-1)


def towers(video_btf: np.ndarray, count_b: np.ndarray, margin: int, size: int) -> tuple[Any, ...]:
    """Likewise for the frames and `margin` rows of each video, one after another.

    On an axis of even size each begins at an even row, as where convolutions take pairs of rows.
    """
    full = video_btf.shape[1]
    span_b = np.minimum(count_b + margin, full)
    room_b = span_b + span_b % 2 * (size % 2 == 0)
    start_b, place_t = np.cumsum(room_b) - room_b, np.arange(span_b.max())
    inside_bt = place_t < span_b[:, None]
    packing = Packing.of(
        jnp.asarray(np.where(inside_bt, start_b[:, None] + place_t, -1), jnp.int32), size
    )
    keep_m = np.zeros(size, bool)
    for start, count in zip(start_b, count_b, strict=True):
        keep_m[start : start + count] = True
    return packing.pack(jnp.asarray(video_btf[:, : span_b.max()])), packing, keep_m


def test_full_rows_by_hand() -> None:
    """3 real rows, 2 scales, tower of 8 for 12: head to row 5, constant, the last two rows.

    From 7 real rows on the tower is the full one.
    """
    assert tower_margin(2) == 5
    got = full_rows(jnp.array([3, 1, 7, 8, 12]), 2, 12)
    want = [[0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7], [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 5]]
    np.testing.assert_array_equal(got, [*want, *[list(range(12))] * 3])


@pytest.mark.parametrize("mask_frames", [False, True])
@pytest.mark.parametrize("longest", [1, 4, 9, 20])
@pytest.mark.parametrize("size", [81, 82], ids=["odd", "even"])
def test_short_towers_reproduce_every_row_of_the_full_ones(
    size: int, longest: int, mask_frames: bool
) -> None:
    """Values and gradients; the videos lie one after another, with nothing between them."""
    rng = np.random.default_rng(longest)
    full, scales = 20, 3
    count_b = np.array([longest, 1, max(1, longest - 2), full])
    keep_bt = np.arange(full)[None] < count_b[:, None]
    video_btf = rng.normal(size=(4, full, 4)) * keep_bt[..., None]
    module = TemporalPyramid(scales, 5, mask_frames, WIDE)
    with jax.enable_x64(True):
        params = jax.jit(lambda: module.init(jax.random.key(0), *whole(video_btf, count_b)))()
        row_bv = full_rows(jnp.asarray(count_b), scales, full)
        weight_sbtd = rng.normal(size=(scales, 4, full, 5))

        def outputs(params: Any, given: tuple[Any, ...], rows_bv: Any) -> Any:
            projected, x_smd = module.apply(params, *given)
            x_sbtd = jax.vmap(given[1].unpack)(x_smd)
            x_sbtd = jnp.take_along_axis(x_sbtd, rows_bv[None, :, :, None], axis=2)
            return jnp.sum(x_sbtd * weight_sbtd), (x_sbtd, given[1].unpack(projected))

        run = jax.jit(jax.value_and_grad(outputs, has_aux=True))
        same_bv = jnp.arange(full)[None].repeat(4, axis=0)
        (_, (want, plain)), wanted = run(params, whole(video_btf, count_b), same_bv)
        short = towers(video_btf, count_b, tower_margin(scales), size)
        (_, (got, projected)), grads = run(params, short, row_bv)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)
    for b, count in enumerate(count_b):
        np.testing.assert_allclose(projected[b, :count], plain[b, :count], rtol=1e-13)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), grads, wanted
    )


def test_one_row_less_would_not_be_enough() -> None:
    video_btf = np.random.default_rng(0).normal(size=(1, 4, 2)) @ np.ones((1, 2, 3))
    video_btf = np.pad(video_btf, ((0, 0), (0, 16), (0, 0)))
    module, count_b = TemporalPyramid(3, 5, False, WIDE), np.array([4])
    with jax.enable_x64(True):
        params = jax.jit(lambda: module.init(jax.random.key(0), *whole(video_btf, count_b)))()
        run = jax.jit(module.apply)
        _, want = run(params, *whole(video_btf, count_b))
        _, got = run(params, *towers(video_btf, count_b, tower_margin(3) - 1, 10))
    assert np.abs(got[-1, 4 + 3] - want[-1, 4 + 3]).max() > 1e-6


@pytest.mark.parametrize("starts", [[0, 6, 8], [0, 5, 6]], ids=["pairs of rows", "any rows"])
def test_convolution_of_towers_equals_loops(starts: list[int]) -> None:
    """Towers of 5, 1 and 4 rows, the third shared by a fourth video; two rows belong to nobody."""
    rng = np.random.default_rng(0)
    size = 14 if starts[1] == 6 else 13
    index_bt = np.full((4, 5), -1, np.int32)
    for row, (start, count) in enumerate(zip([*starts, starts[2]], (5, 1, 4, 4), strict=True)):
        index_bt[row, :count] = start + np.arange(count)
    x_md, taps = rng.normal(size=(size, 3)), rng.normal(size=(3, 3, 2))
    with jax.enable_x64(True):
        shots = Packing.of(jnp.asarray(index_bt), size)
        assert shots.odd_starts == (starts[1] == 5)
        got = convolve_towers(jnp.asarray(x_md), jnp.asarray(taps.reshape(9, 2)), shots)
    for start, count in zip(starts, (5, 1, 4), strict=True):
        for row in range(count):
            want = sum(
                x_md[start + row + tap - 1] @ taps[tap]
                for tap in range(3)
                if 0 <= row + tap - 1 < count
            )
            np.testing.assert_allclose(got[start + row], want, rtol=1e-12, atol=1e-13)


def test_towers_at_odd_rows_where_pairs_are_taken_are_never_silently_wrong() -> None:
    shots = Packing.of(jnp.array([[0, 1, 2], [3, 4, 5]], jnp.int32), 8)
    assert not shots.odd_starts
    assert jnp.all(jnp.isnan(convolve_towers(jnp.ones((8, 2)), jnp.ones((6, 2)), shots)))


def test_convolution_of_pairs_is_as_exact_as_float32_allows() -> None:
    """Against float64 on rows of the published width; three shifted copies are no better."""
    rng = np.random.default_rng(0)
    index_bt = jnp.asarray(np.arange(40).reshape(2, 20)[:, :19], jnp.int32)
    x_md, kernel_cd = rng.normal(size=(40, 768)), rng.uniform(-1, 1, (3 * 768, 768)) / 48
    shots = Packing.of(index_bt, 40)
    assert not shots.odd_starts
    got = convolve_towers(jnp.float32(x_md), jnp.float32(kernel_cd), shots)
    with jax.enable_x64(True):
        want = convolve_towers(jnp.asarray(x_md), jnp.asarray(kernel_cd), shots)
    got_md, want_md = np.asarray(got)[index_bt], np.asarray(want)[index_bt]
    assert np.abs(got_md - want_md).max() < 2e-6 * np.abs(want_md).max()


def test_pyramid_equals_loops() -> None:
    rng = np.random.default_rng(0)
    video_btf = rng.normal(size=(1, 4, 2))
    given = whole(video_btf, np.array([4]))
    module = TemporalPyramid(2, 3, False, WIDE)
    with jax.enable_x64(True):
        p = module.init(jax.random.key(1), *given)["params"]
        p = jax.tree.map(np.asarray, p)
        projected, scales = module.apply({"params": p}, *given)
    x = video_btf[0] @ p["project_kernel"] + p["project_bias"]
    np.testing.assert_allclose(projected, x, rtol=1e-12)
    for scale in range(2):
        taps = np.asarray(p[f"conv_kernel_{scale}"]).reshape(3, 3, 3)  # tap, in, out
        out = np.zeros((4, 3))
        for t in range(4):
            for tap in range(3):
                if 0 <= t + tap - 1 < 4:
                    out[t] += np.asarray(x)[t + tap - 1] @ taps[tap]
        x = np.maximum(out + p[f"conv_bias_{scale}"], 0)
        np.testing.assert_allclose(scales[scale], x, rtol=1e-12)


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
    packing, keep_m = Packing.rectangle(1, 4), jnp.ones(3, bool)
    with pytest.raises(ValueError, match="keep_m: dim 'm' is 3"):
        module.init(jax.random.key(0), jnp.ones((4, 2)), packing, keep_m)
    with pytest.raises(ValueError, match="row_m: dim 'm' is 4"):
        module.init(jax.random.key(0), jnp.ones((3, 2)), packing, keep_m)
