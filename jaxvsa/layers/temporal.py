"""Layers over the frames of a video: temporal pyramid, frame index of a shortened tower, LSTM."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.initializers import uniform_fan_in
from jaxvsa.layers.packed import Packing


def tower_margin(num_scales: int) -> int:
    """Rows behind the real ones that a pyramid must be computed on, so that nothing is lost.

    Behind the last real row, every output of the pyramid is one constant vector except for the
    rows within `num_scales` of either end of the padding. So the tower of a video runs on its real
    rows, as many again as the convolutions reach on both sides, and one row for the constant; or
    on the full length, if that is not longer.
    """
    return 2 * num_scales + 1


def full_rows(count_b: jax.Array, num_scales: int, full: int) -> jax.Array:
    """Which row of the shortened tower stands for which row of the full one.

    Args:
        count_b: int, real rows of each video; its tower has min(full, count + margin).
        num_scales: convolutions of width 3 since the padding was constant.
        full: rows of the full tower.

    Returns:
        int32 (b, full).
    """
    row_v = jnp.arange(full, dtype=jnp.int32)[None]
    count_b1 = count_b[:, None].astype(jnp.int32)
    short_b1 = jnp.minimum(full, count_b1 + tower_margin(num_scales))
    tail_bv = row_v - (full - short_b1)
    return jnp.where(row_v >= full - num_scales, tail_bv, jnp.minimum(row_v, count_b1 + num_scales))


def convolve_towers(x_md: jax.Array, kernel_cd: jax.Array, shots: Packing) -> jax.Array:
    """Convolution of width 3 within every tower, zeros outside of it, (m,d) -> (m,e).

    In float32 and above two neighbouring rows come from four products instead of six, by F(2,3) of
    Winograd, Arithmetic Complexity of Computations (1980); that needs towers at even rows.
    Otherwise, one product over three shifted copies. Where the sizes allow pairs of rows but a
    tower begins at an odd row, all results are NaN.

    Args:
        x_md: packed rows.
        kernel_cd: (3 d, e), for the row before, the row itself and the row after.
        shots: where the towers lie.
    """
    # A tower begins at place 0; what follows its last row begins another or is padding.
    first_m1 = (shots.place_n == 0)[:, None]
    last_m1 = jnp.concatenate([first_m1[1:], jnp.ones((1, 1), bool)])
    if shots.odd_starts or x_md.dtype.itemsize < 4:
        before_md = jnp.where(first_m1, 0, jnp.roll(x_md, 1, axis=0))
        after_md = jnp.where(last_m1, 0, jnp.roll(x_md, -1, axis=0))
        return jnp.concatenate([before_md, x_md, after_md], axis=-1) @ kernel_cd
    even_pd, odd_pd = x_md[::2], x_md[1::2]
    before_pd = jnp.where(first_m1[::2], 0, jnp.roll(odd_pd, 1, axis=0))
    after_pd = jnp.where(last_m1[1::2], 0, jnp.roll(even_pd, -1, axis=0))
    odd_pd = jnp.where(last_m1[::2], 0, odd_pd)
    left, mid, right = jnp.split(kernel_cd, 3)
    outer_pd = (before_pd - odd_pd) @ left
    plus_pd = (even_pd + odd_pd) @ ((left + mid + right) / 2)
    minus_pd = (odd_pd - even_pd) @ ((left - mid + right) / 2)
    last_pd = (even_pd - after_pd) @ right
    pair_p2d = jnp.stack([outer_pd + plus_pd + minus_pd, plus_pd - minus_pd - last_pd], axis=1)
    odd = jnp.any((shots.place_n == 0)[1::2] & (shots.row_n[1::2] >= 0))
    return pair_p2d.reshape(len(x_md), -1) + jnp.where(odd, jnp.nan, 0).astype(pair_p2d.dtype)


class TemporalPyramid(nn.Module):
    """Projection of frame features, then width-3 convolutions; every scale's output is returned.

    Source: VC-CSA supplement, Table 1, "Multi-scale Temporal Representation" (4 is best).
    Kept: padded rows are zeros before the projection and its bias after it, and are convolved
    over, as in the published code; `mask_frames` zeroes them before each convolution instead.
    Chosen: kernel width 3 with zero padding at both ends; the paper does not state it, the
    published code uses 3.

    Attributes:
        num_scales: number of convolutions s.
        width: output channels d.
        mask_frames: see Kept.
        precision: dtypes.
    """

    num_scales: int
    width: int
    mask_frames: bool
    precision: Precision

    @nn.compact
    def __call__(
        self, video_mf: jax.Array, shots: Packing, keep_m: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Packed frames to projected frames (m,d) and all scales (s,m,d), finest first.

        Args:
            video_mf: features, zeros in padded rows.
            shots: where the towers of the videos lie; convolutions do not look beyond one.
            keep_m: bool, real frames.

        Raises:
            ValueError: m differs between the arguments.
        """
        dims = bind_dims(video_mf=video_mf, row_m=shots.row_n, keep_m=keep_m)
        store, compute = self.precision.param_dtype, self.precision.compute_dtype

        def param(name: str, fan_in: int, *shape: int) -> jax.Array:
            return self.param(name, uniform_fan_in(fan_in), shape, store).astype(compute)

        # The copies are made again for the gradient instead of being kept.
        @jax.checkpoint
        def convolve(x_md: jax.Array, kernel_cd: jax.Array) -> jax.Array:
            x_md = jnp.where(keep_m[:, None], x_md, 0) if self.mask_frames else x_md
            return convolve_towers(x_md, kernel_cd, shots)

        kernel_fd = param("project_kernel", dims["f"], dims["f"], self.width)
        bias_d = param("project_bias", dims["f"], self.width)
        projected_md = video_mf.astype(compute) @ kernel_fd + bias_d[None]
        scales, x_md = [], projected_md
        for scale in range(self.num_scales):
            fan_in = 3 * self.width
            kernel_cd = param(f"conv_kernel_{scale}", fan_in, 3 * self.width, self.width)
            bias_d = param(f"conv_bias_{scale}", fan_in, self.width)
            x_md = jax.nn.relu(convolve(x_md, kernel_cd) + bias_d[None])
            scales.append(x_md)
        return projected_md, jnp.stack(scales)


