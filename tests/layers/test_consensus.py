"""Consensus attention against the full computation of all its rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.consensus import Consensus, ConsensusOptions
from jaxvsa.layers.packed import Packing

WIDE = Precision("float64", "float64")


FRAMES, WORDS = np.array([4, 2]), np.array([3, 5])


def inputs() -> dict[str, Any]:
    """Two rows of 4 frames and 5 words, padding included."""
    rng = np.random.default_rng(5)
    return {
        "video_btd": rng.normal(size=(2, 4, 3)),
        "keep_bt": np.arange(4)[None] < FRAMES[:, None],
        "text_blu": rng.normal(size=(2, 5, 7)),
        "keep_bl": np.arange(5)[None] < WORDS[:, None],
        "token_kw": rng.random((2, 6)),
    }


def packed(given: dict[str, Any], layout: str) -> tuple[Any, ...]:
    """Arguments of the module: rows one after another, or as a rectangle with its padding."""

    def pack(x_bld: np.ndarray, count_b: np.ndarray) -> tuple[Any, Packing]:
        rows, length, width = x_bld.shape
        if layout == "rectangle":
            return x_bld.reshape(-1, width), Packing.rectangle(rows, length)
        span_b = np.minimum(count_b + 1, length)  # one padded place is kept
        start_b, place_l = np.cumsum(span_b) - span_b, np.arange(length)
        index_bl = np.where(place_l < span_b[:, None], start_b[:, None] + place_l, -1)
        packing = Packing.of(jnp.asarray(index_bl, jnp.int32), 32)
        return packing.pack(jnp.asarray(x_bld)), packing

    video, shots = pack(given["video_btd"], FRAMES)
    text, words = pack(given["text_blu"], WORDS)
    example_b = np.array([11, 4])
    return video, shots, FRAMES, text, words, WORDS, given["token_kw"], example_b


def all_rows(p: Any, given: dict[str, Any], layers: int, masked: bool) -> np.ndarray:
    """Every row of every layer, one at a time."""
    found = []
    for b in range(2):
        video = np.maximum(given["video_btd"][b] @ p["video_kernel"] + p["video_bias"], 0)
        text = np.maximum(given["text_blu"][b] @ p["text_kernel"] + p["text_bias"], 0)
        x = np.concatenate([video, given["token_kw"], text])
        kind = np.repeat([0, 1, 2], [4, 2, 5])
        keep = np.concatenate([given["keep_bt"][b], [True, True], given["keep_bl"][b]])
        for layer in range(layers):
            w = p[f"layer_{layer}"]
            new = np.zeros_like(x)
            for row in range(len(x)):
                see = keep.copy()
                if masked and kind[row] != 1:
                    see &= (kind == kind[row]) | (kind == 1)
                for h in range(2):
                    q = x[row] @ w["query_kernel"][:, h] + w["query_bias"][h]
                    scores = x @ w["key_kernel"][:, h] @ q / np.sqrt(3)
                    exp = np.where(see, np.exp(scores - scores.max()), 0)
                    values = x @ w["value_kernel"][:, h] + w["value_bias"][h]
                    new[row] += exp / exp.sum() @ values @ w["out_kernel"][h]
                new[row] += w["out_bias"]
            x = new
        found.append(x[4:6])
    return np.stack(found)


def random_params(module: Consensus, arrays: tuple[Any, ...]) -> Any:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arrays, deterministic=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape), shapes["params"])


@pytest.mark.parametrize("layout", ["rectangle", "packed"])
@pytest.mark.parametrize(("layers", "masked"), [(1, True), (1, False), (2, True), (3, False)])
def test_token_rows_equal_those_of_the_full_computation(
    layers: int, masked: bool, layout: str
) -> None:
    given = inputs()
    module = Consensus(ConsensusOptions(6, 2, layers, 2, masked), 0.0, WIDE)
    with jax.enable_x64(True):
        arrays = packed(given, layout)
        p = random_params(module, arrays)
        apply = jax.jit(lambda p: module.apply({"params": p}, *arrays, deterministic=True))
        got, attn = apply(p)
    np.testing.assert_allclose(got, all_rows(p, given, layers, masked), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(attn).sum(axis=-1), 1, rtol=1e-12)
    assert np.abs(np.asarray(attn)[1, ..., 2:4]).max() == 0  # padded frames are never keys
    assert np.abs(np.asarray(attn)[0, ..., 4 + 2 + 3 :]).max() == 0  # nor are padded words


def test_dropout_does_not_see_the_layout_and_differs_between_layers_and_examples() -> None:
    module = Consensus(ConsensusOptions(6, 2, 2, 2, True), 0.4, WIDE)
    rngs = {"dropout": jax.random.key(3)}
    with jax.enable_x64(True):
        p = random_params(module, packed(inputs(), "packed"))

        def run(arrays: tuple[Any, ...], deterministic: bool = False) -> np.ndarray:
            how = {"deterministic": deterministic, "rngs": rngs}
            return np.asarray(jax.jit(lambda a: module.apply({"params": p}, *a, **how)[0])(arrays))

        arrays = packed(inputs(), "packed")
        want = run(arrays)
        wider = {name: np.pad(x, ((0, 0), (0, 3), (0, 0))) for name, x in inputs().items()
                 if name in ("video_btd", "text_blu")}  # fmt: skip
        wide = packed(inputs() | wider, "rectangle")
        np.testing.assert_allclose(run(wide), want, rtol=1e-12)
        assert np.abs(run(arrays, True) - want).min(axis=(1, 2)).max() > 1e-3
        other = run((*arrays[:-1], np.array([11, 5])))
    np.testing.assert_array_equal(other[0], want[0])
    assert np.abs(other[1] - want[1]).max() > 1e-2


def test_no_layer_is_refused() -> None:
    module = Consensus(ConsensusOptions(6, 2, 0, 2, True), 0.0, Precision("float32", "float32"))
    with pytest.raises(UserError, match="num_layers is 0"):
        module.init(jax.random.key(0), *packed(inputs(), "packed"), deterministic=True)
