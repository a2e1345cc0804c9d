"""Consensus attention against the full computation of all its rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.consensus import Consensus, ConsensusOptions

WIDE = Precision("float64", "float64")


def inputs() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {
        "video_btd": rng.normal(size=(2, 4, 3)),
        "keep_bt": np.arange(4)[None] < np.array([[4], [2]]),
        "text_blu": rng.normal(size=(2, 5, 7)),
        "keep_bl": np.arange(5)[None] < np.array([[3], [5]]),
        "token_kw": rng.random((2, 6)),
    }


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


@pytest.mark.parametrize(("layers", "masked"), [(1, True), (1, False), (2, True), (3, False)])
def test_token_rows_equal_those_of_the_full_computation(layers: int, masked: bool) -> None:
    given = inputs()
    module = Consensus(ConsensusOptions(6, 2, layers, 2, masked), 0.0, WIDE)
    with jax.enable_x64(True):
        p = jax.tree.map(
            np.asarray,
            module.init(jax.random.key(0), *given.values(), deterministic=True)["params"],
        )
        rng = np.random.default_rng(1)
        p = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape), p)
        got, attn = module.apply({"params": p}, *given.values(), deterministic=True)
    np.testing.assert_allclose(got, all_rows(p, given, layers, masked), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(attn).sum(axis=-1), 1, rtol=1e-12)
    assert np.abs(np.asarray(attn)[1, ..., 2:4]).max() == 0  # padded frames are never keys


def test_no_layer_is_refused() -> None:
    module = Consensus(ConsensusOptions(6, 2, 0, 2, True), 0.0, Precision("float32", "float32"))
    with pytest.raises(UserError, match="num_layers is 0"):
        module.init(jax.random.key(0), *inputs().values(), deterministic=True)
