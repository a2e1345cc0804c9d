"""The contrastive term: which rows take part, and a symmetric InfoNCE in few passes.

Source: CleveReward, section 3.1.2 (CLIP-style; no formula there); our notes, A3. Videos that people
preferred are told from the texts of the other rows, and texts from the other videos.

The rows that may take part come with the batch, so that work grows with the square of their number,
not of the batch's. They are those of the whole batch, on however many devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxvsa.core.shapes import bind_dims

_SAFE_EXPONENT = 85.0


def anchors(part_m: jax.Array, group_m: jax.Array) -> jax.Array:
    """bool (m,): of each group the first row with `part_m`, and no other.

    Args:
        part_m: bool, rows that may take part: real, of an aligned dimension, not tied.
        group_m: int32 number of the prompt group.
    """
    bind_dims(part_m=part_m, group_m=group_m)
    none = jnp.iinfo(group_m.dtype).max
    key_m = jnp.where(part_m, group_m, none)
    order_m = jnp.argsort(key_m, stable=True)
    sorted_m = key_m[order_m]
    first_m = jnp.concatenate([jnp.ones(1, bool), sorted_m[1:] != sorted_m[:-1]])
    return jnp.zeros_like(part_m).at[order_m].set(first_m) & part_m


@jax.custom_vjp
def info_nce(
    video_md: jax.Array, text_gd: jax.Array, keep_m: jax.Array, question_m: jax.Array
) -> jax.Array:
    """Mean over the kept rows of the two cross-entropies of a row's own pair, halved; scalar.

    A row's logits are the products of its video with all kept texts, and of its text with all kept
    videos, without those of another row with the same question. 0 without kept rows.

    The gradient is computed along with the value: the square of similarities is made once, and
    its exponentials serve rows, columns and gradient, if no product can exceed what float32 holds.

    Args:
        video_md: float32 or wider, times the scale.
        text_gd: unit vectors of the same rows, g = m.
        keep_m: bool, rows that take part.
        question_m: int32 number of the text.

    Raises:
        ValueError: shapes disagree.
    """
    return _square(False, video_md, text_gd, keep_m, question_m)[0]


def _forward(*args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, video_md, text_gd = _square(True, *args)
    return value, (video_md, text_gd)


def _backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[Any, ...]:
    return grad * kept[0], grad * kept[1], None, None


info_nce.defvjp(_forward, _backward)


def _square(
    gradient: bool,
    video_md: jax.Array,
    text_gd: jax.Array,
    keep_m: jax.Array,
    question_m: jax.Array,
) -> tuple[jax.Array, ...]:
    """The value and, with `gradient`, its derivatives by videos and texts."""
    bind_dims(video_md=video_md, text_gd=text_gd, keep_m=keep_m, question_m=question_m)
    length_m, text_length_g = (jnp.sum(x * x, axis=-1) for x in (video_md, text_gd))
    largest = jnp.sqrt(jnp.max(length_m) * jnp.max(text_length_g))
    bounded = largest + jnp.log(jnp.float32(len(keep_m))) < _SAFE_EXPONENT
    quick, careful = (functools.partial(_terms, gradient, way) for way in (True, False))
    return jax.lax.cond(bounded, quick, careful, video_md, text_gd, keep_m, question_m)


def _terms(
    gradient: bool,
    quick: bool,
    video_md: jax.Array,
    text_gd: jax.Array,
    keep_m: jax.Array,
    question_m: jax.Array,
) -> tuple[jax.Array, ...]:
    """`_square`; `quick` takes exponentials as they are, without a maximum."""
    zero = jnp.zeros((), video_md.dtype)
    count = jnp.maximum(jnp.sum(keep_m, dtype=video_md.dtype), 1)
    own_mg = jnp.arange(len(keep_m))[:, None] == jnp.arange(len(keep_m))[None]
    seen_mg = keep_m[:, None] & keep_m[None]
    seen_mg &= own_mg | (question_m[:, None] != question_m[None])
    logits_mg = jnp.einsum("md,gd->mg", video_md, text_gd)
    if quick:
        weight_mg = jnp.where(seen_mg, jnp.exp(logits_mg), zero)
        row_m, column_g = (jnp.where(keep_m, jnp.sum(weight_mg, axis=axis), 1) for axis in (1, 0))
        log_m = jnp.log(row_m) + jnp.log(column_g)
    else:
        masked_mg = jnp.where(seen_mg, logits_mg, -jnp.inf)
        row_m, column_g = (
            jnp.where(keep_m, jax.nn.logsumexp(masked_mg, axis=axis), zero) for axis in (1, 0)
        )
        log_m = row_m + column_g
    pair_m = jnp.sum(video_md * text_gd, axis=-1)
    value = jnp.sum(jnp.where(keep_m, log_m / 2 - pair_m, zero)) / count
    if not gradient:
        return (value,)
    if quick:
        weight_mg = weight_mg * (1 / row_m[:, None] + 1 / column_g[None])
    else:
        weight_mg = jnp.exp(masked_mg - row_m[:, None]) + jnp.exp(masked_mg - column_g[None])
    weight_mg = weight_mg / (2 * count)
    share_m1 = jnp.where(keep_m, 1 / count, zero)[:, None]
    video_grad_md = jnp.einsum("mg,gd->md", weight_mg, text_gd) - share_m1 * text_gd
    text_grad_gd = jnp.einsum("mg,md->gd", weight_mg, video_md) - share_m1 * video_md
    return value, video_grad_md, text_grad_gd
