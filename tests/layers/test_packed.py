"""Packing by hand, and attention on blocks against attention of every row alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.layers.attention import masked_softmax
from jaxvsa.layers.packed import BLOCK, Packing, Sight

pytestmark = pytest.mark.smoke

# Rows of 2, 3 and 1 elements; the third lies before the second, and one place behind is free.
INDEX = jnp.array([[0, 1, -1], [3, 4, 5], [2, -1, -1]], jnp.int32)


def test_packing_by_hand() -> None:
    packing = Packing.of(INDEX, 7)
    assert packing.row_n.tolist() == [0, 0, 2, 1, 1, 1, -1]
    assert packing.place_n.tolist() == [0, 1, 0, 0, 1, 2, 0]
    assert packing.row_n.dtype == packing.place_n.dtype == jnp.int32
    x_nd = jnp.arange(14.0).reshape(7, 2) + 1
    x_bld = packing.unpack(x_nd)
    assert x_bld[..., 0].tolist() == [[1, 3, 0], [7, 9, 11], [5, 0, 0]]
    np.testing.assert_array_equal(packing.pack(x_bld), x_nd.at[6].set(0))
    np.testing.assert_array_equal(packing.pack(x_bld + 1)[6], 0)


def test_rows_may_share_their_elements() -> None:
    packing = Packing.of(jnp.array([[2, 3], [0, 1], [2, 3], [4, -1]], jnp.int32), 5)
    assert packing.row_n.tolist() == [1, 1, 0, 0, 3]  # the first of those that share
    assert packing.place_n.tolist() == [0, 1, 0, 1, 0]
    x_n1 = jnp.arange(5.0)[:, None] + 1
    assert packing.unpack(x_n1)[..., 0].tolist() == [[3, 4], [1, 2], [3, 4], [5, 0]]
    differ = jnp.arange(8.0).reshape(4, 2, 1)
    assert packing.pack(differ)[:, 0].tolist() == [2, 3, 0, 1, 6]


def test_rectangle_by_hand() -> None:
    packing = Packing.rectangle(2, 3)
    assert packing.index_bl.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert packing.row_n.tolist() == [0, 0, 0, 1, 1, 1]
    assert packing.place_n.tolist() == [0, 1, 2, 0, 1, 2]
    assert (packing.block, packing.radius) == (3, 0)
    x_nd = jnp.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(packing.unpack(x_nd), x_nd.reshape(2, 3, 2))
    np.testing.assert_array_equal(packing.pack(packing.unpack(x_nd)), x_nd)
    np.testing.assert_array_equal(packing.blocks(x_nd), x_nd.reshape(2, 3, 2))
    x_kq = packing.blocks(jnp.arange(6))
    np.testing.assert_array_equal(packing.around(x_kq), x_kq)
    # Shorter rows in a rectangle: zeros behind their ends, though a number stands there.
    short = Packing.of(jnp.array([[0, 1, -1], [3, -1, -1]], jnp.int32), 6)
    assert short.row_n.tolist() == [0, 0, -1, 1, -1, -1]
    assert short.unpack(x_nd)[..., 1].tolist() == [[1, 3, 0], [7, 0, 0]]


def test_blocks_and_neighbours_by_hand() -> None:
    assert BLOCK == 32
    packing = Packing.of(jnp.full((1, 34), -1, jnp.int32).at[0].set(jnp.arange(34)), 128)
    assert (packing.block, packing.radius) == (32, 2)
    first_k = packing.blocks(jnp.arange(128))[:, 0]
    assert first_k.tolist() == [0, 32, 64, 96]
    narrow = Packing.of(jnp.full((1, 33), -1, jnp.int32).at[0].set(jnp.arange(33)), 128)
    around_kz = narrow.around(narrow.blocks(jnp.arange(128)), fill=-7)
    assert around_kz.shape == (4, 96)
    assert around_kz[:, ::32].tolist() == [[-7, 0, 32], [0, 32, 64], [32, 64, 96], [64, 96, -7]]
    assert around_kz[1].tolist() == list(range(96))


@pytest.mark.parametrize(
    ("longest", "radius"), [(1, 0), (2, 1), (32, 1), (33, 1), (34, 2), (65, 2), (66, 3)]
)
def test_radius_reaches_the_farthest_element_of_a_row(longest: int, radius: int) -> None:
    packing = Packing.of(jnp.arange(longest, dtype=jnp.int32)[None], 160)
    assert packing.radius == radius


def test_elements_that_fill_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="7 packed elements are no multiple of 32"):
        Packing.of(INDEX, 7).blocks(jnp.ones(7))


def test_sight_by_hand() -> None:
    """Rows of 2 and 1 real elements with one padding token each: seen by none, but sees."""
    packing = Packing.of(jnp.array([[0, 1, 2], [3, 4, -1]], jnp.int32), 6)
    real_n = jnp.array([True, True, False, True, False, False])
    sight = Sight.of(packing, real_n, jnp.array([8, 8, 8, 9, 9, 9]))
    keep = np.zeros((6, 6), bool)
    keep[:3, :2] = True
    keep[3:5, 3] = True
    by_row = keep.reshape(2, 3, 2, 3)[[0, 1], :, [0, 1]]
    np.testing.assert_array_equal(sight.keep_kqz, by_row)  # 2 x 3 = 6: a rectangle
    packing = Packing.of(packing.index_bl, 32)
    padded_n = jnp.zeros(32, bool).at[:6].set(real_n)
    sight = Sight.of(packing, padded_n, jnp.arange(32))
    want = np.zeros((32, 96), bool)
    want[:6, 32:38] = keep
    np.testing.assert_array_equal(sight.keep_kqz, want[None])
    assert sight.example_kq.tolist() == [list(range(32))]
    assert sight.place_kq[0, :6].tolist() == [0, 1, 2, 0, 1, 0]
    assert sight.place_kz[0, 32:38].tolist() == [0, 1, 2, 0, 1, 0]


def attend(q_nd: Any, k_nd: Any, v_nd: Any, packing: Packing, real_n: Any) -> jax.Array:
    """Plain attention on blocks."""
    sight = Sight.of(packing, real_n, jnp.zeros_like(packing.row_n))
    q_kqd = packing.blocks(q_nd)
    k_kzd, v_kzd = (packing.around(packing.blocks(x_nd)) for x_nd in (k_nd, v_nd))
    logits_kqz = jnp.einsum("kqd,kzd->kqz", q_kqd, k_kzd)
    attn_kqz = masked_softmax(logits_kqz, sight.keep_kqz)
    return jnp.einsum("kqz,kzd->kqd", attn_kqz, v_kzd).reshape(v_nd.shape)


LENGTHS = {
    "random": np.random.default_rng(4).integers(1, 60, 14),
    "edges": np.array([1, 32, 33, 34, 65, 1, 2, 31]),
    "one": np.array([1, 1, 1]),
    "two_blocks": np.array([33, 3, 20]),
    "three_blocks": np.array([31, 34, 34]),
    "long": np.array([5, 130, 1]),
    "full": np.array([160]),
    "rectangle": np.array([21, 21, 21]),
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("tail", [0, 2])
def test_attention_on_blocks_equals_that_of_every_row_alone(name: str, tail: int) -> None:
    """Values and gradients; one padding token a row, which asks but is not seen."""
    rng, span_b = np.random.default_rng(0), LENGTHS[name]
    start_b, total = np.cumsum(span_b) - span_b, int(span_b.sum())
    size = total if name == "rectangle" and not tail else (-(-total // 32) + tail) * 32
    place_l = np.arange(span_b.max())
    index_bl = np.where(place_l < span_b[:, None], start_b[:, None] + place_l, -1)
    real_n, keep_nn = np.zeros(size, bool), np.zeros((size, size), bool)
    for start, span in zip(start_b, span_b, strict=True):
        real_n[start : start + max(1, span - 1)] = True
        row = slice(start, start + span)
        keep_nn[row, row] = real_n[None, row]
    with jax.enable_x64(True):
        q, k, v, weight = (jnp.asarray(rng.normal(size=(size, 3))) for _ in range(4))
        packing = Packing.of(jnp.asarray(index_bl, jnp.int32), size)
        assert packing.radius == 0 or packing.block == 32

        def total_of(parts: Any) -> Any:
            out_nd = attend(*parts, packing, jnp.asarray(real_n))
            return jnp.sum(out_nd * weight), out_nd

        def alone(parts: Any) -> Any:
            attn_nn = masked_softmax(parts[0] @ parts[1].T, jnp.asarray(keep_nn))
            out_nd = attn_nn @ parts[2]
            return jnp.sum(out_nd * weight), out_nd

        (_, got), grads = jax.jit(jax.value_and_grad(total_of, has_aux=True))((q, k, v))
        (_, want), wanted = jax.jit(jax.value_and_grad(alone, has_aux=True))((q, k, v))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    assert not np.any(got[total:])
    for mine, theirs in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-13)


def test_unpacking_and_packing_are_differentiable() -> None:
    """The gradient of a gather adds up what shares an element, and leaves padding alone."""
    packing = Packing.of(jnp.array([[0, 1], [0, 1], [2, -1]], jnp.int32), 4)
    weight = jnp.array([[[1.0], [2.0]], [[10.0], [20.0]], [[5.0], [100.0]]])
    grad = jax.grad(lambda x: jnp.sum(packing.unpack(x) * weight))(jnp.zeros((4, 1)))
    assert grad[:, 0].tolist() == [11, 22, 5, 0]
    weight_n1 = jnp.array([[1.0], [2.0], [3.0], [50.0]])
    grad = jax.grad(lambda x: jnp.sum(packing.pack(x) * weight_n1))(jnp.zeros((3, 2, 1)))
    assert grad[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]]
