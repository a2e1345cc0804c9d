"""RoBERTa and BERT encoders: packed ids in, one vector per token out.

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
from jaxvsa.layers.attention import masked_softmax, pair_number
from jaxvsa.layers.dropout import Dropout, value_number
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.transformer import INIT, dense, gelu, layer_norm


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
        self, x_nu: jax.Array, packing: Packing, sight: Sight, deterministic: bool
    ) -> jax.Array:
        """(n,u) -> (n,u)."""
        width = x_nu.shape[-1]
        linear = functools.partial(dense, precision=self.precision)
        norm = functools.partial(layer_norm, epsilon=self.norm_eps, precision=self.precision)

        def heads(name: str) -> jax.Array:
            flat_kqu = packing.blocks(linear(width, name)(x_nu))
            return flat_kqu.reshape(*flat_kqu.shape[:2], self.num_heads, width // self.num_heads)

        def drop(name: str, out_nu: jax.Array) -> jax.Array:
            example_n1 = sight.example_kq.reshape(-1, 1)
            number_nu = value_number(packing.place_n, width)
            return Dropout(self.dropout, name=name)(out_nu, example_n1, number_nu, deterministic)

        # Every token asks, pads included: VC-CSA's max-pool reads the pads' rows.
        q_kqhe, k_kqhe, v_kqhe = heads("query"), heads("key"), heads("value")
        out_nu = self.attend(q_kqhe, packing.around(k_kqhe), packing.around(v_kqhe), sight,
                             deterministic).reshape(x_nu.shape)  # fmt: skip
        out_nu = drop("drop_out", linear(width, "out")(out_nu))
        x_nu = norm("norm_attention")(x_nu + out_nu)
        inner_ni = gelu(linear(self.mlp_width, "mlp_in")(x_nu))
        out_nu = drop("drop_mlp", linear(width, "mlp_out")(inner_ni))
        return norm("norm_mlp")(x_nu + out_nu)

    def attend(
        self,
        q_kqhe: jax.Array,
        k_kzhe: jax.Array,
        v_kzhe: jax.Array,
        sight: Sight,
        deterministic: bool,
    ) -> jax.Array:
        """Softmax attention within `sight`, (k,q,h,e)."""
        logits_khqz = jnp.einsum(
            "kqhe,kzhe->khqz", q_kqhe, k_kzhe, preferred_element_type=island(q_kqhe)
        )
        logits_khqz *= q_kqhe.shape[-1] ** -0.5
        attn_khqz = masked_softmax(logits_khqz, sight.keep_kqz[:, None]).astype(v_kzhe.dtype)
        number_kqhz = pair_number(sight.place_kq, sight.place_kz, self.num_heads)
        attn_khqz = Dropout(self.attention_dropout, name="drop_attention")(
            attn_khqz,
            sight.example_kq[:, None, :, None],
            jnp.swapaxes(number_kqhz, 1, 2),
            deterministic,
        )
        return jnp.einsum("khqz,kzhe->kqhe", attn_khqz, v_kzhe)


class TextEncoder(nn.Module):
    """Embeddings and a stack of post-norm blocks; the last hidden state of every token is returned.

    Every block has parameters of its own (layer_0, ...): a scan over stacked ones compiles faster,
    but copies all parameters and gradients, which takes 6 % of a training step on CPU.

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
    precision: Precision

    @nn.compact
    def __call__(
        self, ids_n: jax.Array, packing: Packing, sight: Sight, deterministic: bool
    ) -> jax.Array:
        """One vector (n,u) per packed token, in the compute type.

        Args:
            ids_n: int32 token ids of all rows, `pad_id` at padding.
            packing: where the rows lie.
            sight: from `Sight.of`; what is real there is no padding.
            deterministic: no dropout; its randomness is the rng collection "dropout".

        Raises:
            UserError: unknown kind, a width that the heads do not divide, or more tokens than
                positions.
            ValueError: the arguments' shapes differ.
        """
        bind_dims(ids_n=ids_n, row_n=packing.row_n)
        self._check(packing.index_bl.shape[1])
        x_nu = self._embed(ids_n, packing.place_n)
        example_n1 = sight.example_kq.reshape(-1, 1)
        number_nu = value_number(packing.place_n, self.width)
        x_nu = Dropout(self.dropout, name="drop")(x_nu, example_n1, number_nu, deterministic)
        for i in range(self.num_layers):
            layer = EncoderLayer(
                self.num_heads,
                self.mlp_width,
                self.norm_eps,
                self.dropout,
                self.attention_dropout,
                self.precision,
                name=f"layer_{i}",
            )
            x_nu = layer(x_nu, packing, sight, deterministic)
        return x_nu

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

    def _embed(self, ids_n: jax.Array, place_n: jax.Array) -> jax.Array:
        """Sum of word, position and type rows, normalised."""
        held = self.pad_id if self.kind == "roberta" else None
        row = functools.partial(_Rows, width=self.width, param_dtype=self.precision.param_dtype)
        first, pad_at = (self.pad_id + 1, self.pad_id) if self.kind == "roberta" else (0, 0)
        at_n = jnp.where(ids_n == self.pad_id, pad_at, place_n + first)
        x_nu = row(num_rows=self.vocab_size, held=self.pad_id, name="word")(ids_n)
        x_nu += row(num_rows=self.max_positions, held=held, name="position")(at_n)
        x_nu += row(num_rows=self.num_types, held=None, name="type")(jnp.zeros_like(ids_n))
        return layer_norm("norm_embed", self.norm_eps, self.precision)(x_nu)


class _Rows(nn.Module):
    """Embedding table whose row `held` starts at zero and gets no gradient."""

    num_rows: int
    width: int
    held: int | None
    param_dtype: Any

    @nn.compact
    def __call__(self, index_n: jax.Array) -> jax.Array:
        def init(rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
            table = INIT(rng, shape, dtype)
            return table if self.held is None else table.at[self.held].set(0)

        table = self.param("embedding", init, (self.num_rows, self.width), self.param_dtype)
        x_nu = table[index_n]
        if self.held is None:
            return x_nu
        return jnp.where((index_n == self.held)[:, None], jax.lax.stop_gradient(x_nu), x_nu)
