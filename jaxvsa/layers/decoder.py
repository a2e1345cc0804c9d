"""LLaMA-family decoder: embeddings in, one vector per position out, with an optional static cache.

Source: LLaMA (Touvron et al., 2023), Llama 2 and 3, Vicuna, as computed by Hugging Face
transformers (`LlamaForCausalLM`). MTransLLAMA, section III-A: the frozen language model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.transformer import INIT, dense


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch slow rotations for longer contexts.

    Attributes:
        factor: by which the slowest rotations become slower; 1 changes nothing.
        low: wavelengths above `positions / low` are slowed down fully.
        high: those below `positions / high` are left alone; between the two, in proportion.
        positions: context that the model was first trained on.
    """

    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    positions: int = 8192


class Cache(struct.PyTreeNode):
    """Keys and values of the columns seen so far, of a size that never changes.

    Attributes:
        key_nbzhe: per layer n, rotated.
        value_nbzhe: likewise.
        keep_bz: bool, real columns.
        filled: int32 scalar, columns in use; the next ones are written behind them.
    """

    key_nbzhe: jax.Array
    value_nbzhe: jax.Array
    keep_bz: jax.Array
    filled: jax.Array

    def take(self, row_b: jax.Array) -> Cache:
        """The cache of these rows, in this order; a row may come more than once."""
        return self.replace(
            key_nbzhe=jnp.take(self.key_nbzhe, row_b, axis=1),
            value_nbzhe=jnp.take(self.value_nbzhe, row_b, axis=1),
            keep_bz=jnp.take(self.keep_bz, row_b, axis=0),
        )


def rope_angles(
    position_bl: jax.Array, head_width: int, theta: float, scaling: RopeScaling
) -> jax.Array:
    """Angles of rotary positions, float32 (b,l,r) for the r = head_width / 2 pairs."""
    speed_r = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    if scaling.factor != 1:
        turns_r = scaling.positions * speed_r / (2 * jnp.pi)  # within the first context
        share_r = jnp.clip((turns_r - scaling.low) / (scaling.high - scaling.low), 0, 1)
        speed_r = (1 - share_r) * speed_r / scaling.factor + share_r * speed_r
    return position_bl[..., None].astype(jnp.float32) * speed_r[None, None]


def rotate(x_blhe: jax.Array, angle_blr: jax.Array) -> jax.Array:
    """Rotates each pair (i, i + e/2) of a head by its angle, as Hugging Face orders them."""
    cos_bl1r = jnp.cos(angle_blr)[:, :, None].astype(x_blhe.dtype)
    sin_bl1r = jnp.sin(angle_blr)[:, :, None].astype(x_blhe.dtype)
    first_blhr, second_blhr = jnp.split(x_blhe, 2, axis=-1)
    return jnp.concatenate(
        [
            first_blhr * cos_bl1r - second_blhr * sin_bl1r,
            second_blhr * cos_bl1r + first_blhr * sin_bl1r,
        ],
        axis=-1,
    )


class RMSNorm(nn.Module):
    """Divides by the root mean square in at least float32, casts back, then scales.

    Source: Zhang and Sennrich, 2019. Kept: the cast before the scale, as Hugging Face does it;
    in bfloat16 the order matters.
    """

    epsilon: float
    precision: Precision

    @nn.compact
    def __call__(self, x_bld: jax.Array) -> jax.Array:
        """(b,l,d) -> (b,l,d)."""
        ones = nn.initializers.ones
        scale_d = self.param("scale", ones, x_bld.shape[-1:], self.precision.param_dtype)
        wide_bld = x_bld.astype(island(x_bld))
        square_bl1 = jnp.mean(wide_bld * wide_bld, axis=-1, keepdims=True)
        normed_bld = (wide_bld * jax.lax.rsqrt(square_bl1 + self.epsilon)).astype(x_bld.dtype)
        return normed_bld * scale_d.astype(x_bld.dtype)[None, None]


