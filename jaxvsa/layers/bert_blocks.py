"""Attention and network as BERT has them: projection, residual, then LayerNorm."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.dropout import Dropout
from jaxvsa.layers.lora import LoraDense, LoraOptions
from jaxvsa.layers.routing import routed_softmax
from jaxvsa.layers.tokens import Tokens
from jaxvsa.layers.transformer import dense, gelu, layer_norm

MOST_KEYS = 4096
"""Keys that an attention weight's number tells apart; more than a frame has."""


class Dropped(nn.Module):
    """Dropout of tokens, keyed by what they belong to; see `layers.dropout`."""

    rate: float

    @nn.compact
    def __call__(self, x_bqd: jax.Array, number_bq2: jax.Array | None) -> jax.Array:
        """(b,q,d) -> (b,q,d).

        Args:
            x_bqd: tokens.
            number_bq2: uint32, the example of a token, and its place there; None: nothing is
                dropped.
        """
        if number_bq2 is None:
            return x_bqd
        width = x_bqd.shape[-1]
        value_bqd = number_bq2[..., 1:] * width + jnp.arange(width, dtype=jnp.uint32)[None, None]
        return Dropout(self.rate, name="drop")(x_bqd, number_bq2[..., :1], value_bqd, False)


class AttentionBlock(nn.Module):
    """Attention with its output projection, residual and LayerNorm, as BERT has it.

    Parameters: query, key, value (query and value with low-rank changes for each use), out, norm.

    Attributes:
        num_heads: heads h; divides the width d.
        uses: names of the uses.
        lora: see `LoraOptions`.
        combine: see `RoutingOptions`.
        norm_eps: epsilon of the LayerNorm.
        precision: parameter and compute types.
        dropout: rate on the attention weights and behind the projection.
    """

    num_heads: int
    uses: tuple[str, ...]
    lora: LoraOptions
    combine: str
    norm_eps: float
    precision: Precision
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        memory: Tokens,
        keep_bz: jax.Array,
        use: str,
        weight_bm: jax.Array | None = None,
        sees_mqz: jax.Array | None = None,
        number: Tokens | None = None,
    ) -> Tokens:
        """Tokens like `x`, whose words then differ between frames.

        Args:
            x: what asks.
            memory: what is seen.
            keep_bz: bool, real keys.
            use: which low-rank changes apply.
            weight_bm: of the masks; None for plain attention.
            sees_mqz: the masks.
            number: (example, place) of what asks, which keys what is dropped; None: nothing is.
        """
        width = x.row_bqd.shape[-1]
        if width % self.num_heads:
            raise UserError(f"{self.num_heads} heads do not divide width {width}")
        head = (self.num_heads, width // self.num_heads)
        lora = functools.partial(
            LoraDense, width, self.uses, self.lora, self.precision
        )  # query and value, MTransLLAMA, section III-C
        query, value = lora(name="query"), lora(name="value")
        q_bqd = x.map(lambda x_bqd: query(x_bqd, use)).joined()
        k_bzd = memory.map(dense(width, "key", self.precision)).joined()
        v_bzd = memory.map(lambda x_bzd: value(x_bzd, use)).joined()
        q_bqhe = q_bqd.reshape(*q_bqd.shape[:2], *head)
        k_bzhe, v_bzhe = (x_bzd.reshape(*keep_bz.shape, *head) for x_bzd in (k_bzd, v_bzd))
        logits_bhqz = jnp.einsum(
            "bqhe,bzhe->bhqz", q_bqhe, k_bzhe, preferred_element_type=island(q_bqd)
        )
        logits_bhqz *= head[1] ** -0.5
        if weight_bm is None or sees_mqz is None:
            attn_bhqz = masked_softmax(logits_bhqz, keep_bz[:, None, None])
        else:
            attn_bhqz = routed_softmax(logits_bhqz, keep_bz, weight_bm, sees_mqz, self.combine)
        if number is not None:
            attn_bhqz = self.drop_weights(attn_bhqz, number.joined(), use)
        out_bqhe = jnp.einsum("bhqz,bzhe->bqhe", attn_bhqz.astype(v_bzhe.dtype), v_bzhe)
        out = x.split(out_bqhe.reshape(q_bqd.shape)).map(dense(width, "out", self.precision))
        if number is not None:
            out = out.map(Dropped(self.dropout, name=f"drop_{use}"), number)
        norm = layer_norm("norm", self.norm_eps, self.precision)
        return x.in_frames().map(lambda x_bqd, out_bqd: norm(x_bqd + out_bqd), out)

    def drop_weights(self, attn_bhqz: jax.Array, number_bq2: jax.Array, use: str) -> jax.Array:
        """Dropout of attention weights."""
        heads, keys = (jnp.arange(attn_bhqz.shape[axis], dtype=jnp.uint32) for axis in (1, 3))
        number_b1q2 = number_bq2[:, None]
        pair_b1qz = number_b1q2[..., 1:] * MOST_KEYS + keys[None, None, None]
        value_bhqz = pair_b1qz * self.num_heads + heads[None, :, None, None]
        drop = Dropout(self.dropout, name=f"drop_weights_{use}")
        return drop(attn_bhqz, number_b1q2[..., :1], value_bhqz, False)


class FeedForward(nn.Module):
    """GELU network with residual and LayerNorm, as BERT has it; dropout before the sum."""

    mlp_width: int
    norm_eps: float
    precision: Precision
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_bqd: jax.Array, number_bq2: jax.Array | None = None) -> jax.Array:
        """(b,q,d) -> (b,q,d); `number_bq2` as in `Dropped`."""
        inner_bqi = dense(self.mlp_width, "in", self.precision)(x_bqd)
        inner_bqi = gelu(inner_bqi)
        out_bqd = dense(x_bqd.shape[-1], "out", self.precision)(inner_bqi)
        out_bqd = Dropped(self.dropout, name="drop")(out_bqd, number_bq2)
        return layer_norm("norm", self.norm_eps, self.precision)(x_bqd + out_bqd)
