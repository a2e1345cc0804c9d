"""Words of different lengths on one axis, and the rows in which they meet the queries of a frame.

What works on single words (projections, norms, networks) runs where they lie one after another,
and padding costs nothing; attention runs on rows of one length. Both ways between the two are
gathers, and so are their gradients: no word has two places in either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxvsa.core.shapes import bind_dims
from jaxvsa.layers.packed import Packing


class Words(struct.PyTreeNode):
    """Words of examples b, consecutive ones in groups g, packed.

    Attributes:
        ids_gw: int32, the words of a group, one example after another; anything behind them.
        word_bl: int32, where in w the words l of an example lie; -1 behind its end.
    """

    ids_gw: jax.Array
    word_bl: jax.Array

    @classmethod
    def rectangle(cls, ids_bl: jax.Array, keep_bl: jax.Array) -> Words:
        """Padded rows, of which `keep_bl` is True at the beginning: each is a group of its own."""
        length = bind_dims(ids_bl=ids_bl, keep_bl=keep_bl)["l"]
        place_l = jnp.arange(length, dtype=jnp.int32)
        return cls(jnp.asarray(ids_bl), jnp.where(keep_bl, place_l[None], -1))

    @property
    def keep_bl(self) -> jax.Array:
        """Bool, real words."""
        return self.word_bl >= 0


class Layout(struct.PyTreeNode):
    """Where the words of every frame lie: packed, j = (frame, word), and in rows of length l.

    Attributes:
        place_gw: int32, the place of a packed word in its row; 0 for padding.
        packed_gm: int32, where in j an element m = (example, frame, l) of the rows lies; -1 for
            padding.
        row_gj: int32, where in m an element of j lies; -1 for padding.
        num_frames: of each example.
    """

    place_gw: jax.Array
    packed_gm: jax.Array
    row_gj: jax.Array
    num_frames: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, words: Words, num_frames: int) -> Layout:
        """The layout of these words in so many frames.

        Raises:
            ValueError: the groups do not divide the examples.
        """
        (groups, size), (rows, length) = words.ids_gw.shape, words.word_bl.shape
        if rows % groups:
            raise ValueError(f"{rows} examples are no multiple of {groups} groups of words")
        index_grl = words.word_bl.reshape(groups, -1, length)
        packing = jax.vmap(functools.partial(Packing.of, size=size))(index_grl)
        frame_1t1 = jnp.arange(num_frames, dtype=jnp.int32)[None, :, None]
        index_gr1l = index_grl[:, :, None]
        packed_grtl = jnp.where(index_gr1l >= 0, frame_1t1[None] * size + index_gr1l, -1)
        row_g1w, place_g1w = packing.row_n[:, None], packing.place_n[:, None]
        row_gtw = jnp.where(
            row_g1w >= 0, (row_g1w * num_frames + frame_1t1) * length + place_g1w, -1
        )
        return cls(
            packing.place_n, packed_grtl.reshape(groups, -1), row_gtw.reshape(groups, -1),
            num_frames,
        )  # fmt: skip

    def owners(self, example_b: jax.Array, first: int, stride: int) -> tuple[jax.Array, jax.Array]:
        """Example of every element of j, and its place there, frame x `stride` + `first` + word."""
        groups = len(self.packed_gm)
        length = self.packed_gm.shape[1] * groups // (len(example_b) * self.num_frames)
        at_gj = jnp.maximum(self.row_gj, 0)
        frame_gj = at_gj // length % self.num_frames
        index_gj = at_gj // (length * self.num_frames)
        example_gj = jnp.take_along_axis(example_b.reshape(groups, -1), index_gj, axis=1)
        return example_gj, frame_gj * stride + first + at_gj % length

    def in_frames(self, x_gjd: jax.Array) -> jax.Array:
        """(g,w,d), the same in all frames, or (g,j,d) -> (g,j,d)."""
        if x_gjd.shape[1] == self.row_gj.shape[1]:
            return x_gjd
        return jnp.tile(x_gjd, (1, self.num_frames, 1))

    def to_rows(self, x_gjd: jax.Array, num_rows: int) -> jax.Array:
        """(g,j,d) or (g,w,d) -> (n,l,d) for the frames n of all examples, zeros for padding."""
        x_gmd = _move(self.in_frames(x_gjd), self.packed_gm, self.row_gj)
        return x_gmd.reshape(num_rows, -1, x_gmd.shape[-1])

    def to_packed(self, x_nld: jax.Array) -> jax.Array:
        """(n,l,d) -> (g,j,d), zeros for padding."""
        x_gmd = x_nld.reshape(*self.packed_gm.shape, -1)
        return _move(x_gmd, self.row_gj, self.packed_gm)


class Tokens(struct.PyTreeNode):
    """What attends: rows of one length, with packed words behind them or without.

    Attributes:
        row_bqd: rows, such as the queries of a frame.
        word_gjd: packed words, of every frame or still the same in all of them; None for none.
        layout: of the words.
    """

    row_bqd: jax.Array
    word_gjd: jax.Array | None = None
    layout: Layout | None = None

    def map(self, function: Callable[..., jax.Array], *others: Tokens) -> Tokens:
        """The function of the rows, and of the words; `others` have words if these have some."""
        row_bqd = function(self.row_bqd, *(other.row_bqd for other in others))
        if self.word_gjd is None:
            return Tokens(row_bqd)
        word_gjd = function(self.word_gjd, *(other.word_gjd for other in others))
        return Tokens(row_bqd, word_gjd, self.layout)

    def rows(self) -> Tokens:
        """Without the words."""
        return Tokens(self.row_bqd)

    def in_frames(self) -> Tokens:
        """Words of every frame, whether they are still the same or not."""
        if self.word_gjd is None or self.layout is None:
            return self
        return self.replace(word_gjd=self.layout.in_frames(self.word_gjd))

    def joined(self) -> jax.Array:
        """Rows with their words behind them, (b,z,d), zeros for padding."""
        if self.word_gjd is None or self.layout is None:
            return self.row_bqd
        word_bld = self.layout.to_rows(self.word_gjd, len(self.row_bqd))
        return jnp.concatenate([self.row_bqd, word_bld], axis=1)

    def split(self, x_bzd: jax.Array) -> Tokens:
        """The way back from `joined`."""
        if self.word_gjd is None or self.layout is None:
            return Tokens(x_bzd)
        count = self.row_bqd.shape[1]
        return Tokens(x_bzd[:, :count], self.layout.to_packed(x_bzd[:, count:]), self.layout)


@jax.custom_vjp
def _move(x_gjd: jax.Array, index_gm: jax.Array, back_gj: jax.Array) -> jax.Array:
    """Elements `index_gm` of x, (g,m,d), zeros for -1; `back_gj` is the way back.

    The gradient of a gather would be a scatter, which XLA computes row by row on CPU.
    """
    index_gm = jnp.where(index_gm < 0, x_gjd.shape[1], index_gm)
    return jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(x_gjd, index_gm)


def _move_forward(
    x_gjd: jax.Array, index_gm: jax.Array, back_gj: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _move(x_gjd, index_gm, back_gj), (index_gm, back_gj)


def _move_back(
    saved: tuple[jax.Array, jax.Array], grad_gmd: jax.Array
) -> tuple[jax.Array, None, None]:
    index_gm, back_gj = saved
    return _move(grad_gmd, back_gj, index_gm), None, None


_move.defvjp(_move_forward, _move_back)
