"""Packed words and rows: by hand, there and back, and the gradients of both ways."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.qformer_oracle import inputs, make, random_params

from jaxvsa.core.trees import named
from jaxvsa.layers.qformer import QFormer
from jaxvsa.layers.tokens import Layout, Tokens, Words

# Two groups of two examples: 3 and 1 words on an axis of 5, then 2 and none.
WORDS = Words(
    jnp.array([[4, 5, 6, 7, 0], [8, 9, 0, 0, 0]]),
    jnp.array([[0, 1, 2], [3, -1, -1], [0, 1, -1], [-1, -1, -1]]),
)


def test_layout_by_hand() -> None:
    layout = Layout.of(WORDS, 2)
    assert layout.place_gw.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0]]
    assert layout.packed_gm.tolist() == [
        [0, 1, 2, 5, 6, 7, 3, -1, -1, 8, -1, -1],
        [0, 1, -1, 5, 6, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert layout.row_gj.tolist() == [
        [0, 1, 2, 6, -1, 3, 4, 5, 9, -1],
        [0, 1, -1, -1, -1, 3, 4, -1, -1, -1],
    ]


def test_owners_by_hand() -> None:
    """Examples 10 to 13; a frame has five places, of which words have the last four."""
    layout = Layout.of(WORDS, 2)
    example_gj, place_gj = layout.owners(jnp.arange(10, 14), 1, 5)
    real_gj = layout.row_gj >= 0
    assert example_gj[real_gj].tolist() == [10, 10, 10, 11, 10, 10, 10, 11, 12, 12, 12, 12]
    assert place_gj[real_gj].tolist() == [1, 2, 3, 1, 6, 7, 8, 6, 1, 2, 6, 7]


def test_words_behind_the_rows_of_every_frame() -> None:
    word_gjd = jnp.arange(1.0, 21.0).reshape(2, 10, 1)
    tokens = Tokens(jnp.full((8, 1, 1), -1.0), word_gjd, Layout.of(WORDS, 2))
    want = [
        [-1, 1, 2, 3], [-1, 6, 7, 8], [-1, 4, 0, 0], [-1, 9, 0, 0],
        [-1, 11, 12, 0], [-1, 16, 17, 0], [-1, 0, 0, 0], [-1, 0, 0, 0],
    ]  # fmt: skip
    assert tokens.joined()[..., 0].tolist() == want
    back = tokens.split(tokens.joined())
    real_gj = tokens.layout.row_gj >= 0
    np.testing.assert_array_equal(back.row_bqd, tokens.row_bqd)
    np.testing.assert_array_equal(back.word_gjd, jnp.where(real_gj[..., None], word_gjd, 0))
    same = Tokens(tokens.row_bqd, word_gjd[:, :5], tokens.layout)
    assert same.joined()[:4, 1:, 0].tolist() == [[1, 2, 3], [1, 2, 3], [4, 0, 0], [4, 0, 0]]


@pytest.mark.parametrize("way", ["to_rows", "to_packed"])
def test_gradients_are_the_transposed_matrix_and_no_scatter(way: str) -> None:
    layout, rng = Layout.of(WORDS, 2), np.random.default_rng(0)
    x, move = {
        "to_rows": (rng.normal(size=(2, 10, 3)), functools.partial(layout.to_rows, num_rows=8)),
        "to_packed": (rng.normal(size=(8, 3, 3)), layout.to_packed),
    }[way]
    y, pull = jax.vjp(move, x := jnp.asarray(x, jnp.float32))
    grad = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    (back,) = pull(grad)
    units = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)
    matrix = np.stack([np.asarray(move(unit)).ravel() for unit in units])
    np.testing.assert_allclose(back.ravel(), matrix @ grad.ravel(), rtol=1e-6)
    text = jax.jit(pull).lower(grad).as_text()
    assert "gather" in text and "scatter" not in text


def test_groups_must_divide_the_examples() -> None:
    with pytest.raises(ValueError, match="3 examples are no multiple of 2 groups of words"):
        Layout.of(Words(WORDS.ids_gw, WORDS.word_bl[:3]), 2)


LENGTHS = np.array([6, 1, 4, 3])


def rectangle() -> tuple[Any, ...]:
    """One full row, one of a single word."""
    frames, _, _, example_b = inputs(3, rows=4)
    ids_bl = np.random.default_rng(1).integers(1, 31, (4, 6)).astype(np.int32)
    return frames, ids_bl, np.arange(6)[None] < LENGTHS[:, None], example_b


def packed(groups: int, size: int, fill: int = 0) -> Words:
    """The words of `rectangle`, on an axis of `size` for each group."""
    _, ids_bl, keep_bl, _ = rectangle()
    length_gr = LENGTHS.reshape(groups, -1)
    start_b = (np.cumsum(length_gr, axis=1) - length_gr).reshape(-1)
    word_bl = np.where(keep_bl, start_b[:, None] + np.arange(6), -1).astype(np.int32)
    ids_gw = np.full((groups, size), fill, np.int32)
    for b, row in enumerate(word_bl):
        ids_gw[b * groups // 4, row[row >= 0]] = ids_bl[b, keep_bl[b]]
    return Words(jnp.asarray(ids_gw), jnp.asarray(word_bl))


@functools.partial(jax.jit, static_argnums=0)
def outcome(qformer: QFormer, params: Any, words: Words) -> Any:
    """Tokens and the gradients of all parameters."""
    frames, _, _, example_b = rectangle()

    def total(params: Any) -> Any:
        token_bqd = qformer.apply({"params": params}, frames, words, example_b, True)
        return jnp.sum(jnp.sin(token_bqd)), token_bqd

    return jax.grad(total, has_aux=True)(params)


ROUTED = {"enabled": True, "schedule": "all", "pool": "all"}


@pytest.mark.parametrize(
    ("changes", "packings"),
    [
        ({}, [(1, 17, 9), (2, 7, 0)]),
        ({"routing": ROUTED, "temporal_tokens": "all", "order": "s-c-t"}, [(2, 7, 9)]),
    ],
)
def test_packed_words_give_what_padded_rows_give(
    changes: dict[str, Any], packings: list[tuple[int, int, int]]
) -> None:
    qformer = make(num_layers=3, **changes)
    params = random_params(qformer)
    padded = Words.rectangle(*map(jnp.asarray, rectangle()[1:3]))
    want_grads, want = outcome(qformer, params, padded)
    for groups, size, fill in packings:
        grads, got = outcome(qformer, params, packed(groups, size, fill))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        for path, grad in named(grads).items():
            wanted = named(want_grads)[path]
            scale = max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(
                grad / scale, wanted / scale, rtol=1e-5, atol=1e-5, err_msg=path
            )


@pytest.mark.parametrize("changes", [{}, {"temporal_tokens": "all", "order": "s-c-t"}])
def test_layout_changes_nothing_that_is_dropped(changes: dict[str, Any]) -> None:
    """Packed, padded, or one example alone with its words cut to their length."""
    qformer = make(num_layers=2, dropout=0.3, **changes)
    params = jax.tree.map(jnp.asarray, random_params(qformer))
    frames, ids_bl, keep_bl, example_b = rectangle()
    padded = Words.rectangle(jnp.asarray(ids_bl), jnp.asarray(keep_bl))

    @functools.partial(jax.jit, static_argnames=("deterministic", "key"))
    def run(words: Words, *args: Any, deterministic: bool = False, key: int = 1) -> jax.Array:
        rngs = {"dropout": jax.random.key(key)}
        frames, example_b = args
        given = {"params": params}, frames, words, example_b, deterministic
        return qformer.apply(*given, rngs=rngs)  # type: ignore[return-value]

    want = run(padded, frames, example_b)
    np.testing.assert_allclose(run(packed(2, 7, 9), frames, example_b), want, rtol=1e-5, atol=1e-5)
    length = LENGTHS[2]
    alone = Words.rectangle(ids_bl[2:3, :length], keep_bl[2:3, :length])
    np.testing.assert_allclose(
        run(alone, frames[2:3], example_b[2:3]), want[2:3], rtol=1e-5, atol=1e-5
    )
    for other in (
        run(padded, frames, example_b, key=2),
        run(padded, frames, example_b + 1),
        run(padded, frames, example_b, deterministic=True),
    ):
        assert (np.abs(other - want).max(axis=(1, 2)) > 0.1).all()


def test_what_stands_between_and_behind_packed_words_changes_nothing() -> None:
    """Not a bit; and words do count."""
    qformer = make(num_layers=2)
    params = random_params(qformer)
    (grads, got), (other_grads, other) = (
        outcome(qformer, params, packed(1, 17, fill)) for fill in (0, 9)
    )
    np.testing.assert_array_equal(got, other)
    rest, other_rest = ({**found, "word": 0} for found in (grads, other_grads))
    jax.tree.map(np.testing.assert_array_equal, rest, other_rest)
    np.testing.assert_allclose(grads["word"], other_grads["word"], rtol=0, atol=1e-6)
    words = packed(1, 17)
    moved = words.replace(ids_gw=(words.ids_gw + 1) % 31)
    assert np.abs(outcome(qformer, params, moved)[1] - got).max() > 1e-2
