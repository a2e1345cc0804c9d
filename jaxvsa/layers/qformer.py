"""Q-Former over the frames of a video: one self-attention, used over space and over time.

Source: MTransLLAMA, section III and Fig. 2; the image Q-Former is that of BLIP-2 (Li et al., 2023)
and, with text, of InstructBLIP (Dai et al., 2023). In a layer: attention over [queries; words] of a
frame (Eq. 7), the same block over the frames of each query (Eq. 9), attention to the frame's
patches (Eq. 8, every second layer), and one network for queries, another for words.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.bert_blocks import AttentionBlock, Dropped, FeedForward
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.routing import Router, RoutingOptions, band_masks, joint_masks
from jaxvsa.layers.tokens import Layout, Tokens, Words
from jaxvsa.layers.transformer import INIT, layer_norm


@dataclasses.dataclass(frozen=True)
class QFormerOptions:
    """Sizes and choices of a Q-Former.

    Attributes:
        num_layers: layers.
        width: d.
        num_heads: heads; divides the width.
        mlp_width: inner width of the networks.
        num_queries: q.
        vocab_size: rows of the word table; 0 without text (BLIP-2).
        max_positions: most words.
        cross_every: layers 0, k, 2k, ... attend to the patches.
        norm_eps: epsilon of the LayerNorms.
        max_frames: rows of the frame positions.
        temporal: attention over frames; False is the image model, frame by frame.
        temporal_gate: "none", as in the paper: one frame alone is changed, too; "zero": a learned
            gate that starts closed, so that a new model is the image model.
        order: attention over space, time and patches ("s-t-c"), or patches before time.
        temporal_tokens: which tokens attend over frames.
        dropout: rate after the embeddings' LayerNorm, on attention weights and before each
            residual sum, as in BERT; words are dropped in every frame anew.
        aggregate: what becomes of the frames: "mean", "max" or "last" of them gives q tokens,
            "concat" t q.
    """

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    num_queries: int
    vocab_size: int
    max_positions: int
    cross_every: int
    norm_eps: float
    max_frames: int
    temporal: bool
    temporal_gate: Literal["none", "zero"]
    order: Literal["s-t-c", "s-c-t"]
    temporal_tokens: Literal["query", "all"]
    dropout: float
    aggregate: Literal["mean", "concat", "max", "last"]

    def __post_init__(self) -> None:
        """Refuses a rate that is none."""
        if not 0 <= self.dropout < 1:
            raise UserError(f"qformer.dropout is {self.dropout}; it must be from 0 to below 1")


class QFormerLayer(nn.Module):
    """One layer; see the module's docstring.

    Attributes:
        num_masks: masks it chooses from.
        crosses: it attends to the patches.
        last: nothing reads its words: they are seen, but not computed.
        options: see `QFormerOptions`.
        lora: see `LoraOptions`.
        routing: see `RoutingOptions`.
        precision: parameter and compute types.
    """

    num_masks: int
    crosses: bool
    last: bool
    options: QFormerOptions
    lora: LoraOptions
    routing: RoutingOptions
    precision: Precision

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        keep_nz: jax.Array,
        frames_npf: jax.Array,
        num_frames: int,
        example_b: jax.Array,
        deterministic: bool,
        update: jax.Array | None,
        number: Tokens | None,
    ) -> Tokens:
        """Queries and words of every frame n of every example.

        Args:
            x: queries (n,q,d), and words if there are any.
            keep_nz: bool, real ones among both.
            frames_npf: patches.
            num_frames: n is the number of examples times this.
            example_b: numbers of the examples.
            deterministic: nothing is drawn.
            update: number of the update, if it is known.
            number: of the tokens `x`, see `QFormer.number`; None: nothing is dropped.
        """
        options = self.options
        kind = options.norm_eps, self.precision, options.dropout
        shared = (self.lora, self.routing.combine, *kind)
        drawn = deterministic, update
        own = AttentionBlock(options.num_heads, ("space", "time"), *shared, name="attention")
        weight_nm, sees_mqz = self.route_space(x, keep_nz, num_frames, example_b, *drawn)
        network = functools.partial(FeedForward, options.mlp_width, *kind)
        asks = x.rows() if self.last else x
        number = number if number is None or not self.last else number.rows()
        if self.last and self.is_initializing() and x.word_gjd is not None:
            network(name="mlp_word")(x.word_gjd)  # published models have it
        x = own(asks, x, keep_nz, "space", weight_nm, sees_mqz, number)

        def over_time(x: Tokens) -> Tokens:
            if not options.temporal:
                return x
            every = options.temporal_tokens == "all"
            moving, count = (x, number) if every else only_rows(x, number)
            x_nzd = self.attend_time(own, moving.joined(), num_frames, example_b, *drawn, count)
            moved = moving.split(x_nzd)
            return moved if moving is x else x.replace(row_bqd=moved.row_bqd)

        def to_patches(x: Tokens) -> Tokens:
            if not self.crosses:
                return x
            cross = AttentionBlock(options.num_heads, ("cross",), *shared, name="cross")
            every_np = jnp.ones(frames_npf.shape[:2], bool)
            asks, count = only_rows(x, number)
            found = cross(asks, Tokens(frames_npf), every_np, "cross", number=count)
            return x.replace(row_bqd=found.row_bqd)

        steps = (over_time, to_patches) if options.order == "s-t-c" else (to_patches, over_time)
        for step in steps:
            x = step(x)
        of_row, of_word = (None, None) if number is None else (number.row_bqd, number.word_gjd)
        x = x.replace(row_bqd=network(name="mlp_query")(x.row_bqd, of_row))
        if x.word_gjd is None:
            return x
        return x.replace(word_gjd=network(name="mlp_word")(x.word_gjd, of_word))

    def route_space(
        self,
        x: Tokens,
        keep_nz: jax.Array,
        num_frames: int,
        example_b: jax.Array,
        deterministic: bool,
        update: jax.Array | None,
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Weights (n,m) of the masks of a frame, and the masks (m,q,z); None without a choice."""
        if self.num_masks == 1:
            return None, None
        routing, num_queries = self.routing, self.options.num_queries
        orders, words = routing.orders[: self.num_masks], keep_nz.shape[1] - num_queries
        if routing.pool == "all":
            count_n1 = jnp.sum(keep_nz, axis=1, keepdims=True, dtype=x.row_bqd.dtype)
            pooled_nd = jnp.sum(x.joined(), axis=1) / count_n1
        else:
            pooled_nd = jnp.mean(x.row_bqd, axis=1)
        place_n = jnp.tile(jnp.arange(num_frames), len(example_b))
        weight_nm = Router(self.num_masks, routing, name="router_space")(
            pooled_nd, jnp.repeat(example_b, num_frames), place_n, deterministic, update
        )
        sees_mzz = joint_masks(num_queries, words, orders, routing.cross_modal)
        return weight_nm, sees_mzz[:, :num_queries] if self.last else sees_mzz

    def attend_time(
        self,
        block: AttentionBlock,
        x_nqd: jax.Array,
        num_frames: int,
        example_b: jax.Array,
        deterministic: bool,
        update: jax.Array | None,
        number: Tokens | None,
    ) -> jax.Array:
        """The block over the frames of each token, gated if the fields say so: (n,q,d)."""
        rows, tokens, width = x_nqd.shape

        def by_token(x_nqd: jax.Array) -> jax.Array:
            split_btqd = x_nqd.reshape(-1, num_frames, tokens, x_nqd.shape[-1])
            return jnp.swapaxes(split_btqd, 1, 2).reshape(-1, num_frames, x_nqd.shape[-1])

        x_ytd = by_token(x_nqd)
        weight_ym, sees_mtt = None, None
        if self.num_masks > 1 and self.routing.temporal:
            sees_mtt = band_masks(num_frames, self.routing.orders[: self.num_masks])
            place_y = jnp.tile(jnp.arange(tokens), len(example_b))
            weight_ym = Router(self.num_masks, self.routing, name="router_time")(
                jnp.mean(x_ytd, axis=1), jnp.repeat(example_b, tokens), place_y, deterministic,
                update,
            )  # fmt: skip
        keep_yt = jnp.ones(x_ytd.shape[:2], bool)
        every = Tokens(x_ytd)
        number = None if number is None else Tokens(by_token(number.joined()))
        out_ytd = block(every, every, keep_yt, "time", weight_ym, sees_mtt, number).row_bqd
        if self.options.temporal_gate == "zero":
            gate = self.param("time_gate", nn.initializers.zeros, (), jnp.float32)
            out_ytd = x_ytd + jnp.tanh(gate).astype(x_ytd.dtype) * (out_ytd - x_ytd)
        split = (rows // num_frames, tokens, num_frames, width)
        return jnp.swapaxes(out_ytd.reshape(split), 1, 2).reshape(x_nqd.shape)


def only_rows(x: Tokens, number: Tokens | None) -> tuple[Tokens, Tokens | None]:
    """Tokens and their numbers without the words."""
    return x.rows(), None if number is None else number.rows()


class QFormer(nn.Module):
    """Learned queries that read the frames of a video, and words if there are any.

    Parameters: queries (q,d), query_position (q,d) and frame_position (t,d), both zero at first
    (Eq. 6: without the latter the function is blind to the order of frames), word (v,d) and
    position (l,d) with text, norm_embed, layer_i/...

    Attributes:
        options: see `QFormerOptions`.
        lora: see `LoraOptions`.
        routing: see `RoutingOptions`.
        precision: parameter and compute types.
    """

    options: QFormerOptions
    lora: LoraOptions
    routing: RoutingOptions
    precision: Precision

    @nn.compact
    def __call__(
        self,
        frames_btpf: jax.Array,
        words: Words | None,
        example_b: jax.Array,
        deterministic: bool,
        update: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens of a video, (b,q,d), or (b,tq,d) with aggregate "concat".

        Args:
            frames_btpf: patches p of frames t.
            words: what is read, packed or `Words.rectangle`; None without text.
            example_b: number of the example; keys what is drawn.
            deterministic: nothing is drawn.
            update: number of the update, with which the temperature of hard routing falls.

        Raises:
            UserError: more frames than `max_frames` or words than `max_positions`.
            ValueError: sizes differ between arguments, or text without a word table.
        """
        word_bl = None if words is None else words.word_bl
        dims = bind_dims(frames_btpf=frames_btpf, word_bl=word_bl, example_b=example_b)
        num_frames = dims["t"]
        if num_frames > self.options.max_frames:
            raise UserError(
                f"{num_frames} frames, but frame_position has {self.options.max_frames} rows"
            )
        compute = self.precision.compute_dtype
        merged = dims["b"] * num_frames
        query_nqd = jnp.tile(self.ask(num_frames).astype(compute), (dims["b"], 1, 1))
        norm = layer_norm("norm_embed", self.options.norm_eps, self.precision)
        x = Tokens(norm(query_nqd))
        keep_nz = jnp.ones((merged, self.options.num_queries), bool)
        if words is not None:
            layout = Layout.of(words, num_frames)
            x = Tokens(x.row_bqd, norm(self.embed(words, layout.place_gw)), layout)
            keep_nl = jnp.repeat(words.keep_bl, num_frames, axis=0)
            keep_nz = jnp.concatenate([keep_nz, keep_nl], axis=1)
        number = None
        if self.options.dropout and not deterministic:
            number = self.number(x, num_frames, example_b)
            drop = Dropped(self.options.dropout, name="drop")
            x = x.in_frames().map(drop, number)
        frames_npf = frames_btpf.astype(compute).reshape(merged, *frames_btpf.shape[2:])
        last = self.options.num_layers - 1
        for i in range(self.options.num_layers):
            count = self.routing.num_masks(i, self.options.num_layers)
            layer = QFormerLayer(
                count, i % self.options.cross_every == 0, i == last, self.options, self.lora,
                self.routing, self.precision, name=f"layer_{i}",
            )  # fmt: skip
            given = keep_nz, frames_npf, num_frames, example_b, deterministic, update
            x = layer(x, *given, number)
        split = (dims["b"], num_frames, self.options.num_queries, self.options.width)
        return self.gather(x.row_bqd.reshape(split))

    def number(self, x: Tokens, num_frames: int, example_b: jax.Array) -> Tokens:
        """The example of every token and its place there, uint32 (...,2), which key its dropout.

        Padding of words changes no place: queries and words of a frame have fixed ones.
        """
        queries = self.options.num_queries
        stride = queries + self.options.max_positions

        def pair(example: jax.Array, place: jax.Array) -> jax.Array:
            return jnp.stack(jnp.broadcast_arrays(example, place), axis=-1).astype(jnp.uint32)

        frame_n1 = jnp.tile(jnp.arange(num_frames), len(example_b))[:, None]
        place_nq = frame_n1 * stride + jnp.arange(queries)[None]
        row_nq2 = pair(jnp.repeat(example_b, num_frames)[:, None], place_nq)
        if x.layout is None:
            return Tokens(row_nq2)
        return Tokens(row_nq2, pair(*x.layout.owners(example_b, queries, stride)), x.layout)

    def ask(self, num_frames: int) -> jax.Array:
        """The queries of every frame, not normalised yet, (t,q,d): MTransLLAMA, Eq. 6."""
        shape, zeros = (self.options.num_queries, self.options.width), nn.initializers.zeros
        query_qd = self.param("queries", INIT, shape, self.precision.param_dtype)
        place_qd = self.param("query_position", zeros, shape, jnp.float32)
        at_td = self.param(
            "frame_position", zeros, (self.options.max_frames, self.options.width), jnp.float32
        )
        return (query_qd + place_qd)[None] + at_td[:num_frames, None]

    def embed(self, words: Words, place_gw: jax.Array) -> jax.Array:
        """Word and position rows, not normalised yet, (g,w,d)."""
        if not self.options.vocab_size:
            raise ValueError("text was given to a Q-Former without a word table")
        longest = words.word_bl.shape[1]
        if longest > self.options.max_positions:
            raise UserError(
                f"{longest} words, but there are {self.options.max_positions} positions"
            )
        store, compute = self.precision.param_dtype, self.precision.compute_dtype
        word_vd = self.param("word", INIT, (self.options.vocab_size, self.options.width), store)
        place_ld = self.param(
            "position", INIT, (self.options.max_positions, self.options.width), store
        )
        return word_vd.astype(compute)[words.ids_gw] + place_ld.astype(compute)[place_gw]

    def gather(self, x_btqd: jax.Array) -> jax.Array:
        """What becomes of the frames."""
        if self.options.aggregate == "concat":
            return x_btqd.reshape(len(x_btqd), -1, self.options.width)
        if self.options.aggregate == "last":
            return x_btqd[:, -1]
        if self.options.aggregate == "max":
            # The gradient of jnp.max compares again, and is 0/0 where XLA computes x_btqd twice.
            best_b1qd = jnp.argmax(x_btqd, axis=1, keepdims=True)
            return jnp.take_along_axis(x_btqd, best_b1qd, axis=1)[:, 0]
        return jnp.mean(x_btqd, axis=1)
