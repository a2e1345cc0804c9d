"""Likelihood of answers; pure functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvsa.core.precision import island


def token_losses(logits_bav: jax.Array, answer_ba: jax.Array) -> jax.Array:
    """Negative log likelihood of every token, (b,a), in at least float32.

    Source: MTransLLAMA, Eq. 3: what the language model says to the answer, token by token.

    Args:
        logits_bav: scores of each token given those before it.
        answer_ba: int32 tokens.
    """
    wide_bav = logits_bav.astype(island(logits_bav))
    chosen_ba = jnp.take_along_axis(wide_bav, answer_ba[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(wide_bav, axis=-1) - chosen_ba


def mean_likelihood(
    logits_bcyv: jax.Array, choice_bcy: jax.Array, length_bc: jax.Array
) -> jax.Array:
    """Log likelihood per token of every answer, (b,c): a long one has no handicap.

    Source: MTransLLAMA specification, section 4, `rank`; the ranking of LAVIS.

    Args:
        logits_bcyv: scores of each token given those before it.
        choice_bcy: int32 tokens.
        length_bc: int32, real tokens; 0 for an answer that is not offered, which gets -inf.
    """
    batch, count, length = choice_bcy.shape
    flat_xyv = logits_bcyv.reshape(batch * count, length, -1)
    loss_bcy = token_losses(flat_xyv, choice_bcy.reshape(batch * count, length)).reshape(
        choice_bcy.shape
    )
    real_bcy = jnp.arange(length)[None, None] < length_bc[..., None]
    total_bc = -jnp.sum(jnp.where(real_bcy, loss_bcy, 0), axis=-1)
    mean_bc = total_bc / jnp.maximum(length_bc, 1).astype(total_bc.dtype)
    return jnp.where(length_bc > 0, mean_bc, -jnp.inf)
