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
from jaxvsa.layers.packed import Packing


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
        video_md: jax.Array,
        shots: Packing,
        count_b: jax.Array,
        text_nu: jax.Array | None,
        words: Packing | None,
        length_b: jax.Array | None,
        token_kw: jax.Array,
        example_b: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns token rows (b,k,w) and their attention (b,k,h,z) over frames, tokens, words.

        Args:
            video_md: packed frames of one scale.
            shots: where the frames of a row lie.
            count_b: its real frames: the others are never seen.
            text_nu: packed words; None without text, like the two that follow.
            words: where the words of a row lie.
            length_b: its real words.
            token_kw: the learned tokens.
            example_b: number of the example, keys the dropout.
            deterministic: no dropout.
        """
        options = self.options
        shape = (len(count_b), *token_kw.shape)
        parts = [shots.unpack(self.project("video", video_md)), jnp.broadcast_to(token_kw, shape)]
        counts = [count_b, jnp.full_like(count_b, options.num_tokens)]
        if text_nu is not None and words is not None and length_b is not None:
            parts.append(words.unpack(self.project("text", text_nu)))
            counts.append(length_b)
        x_bzw = jnp.concatenate(parts, axis=1)
        place_z = [jnp.arange(part.shape[1]) for part in parts]
        keeps = [at[None] < count[:, None] for at, count in zip(place_z, counts, strict=True)]
        keep_bz = jnp.concatenate(keeps, axis=1)
        kind_z = jnp.concatenate([jnp.full_like(at, kind) for kind, at in enumerate(place_z)])
        # Numbers that do not depend on how far frames and words are padded.
        place_1z = (jnp.concatenate(place_z) + kind_z * 2048)[None]
        example_b1 = example_b[:, None]
        see_qz = (kind_z[:, None] == kind_z[None]) | (kind_z == 1)[:, None] | (kind_z == 1)[None]
        keep_bqz = keep_bz[:, None] & see_qz[None] if options.masked else keep_bz[:, None]
        num_rows = parts[0].shape[1]
        tokens = slice(num_rows, num_rows + options.num_tokens)
        for layer in range(options.num_layers):
            last = layer == options.num_layers - 1
            attend = MultiHeadAttention(
                options.num_heads, self.dropout, last, self.precision, name=f"layer_{layer}"
            )
            if last:
                at_1k, keep_bqz = place_1z[:, tokens], keep_bz[:, None]
                return attend(
                    x_bzw[:, tokens], x_bzw, keep_bqz, example_b1, at_1k, place_1z, deterministic
                )
            x_bzw, _ = attend(x_bzw, x_bzw, keep_bqz, example_b1, place_1z, place_1z, deterministic)
        raise UserError(f"num_layers is {options.num_layers}; at least 1 is needed")

    def project(self, name: str, x_nd: jax.Array) -> jax.Array:
        """Linear layer of torch's initialisation and ReLU, (n,d) -> (n,w)."""
        init, shape = uniform_fan_in(x_nd.shape[-1]), (x_nd.shape[-1], self.options.width)
        kernel = self.param(f"{name}_kernel", init, shape, self.precision.param_dtype)
        bias = self.param(f"{name}_bias", init, shape[1:], self.precision.param_dtype)
        compute = self.precision.compute_dtype
        return jax.nn.relu(x_nd @ kernel.astype(compute) + bias.astype(compute)[None])
