"""Texts from a decoder: greedy and beam search, without recompilation as the text grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
"""(tokens (b,), cache) -> (scores of the next token (b,v), cache)."""


def greedy(
    step: Step, first_bv: jax.Array, cache: Any, *, num_tokens: int, eos_id: int, pad_id: int
) -> jax.Array:
    """The likeliest token, again and again: int32 (b,`num_tokens`), `pad_id` behind `eos_id`.

    Stops as soon as every row has ended.

    Args:
        step: one more column.
        first_bv: scores of the first token.
        cache: what `step` is given first.
        num_tokens: at most so many, `eos_id` included.
        eos_id: ends a row.
        pad_id: stands behind the end.
    """
    rows = len(first_bv)

    def more(carry: Any) -> jax.Array:
        at, ended_b, *_ = carry
        return (at < num_tokens) & ~jnp.all(ended_b)

    def one(carry: Any) -> Any:
        at, ended_b, scores_bv, cache, out_bl = carry
        token_b = jnp.where(ended_b, pad_id, jnp.argmax(scores_bv, axis=-1).astype(jnp.int32))
        out_bl = out_bl.at[:, at].set(token_b)
        scores_bv, cache = step(token_b, cache)
        return at + 1, ended_b | (token_b == eos_id), scores_bv, cache, out_bl

    out_bl = jnp.full((rows, num_tokens), pad_id, jnp.int32)
    start = (jnp.zeros((), jnp.int32), jnp.zeros(rows, bool), first_bv, cache, out_bl)
    return jax.lax.while_loop(more, one, start)[-1]
