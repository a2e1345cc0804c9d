"""The LLaMA decoder: norm and rotations by hand, padding, cache; parity is in test_llama.py."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.decoder import Decoder, RMSNorm, RopeScaling, rope_angles, rotate


def make(**changes: Any) -> Decoder:
    fields: dict[str, Any] = {
        "vocab_size": 23, "width": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
        "mlp_width": 12, "norm_eps": 1e-5, "rope_theta": 100.0, "rope_scaling": RopeScaling(),
        "tied": False, "remat": True, "precision": Precision(),
    }  # fmt: skip
    return Decoder(**{**fields, **changes})


@functools.cache
def random_params(decoder: Decoder) -> Any:
    shapes = jax.eval_shape(
        lambda: decoder.init(
            jax.random.key(0), jnp.zeros((1, 2), int), method=lambda m, i: m.logits(run_all(m, i))
        )
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.4 * rng.normal(size=x.shape)).astype(x.dtype), shapes)


def run_all(decoder: Decoder, ids_bl: Any) -> jax.Array:
    x_bld, _ = decoder(decoder.embed(ids_bl), jnp.ones(ids_bl.shape, bool))
    return x_bld


@functools.partial(jax.jit, static_argnums=0)
def scores(decoder: Decoder, params: Any, ids_bl: Any, keep_bl: Any) -> jax.Array:
    def whole(module: Decoder) -> jax.Array:
        return module.logits(module(module.embed(ids_bl), keep_bl)[0])

    return decoder.apply({"params": params}, method=whole)


IDS = np.random.default_rng(3).integers(0, 23, (2, 7)).astype(np.int32)


def test_norm_by_hand_and_the_cast_comes_before_the_scale() -> None:
    norm = RMSNorm(0.0, Precision())
    params = {"params": {"scale": jnp.array([1.0, 10.0])}}
    x_bld = jnp.array([[[3.0, 4.0]]])  # root mean square sqrt(12.5)
    want = np.array([[[3.0, 40.0]]]) / np.sqrt(12.5)
    np.testing.assert_allclose(norm.apply(params, x_bld), want, rtol=1e-6)
    half = RMSNorm(0.0, Precision(compute="bfloat16"))
    scale = {"params": {"scale": jnp.array([1.0, 1.00390625])}}
    got = half.apply(scale, x_bld.astype(jnp.bfloat16))
    unit = jnp.asarray(want / [[[1, 10]]], jnp.bfloat16)
    np.testing.assert_array_equal(got, unit * jnp.array([[[1, 1.00390625]]], jnp.bfloat16))


def test_rotation_by_hand() -> None:
    """Pair (0, 2) turns by the position, pair (1, 3) by a tenth of it."""
    angle_blr = rope_angles(jnp.array([[0, 2]]), 4, 100.0, RopeScaling())
    np.testing.assert_allclose(angle_blr, [[[0, 0], [2, 0.2]]], rtol=1e-6)
    x_blhe = jnp.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4).repeat(2, axis=1)
    got = rotate(x_blhe, angle_blr)[0, :, 0]
    want = [[1, 0, 0, 1], [np.cos(2), -np.sin(0.2), np.sin(2), np.cos(0.2)]]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_long_rotations_are_stretched_and_short_ones_are_not() -> None:
    scaling = RopeScaling(factor=8.0, low=1.0, high=4.0, positions=64)
    plain = rope_angles(jnp.ones((1, 1), int), 8, 1e4, RopeScaling())[0, 0]
    got = rope_angles(jnp.ones((1, 1), int), 8, 1e4, scaling)[0, 0] / plain
    # Turns within 64 positions: 10.2, 1.02, 0.1, 0.01.
    share = (64 * 0.1 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(got, [1, share + (1 - share) / 8, 1 / 8, 1 / 8], rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_cannot_change_the_scores(side: str) -> None:
    decoder = make()
    params = random_params(decoder)
    bare = scores(decoder, params, IDS, np.ones(IDS.shape, bool))
    edges = ((0, 0), (3, 0) if side == "left" else (0, 3))
    real = slice(3, None) if side == "left" else slice(None, -3)
    for fill in (0, 5):
        ids_bl = np.pad(IDS, edges, constant_values=fill)
        got = scores(decoder, params, ids_bl, np.pad(np.ones(IDS.shape, bool), edges))
        np.testing.assert_allclose(got[:, real], bare, rtol=1e-5, atol=1e-5)


def test_a_token_sees_only_what_is_before_it() -> None:
    decoder = make()
    params, keep_bl = random_params(decoder), np.ones(IDS.shape, bool)
    changed = IDS.copy()
    changed[:, 4] = (IDS[:, 4] + 1) % 23
    before, after = (scores(decoder, params, ids, keep_bl) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max() > 1e-3


@functools.partial(jax.jit, static_argnums=(0, 4))
def cached_scores(
    decoder: Decoder, params: Any, ids_bl: Any, keep_bl: Any, first: int
) -> jax.Array:
    """Scores of all columns: `first` of them at once, the others one by one."""

    def whole(module: Decoder) -> jax.Array:
        cache, found = module.new_cache(len(ids_bl), ids_bl.shape[1] + 2), []
        parts = [slice(0, first)] + [slice(i, i + 1) for i in range(first, ids_bl.shape[1])]
        for part in parts:
            x_bld, cache = module(module.embed(ids_bl[:, part]), keep_bl[:, part], cache)
            found.append(module.logits(x_bld))
        return jnp.concatenate(found, axis=1)

    return decoder.apply({"params": params}, method=whole)


def test_decoding_with_a_cache_equals_the_whole() -> None:
    decoder = make()
    params = random_params(decoder)
    keep_bl = np.ones(IDS.shape, bool)
    keep_bl[0, :2] = False  # padded on the left, as for generation
    want = scores(decoder, params, IDS, keep_bl)
    got = cached_scores(decoder, params, IDS, keep_bl, 3)
    np.testing.assert_allclose(got[keep_bl], want[keep_bl], rtol=1e-5, atol=1e-5)


def test_remat_and_scan_change_nothing_in_the_gradient() -> None:
    plain, remat = make(remat=False), make()
    params = random_params(remat)

    def loss(decoder: Decoder, params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(scores(decoder, params, IDS, np.ones(IDS.shape, bool))))

    want, got = (jax.grad(functools.partial(loss, d))(params) for d in (plain, remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def test_tied_head_is_the_word_table() -> None:
    decoder = make(tied=True)
    params = random_params(decoder)
    assert "head" not in params
    head = np.ascontiguousarray(params["word"].T)
    want = scores(make(), {**params, "head": head}, IDS, np.ones(IDS.shape, bool))
    got = scores(decoder, params, IDS, np.ones(IDS.shape, bool))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes,match", [({"num_heads": 3}, "width 16 / num_heads 3"), ({"num_kv_heads": 3}, "kv")]
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, int], match: str) -> None:
    with pytest.raises(UserError, match=match):
        make(**changes).init(jax.random.key(0), jnp.zeros((1, 2), int), method=Decoder.embed)