class FinalCell(nn.Module):
    """LSTM over all steps that returns its last cell state.

    Source: VC-CSA code: the grounding LSTM, gate order i, f, g, o, two biases, zero start.

    Attributes:
        num_units: hidden units v.
        precision: dtypes; the recurrence itself runs in at least float32.
    """

    num_units: int
    precision: Precision

    @nn.compact
    def __call__(self, x_bth: jax.Array, keep_bt: jax.Array) -> jax.Array:
        """(b,t,h), bool (b,t) -> (b,v); steps with keep = False leave the state as it is.

        Raises:
            ValueError: b or t differ between the two arguments.
        """
        dims = bind_dims(x_bth=x_bth, keep_bt=keep_bt)
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        wide = island(compute)
        init, gates = uniform_fan_in(self.num_units), 4 * self.num_units
        input_hg = self.param("input_kernel", init, (dims["h"], gates), store).astype(wide)
        hidden_vg = self.param("hidden_kernel", init, (self.num_units, gates), store)
        hidden_vg = hidden_vg.astype(wide)
        input_g = self.param("input_bias", init, (gates,), store).astype(wide)
        hidden_g = self.param("hidden_bias", init, (gates,), store).astype(wide)
        # Steps first before the product, which is far wider than what goes in.
        x_tbh = jnp.swapaxes(x_bth.astype(wide), 0, 1)
        drive_tbg = jnp.einsum("tbh,hg->tbg", x_tbh, input_hg) + (input_g + hidden_g)[None, None]

        def step(
            state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            (cell_bv, out_bv), (drive_bg, keep_b) = state, now
            all_bg = drive_bg + jnp.einsum("bv,vg->bg", out_bv, hidden_vg)
            gate_in, forget, content, gate_out = jnp.split(all_bg, 4, axis=-1)
            new_bv = jax.nn.sigmoid(forget) * cell_bv + jax.nn.sigmoid(gate_in) * jnp.tanh(content)
            shown_bv = jax.nn.sigmoid(gate_out) * jnp.tanh(new_bv)
            keep_b1 = keep_b[:, None]
            return (jnp.where(keep_b1, new_bv, cell_bv), jnp.where(keep_b1, shown_bv, out_bv)), None

        zero_bv = jnp.zeros((dims["b"], self.num_units), wide)
        steps = (drive_tbg, jnp.swapaxes(keep_bt, 0, 1))
        (cell_bv, _), _ = jax.lax.scan(step, (zero_bv, zero_bv), steps)
        return cell_bv
