"""VC-CSA: opinion and emotion of a comment, given the video that it answers.

Source: VC-CSA (NeurIPS 2024 D&B, arXiv 2407.06115) and its published code. The parts, in order:
text encoder -> temporal pyramid -> consensus (per scale) -> grounding (LSTM over attention) ->
attention of words over scales -> fusion -> final text attention -> max-pool -> heads.

The same function as the published one, computed with fewer operations (each proved exact in
tests/systems/vccsa): only the token rows of the consensus attention are computed, keys and values
folded into them; all scales go through grounding and LSTM in one batch; words of all comments lie
on one axis without padding but for one row each, for all padding rows of a comment are one row; so
do the frames of all videos, with the few rows where their padding is not constant.

Kept, each with a switch in `Padding`: padded frames and words take part where the published code
lets them. Deviation: none in the default function; its label and checkpoint bugs are not here.

Parameters (kernel shapes are input first): text/..., pyramid/{project,conv}_{kernel,bias}[_i],
token (k,w), consensus/{video,text}_{kernel,bias} and consensus/layer_i/... with a leading scale
axis, grounding/{query,key}_kernel, grounding/query_bias, cell/{input,hidden}_{kernel,bias},
words_{kernel,bias}, scales_kernel, fusion_{text,video}_kernel, fusion_bias, final/...,
head_<task>_{kernel,bias}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxvsa.core.config import build
from jaxvsa.core.precision import Precision, island
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.attention import AttentionLogits, MultiHeadAttention, masked_softmax
from jaxvsa.layers.consensus import Consensus, ConsensusOptions
from jaxvsa.layers.dropout import Dropout
from jaxvsa.layers.initializers import uniform_fan_in
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.temporal import FinalCell, TemporalPyramid, full_rows
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.systems.vccsa.inputs import Shots, Words


@dataclasses.dataclass(frozen=True)
class Padding:
    """Where padding is kept out of the function; all False is the published code.

    Attributes:
        mask_frames: padded frames are zeroed before each convolution.
        mask_grounding: padded frames get no attention from the consensus tokens.
        stop_cell: the LSTM stops at the last real frame.
        mask_gate: gates of padded frames are closed.
        mask_pool: the final maximum runs over real words only.
    """

    mask_frames: bool
    mask_grounding: bool
    stop_cell: bool
    mask_gate: bool
    mask_pool: bool


class Read(struct.PyTreeNode):
    """Encoded comments: one vector per packed word, which of them are real, and where they lie."""

    text_nu: jax.Array
    real_n: jax.Array
    packing: Packing
    sight: Sight
    length_b: jax.Array


class VCCSA(nn.Module):
    """Video-comment consensus sentiment analysis.

    Source: VC-CSA, section 4 and supplement, Table 1; published code, main model.
    Chosen: `variant` "text" uses no video path (its share of the fusion is zero); "video" uses no
    text: heads stand on the mean over scales of the grounded frames, and the consensus sequence
    holds frames and tokens only. Several tokens are grounded one by one and averaged.

    Attributes:
        variant: which inputs are used.
        visual_length: padded frames V; also the units of the grounding LSTM, unit v being the
            gate of frame v.
        visual_width: width d of the pyramid.
        num_scales: scales s of the pyramid.
        consensus: see `ConsensusOptions`.
        grounding_heads: heads h of the grounding attention; must divide the consensus width.
        aspect_width: width in which words attend over scales.
        final_heads: heads of the final text attention; must divide the text width.
        dropout: rate on all attention weights here and before the heads.
        padding: see `Padding`.
        num_classes: classes per task.
        text: the text encoder; None in variant "video".
        precision: dtypes.
    """

    variant: Literal["both", "text", "video"]
    visual_length: int
    visual_width: int
    num_scales: int
    consensus: ConsensusOptions
    grounding_heads: int
    aspect_width: int
    final_heads: int
    dropout: float
    padding: Padding
    num_classes: Mapping[str, int]
    text: TextEncoder | None
    precision: Precision

    @nn.compact
    def __call__(
        self, words: Words | None, shots: Shots | None, example_b: jax.Array, deterministic: bool
    ) -> dict[str, jax.Array]:
        """Logits of every task, (b,c) in at least float32.

        Args:
            words: the comments; None in variant "video".
            shots: their videos; None in variant "text".
            example_b: int32 number of the example, keys the dropout.
            deterministic: no dropout.

        Raises:
            ValueError: shapes disagree, or a row has more frames than `visual_length`.
        """
        words = None if self.variant == "video" else words
        shots = None if self.variant == "text" else shots
        text, grounded_sbd = None, None
        if words is not None and self.text is not None:
            text = self.read(self.text, words, example_b, deterministic)
        if shots is not None:
            grounded_sbd = self.ground(shots, text, example_b, deterministic)
        if text is not None:
            pooled_bd = self.fuse(text, grounded_sbd, deterministic)
        elif grounded_sbd is not None:
            pooled_bd = jnp.mean(grounded_sbd, axis=0)
        else:
            raise ValueError(f"variant '{self.variant}' was given none of its inputs")
        self.sow("intermediates", "final_feature", pooled_bd)
        pooled_bd = Dropout(self.dropout, name="drop_final")(
            pooled_bd, example_b[:, None], jnp.arange(pooled_bd.shape[1])[None], deterministic
        )
        return {task: self.head(task, size, pooled_bd) for task, size in self.num_classes.items()}

    def read(
        self, encoder: TextEncoder, words: Words, example_b: jax.Array, deterministic: bool
    ) -> Read:
        """Encodes the words."""
        bind_dims(word_bl=words.word_bl, length_b=words.length_b, example_b=example_b)
        packing = Packing.of(words.word_bl, len(words.ids_n))
        real_n = (packing.row_n >= 0) & (packing.place_n < words.length_b[packing.row_n])
        sight = Sight.of(packing, real_n, example_b[packing.row_n])
        text_nu = encoder(words.ids_n, packing, sight, deterministic)
        self.sow("intermediates", "text_token_features", packing.unpack(text_nu))
        return Read(text_nu, real_n, packing, sight, words.length_b)

    def head(self, task: str, num_classes: int, pooled_bd: jax.Array) -> jax.Array:
        """(b,d) -> logits (b,c)."""
        wide = island(pooled_bd)
        width = pooled_bd.shape[-1]
        init, store = uniform_fan_in(width), self.precision.param_dtype
        kernel_dc = self.param(f"head_{task}_kernel", init, (width, num_classes), store)
        bias_c = self.param(f"head_{task}_bias", init, (num_classes,), store)
        return (
            jnp.einsum("bd,dc->bc", pooled_bd.astype(wide), kernel_dc.astype(wide))
            + bias_c.astype(wide)[None]
        )

    def ground(
        self, shots: Shots, text: Read | None, example_b: jax.Array, deterministic: bool
    ) -> jax.Array:
        """Frames of every scale, weighted by their gates and summed: (s,b,d)."""
        dims = bind_dims(shot_bt=shots.shot_bt, count_b=shots.count_b, example_b=example_b)
        full = self.visual_length
        if dims["t"] > full:
            raise ValueError(f"shot_bt has {dims['t']} frames, visual_length is {full}")
        packing = Packing.of(shots.shot_bt, len(shots.video_mf))
        keep_m = (packing.row_n >= 0) & (packing.place_n < shots.count_b[packing.row_n])
        projected_md, x_smd = TemporalPyramid(
            self.num_scales, self.visual_width, self.padding.mask_frames, self.precision,
            name="pyramid",
        )(shots.video_mf, packing, keep_m)  # fmt: skip
        x_sbtd = jax.vmap(packing.unpack)(x_smd)
        row_bv = full_rows(shots.count_b, self.num_scales, full)
        self.sow_full("visual_encoded", packing.unpack(projected_md)[None], row_bv)
        self.sow_full("cnn_features", x_sbtd, row_bv)

        consensus_sbkw = self.consense(
            x_smd, packing, shots.count_b, text, example_b, deterministic
        )
        gate_sbkv = self.gates(
            consensus_sbkw, x_sbtd, row_bv, shots.count_b, example_b, deterministic
        )
        gate_sbv = jnp.mean(gate_sbkv, axis=2)
        # Rows that stand for several frames get the sum of their gates. A product with ones and
        # zeros adds in a fixed order on every device, which a scatter does not.
        pick_bvt = jax.nn.one_hot(row_bv, dims["t"], dtype=gate_sbv.dtype)
        gate_sbt = jnp.einsum(
            "sbv,bvt->sbt", gate_sbv, pick_bvt, precision=jax.lax.Precision.HIGHEST
        )
        gate_sbt = gate_sbt.astype(x_sbtd.dtype)
        grounded_sbd = jnp.einsum("sbt,sbtd->sbd", gate_sbt, x_sbtd)
        self.sow("intermediates", "grounding_features", jnp.moveaxis(grounded_sbd, 0, 1))
        return grounded_sbd

    def consense(
        self,
        x_smd: jax.Array,
        packing: Packing,
        count_b: jax.Array,
        text: Read | None,
        example_b: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Consensus tokens of every scale, (s,b,k,w); padded frames are never keys."""
        options, compute = self.consensus, self.precision.compute_dtype
        token_kw = self.param(
            "token",
            nn.initializers.uniform(1.0),
            (options.num_tokens, options.width),
            self.precision.param_dtype,
        ).astype(compute)
        per_scale: Any = nn.vmap(
            Consensus,
            in_axes=(0, *(None,) * 8),
            out_axes=0,
            axis_size=self.num_scales,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )(options, self.dropout, self.precision, name="consensus")
        words = (None,) * 3 if text is None else (text.text_nu, text.packing, text.length_b)
        consensus_sbkw, attn_sbkhz = per_scale(
            x_smd, packing, count_b, *words, token_kw, example_b, deterministic
        )
        self.sow("intermediates", "consensus_features", jnp.moveaxis(consensus_sbkw, 0, 1))
        attn_bskz = jnp.moveaxis(jnp.mean(attn_sbkhz, axis=3), 0, 1)
        num_rows = packing.index_bl.shape[1]
        rows = ((0, 0), (0, 0), (0, 0), (0, self.visual_length - num_rows))
        self.sow(
            "intermediates",
            "consensus_attention_rows",
            jnp.concatenate(
                [jnp.pad(attn_bskz[..., :num_rows], rows), attn_bskz[..., num_rows:]], axis=-1
            ),
        )
        return consensus_sbkw

    def gates(
        self,
        consensus_sbkw: jax.Array,
        x_sbtd: jax.Array,
        row_bv: jax.Array,
        count_b: jax.Array,
        example_b: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Gate of every frame for every token: (s,b,k,v), zero or above.

        Source: VC-CSA code: attention of the token over frames, per head, is the input sequence
        of an LSTM with as many units as frames; ReLU of its last cell state is the gate.
        """
        scales, batch, num_tokens, width = consensus_sbkw.shape
        short, full = x_sbtd.shape[2], self.visual_length
        merged = scales * batch
        logits_nkht = AttentionLogits(self.grounding_heads, self.precision, name="grounding")(
            consensus_sbkw.reshape(merged, num_tokens, width),
            x_sbtd.reshape(merged, short, -1),
        )
        logits_nkht = logits_nkht.astype(island(logits_nkht))
        pick_bvt = jax.nn.one_hot(row_bv, short, dtype=logits_nkht.dtype)
        logits_nkhv = jnp.einsum(
            "nkht,nvt->nkhv",
            logits_nkht,
            jnp.tile(pick_bvt, (scales, 1, 1)),
            precision=jax.lax.Precision.HIGHEST,
        )
        real_bv = jnp.arange(full)[None] < count_b[:, None]
        real_nv = jnp.tile(real_bv, (scales, 1))
        every = jnp.ones_like(real_nv)
        seen_nv = real_nv if self.padding.mask_grounding else every
        attn_nkhv = masked_softmax(logits_nkhv, seen_nv[:, None, None])
        self.sow("intermediates", "grounding_attention", attn_nkhv)
        # Kept: the weights reach the LSTM after dropout.
        attn_nkhv = Dropout(self.dropout, name="drop_grounding")(
            attn_nkhv, *weight_numbers(attn_nkhv.shape, example_b), deterministic
        )
        run_nv = real_nv if self.padding.stop_cell else every
        cell_mv = FinalCell(full, self.precision, name="cell")(
            jnp.swapaxes(attn_nkhv, 2, 3).reshape(merged * num_tokens, full, -1),
            jnp.repeat(run_nv, num_tokens, axis=0),
        )
        cell_sbkv = cell_mv.reshape(scales, batch, num_tokens, full)
        self.sow("intermediates", "lstm_cell_final", jnp.moveaxis(cell_sbkv, 0, 1))
        gate_sbkv = jax.nn.relu(cell_sbkv)
        if self.padding.mask_gate:
            gate_sbkv = jnp.where(real_bv[None, :, None], gate_sbkv, 0)
        self.sow("intermediates", "cg_score", jnp.moveaxis(gate_sbkv, 0, 1))
        return gate_sbkv

    def fuse(self, text: Read, grounded_sbd: jax.Array | None, deterministic: bool) -> jax.Array:
        """Words joined with what the video says of them, attended and pooled: (b,u)."""
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        text_nu, packing, sight = text.text_nu, text.packing, text.sight
        width = text_nu.shape[-1]
        fan_in = width + (0 if grounded_sbd is None else self.visual_width)

        def param(name: str, fan_in: int, *shape: int) -> jax.Array:
            return self.param(name, uniform_fan_in(fan_in), shape, store).astype(compute)

        text_uu = param("fusion_text_kernel", fan_in, width, width)
        bias_u = param("fusion_bias", fan_in, width)
        pre_nu = text_nu @ text_uu + bias_u[None]
        if grounded_sbd is not None:
            dims = {"d": grounded_sbd.shape[-1], "a": self.aspect_width}
            words_ua = param("words_kernel", width, width, dims["a"])
            words_a = param("words_bias", width, dims["a"])
            scales_da = param("scales_kernel", dims["d"], dims["d"], dims["a"])
            video_du = param("fusion_video_kernel", fan_in, dims["d"], width)
            words_bla = packing.unpack(text_nu @ words_ua + words_a[None])
            scales_sba = jnp.einsum("sbd,da->sba", grounded_sbd, scales_da)
            logits_bls = jnp.einsum("bla,sba->bls", words_bla, scales_sba)
            attn_bls = masked_softmax(logits_bls, jnp.ones((), bool))
            self.sow("intermediates", "multiview_attention", attn_bls)
            attn_bls = attn_bls.astype(compute)
            self.sow(
                "intermediates",
                "multiview_fused",
                jnp.einsum("bls,sbd->bld", attn_bls, grounded_sbd),
            )
            # Projecting the few scales instead of their mixture for every word: same product.
            video_sbu = jnp.einsum("sbd,du->sbu", grounded_sbd, video_du)
            mixed_nu = packing.pack(jnp.einsum("bls,sbu->blu", attn_bls, video_sbu))
            pre_nu += jnp.where(text.real_n[:, None], mixed_nu, 0)
        pre_nu = jax.nn.relu(pre_nu)
        self.sow("intermediates", "text_fusion_pre", packing.unpack(pre_nu))
        pre_kqu = packing.blocks(pre_nu)
        final_kqu, _ = MultiHeadAttention(
            self.final_heads, self.dropout, False, self.precision, name="final"
        )(
            pre_kqu, pre_kqu, sight.keep_kqz, sight.example_kq, sight.place_kq, sight.place_kz,
            deterministic, around=packing.around,
        )  # fmt: skip
        final_blu = packing.unpack(final_kqu.reshape(pre_nu.shape))
        self.sow("intermediates", "text_fusion", final_blu)
        length = text.length_b if self.padding.mask_pool else jnp.sum(packing.index_bl >= 0, axis=1)
        inside_bl = jnp.arange(final_blu.shape[1])[None] < length[:, None]
        return jnp.max(jnp.where(inside_bl[..., None], final_blu, -jnp.inf), axis=1)

    def sow_full(self, name: str, x_sbtd: jax.Array, row_bv: jax.Array) -> None:
        """Stores a shortened array for inspection at its full length, as (b,s,v,d)."""
        full_sbvd = jnp.take_along_axis(x_sbtd, row_bv[None, :, :, None], axis=2)
        self.sow("intermediates", name, jnp.moveaxis(full_sbvd, 0, 1))


def weight_numbers(shape: tuple[int, ...], example_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Example and number within it of the weights (s*b,k,h,v) of all scales, for the dropout."""
    scales, inner = shape[0] // len(example_b), shape[1:]
    size = inner[0] * inner[1] * inner[2]
    within = jnp.arange(size, dtype=jnp.uint32).reshape(1, *inner)
    scale_n = jnp.repeat(jnp.arange(scales, dtype=jnp.uint32), len(example_b))
    example_n = jnp.tile(example_b, scales)
    return example_n[:, None, None, None], scale_n[:, None, None, None] * size + within


def build_model(
    section: Mapping[str, Any], num_classes: Mapping[str, int], vocab_size: int, pad_id: int
) -> VCCSA:
    """The module of a configuration's section `model`.

    Args:
        section: plain values.
        num_classes: task -> classes.
        vocab_size: rows of the word embedding.
        pad_id: padding token.

    Raises:
        UserError: an unknown, missing or mistyped key.
    """
    section = dict(section)
    precision = build(Precision, section.pop("precision", {}), "config.model.precision")
    text = build(
        TextEncoder,
        section.pop("text", {}),
        "config.model.text",
        vocab_size=vocab_size,
        pad_id=pad_id,
        precision=precision,
    )
    return build(
        VCCSA,
        section,
        "config.model",
        num_classes=num_classes,
        text=None if section.get("variant") == "video" else text,
        precision=precision,
    )
