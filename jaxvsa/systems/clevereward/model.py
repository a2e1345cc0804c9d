"""CleveReward: how well a video answers a question, as a cosine or as a regressed score.

Source: CleveReward, section 3 and figure 2; for the regression head section 4.1.1 and figure 5.
Rows of features -> pooling -> one projection for videos, one for texts -> unit vectors -> scaled
cosine, or a small network over both and their product with one output for each dimension.

Features are inputs, not parameters: they get no gradient, and the mean over rows stands before the
projection, which is linear, so one row for a video and its mean give the same function.

Parameters: pool_video/..., pool_text/... where pooling has any, video/{kernel,bias},
text/{kernel,bias}, logit_scale, and hidden/..., out/... of the regression head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.attention import MultiHeadAttention, masked_softmax
from jaxvsa.layers.dropout import Dropout, value_number
from jaxvsa.layers.transformer import gelu, layer_norm

MAX_SCALE = 100.0
_NORM_EPS = 1e-5
_PLACES = 4096


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Section `model` of a configuration.

    Attributes:
        head: "cosine", or "regression" of the scores themselves, the paper's SFT.
        width: d of both projections. CleveReward, section 3.1.2: 256.
        pool_video: how the rows of a video become one.
        pool_text: likewise for the words of a question.
        num_layers: of pool_video "transformer"; so are the next two.
        num_heads: divides the width.
        mlp_width: inner width of its networks.
        scale: "none" takes the bare cosine, as the paper does: no difference of rewards is over 2,
            so that P(A better) stays within .119 and .881. "learned" multiplies it.
        scale_init: first value of the learned scale, 1 to 100.
        dropout: rate on pooled features, attention weights and the hidden layer of regression.
        hidden: width of that layer.
        precision: dtypes.
    """

    head: Literal["cosine", "regression"]
    width: int
    pool_video: Literal["mean", "attention", "transformer"]
    pool_text: Literal["mean", "attention"]
    num_layers: int
    num_heads: int
    mlp_width: int
    scale: Literal["learned", "none"]
    scale_init: float
    dropout: float
    hidden: int
    precision: Precision

    def __post_init__(self) -> None:
        """Refuses sizes of which no model can be made."""
        for name in ("width", "num_layers", "num_heads", "mlp_width", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"config.model.{name} is {getattr(self, name)}; 1 is the least")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"config.model.dropout is {self.dropout}; it must be at least 0 and below 1"
            )
        if not 1 <= self.scale_init <= MAX_SCALE:
            raise UserError(
                f"config.model.scale_init is {self.scale_init}; it must be from 1 to {MAX_SCALE:g}"
            )
        if self.pool_video == "transformer" and self.width % self.num_heads:
            raise UserError(
                f"config.model.num_heads is {self.num_heads}, which does not divide "
                f"config.model.width {self.width}"
            )

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> ModelOptions:
        """The options of a plain section.

        Raises:
            UserError: an unknown, missing or mistyped key, or a value that cannot be.
        """
        return build(cls, section, "config.model")


class Scored(struct.PyTreeNode):
    """What the model says of a batch.

    Attributes:
        reward_bv: of A and of B, float32 or wider; of the row's dimension under regression.
        video_bvd: projections of the videos, float32 or wider; `unit` shortens them.
        text_kd: likewise of the questions.
        scale: of the cosine; 1 without one.
    """

    reward_bv: jax.Array
    video_bvd: jax.Array
    text_kd: jax.Array
    scale: jax.Array


