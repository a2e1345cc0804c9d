"""Attention against plain numpy, and the folded form against the plain one, dropout included."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.attention import (
    AttentionLogits,
    MultiHeadAttention,
    masked_softmax,
    pair_number,
)
from jaxvsa.layers.packed import Packing, Sight

WIDE = Precision("float64", "float64")


def test_masked_softmax_by_hand() -> None:
    got = masked_softmax(jnp.array([[0.0, np.log(3.0), 5.0]]), jnp.array([[True, True, False]]))
    np.testing.assert_allclose(got, [[0.25, 0.75, 0.0]], rtol=1e-6)


def test_masked_softmax_of_nothing_is_zero_with_finite_gradient() -> None:
    keep = jnp.zeros((1, 3), bool)
    logits = jnp.array([[1.0, jnp.inf, -2.0]])
    np.testing.assert_array_equal(masked_softmax(logits, keep), 0)
    grad = jax.grad(lambda x: masked_softmax(x, keep).sum())(jnp.ones((1, 3)))
    np.testing.assert_array_equal(grad, 0)


def test_masked_softmax_stays_in_float32_for_half_inputs() -> None:
    assert masked_softmax(jnp.ones((1, 2), jnp.bfloat16), jnp.ones((1, 2), bool)).dtype == "float32"


def setting(fold: bool, dropout: float = 0.0) -> tuple[MultiHeadAttention, Any, tuple[Any, ...]]:
    """A module in float64, random parameters, and inputs of which some keys are hidden."""
    rng = np.random.default_rng(3)
    query_bqd, memory_bzd = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 5, 6))
    keep_bqz = rng.random((2, 3, 5)) > 0.3
    keep_bqz[..., 0] = True
    numbers = np.array([[7], [3]]), np.arange(3)[None] + 40, np.arange(5)[None]
    module = MultiHeadAttention(2, dropout, fold, WIDE)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), query_bqd, memory_bzd, keep_bqz, *numbers, True)
    )["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    return module, params, (query_bqd, memory_bzd, keep_bqz, *numbers)


@pytest.mark.parametrize("fold", [False, True])
def test_attention_equals_loops(fold: bool) -> None:
    with jax.enable_x64(True):
        module, p, inputs = setting(fold)
        got, attn = module.apply({"params": p}, *inputs, True)
    query_bqd, memory_bzd, keep_bqz = inputs[:3]
    want, weights = np.zeros_like(query_bqd), np.zeros((2, 3, 2, 5))
    for b in range(2):
        for i in range(3):
            out = p["out_bias"].copy()
            for h in range(2):
                q = query_bqd[b, i] @ p["query_kernel"][:, h] + p["query_bias"][h]
                scores = np.array([q @ (m @ p["key_kernel"][:, h]) for m in memory_bzd[b]])
                scores = np.where(keep_bqz[b, i], scores / np.sqrt(3), -np.inf)
                exp = np.exp(scores - scores.max())
                weights[b, i, h] = exp / exp.sum()
                values = memory_bzd[b] @ p["value_kernel"][:, h] + p["value_bias"][h]
                out += (weights[b, i, h] @ values) @ p["out_kernel"][h]
            want[b, i] = out
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(attn, weights, rtol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_folded_form_is_exact_forward_and_backward_under_one_dropout_mask(dropout: float) -> None:
    found = []
    with jax.enable_x64(True):
        for fold in (False, True):
            module, params, inputs = setting(fold, dropout)

            def total(params: Any, query: Any, memory: Any, module: Any = module) -> Any:
                out, _ = module.apply(
                    {"params": params}, query, memory, *inputs[2:], False,  # noqa: B023
                    rngs={"dropout": jax.random.key(7)},
                )  # fmt: skip
                return jnp.sum(jnp.sin(out)), out

            run = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
            found.append(jax.jit(run)(params, *inputs[:2]))
    (plain, folded) = found
    np.testing.assert_allclose(folded[0][1], plain[0][1], rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), folded[1], plain[1]
    )


def test_dropped_weights_no_longer_sum_to_one_and_the_value_bias_knows() -> None:
    with jax.enable_x64(True):
        module, params, inputs = setting(True, 0.5)
        rngs = {"dropout": jax.random.key(7)}
        calm, _ = module.apply({"params": params}, *inputs, True)
        dropped, _ = module.apply({"params": params}, *inputs, False, rngs=rngs)
        shifted = {**params, "value_bias": params["value_bias"] + 1.0}
        more, _ = module.apply({"params": shifted}, *inputs, False, rngs=rngs)
        more_calm, _ = module.apply({"params": shifted}, *inputs, True)
    assert np.ptp(more_calm - calm, axis=(0, 1)).max() < 1e-12
    assert np.ptp(more - dropped, axis=(0, 1)).max() > 0.1


def test_hidden_key_does_not_matter() -> None:
    with jax.enable_x64(True):
        module, params, (query, memory, keep, *numbers) = setting(True)
        keep[:, :, 4] = False
        want, _ = module.apply({"params": params}, query, memory, keep, *numbers, True)
        memory[:, 4] = 1e3
        got, _ = module.apply({"params": params}, query, memory, keep, *numbers, True)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_number_of_a_pair_by_hand_and_no_pair_has_that_of_another() -> None:
    number_bqhz = pair_number(jnp.array([[1]]), jnp.array([[0, 5]]), 3)
    assert number_bqhz.dtype == jnp.uint32 and number_bqhz.shape == (1, 1, 3, 2)
    assert number_bqhz[0, 0].tolist() == [[24576 + 15 * z + h for z in (0, 1)] for h in range(3)]
    ends = jnp.array([[0, 1, 2, 8190, 8191]])
    assert len(np.unique(pair_number(ends, ends, 64))) == 5 * 5 * 64


def test_dropout_is_keyed_by_example_and_places_alone() -> None:
    """Rows in another order, and memory that lies elsewhere and is longer: the same draws."""
    with jax.enable_x64(True):
        module, params, (query, memory, keep, example, asks, seen) = setting(False, 0.5)
        rngs = {"dropout": jax.random.key(7)}
        want, _ = module.apply(
            {"params": params}, query, memory, keep, example, asks, seen, False, rngs=rngs
        )
        order = np.array([3, 6, 0, 4, 1, 2, 5])
        memory, keep = (
            np.pad(memory, ((0, 0), (0, 2), (0, 0))),
            np.pad(keep, ((0, 0), (0, 0), (0, 2))),
        )
        seen = np.arange(7)[None]
        moved = memory[::-1][:, order], keep[::-1][..., order], example[::-1], asks, seen[:, order]
        got, _ = module.apply({"params": params}, query[::-1], *moved, False, rngs=rngs)
        np.testing.assert_allclose(got[::-1], want, rtol=1e-12)
        for other in ((example + 1, asks, seen), (example, asks + 1, seen)):
            changed, _ = module.apply(
                {"params": params}, query, memory, keep, *other, False, rngs=rngs
            )
            assert np.abs(changed - want).max() > 1e-2


def test_attention_around_blocks_equals_that_of_whole_rows_under_dropout() -> None:
    """Rows of 40, 3 and 21 on an axis of 64, against a rectangle of three rows of 40."""
    spans, rng = np.array([40, 3, 21]), np.random.default_rng(0)
    starts, place_l = np.cumsum(spans) - spans, np.arange(40)
    inside_bl = place_l < spans[:, None]
    index_bl = np.where(inside_bl, starts[:, None] + place_l, -1).astype(np.int32)
    with jax.enable_x64(True):
        x_bld = rng.normal(size=(3, 40, 6)) * inside_bl[..., None]
        module, params, _ = setting(False, 0.3)

        def run(packing: Packing, x_nd: Any) -> Any:
            sight = Sight.of(packing, packing.row_n >= 0, packing.row_n + 5)
            x_kqd = packing.blocks(x_nd)
            out_kqd, _ = module.apply(
                {"params": params}, x_kqd, x_kqd, sight.keep_kqz, sight.example_kq,
                sight.place_kq, sight.place_kz, False, around=packing.around,
                rngs={"dropout": jax.random.key(1)},
            )  # fmt: skip
            return packing.unpack(out_kqd.reshape(x_nd.shape))

        packed = Packing.of(jnp.asarray(index_bl), 64)
        whole_bl = jnp.asarray(np.where(inside_bl, np.arange(120).reshape(3, 40), -1), jnp.int32)
        rows = Packing.of(whole_bl, 120)
        got = jax.jit(run)(packed, packed.pack(jnp.asarray(x_bld)))
        want = jax.jit(run)(rows, jnp.asarray(x_bld).reshape(120, 6))
    assert packed.radius == 2
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_attention_logits_equal_loops() -> None:
    rng = np.random.default_rng(0)
    query_bkw, memory_btd = rng.normal(size=(2, 1, 4)), rng.normal(size=(2, 3, 5))
    with jax.enable_x64(True):
        module = AttentionLogits(2, WIDE)
        params = module.init(jax.random.key(0), query_bkw, memory_btd)["params"]
        params = jax.tree.map(np.asarray, params)
        got = module.apply({"params": params}, query_bkw, memory_btd)
    for b in range(2):
        for h in range(2):
            q = query_bkw[b, 0] @ params["query_kernel"][:, h] + params["query_bias"][h]
            for t in range(3):
                key = memory_btd[b, t] @ params["key_kernel"][:, h]
                np.testing.assert_allclose(got[b, 0, h, t], q @ key / np.sqrt(2), rtol=1e-12)


def test_heads_must_divide_the_width() -> None:
    module = MultiHeadAttention(4, 0.0, False, Precision("float32", "float32"))
    x_bqd, number_bq = jnp.ones((1, 2, 6)), jnp.zeros((1, 2), int)
    numbers = number_bq, number_bq, number_bq
    with pytest.raises(UserError, match="4 heads do not divide width 6"):
        module.init(jax.random.key(0), x_bqd, x_bqd, jnp.ones((1, 2, 2), bool), *numbers, True)
