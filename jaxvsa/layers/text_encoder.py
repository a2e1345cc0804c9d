"""RoBERTa and BERT encoders: ids and masks in, one vector per token out.

Source: RoBERTa (Liu et al., 2019) and BERT (Devlin et al., 2019) as computed by Hugging Face
transformers; `VC-CSA` uses RoBERTa-base, `VC-CSA code, model_VCCSA.py`.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.attention import masked_softmax

_INIT = nn.initializers.normal(0.02)


class EncoderLayer(nn.Module):
    """One post-norm block: self-attention, then a GELU network, each with residual and LayerNorm.

    Source: BERT, section 3; dropout on the attention probabilities and after both output
    projections, before each residual sum.

    Attributes:
        num_heads: heads h; divides the width u.
        mlp_width: width i of the inner layer.
        norm_eps: epsilon of the LayerNorms.
        dropout: rate after both output projections.
        attention_dropout: rate on the attention probabilities.
        precision: parameter and compute types.
    """

    num_heads: int
    mlp_width: int
    norm_eps: float
    dropout: float
    attention_dropout: float
    precision: Precision

    @nn.compact
    def __call__(
        self, x_blu: jax.Array, keep_bl: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """(b,l,u), bool (b,l) -> ((b,l,u), None); the pair is what `nn.scan` expects."""
        width = x_blu.shape[-1]
        types = _types(self.precision)
        dense = functools.partial(nn.Dense, kernel_init=_INIT, **types)
        norm = functools.partial(_norm, epsilon=self.norm_eps, **types)
        drop = functools.partial(nn.Dropout, deterministic=deterministic)

        def heads(name: str) -> jax.Array:
            flat_blu = dense(features=width, name=name)(x_blu)
            return flat_blu.reshape(*x_blu.shape[:2], self.num_heads, width // self.num_heads)

        # Every token asks, pads included: VC-CSA's max-pool reads the pads' rows.
        q_bqhe, k_blhe, v_blhe = heads("query"), heads("key"), heads("value")
        logits_bhql = jnp.einsum(
            "bqhe,blhe->bhql", q_bqhe, k_blhe, preferred_element_type=island(x_blu)
        )
        logits_bhql *= q_bqhe.shape[-1] ** -0.5
        attn_bhql = masked_softmax(logits_bhql, keep_bl[:, None, None]).astype(v_blhe.dtype)
        attn_bhql = drop(rate=self.attention_dropout)(attn_bhql)
        out_bqhe = jnp.einsum("bhql,blhe->bqhe", attn_bhql, v_blhe)

        out_blu = dense(features=width, name="out")(out_bqhe.reshape(x_blu.shape))
        out_blu = drop(rate=self.dropout)(out_blu)
        x_blu = norm(name="norm_attention")(x_blu + out_blu)
        inner_bli = dense(features=self.mlp_width, name="mlp_in")(x_blu)
        inner_bli = jax.nn.gelu(inner_bli, approximate=False)
        out_blu = dense(features=width, name="mlp_out")(inner_bli)
        out_blu = drop(rate=self.dropout)(out_blu)
        return norm(name="norm_mlp")(x_blu + out_blu), None


class TextEncoder(nn.Module):
    """Embeddings and a stack of post-norm blocks; the last hidden state of every token is returned.

    Kept: as in PyTorch's `padding_idx`, the padding row of the word table (and, in RoBERTa, of the
    position table) takes part in the forward pass and has zero gradient.
    Chosen: in BERT every pad takes position 0 (there, transformers counts on through the pads), so
    that all pads of a row are identical and the padded length cannot change any output.

    Attributes:
        kind: "roberta" counts positions from pad_id + 1 and gives pads position pad_id; "bert"
            counts from 0.
        vocab_size: rows of the word table.
        width: u, divisible by `num_heads`.
        num_layers: blocks.
        num_heads: heads h.
        mlp_width: inner width of a block's network.
        max_positions: rows of the position table; RoBERTa can use pad_id + 1 fewer.
        num_types: rows of the token type table, of which row 0 is used.
        norm_eps: epsilon of the LayerNorms.
        pad_id: id of padding.
        dropout: rate after the embeddings' LayerNorm and after each output projection.
        attention_dropout: rate on the attention probabilities.
        unroll: unroll the loop over layers: the same parameters (layers, ...) and function, slower
            to compile, less temporary memory.
        precision: parameter and compute types.
    """

    kind: Literal["roberta", "bert"]
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int
    num_types: int
    norm_eps: float
    pad_id: int
    dropout: float
    attention_dropout: float
    unroll: bool
    precision: Precision

    @nn.compact
    def __call__(self, ids_bl: jax.Array, keep_bl: jax.Array, deterministic: bool) -> jax.Array:
        """int32 (b,l) with pad_id at pads, bool (b,l) True = real -> (b,l,u) in the compute type.

        Every row needs at least one real token. Randomness of dropout: rng collection "dropout".

        Raises:
            UserError: unknown kind, a width that the heads do not divide, or more tokens than
                positions.
            ValueError: the arguments' shapes differ.
        """
        self._check(bind_dims(ids_bl=ids_bl, keep_bl=keep_bl)["l"])
        x_blu = self._embed(ids_bl, keep_bl)
        x_blu = nn.Dropout(rate=self.dropout, deterministic=deterministic)(x_blu)
        stack = nn.scan(
            EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.num_layers,
            unroll=self.num_layers if self.unroll else 1,
        )
        layers = stack(
            num_heads=self.num_heads,
            mlp_width=self.mlp_width,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            precision=self.precision,
            name="layers",
        )
        return layers(x_blu, keep_bl, deterministic)[0]

    def _check(self, num_tokens: int) -> None:
        if self.kind not in ("roberta", "bert"):
            raise UserError(f"unknown text encoder kind '{self.kind}'; known: roberta, bert")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise UserError(
                f"text encoder: width {self.width} is not a multiple of num_heads {self.num_heads}"
            )
        usable = self.max_positions - (self.pad_id + 1 if self.kind == "roberta" else 0)
        if num_tokens > usable:
            raise UserError(
                f"text encoder: {num_tokens} tokens, but its positions allow {usable}; "
                "lower data.text_len"
            )

    def _embed(self, ids_bl: jax.Array, keep_bl: jax.Array) -> jax.Array:
        """Sum of word, position and type rows, normalised."""
        held = self.pad_id if self.kind == "roberta" else None
        types = _types(self.precision)
        row = functools.partial(_Rows, width=self.width, param_dtype=types["param_dtype"])
        if self.kind == "roberta":
            real_bl = (ids_bl != self.pad_id).astype(jnp.int32)
            at_bl = jnp.cumsum(real_bl, axis=1) * real_bl + self.pad_id
        else:
            at_bl = jnp.where(keep_bl, jnp.arange(ids_bl.shape[1])[None], 0)
        x_blu = row(num_rows=self.vocab_size, held=self.pad_id, name="word")(ids_bl)
        x_blu += row(num_rows=self.max_positions, held=held, name="position")(at_bl)
        x_blu += row(num_rows=self.num_types, held=None, name="type")(jnp.zeros_like(ids_bl))
        return _norm(name="norm_embed", epsilon=self.norm_eps, **types)(x_blu)


class _Rows(nn.Module):
    """Embedding table whose row `held` starts at zero and gets no gradient."""

    num_rows: int
    width: int
    held: int | None
    param_dtype: Any

    @nn.compact
    def __call__(self, index_bl: jax.Array) -> jax.Array:
        def init(rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
            table = _INIT(rng, shape, dtype)
            return table if self.held is None else table.at[self.held].set(0)

        table = self.param("embedding", init, (self.num_rows, self.width), self.param_dtype)
        x_blu = table[index_bl]
        if self.held is None:
            return x_blu
        return jnp.where((index_bl == self.held)[..., None], jax.lax.stop_gradient(x_blu), x_blu)


def _types(precision: Precision) -> dict[str, Any]:
    return {"dtype": precision.compute_dtype, "param_dtype": precision.param_dtype}


def _norm(**fields: Any) -> nn.LayerNorm:
    # E[x^2] - E[x]^2 loses digits that parity with PyTorch needs.
    return nn.LayerNorm(use_fast_variance=False, **fields)
