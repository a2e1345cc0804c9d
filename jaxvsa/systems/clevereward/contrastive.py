"""The contrastive term: which rows take part, and a symmetric InfoNCE in few passes.

Source: CleveReward, section 3.1.2 (CLIP-style; no formula there); our notes, A3. Videos that people
preferred are told from the texts of the other rows, and texts from the other videos.

Everything is written on the whole batch. On CPU the rows that take part are brought together first,
and the square of similarities has one of a few sizes: work grows with the square of those rows, not
of the batch. Elsewhere the square of the whole batch is computed, which devices share row by row.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxvsa.core.shapes import bind_dims

_EIGHTHS = (1, 2, 3, 4, 6)
_SMALL = 512
_SAFE_EXPONENT = 85.0


def anchors(part_b: jax.Array, group_b: jax.Array) -> jax.Array:
    """bool (b,): of each group the first row with `part_b`, and no other.

    Args:
        part_b: bool, rows that may take part: real, of an aligned dimension, not tied.
        group_b: int32 number of the prompt group.
    """
    bind_dims(part_b=part_b, group_b=group_b)
    none = jnp.iinfo(group_b.dtype).max
    key_b = jnp.where(part_b, group_b, none)
    order_b = jnp.argsort(key_b, stable=True)
    sorted_b = key_b[order_b]
    first_b = jnp.concatenate([jnp.ones(1, bool), sorted_b[1:] != sorted_b[:-1]])
    return jnp.zeros_like(part_b).at[order_b].set(first_b) & part_b


@jax.custom_vjp
def info_nce(
    video_bd: jax.Array, text_bd: jax.Array, keep_b: jax.Array, question_b: jax.Array
) -> jax.Array:
    """Mean over the kept rows of the two cross-entropies of a row's own pair, halved; scalar.

    A row's logits are the products of its video with all kept texts, and of its text with all kept
    videos, without those of another row with the same question. 0 without kept rows.

    The gradient is computed along with the value: the square of similarities is made once, and
    its exponentials serve rows, columns and gradient, if no product can exceed what float32 holds.

    Args:
        video_bd: float32 or wider, times the scale.
        text_bd: likewise, unit vectors.
        keep_b: bool, rows that take part.
        question_b: int32 number of the text.

    Raises:
        ValueError: shapes disagree.
    """
    return _square(False, video_bd, text_bd, keep_b, question_b)[0]


def _forward(*args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, video_bd, text_bd = _square(True, *args)
    return value, (video_bd, text_bd)


def _backward(kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[Any, ...]:
    return grad * kept[0], grad * kept[1], None, None


info_nce.defvjp(_forward, _backward)


def rungs(size: int) -> tuple[int, ...]:
    """Sizes of the square, ascending, the last one `size`."""
    if size < _SMALL or size % 8:
        return (size,)
    return (*(size * part // 8 for part in _EIGHTHS), size)


def _square(
    gradient: bool,
    video_bd: jax.Array,
    text_bd: jax.Array,
    keep_b: jax.Array,
    question_b: jax.Array,
) -> tuple[jax.Array, ...]:
    """The value and, with `gradient`, its derivatives by videos and texts."""
    bind_dims(video_bd=video_bd, text_bd=text_bd, keep_b=keep_b, question_b=question_b)
    size = len(keep_b)
    length_b, text_length_b = (jnp.sum(x * x, axis=-1) for x in (video_bd, text_bd))
    largest = jnp.sqrt(jnp.max(length_b) * jnp.max(text_length_b)) + jnp.log(jnp.float32(size))
    bounded = largest < _SAFE_EXPONENT

    def among(sizes: tuple[int, ...], *args: jax.Array) -> tuple[jax.Array, ...]:
        ways: list[Any] = [functools.partial(_gathered, gradient, rung) for rung in sizes[:-1]]
        ways += [functools.partial(_dense, gradient, quick) for quick in (True, False)]
        which = jnp.searchsorted(jnp.asarray(sizes), jnp.sum(args[2]))
        return jax.lax.switch(jnp.where(bounded, which, len(sizes)), ways, *args)

    return jax.lax.platform_dependent(
        video_bd, text_bd, keep_b, question_b,
        cpu=functools.partial(among, rungs(size)), default=functools.partial(among, (size,)),
    )  # fmt: skip


def _gathered(gradient: bool, rung: int, *args: jax.Array) -> tuple[jax.Array, ...]:
    """`_dense` over `rung` rows, all kept ones among them."""
    row_m = jnp.argsort(~args[2], stable=True)[:rung]
    value, *grads = _dense(gradient, True, *(x[row_m] for x in args))
    # Rows that were not brought along have no gradient; each place is written once.
    return value, *(jnp.zeros_like(x).at[row_m].set(g) for x, g in zip(args, grads, strict=False))


def _dense(
    gradient: bool,
    quick: bool,
    video_md: jax.Array,
    text_gd: jax.Array,
    keep_m: jax.Array,
    question_m: jax.Array,
) -> tuple[jax.Array, ...]:
    """`_square` over all rows given; `quick` takes exponentials as they are, without a maximum."""
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
