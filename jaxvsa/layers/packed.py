"""Sequences of different lengths on one axis, one after another, without padding between them.

Whatever works on single elements (projections, norms) runs on this axis; attention between the
elements of a sequence runs on blocks and their neighbours; what needs rows asks for `unpack`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

BLOCK = 32
"""Elements of an attention block where sequences do not fill a rectangle."""


class Packing(struct.PyTreeNode):
    """Where the elements of sequences b lie on a packed axis n.

    Attributes:
        index_bl: int32, packed position of element l of row b; -1 behind its end.
        row_n: int32, the row that an element belongs to, the first of those that share it; -1 for
            padding.
        place_n: int32, its place in that row; 0 for padding.
    """

    index_bl: jax.Array
    row_n: jax.Array
    place_n: jax.Array

    @classmethod
    def of(cls, index_bl: jax.Array, size: int) -> Packing:
        """The packing of `index_bl`, whose rows count up without a gap, on an axis of `size`."""
        start_b = index_bl[:, 0]
        end_b = start_b + jnp.sum(index_bl >= 0, axis=1, dtype=jnp.int32)
        at_n = jnp.arange(size, dtype=jnp.int32)
        inside_bn = (at_n[None] >= start_b[:, None]) & (at_n[None] < end_b[:, None])
        used_n = jnp.any(inside_bn, axis=0)
        row_n = jnp.argmax(inside_bn, axis=0).astype(jnp.int32)
        place_n = at_n - start_b[row_n]
        return cls(index_bl, jnp.where(used_n, row_n, -1), jnp.where(used_n, place_n, 0))

    @classmethod
    def rectangle(cls, num_rows: int, length: int) -> Packing:
        """Rows of one length, padding included."""
        index_bl = jnp.arange(num_rows * length, dtype=jnp.int32).reshape(num_rows, length)
        return cls.of(index_bl, num_rows * length)

    @property
    def block(self) -> int:
        """Elements of an attention block: a row if the rows fill a rectangle, else `BLOCK`."""
        return self.index_bl.shape[1] if self._is_rectangle else BLOCK

    @property
    def radius(self) -> int:
        """Blocks on each side that the elements of a block can belong together with."""
        return 0 if self._is_rectangle else -(-(self.index_bl.shape[1] - 1) // BLOCK)

    @property
    def odd_starts(self) -> bool:
        """Whether the sizes say that rows begin at odd places, or that the axis ends with one."""
        odd_rows = self._is_rectangle and self.index_bl.shape[1] % 2 == 1
        return odd_rows or len(self.row_n) % 2 == 1

    @property
    def _is_rectangle(self) -> bool:
        return len(self.row_n) == self.index_bl.size

    def unpack(self, x_nd: jax.Array) -> jax.Array:
        """(n,d) -> (b,l,d), zeros behind the end of a row."""
        if self._is_rectangle:
            return jnp.where(
                (self.index_bl >= 0)[..., None], x_nd.reshape(*self.index_bl.shape, -1), 0
            )
        index_bl = jnp.where(self.index_bl >= 0, self.index_bl, len(x_nd))
        return x_nd.at[index_bl].get(mode="fill", fill_value=0)

    def pack(self, x_bld: jax.Array) -> jax.Array:
        """(b,l,d) -> (n,d), zeros where there is padding; rows that share take the first's."""
        rows, length, width = x_bld.shape
        index_n = jnp.where(self.row_n >= 0, self.row_n * length + self.place_n, rows * length)
        return x_bld.reshape(-1, width).at[index_n].get(mode="fill", fill_value=0)

    def blocks(self, x_n: jax.Array) -> jax.Array:
        """(n, ...) -> (k,q, ...): blocks k of elements q.

        Raises:
            ValueError: the packed axis is no multiple of the block.
        """
        if len(x_n) % self.block:
            raise ValueError(f"{len(x_n)} packed elements are no multiple of {self.block}")
        return x_n.reshape(-1, self.block, *x_n.shape[1:])

    def around(self, x_kq: jax.Array, fill: int = 0) -> jax.Array:
        """(k,q, ...) -> (k,z, ...): every block with its neighbours, in order; `fill` outside."""
        radius, count = self.radius, len(x_kq)
        if radius == 0:
            return x_kq
        edges = ((radius, radius),) + ((0, 0),) * (x_kq.ndim - 1)
        wide = jnp.pad(x_kq, edges, constant_values=fill)
        return jnp.concatenate([wide[i : i + count] for i in range(2 * radius + 1)], axis=1)


class Sight(struct.PyTreeNode):
    """Which elements of a block see which around it, and what their dropout is keyed by.

    Attributes:
        keep_kqz: bool, query q sees element z: of the same row, and real.
        example_kq: number of the example that a query belongs to.
        place_kq: its place in the row.
        place_kz: place of what is seen.
    """

    keep_kqz: jax.Array
    example_kq: jax.Array
    place_kq: jax.Array
    place_kz: jax.Array

    @classmethod
    def of(cls, packing: Packing, real_n: jax.Array, example_n: jax.Array) -> Sight:
        """Everybody sees the real elements of the own row."""
        row_kq, place_kq = packing.blocks(packing.row_n), packing.blocks(packing.place_n)
        row_kz = packing.around(row_kq, fill=-1)
        real_kz = packing.around(packing.blocks(real_n)) & (row_kz >= 0)
        keep_kqz = (row_kq[:, :, None] == row_kz[:, None]) & real_kz[:, None]
        place_kz = packing.around(place_kq)
        return cls(keep_kqz, packing.blocks(example_n), place_kq, place_kz)
