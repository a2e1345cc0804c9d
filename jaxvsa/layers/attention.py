"""Attention with masks, and its exact short form for few queries over a long memory.

The key bias of torch's MultiheadAttention has no parameter here: it adds the same number to all
logits of a query, and softmax does not see it.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.dropout import Dropout
from jaxvsa.layers.initializers import uniform_fan_in, xavier_uniform


def masked_softmax(logits: jax.Array, keep: jax.Array) -> jax.Array:
    """Softmax over the last axis of the entries with keep = True, in at least float32.

    A row with nothing to attend to yields zeros, with finite gradients.

    Args:
        logits: (..., z).
        keep: bool, broadcastable to `logits`; True = real.
    """
    logits = logits.astype(island(logits))
    safe = jnp.where(keep, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(safe, axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.exp(jnp.where(keep, logits - top, -jnp.inf))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def pair_number(query_bq: jax.Array, seen_bz: jax.Array, num_heads: int) -> jax.Array:
    """Number of an attention weight within its example, uint32 (b,q,h,z).

    Args:
        query_bq: number of the asking element within the example, below 8192.
        seen_bz: likewise of the element that is seen.
        num_heads: h, at most 64.
    """
    query_bqhz, seen_bqhz = query_bq[:, :, None, None], seen_bz[:, None, None]
    head_h = jnp.arange(num_heads, dtype=jnp.uint32)[None, None, :, None]
    pair_bqhz = query_bqhz.astype(jnp.uint32) * 8192 + seen_bqhz.astype(jnp.uint32)
    return pair_bqhz * num_heads + head_h


class MultiHeadAttention(nn.Module):
    """Multi-head attention of one width, scaled by 1/sqrt(head width); nothing around it.

    Source: VC-CSA code, the attention inside consensus and final text fusion (torch's
    MultiheadAttention, dropout on the attention weights).

    Attributes:
        num_heads: heads h; must divide the width d.
        dropout: rate on the attention weights.
        fold: compute through the queries (see `_folded`); same function, fewer operations where
            there are few queries.
        precision: dtypes.
    """

    num_heads: int
    dropout: float
    fold: bool
    precision: Precision

    @nn.compact
    def __call__(
        self,
        query_bqd: jax.Array,
        memory_bzd: jax.Array,
        keep_bqz: jax.Array,
        example_bq: jax.Array,
        place_bq: jax.Array,
        place_bz: jax.Array,
        deterministic: bool,
        around: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> tuple[jax.Array, jax.Array]:
        """Attends from queries to a memory.

        Args:
            query_bqd: (b,q,d).
            memory_bzd: (b,z,d), keys and values; or, with `around`, (b,y,d).
            keep_bqz: bool, True where query q may see row z; q may be 1 to share a mask.
            example_bq: the example of a query; keys the dropout, with the two places.
            place_bq: its number within the example, below 8192; q may be 1 here and in example_bq
                only if q is 1.
            place_bz: likewise of what is seen.
            deterministic: no dropout.
            around: (b,y, ...) -> (b,z, ...), applied to keys and values; not with `fold`.

        Returns:
            (b,q,d) outputs and (b,q,h,z) attention weights before dropout.

        Raises:
            UserError: the heads do not divide the width.
            ValueError: sizes differ between arguments.
        """
        width = bind_dims(query_bqd=query_bqd, memory_byd=memory_bzd)["d"]
        if width % self.num_heads:
            raise UserError(f"{self.num_heads} heads do not divide width {width}")
        head = (self.num_heads, width // self.num_heads)
        xavier, zeros = xavier_uniform(width, 3 * width), nn.initializers.zeros
        store, compute = self.precision.param_dtype, self.precision.compute_dtype

        def param(name: str, init: nn.initializers.Initializer, *shape: int) -> jax.Array:
            return self.param(name, init, shape, store).astype(compute)

        kernels = (param(f"{n}_kernel", xavier, width, *head) for n in ("query", "key", "value"))
        query_dhe, key_dhe, value_dhe = kernels
        query_he, value_he = (param(f"{n}_bias", zeros, *head) for n in ("query", "value"))
        out_hed = param("out_kernel", uniform_fan_in(width), *head, width)

        q_bqhe = jnp.einsum("bqd,dhe->bqhe", query_bqd, query_dhe) + query_he[None, None]
        q_bqhe = q_bqhe / jnp.sqrt(jnp.asarray(head[1], q_bqhe.dtype))
        if self.fold:
            q_bqhd = jnp.einsum("bqhe,dhe->bqhd", q_bqhe, key_dhe)
            logits_bqhz = _against_memory(q_bqhd, memory_bzd)
        else:
            k_bzhe = around(jnp.einsum("bzd,dhe->bzhe", memory_bzd, key_dhe))
            logits_bqhz = jnp.swapaxes(jnp.einsum("bqhe,bzhe->bhqz", q_bqhe, k_bzhe), 1, 2)
        attn_bqhz = masked_softmax(logits_bqhz, keep_bqz[:, :, None])
        number_bqhz = pair_number(place_bq, place_bz, self.num_heads)
        kept_bqhz = Dropout(self.dropout, name="drop")(
            attn_bqhz, example_bq[:, :, None, None], number_bqhz, deterministic
        ).astype(compute)
        if self.fold:
            # The weights no longer sum to one after dropout, so neither does their share of bias.
            mixed_bqhd = jnp.einsum("bqhz,bzd->bqhd", kept_bqhz, memory_bzd)
            mixed_bqhe = jnp.einsum("bqhd,dhe->bqhe", mixed_bqhd, value_dhe)
            mixed_bqhe += jnp.sum(kept_bqhz, axis=-1)[..., None] * value_he[None, None]
        else:
            v_bzhe = jnp.einsum("bzd,dhe->bzhe", memory_bzd, value_dhe) + value_he[None, None]
            v_bzhe = around(v_bzhe)
            mixed_bqhe = jnp.einsum("bqhz,bzhe->bqhe", kept_bqhz, v_bzhe)
        out_bqd = jnp.einsum("bqhe,hed->bqd", mixed_bqhe, out_hed)
        return out_bqd + param("out_bias", zeros, width)[None, None], attn_bqhz


class AttentionLogits(nn.Module):
    """The logits of attention alone, keys folded into the queries.

    Source: VC-CSA code: grounding uses only the weights of its attention, so that its value and
    output projections are dead and have no parameters here.

    Attributes:
        num_heads: heads h; must divide the query width.
        precision: dtypes.
    """

    num_heads: int
    precision: Precision

    @nn.compact
    def __call__(self, query_bkw: jax.Array, memory_btd: jax.Array) -> jax.Array:
        """(b,k,w) queries, (b,t,d) memory -> (b,k,h,t), scaled by 1/sqrt(w/h).

        Raises:
            UserError: the heads do not divide w.
            ValueError: b differs.
        """
        dims = bind_dims(query_bkw=query_bkw, memory_btd=memory_btd)
        width, memory_width = dims["w"], dims["d"]
        if width % self.num_heads:
            raise UserError(f"{self.num_heads} heads do not divide width {width}")
        head = (self.num_heads, width // self.num_heads)
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        query_whe = self.param(
            "query_kernel", xavier_uniform(width, width), (width, *head), store
        ).astype(compute)
        key_dhe = self.param(
            "key_kernel", xavier_uniform(memory_width, width), (memory_width, *head), store
        ).astype(compute)
        query_he = self.param("query_bias", nn.initializers.zeros, head, store).astype(compute)
        q_bkhe = jnp.einsum("bkw,whe->bkhe", query_bkw, query_whe) + query_he[None, None]
        q_bkhe = q_bkhe / jnp.sqrt(jnp.asarray(head[1], q_bkhe.dtype))
        q_bkhd = jnp.einsum("bkhe,dhe->bkhd", q_bkhe, key_dhe)
        return _against_memory(q_bkhd, memory_btd)


def _against_memory(q_bqhd: jax.Array, memory_bzd: jax.Array) -> jax.Array:
    """Products of few queries with a long memory, (b,q,h,z).

    The memory stands on the left: on the right XLA would transpose all of it on CPU, which takes
    longer than the product.
    """
    logits_bzqh = jnp.einsum("bzd,bqhd->bzqh", memory_bzd, q_bqhd)
    return jnp.moveaxis(logits_bzqh, 1, 3)
