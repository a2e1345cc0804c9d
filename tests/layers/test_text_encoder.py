"""The text encoder against plain loops; Hugging Face parity is in tests/interop/test_roberta.py."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.text_encoder import EncoderLayer, TextEncoder

PAD = {"roberta": 1, "bert": 0}
KINDS = pytest.mark.parametrize("kind", ["roberta", "bert"])


def make(kind: str = "roberta", **changes: Any) -> TextEncoder:
    fields: dict[str, Any] = {
        "kind": kind,
        "vocab_size": 17,
        "width": 6,
        "num_layers": 2,
        "num_heads": 3,
        "mlp_width": 10,
        "max_positions": 12,
        "num_types": 2,
        "norm_eps": 1e-5,
        "pad_id": PAD[kind],
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "precision": Precision(),
    }
    return TextEncoder(**{**fields, **changes})


def batch(lengths: tuple[int, ...], padded: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    keep_bl = np.arange(padded)[None] < np.array(lengths)[:, None]
    ids_bl = np.random.default_rng(0).integers(3, 17, (len(lengths), 80))[:, :padded]
    return np.where(keep_bl, ids_bl, pad_id).astype(np.int32), keep_bl


def rectangle(ids_bl: Any, keep_bl: Any) -> tuple[Any, Packing, Sight]:
    """Arguments of the encoder for rows that are padded to one length."""
    packing = Packing.rectangle(*keep_bl.shape)
    sight = Sight.of(packing, jnp.asarray(keep_bl).reshape(-1), packing.row_n)
    return jnp.asarray(ids_bl).reshape(-1), packing, sight


def packed(
    ids_bl: np.ndarray, keep_bl: np.ndarray, pads: int, tail: int = 0
) -> tuple[Any, Packing, Sight]:
    """Likewise for rows one after another, each with `pads` of its padding tokens at most."""
    length_b = keep_bl.sum(axis=1)
    span_b = np.minimum(length_b + pads, keep_bl.shape[1])
    start_b, place_l = np.cumsum(span_b) - span_b, np.arange(span_b.max())
    inside_bl = place_l < span_b[:, None]
    size = (-(-span_b.sum() // 32) + tail) * 32
    packing = Packing.of(
        jnp.asarray(np.where(inside_bl, start_b[:, None] + place_l, -1), jnp.int32), size
    )
    ids_n = np.full(size, ids_bl[~keep_bl][0], np.int32)
    ids_n[packing.index_bl[inside_bl]] = ids_bl[:, : span_b.max()][inside_bl]
    real_n = (packing.row_n >= 0) & (packing.place_n < jnp.asarray(length_b)[packing.row_n])
    return jnp.asarray(ids_n), packing, Sight.of(packing, real_n, packing.row_n)


def random_params(encoder: TextEncoder, scale: float = 0.5, dtype: Any = np.float32) -> Any:
    """Every parameter random, biases and pad rows too, so that none can be forgotten."""
    ids_bl, keep_bl = batch((2,), 2, encoder.pad_id)
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), *rectangle(ids_bl, keep_bl), True)
    )["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(dtype), shapes)


def run(encoder: TextEncoder, params: Any, ids_bl: Any, keep_bl: Any) -> np.ndarray:
    return np.asarray(apply(encoder, params, *rectangle(ids_bl, keep_bl)))


@functools.partial(jax.jit, static_argnums=(0, 5))
def apply(
    encoder: TextEncoder,
    params: Any,
    ids_n: Any,
    packing: Packing,
    sight: Sight,
    deterministic: bool = True,
    rng: Any = None,
) -> jax.Array:
    """Vectors (b,l,u), zeros behind the rows."""
    rngs = None if rng is None else {"dropout": rng}
    x_nu = encoder.apply({"params": params}, ids_n, packing, sight, deterministic, rngs=rngs)
    return packing.unpack(x_nu)


@pytest.mark.parametrize(
    "kind,ids,positions",
    [("roberta", [5, 6, 1, 1], [2, 3, 1, 1]), ("bert", [5, 6, 0, 0], [0, 1, 0, 0])],
)
def test_positions_follow_the_kind(kind: str, ids: list[int], positions: list[int]) -> None:
    encoder = make(kind, width=12, num_layers=1)
    params = jax.tree.map(np.zeros_like, random_params(encoder))
    params["position"]["embedding"] = np.eye(12, dtype=np.float32)
    for norm in (params["norm_embed"], *(params["layer_0"][f"norm_{n}"] for n in NORMS)):
        norm["scale"] += 1
    ids_bl = np.array([ids], np.int32)
    x_blu = run(encoder, params, ids_bl, ids_bl != PAD[kind])
    assert x_blu.argmax(-1).tolist() == [positions]


NORMS = ("attention", "mlp")


def test_initialisation_is_the_published_one() -> None:
    encoder = make(vocab_size=400, width=48, mlp_width=96, max_positions=60)
    ids_bl, keep_bl = batch((3,), 4, 1)
    leaves = named(encoder.init(jax.random.key(0), *rectangle(ids_bl, keep_bl), True)["params"])
    assert leaves["layer_0/query/kernel"].shape == (48, 48)
    assert leaves["layer_1/mlp_in/kernel"].shape == (48, 96)
    assert not np.array_equal(*(leaves[f"layer_{i}/key/kernel"] for i in (0, 1)))
    for path, leaf in leaves.items():
        if path.endswith("bias"):
            assert not np.any(leaf), path
        elif path.endswith("scale"):
            assert np.all(leaf == 1), path
        elif leaf.size > 1000:
            assert abs(np.std(leaf) - 0.02) < 0.002, path
    assert not np.any(leaves["word/embedding"][1]) and not np.any(leaves["position/embedding"][1])
    assert np.all(np.any(np.delete(leaves["word/embedding"], 1, axis=0), axis=-1))


@KINDS
def test_padded_length_cannot_change_the_answer(kind: str) -> None:
    encoder = make(kind)
    params = random_params(encoder)
    short = run(encoder, params, *batch((6, 3, 1), 7, PAD[kind]))
    long = run(encoder, params, *batch((6, 3, 1), 10, PAD[kind]))
    np.testing.assert_allclose(long[:, :7], short, rtol=1e-5, atol=1e-6)
    for row, length in enumerate((6, 3, 1)):
        pads = long[row, length:]
        assert np.ptp(pads, axis=0).max() == 0, "all pads of a row are one vector"


@KINDS
def test_packed_rows_equal_padded_ones(kind: str) -> None:
    """Values and gradients, under dropout; one row spans four blocks."""
    more = {"dropout": 0.2, "attention_dropout": 0.3, "max_positions": 80, "num_layers": 1}
    encoder = make(kind, **more, precision=Precision("float64", "float64"))
    lengths, rng = (1, 66, 20, 3), jax.random.key(2)
    ids_bl, keep_bl = batch(lengths, 70, PAD[kind])
    weight_blu = np.random.default_rng(3).normal(size=(4, 70, 6))
    weight_blu *= np.arange(70)[:, None] <= np.array(lengths)[:, None, None]  # one pad a row

    def loss(params: Any, arrays: Any) -> Any:
        x_blu = apply(encoder, params, *arrays, False, rng)
        return jnp.sum(x_blu * weight_blu[:, : x_blu.shape[1]]), x_blu

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    with jax.enable_x64(True):
        params = random_params(encoder, dtype=np.float64)
        (_, want), wanted = run(params, rectangle(ids_bl, keep_bl))
        arrays = packed(ids_bl, keep_bl, pads=2, tail=1)
        assert arrays[1].radius == 3
        (_, got), grads = run(params, arrays)
    for row, length in enumerate(lengths):
        kept = slice(0, length + 1)
        np.testing.assert_allclose(got[row, kept], want[row, kept], rtol=1e-11, atol=1e-12)
    for path, leaf in named(wanted).items():
        np.testing.assert_allclose(named(grads)[path], leaf, rtol=1e-10, atol=1e-11, err_msg=path)


@KINDS
def test_rows_of_a_batch_do_not_see_each_other(kind: str) -> None:
    encoder = make(kind)
    params = random_params(encoder)
    ids_bl, keep_bl = batch((6, 3, 1), 7, PAD[kind])
    together = run(encoder, params, ids_bl, keep_bl)
    alone = [run(encoder, params, ids_bl[b : b + 1], keep_bl[b : b + 1]) for b in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-5, atol=1e-6)


def plain(encoder: TextEncoder, params: Any, ids: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """One row of ids through the encoder, token by token and head by head, in float64."""
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in named(params).items()}
    size = encoder.width // encoder.num_heads

    def norm(x: np.ndarray, path: str) -> np.ndarray:
        scale, bias = leaves[f"{path}/scale"], leaves[f"{path}/bias"]
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        return (x - mean) / math.sqrt(variance + encoder.norm_eps) * scale + bias

    def dense(x: np.ndarray, name: str, layer: int) -> np.ndarray:
        kernel, bias = (leaves[f"layer_{layer}/{name}/{kind}"] for kind in ("kernel", "bias"))
        return np.array([x @ kernel[:, o] + bias[o] for o in range(len(bias))])

    count, rows = 0, []
    for token, real in zip(ids, keep, strict=True):
        at = count if real else 0
        if encoder.kind == "roberta":
            at = count + 2 if real else 1
        count += int(real)
        word, place = leaves["word/embedding"][token], leaves["position/embedding"][at]
        rows.append(norm(word + place + leaves["type/embedding"][0], "norm_embed"))
    for layer in range(encoder.num_layers):
        q, k, v = ([dense(x, name, layer) for x in rows] for name in ("query", "key", "value"))
        for i, x in enumerate(list(rows)):
            mixed = []
            for h in range(encoder.num_heads):
                part = slice(h * size, (h + 1) * size)
                seen = [j for j in range(len(keep)) if keep[j]]
                score = [math.exp(q[i][part] @ k[j][part] / math.sqrt(size)) for j in seen]
                total = sum(s * v[j][part] for s, j in zip(score, seen, strict=True)) / sum(score)
                mixed.extend(total)
            x = norm(x + dense(np.array(mixed), "out", layer), f"layer_{layer}/norm_attention")
            inner = dense(x, "mlp_in", layer)
            inner = np.array([z * (1 + math.erf(z / math.sqrt(2))) / 2 for z in inner])
            rows[i] = norm(x + dense(inner, "mlp_out", layer), f"layer_{layer}/norm_mlp")
    return np.stack(rows)


@KINDS
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_encoder_equals_plain_loops(kind: str, dtype: str, tolerance: float) -> None:
    with jax.enable_x64(dtype == "float64"):
        encoder = make(kind, precision=Precision(dtype, dtype))
        params = random_params(encoder, dtype=dtype)
        ids_bl, keep_bl = batch((5, 2), 6, PAD[kind])
        got = run(encoder, params, ids_bl, keep_bl)
        assert got.dtype == dtype
    for row in range(2):
        want = plain(encoder, params, ids_bl[row], keep_bl[row])
        np.testing.assert_allclose(got[row], want, rtol=tolerance, atol=tolerance)


@KINDS
def test_pad_rows_shape_the_output_but_get_no_gradient(kind: str) -> None:
    encoder = make(kind)
    params = random_params(encoder)
    ids_bl, keep_bl = batch((4, 2), 6, PAD[kind])

    def loss(params: Any) -> jax.Array:
        x_blu = apply(encoder, params, *rectangle(ids_bl, keep_bl))
        return jnp.sum(jnp.sin(3 * x_blu))

    grads = jax.jit(jax.grad(loss))(params)
    pad = PAD[kind]
    assert not np.any(grads["word"]["embedding"][pad])
    assert np.all(np.any(grads["word"]["embedding"][np.unique(ids_bl[keep_bl])], axis=-1))
    held_position = kind == "roberta"
    assert np.any(grads["position"]["embedding"][pad]) != held_position
    moved = jax.tree.map(np.copy, params)
    moved["word"]["embedding"][pad] += 0.1 * np.arange(6)
    assert abs(loss(moved) - loss(params)) > 1e-3


def capture_dropout(module: Any, params: Any, *args: Any) -> list[np.ndarray]:
    """What every dropout of `module` itself returned, in the order of their names."""
    _, seen = module.apply(
        {"params": params},
        *args,
        rngs={"dropout": jax.random.key(3)},
        capture_intermediates=lambda part, _: (part.name or "").startswith("drop"),
    )
    calls = seen["intermediates"]
    return [
        np.asarray(calls[name]["__call__"][0]) for name in sorted(calls) if name.startswith("drop")
    ]


def test_layer_drops_attention_and_both_outputs_independently() -> None:
    layer = EncoderLayer(4, 8, 1e-5, 0.5, 0.2, Precision())
    x_nu = np.random.default_rng(0).normal(size=(8 * 16, 32)).astype(np.float32)
    _, packing, sight = rectangle(np.zeros((8, 16)), np.ones((8, 16), bool))
    params = layer.init(jax.random.key(0), x_nu, packing, sight, True)["params"]
    params["query"]["kernel"] = np.zeros_like(params["query"]["kernel"])  # uniform attention
    attn_khqz, inner_nu, out_nu = capture_dropout(layer, params, x_nu, packing, sight, False)
    kept = attn_khqz > 0
    np.testing.assert_allclose(attn_khqz[kept], 1 / 16 / 0.8, rtol=1e-5)
    assert abs(kept.mean() - 0.8) < 5 * math.sqrt(0.16 / kept.size)
    for axis in range(4):  # neighbours along every axis agree as often as independent draws
        agree = kept == np.roll(kept, 1, axis)
        assert abs(agree.mean() - 0.68) < 6 * math.sqrt(0.25 / agree.size)
    for part in (out_nu, inner_nu):
        assert abs((part == 0).mean() - 0.5) < 5 * math.sqrt(0.25 / part.size)
    agree = (out_nu == 0) == (inner_nu == 0)
    assert abs(agree.mean() - 0.5) < 5 * math.sqrt(0.25 / agree.size)


def test_embeddings_are_dropped_after_their_norm() -> None:
    encoder = make(width=48, dropout=0.5, num_layers=1)
    params = random_params(encoder)
    params["norm_embed"] = {"scale": np.zeros(48, np.float32), "bias": np.ones(48, np.float32)}
    ids_bl, keep_bl = batch((6, 3, 1), 7, 1)
    (x_nu,) = capture_dropout(encoder, params, *rectangle(ids_bl, keep_bl), False)
    assert set(np.unique(x_nu)) == {0.0, 2.0}
    assert abs((x_nu == 0).mean() - 0.5) < 5 * math.sqrt(0.25 / x_nu.size)


def test_layers_draw_their_own_dropout() -> None:
    """Layer 1 leaves +-1, layer 2 adds 0 or 2: a shared mask would never give the middle value."""
    encoder = make(width=600, num_heads=1, dropout=0.5)
    params = jax.tree.map(np.zeros_like, random_params(encoder))
    params["norm_embed"]["scale"] += 1
    for i, bias in enumerate((1e4, 1.0)):
        for norm in NORMS:
            params[f"layer_{i}"][f"norm_{norm}"]["scale"] += 1
        params[f"layer_{i}"]["mlp_out"]["bias"] += np.float32(bias)
    ids_bl, keep_bl = batch((6,), 6, 1)
    x_blu = apply(encoder, params, *rectangle(ids_bl, keep_bl), False, jax.random.key(0))
    middle = np.abs(x_blu) < 0.5
    assert abs(middle.mean() - 0.5) < 5 * math.sqrt(0.25 / middle.size)


def test_no_dropout_needs_no_key_and_is_deterministic() -> None:
    ids_bl, keep_bl = batch((6, 3), 7, 1)
    params = random_params(make())
    dropping = make(dropout=0.3, attention_dropout=0.3)
    evaluating = apply(dropping, params, *rectangle(ids_bl, keep_bl))
    without = apply(make(), params, *rectangle(ids_bl, keep_bl), False)
    np.testing.assert_array_equal(evaluating, without)


def test_bfloat16_keeps_softmax_and_norms_in_float32() -> None:
    encoder = make(precision=Precision("float32", "bfloat16"))
    params = random_params(encoder, scale=0.2)
    ids_bl, keep_bl = batch((6, 3), 7, 1)
    x_blu = apply(encoder, params, *rectangle(ids_bl, keep_bl))
    assert x_blu.dtype == jnp.bfloat16
    want = run(make(), params, ids_bl, keep_bl)
    np.testing.assert_allclose(np.asarray(x_blu, np.float32), want, atol=0.05)
    text = str(jax.make_jaxpr(lambda p: apply(encoder, p, *rectangle(ids_bl, keep_bl)))(params))
    kinds = re.findall(r":(\w+)\[[\d,]*\] = (exp|rsqrt|dot_general)\b", text)
    assert {kind for kind, op in kinds if op in ("exp", "rsqrt")} == {"f32"}
    assert {kind for kind, op in kinds if op == "dot_general"} == {"bf16", "f32"}


def test_row_without_tokens_stays_finite() -> None:
    encoder = make()
    ids_bl, keep_bl = batch((3, 0), 4, 1)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(apply(encoder, params, *rectangle(ids_bl, keep_bl)))

    grads = jax.jit(jax.grad(loss))(random_params(encoder))
    assert all(np.all(np.isfinite(leaf)) for leaf in named(grads).values())


def test_encoder_refuses_what_cannot_fit() -> None:
    params = random_params(make())
    with pytest.raises(ValueError, match="row_n: dim 'n' is 5, but ids_n says 6"):
        run(make(), params, np.ones((1, 6), np.int32), np.ones((1, 5), bool))
    with pytest.raises(UserError, match="width 6 is not a multiple of num_heads 4"):
        run(make(num_heads=4), params, *batch((2,), 2, 1))
    with pytest.raises(UserError, match="unknown text encoder kind 'gpt'; known: roberta, bert"):
        run(make(kind="roberta").clone(kind="gpt"), params, *batch((2,), 2, 1))
    assert run(make(), params, *batch((10,), 10, 1)).shape == (1, 10, 6)
    with pytest.raises(UserError, match="11 tokens, but its positions allow 10; lower"):
        run(make(), params, *batch((11,), 11, 1))
    bert = make("bert")
    assert run(bert, random_params(bert), *batch((12,), 12, 0)).shape == (1, 12, 6)