class DecoderLayer(nn.Module):
    """One pre-norm block: causal attention with grouped heads, then a gated SiLU network.

    Attributes:
        num_heads: query heads; divides the width, and is a multiple of `num_kv_heads`.
        num_kv_heads: heads h of keys and values.
        mlp_width: inner width.
        norm_eps: epsilon of both norms.
        precision: parameter and compute types.
    """

    num_heads: int
    num_kv_heads: int
    mlp_width: int
    norm_eps: float
    precision: Precision

    @nn.compact
    def __call__(
        self,
        x_bld: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None,
        keep_blz: jax.Array,
        angle_blr: jax.Array,
        filled: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The block's output (b,l,d), and keys and values with the new columns written in.

        Args:
            x_bld: input.
            cached: keys and values (b,z,h,e) of this layer; None without a cache, where z is l.
            keep_blz: bool, what each position sees.
            angle_blr: of the new positions.
            filled: columns of the cache in use; not read without one.
        """
        width = x_bld.shape[-1]
        head, group = width // self.num_heads, self.num_heads // self.num_kv_heads
        compute = self.precision.compute_dtype

        def linear(name: str, features: int, x: jax.Array) -> jax.Array:
            return dense(features, name, self.precision, bias=False)(x)

        def norm(name: str, x_bld: jax.Array) -> jax.Array:
            return RMSNorm(self.norm_eps, self.precision, name=name)(x_bld)

        rows = x_bld.shape[:2]
        normed_bld = norm("norm_attention", x_bld)
        q_blhe = linear("query", width, normed_bld).reshape(*rows, self.num_heads, head)
        k_blhe = linear("key", self.num_kv_heads * head, normed_bld).reshape(*rows, -1, head)
        v_blhe = linear("value", self.num_kv_heads * head, normed_bld).reshape(*rows, -1, head)
        q_blhe, k_bzhe, v_bzhe = rotate(q_blhe, angle_blr), rotate(k_blhe, angle_blr), v_blhe
        if cached is not None:
            at = (0, filled, 0, 0)
            k_bzhe = jax.lax.dynamic_update_slice(cached[0], k_bzhe.astype(cached[0].dtype), at)
            v_bzhe = jax.lax.dynamic_update_slice(cached[1], v_bzhe.astype(cached[1].dtype), at)
            cached = k_bzhe, v_bzhe
        q_blhge = q_blhe.reshape(*rows, self.num_kv_heads, group, head)
        logits_bhglz = jnp.einsum(
            "blhge,bzhe->bhglz", q_blhge, k_bzhe, preferred_element_type=island(q_blhe)
        )
        logits_bhglz *= head**-0.5
        attn_bhglz = masked_softmax(logits_bhglz, keep_blz[:, None, None]).astype(compute)
        out_blhge = jnp.einsum("bhglz,bzhe->blhge", attn_bhglz, v_bzhe)
        x_bld += linear("out", width, out_blhge.reshape(*rows, width))
        normed_bld = norm("norm_mlp", x_bld)
        gate_bli = jax.nn.silu(linear("gate", self.mlp_width, normed_bld))
        inner_bli = gate_bli * linear("up", self.mlp_width, normed_bld)
        return x_bld + linear("down", width, inner_bli), cached


class Decoder(nn.Module):
    """A stack of `DecoderLayer`s under one scan, with word table and output head.

    Parameters: word (v,d), head (d,v) unless `tied`, norm/scale, and layers/... with a leading
    layer axis.

    Attributes:
        vocab_size: rows v of the word table.
        width: d.
        num_layers: n.
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        mlp_width: inner width of a block's network.
        norm_eps: 1e-6 in LLaMA and Vicuna 1.1, 1e-5 later.
        rope_theta: base of the rotations: 10,000, or 500,000 in Llama 3.
        rope_scaling: see `RopeScaling`.
        tied: the word table is the output head.
        remat: layers are computed again for the gradient instead of being kept.
        precision: parameter and compute types.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tied: bool
    remat: bool
    precision: Precision

    def setup(self) -> None:
        """Declares all parameters.

        Raises:
            UserError: heads that do not divide the width or each other.
        """
        if self.num_heads < 1 or self.width % self.num_heads or self.width // self.num_heads % 2:
            raise UserError(f"decoder: width {self.width} / num_heads {self.num_heads} is not even")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"decoder: num_heads {self.num_heads} is not a multiple of num_kv_heads "
                f"{self.num_kv_heads}"
            )
        store = self.precision.param_dtype
        self.word_vd = self.param("word", INIT, (self.vocab_size, self.width), store)
        if not self.tied:
            self.head_dv = self.param("head", INIT, (self.width, self.vocab_size), store)
        layer: Any = nn.remat(DecoderLayer, prevent_cse=False) if self.remat else DecoderLayer
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.num_layers,
        )(self.num_heads, self.num_kv_heads, self.mlp_width, self.norm_eps, self.precision)
        self.norm = RMSNorm(self.norm_eps, self.precision)

    def embed(self, ids_bl: jax.Array) -> jax.Array:
        """Rows of the word table, (b,l) -> (b,l,d)."""
        return self.word_vd.astype(self.precision.compute_dtype)[ids_bl]

    def logits(self, x_bld: jax.Array) -> jax.Array:
        """Scores of the next token, (b,l,d) -> (b,l,v), in at least float32."""
        head_dv = self.word_vd.T if self.tied else self.head_dv
        head_dv = head_dv.astype(self.precision.compute_dtype)
        return jnp.einsum("bld,dv->blv", x_bld, head_dv, preferred_element_type=island(x_bld))

    def new_cache(self, num_rows: int, size: int) -> Cache:
        """An empty cache for `num_rows` sequences of at most `size` columns."""
        head = self.width // self.num_heads
        shape = (self.num_layers, num_rows, size, self.num_kv_heads, head)
        zeros = jnp.zeros(shape, self.precision.compute_dtype)
        return Cache(zeros, zeros, jnp.zeros((num_rows, size), bool), jnp.zeros((), jnp.int32))

    def __call__(
        self, x_bld: jax.Array, keep_bl: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Normalised output (b,l,d) for new columns, and the cache with them.

        Positions count the real columns of a row, so padding on either side changes nothing; the
        outputs of padding mean nothing.

        Args:
            x_bld: embeddings of the new columns.
            keep_bl: bool, real ones.
            cache: of the columns before; it must have room for l more.

        Raises:
            ValueError: sizes differ between arguments.
        """
        dims = bind_dims(x_bld=x_bld, keep_bl=keep_bl)
        before = jnp.zeros((), jnp.int32) if cache is None else cache.filled
        keep_bz, seen_b1 = keep_bl, jnp.zeros((dims["b"], 1), jnp.int32)
        if cache is not None:
            bind_dims(x_bld=x_bld, keep_bz=cache.keep_bz)
            seen_b1 = jnp.sum(cache.keep_bz, axis=1, keepdims=True, dtype=jnp.int32)
            keep_bz = jax.lax.dynamic_update_slice(cache.keep_bz, keep_bl, (0, before))
        position_bl = seen_b1 + jnp.cumsum(keep_bl, axis=1, dtype=jnp.int32) - 1
        column_l = before + jnp.arange(dims["l"])
        causal_lz = jnp.arange(keep_bz.shape[1])[None] <= column_l[:, None]
        keep_blz = keep_bz[:, None] & causal_lz[None]
        angle_blr = rope_angles(
            jnp.maximum(position_bl, 0), self.width // self.num_heads, self.rope_theta,
            self.rope_scaling,
        )  # fmt: skip
        if cache is None:
            x_bld, _ = self.layers(x_bld, None, keep_blz, angle_blr, before)
            return self.norm(x_bld), None
        cached = cache.key_nbzhe, cache.value_nbzhe
        x_bld, (key_nbzhe, value_nbzhe) = self.layers(x_bld, cached, keep_blz, angle_blr, before)
        return self.norm(x_bld), Cache(key_nbzhe, value_nbzhe, keep_bz, before + dims["l"])
