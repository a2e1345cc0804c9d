"""Consensus attention: learned tokens that look at frames and words at once."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.attention import MultiHeadAttention
from jaxvsa.layers.initializers import uniform_fan_in


@dataclasses.dataclass(frozen=True)
class ConsensusOptions:
    """Consensus attention of one scale.

    Attributes:
        width: sequence width w.
        num_heads: heads; must divide the width.
        num_layers: attention layers (supplement, Table 1, second figure).
        num_tokens: learned tokens k (supplement, Table 1, third figure).
        masked: frames see frames and tokens, words see words and tokens, tokens see all. With one
            layer this changes nothing, since only token rows are used and they see all.
    """

    width: int
    num_heads: int
    num_layers: int
    num_tokens: int
    masked: bool


class Consensus(nn.Module):
    """Learned tokens that attend over the frames of one scale and the words.

    Source: VC-CSA code: only attention, without residual, norm or position; the tokens enter as
    they are, frames and words through a linear layer and ReLU.
    Chosen: several layers are the same attention applied again under the same masks; only the last
    layer's token rows are used, so only they are computed there.
    """

    options: ConsensusOptions
    dropout: float
    precision: Precision

    @nn.compact
    def __call__(
        self,
        video_btd: jax.Array,
        keep_bt: jax.Array,
        text_blu: jax.Array | None,
        keep_bl: jax.Array | None,
        token_kw: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns token rows (b,k,w) and their attention (b,k,h,z) over frames, tokens, words."""
        options = self.options
        batch, num_rows, _ = video_btd.shape
        token_bkw = jnp.broadcast_to(token_kw, (batch, *token_kw.shape))
        parts = [jax.nn.relu(self.linear("video", video_btd)), token_bkw]
        keeps = [keep_bt, jnp.ones(token_bkw.shape[:2], bool)]
        if text_blu is not None and keep_bl is not None:
            parts.append(jax.nn.relu(self.linear("text", text_blu)))
            keeps.append(keep_bl)
        x_bzw = jnp.concatenate(parts, axis=1)
        keep_bz = jnp.concatenate(keeps, axis=1)
        kind_z = jnp.repeat(
            jnp.arange(len(parts)),
            jnp.asarray([part.shape[1] for part in parts]),
            total_repeat_length=x_bzw.shape[1],
        )
        see_qz = (kind_z[:, None] == kind_z[None]) | (kind_z == 1)[:, None] | (kind_z == 1)[None]
        keep_bqz = keep_bz[:, None] & see_qz[None] if options.masked else keep_bz[:, None]
        tokens = slice(num_rows, num_rows + options.num_tokens)
        for layer in range(options.num_layers):
            last = layer == options.num_layers - 1
            attend = MultiHeadAttention(
                options.num_heads, self.dropout, last, self.precision, name=f"layer_{layer}"
            )
            if last:
                query_bkw, keep_bqz = x_bzw[:, tokens], keep_bz[:, None]
                return attend(query_bkw, x_bzw, keep_bqz, deterministic)
            x_bzw, _ = attend(x_bzw, x_bzw, keep_bqz, deterministic)
        raise UserError(f"num_layers is {options.num_layers}; at least 1 is needed")

    def linear(self, name: str, x: jax.Array) -> jax.Array:
        """Linear layer of torch's initialisation, (..., d) -> (..., w)."""
        init, shape = uniform_fan_in(x.shape[-1]), (x.shape[-1], self.options.width)
        kernel = self.param(f"{name}_kernel", init, shape, self.precision.param_dtype)
        bias = self.param(f"{name}_bias", init, shape[1:], self.precision.param_dtype)
        compute = self.precision.compute_dtype
        return x @ kernel.astype(compute) + bias.astype(compute)[None, None]
