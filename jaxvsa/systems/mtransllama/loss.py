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