class CleveReward(nn.Module):
    """The two towers and their head.

    Source: CleveReward, section 3; regression: section 4.1.1.
    Deviation: with `scale` "learned" the cosine is multiplied by exp(logit_scale), from 1 to 100;
    the paper has none. Chosen: biases in the projections, the sum of squares plus 1e-12 under the
    root of the norm, exact GELU.

    Attributes:
        options: see `ModelOptions`.
        middle_c: of each dimension, what the regression head gives where its network gives 0.
        spread_c: what it adds where the network gives 1. Both are exact rewritings of its last
            layer, with which targets of any size are learned at one learning rate.
    """

    options: ModelOptions
    middle_c: tuple[float, ...]
    spread_c: tuple[float, ...]

    @nn.compact
    def __call__(
        self,
        frames_bvtf: jax.Array,
        keep_bvt: jax.Array,
        words_kle: jax.Array,
        keep_kl: jax.Array,
        question_k: jax.Array,
        asked_b: jax.Array,
        dimension_b: jax.Array,
        example_b: jax.Array,
        deterministic: bool,
    ) -> Scored:
        """Scores both videos of every pair.

        Args:
            frames_bvtf: rows of features of A and B.
            keep_bvt: bool, real rows; a video without any is the zero vector.
            words_kle: rows of features of the questions.
            keep_kl: bool, real rows.
            question_k: int32 number of the question, keys its dropout.
            asked_b: int32, which of the questions is asked.
            dimension_b: int32, which output of the regression head counts.
            example_b: int32 number of the example, keys the dropout of videos and of the head.
            deterministic: no dropout.

        Raises:
            ValueError: shapes disagree.
        """
        dims = bind_dims(
            frames_bvtf=frames_bvtf, keep_bvt=keep_bvt, words_kle=words_kle, keep_kl=keep_kl,
            question_k=question_k, asked_b=asked_b, dimension_b=dimension_b, example_b=example_b,
        )  # fmt: skip
        options, b, v = self.options, dims["b"], dims["v"]
        rows = frames_bvtf.reshape(b * v, *frames_bvtf.shape[2:])
        example_n, side_n = jnp.repeat(example_b, v), jnp.tile(jnp.arange(v), b)
        pooled_nf = Pool(options.pool_video, options, name="pool_video")(
            rows, keep_bvt.reshape(b * v, -1), example_n, side_n, deterministic
        )
        zero_k = jnp.zeros_like(question_k)
        pooled_ke = Pool(options.pool_text, options, name="pool_text")(
            words_kle, keep_kl, question_k, zero_k, deterministic
        )
        video_nd = self.project("video", pooled_nf, example_n, side_n, deterministic)
        text_kd = self.project("text", pooled_ke, question_k, zero_k, deterministic)
        video_bvd = video_nd.reshape(b, v, -1)
        scale = jnp.ones((), text_kd.dtype)
        if options.head == "regression":
            place_bv, text_bd = side_n.reshape(b, v), unit(text_kd)[asked_b]
            reward_bvc = self.regress(unit(video_bvd), text_bd, example_b, place_bv, deterministic)
            pick_bv1 = jnp.broadcast_to(dimension_b[:, None, None], (b, v, 1))
            reward_bv = jnp.take_along_axis(reward_bvc, pick_bv1, axis=-1)[..., 0]
            return Scored(reward_bv, video_bvd, text_kd, scale)
        if options.scale == "learned":
            start = nn.initializers.constant(math.log(options.scale_init))
            logit_scale = self.param("logit_scale", start, (), options.precision.param_dtype)
            logit_scale = jnp.clip(logit_scale, 0, math.log(MAX_SCALE))
            scale = jnp.exp(logit_scale.astype(text_kd.dtype))
        # The product is divided by the norms, not the vectors: fewer passes over all of them.
        product_bv = jnp.einsum("bvd,bd->bv", video_bvd, text_kd[asked_b])
        short_k1 = inverse_norm(text_kd)
        cosine_bv = product_bv * inverse_norm(video_bvd)[..., 0] * short_k1[asked_b]
        return Scored(scale * cosine_bv, video_bvd, text_kd, scale)

    def project(
        self, name: str, x_nf: jax.Array, example_n: jax.Array, side_n: jax.Array, fixed: bool
    ) -> jax.Array:
        """Dropout and linear layer: (n,f) -> (n,d), at least float32."""
        x_nf = Dropout(self.options.dropout, name=f"drop_{name}")(
            x_nf, example_n[:, None], value_number(side_n, x_nf.shape[-1]), fixed
        )
        out_nd = linear(self.options.width, name, self.options.precision)(x_nf)
        return out_nd.astype(island(out_nd))

    def regress(
        self,
        video_bvd: jax.Array,
        text_bd: jax.Array,
        example_b: jax.Array,
        place_bv: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Scores of all dimensions from both vectors and their product: (b,v,c), at least float32.

        Source: CleveReward, section 4.1.1 and figure 5; our notes, A2.
        """
        options = self.options
        text_bvd = jnp.broadcast_to(text_bd[:, None], video_bvd.shape)
        joint_bvj = jnp.concatenate([video_bvd, text_bvd, video_bvd * text_bvd], axis=-1)
        joint_bvj = joint_bvj.astype(options.precision.compute_dtype)
        hidden_bvi = gelu(linear(options.hidden, "hidden", options.precision)(joint_bvj))
        number_bvi = value_number(place_bv.reshape(-1), options.hidden).reshape(hidden_bvi.shape)
        hidden_bvi = Dropout(options.dropout, name="drop_hidden")(
            hidden_bvi, example_b[:, None, None], number_bvi, deterministic
        )
        wide = dataclasses.replace(options.precision, compute=island(hidden_bvi).name)
        out_bvc = linear(len(self.middle_c), "out", wide)(hidden_bvi)
        middle_c, spread_c = (jnp.asarray(x, out_bvc.dtype) for x in (self.middle_c, self.spread_c))
        return middle_c[None, None] + spread_c[None, None] * out_bvc


class Pool(nn.Module):
    """Rows to one vector. A row without real entries gives zeros.

    "mean": over real rows. "attention": weighted by a softmax over the products of the rows with
    one learned vector, which starts at zero, that is, at the mean. "transformer": a projection to
    the model's width plus sinusoidal positions, pre-norm blocks, a last LayerNorm, and the mean.

    Chosen: all three; the paper names no way of pooling.

    Attributes:
        kind: see above.
        options: sizes, dropout and dtypes are read.
    """

    kind: str
    options: ModelOptions

    @nn.compact
    def __call__(
        self,
        x_ntf: jax.Array,
        keep_nt: jax.Array,
        example_n: jax.Array,
        side_n: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """(n,t,f), bool (n,t) -> (n,f), or (n,d) from the transformer, in the compute dtype.

        Args:
            x_ntf: rows.
            keep_nt: real rows.
            example_n: int32 number of the example.
            side_n: int32, tells rows of one example apart; with it keys the dropout.
            deterministic: no dropout.
        """
        options, compute = self.options, self.options.precision.compute_dtype
        if self.kind == "mean":
            return masked_mean(x_ntf, keep_nt).astype(compute)
        x_ntf = jnp.where(keep_nt[..., None], x_ntf, jnp.zeros((), x_ntf.dtype)).astype(compute)
        if self.kind == "attention":
            zeros, store = nn.initializers.zeros, options.precision.param_dtype
            query_f = self.param("query", zeros, (x_ntf.shape[-1],), store).astype(compute)
            logits_nt = jnp.einsum("ntf,f->nt", x_ntf, query_f)
            attn_nt = masked_softmax(logits_nt, keep_nt).astype(compute)
            return jnp.einsum("nt,ntf->nf", attn_nt, x_ntf)
        place_nt = side_n[:, None] * _PLACES + jnp.arange(x_ntf.shape[1])[None]
        example_nt = jnp.broadcast_to(example_n[:, None], keep_nt.shape)
        x_ntd = linear(options.width, "project", options.precision)(x_ntf)
        x_ntd += jnp.asarray(sinusoids(x_ntf.shape[1], options.width), compute)[None]
        for number in range(options.num_layers):
            x_ntd = Block(options, name=f"layer_{number}")(
                x_ntd, keep_nt, example_nt, place_nt, deterministic
            )
        x_ntd = layer_norm("norm", _NORM_EPS, options.precision)(x_ntd)
        return masked_mean(x_ntd, keep_nt).astype(compute)


class Block(nn.Module):
    """Pre-norm transformer block: attention over real rows, then a GELU network."""

    options: ModelOptions

    @nn.compact
    def __call__(
        self,
        x_ntd: jax.Array,
        keep_nt: jax.Array,
        example_nt: jax.Array,
        place_nt: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """(n,t,d) -> (n,t,d)."""
        options = self.options
        normed_ntd = layer_norm("norm_attention", _NORM_EPS, options.precision)(x_ntd)
        out_ntd, _ = MultiHeadAttention(
            options.num_heads, options.dropout, False, options.precision, name="attention"
        )(normed_ntd, normed_ntd, keep_nt[:, None], example_nt, place_nt, place_nt, deterministic)
        x_ntd += out_ntd
        normed_ntd = layer_norm("norm_mlp", _NORM_EPS, options.precision)(x_ntd)
        inner_nti = gelu(linear(options.mlp_width, "mlp_in", options.precision)(normed_ntd))
        return x_ntd + linear(x_ntd.shape[-1], "mlp_out", options.precision)(inner_nti)


def linear(features: int, name: str, precision: Precision) -> nn.Dense:
    """A linear layer with bias, its kernel from N(0, 1 / inputs) cut at two deviations."""
    return nn.Dense(
        features, name=name, dtype=precision.compute_dtype, param_dtype=precision.param_dtype
    )


def unit(x_nd: jax.Array) -> jax.Array:
    """x / sqrt(sum x^2 + 1e-12): zero stays zero, with a finite gradient."""
    return x_nd * inverse_norm(x_nd)


def inverse_norm(x_nd: jax.Array) -> jax.Array:
    """1 / sqrt(sum x^2 + 1e-12) of every vector, (n,1)."""
    return jax.lax.rsqrt(jnp.sum(x_nd * x_nd, axis=-1, keepdims=True) + 1e-12)


def masked_mean(x_ntf: jax.Array, keep_nt: jax.Array) -> jax.Array:
    """Mean of the real rows in at least float32, (n,f); zeros if there is none."""
    wide = island(x_ntf)
    total_nf = jnp.sum(x_ntf.astype(wide), axis=1, where=keep_nt[..., None])
    count_n = jnp.sum(keep_nt, axis=1, dtype=wide)
    return total_nf / jnp.maximum(count_n, 1)[:, None]


def sinusoids(num_rows: int, width: int) -> np.ndarray:
    """Positions (t,d): sines in the even places, cosines in the odd ones.

    Source: Vaswani et al. (2017), section 3.5.
    """
    place_t = np.arange(width) // 2 * 2
    angle_td = np.arange(num_rows)[:, None] / 10_000.0 ** (place_t / width)[None]
    return np.where(np.arange(width) % 2 == 0, np.sin(angle_td), np.cos(angle_td))
