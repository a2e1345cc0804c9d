"""Layers over the frames of a video: temporal pyramid, frame index of a shortened tower, LSTM."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.initializers import uniform_fan_in


def tower_length(num_rows: int, num_scales: int, full_length: int) -> int:
    """Rows on which a pyramid must be computed so that nothing of the full length is lost.

    Behind the last real row, every output of the pyramid is one constant vector except for the
    rows within `num_scales` of either end of the padding. So the tower runs on the real rows, as
    many again as the convolutions reach on both sides, and one row for the constant.
    """
    return min(full_length, num_rows + 2 * num_scales + 1)


def full_rows(count_b: jax.Array, num_scales: int, short: int, full: int) -> jax.Array:
    """Which row of the shortened tower stands for which row of the full one.

    Args:
        count_b: int, real rows of each video.
        num_scales: convolutions of width 3 since the padding was constant.
        short: rows of the shortened tower, from `tower_length`.
        full: rows of the full tower.

    Returns:
        int32 (b, full), values below `short`.
    """
    row_t = jnp.arange(full, dtype=jnp.int32)[None]
    head_b1 = (count_b[:, None] + num_scales).astype(jnp.int32)
    tail_bt = row_t - (full - short)
    return jnp.where(row_t >= full - num_scales, tail_bt, jnp.minimum(row_t, head_b1))


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
    def __call__(self, video_btf: jax.Array, keep_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(b,t,f), bool (b,t) -> projected frames (b,t,d) and all scales (s,b,t,d), finest first.

        Raises:
            ValueError: b or t differ between the two arguments.
        """
        dims = bind_dims(video_btf=video_btf, keep_bt=keep_bt)
        store, compute = self.precision.param_dtype, self.precision.compute_dtype

        def param(name: str, fan_in: int, *shape: int) -> jax.Array:
            return self.param(name, uniform_fan_in(fan_in), shape, store).astype(compute)

        def clean(x_btd: jax.Array) -> jax.Array:
            return jnp.where(keep_bt[..., None], x_btd, 0) if self.mask_frames else x_btd

        kernel_fd = param("project_kernel", dims["f"], dims["f"], self.width)
        bias_d = param("project_bias", dims["f"], self.width)
        projected_btd = jnp.einsum("btf,fd->btd", video_btf.astype(compute), kernel_fd)
        projected_btd += bias_d[None, None]
        scales, x_btd = [], projected_btd
        for scale in range(self.num_scales):
            fan_in = 3 * self.width
            kernel_cd = param(f"conv_kernel_{scale}", fan_in, 3 * self.width, self.width)
            bias_d = param(f"conv_bias_{scale}", fan_in, self.width)
            padded = jnp.pad(clean(x_btd), ((0, 0), (1, 1), (0, 0)))
            # One matrix product over three shifted copies beats the convolution on CPU.
            x_btc = jnp.concatenate([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], axis=-1)
            x_btd = jax.nn.relu(jnp.einsum("btc,cd->btd", x_btc, kernel_cd) + bias_d[None, None])
            scales.append(x_btd)
        return projected_btd, jnp.stack(scales)


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
        drive_btg = jnp.einsum("bth,hg->btg", x_bth.astype(wide), input_hg)
        drive_btg += (input_g + hidden_g)[None, None]

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
        steps = (jnp.swapaxes(drive_btg, 0, 1), jnp.swapaxes(keep_bt, 0, 1))
        (cell_bv, _), _ = jax.lax.scan(step, (zero_bv, zero_bv), steps)
        return cell_bv
