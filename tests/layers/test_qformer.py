"""What must hold for the video Q-Former by itself; parity is in interop/test_blip.py."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.qformer_oracle import apply, inputs, make, ours, random_params, without

from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named


@pytest.mark.parametrize("blind", [True, False])
def test_e_the_order_of_frames_counts_only_with_positions(blind: bool) -> None:
    qformer = make(aggregate="mean")
    params = without(random_params(qformer), "frame_position" if blind else "nothing")
    frames, *rest = inputs(4)
    moved = apply(qformer, params, frames[:, [2, 0, 3, 1]], *rest)
    difference = np.abs(np.asarray(moved - apply(qformer, params, frames, *rest))).max()
    assert difference < 1e-5 if blind else difference > 1e-2


def test_padding_of_the_text_and_other_rows_change_nothing() -> None:
    qformer = make(routing={"enabled": True, "combine": "log", "pool": "all"})
    params = random_params(qformer)
    frames, ids_bl, keep_bl, example_b = inputs(3)
    whole = apply(qformer, params, frames, ids_bl, keep_bl, example_b)
    other = np.where(keep_bl, ids_bl, 9)
    np.testing.assert_allclose(
        apply(qformer, params, frames, other, keep_bl, example_b), whole, rtol=1e-5, atol=1e-5
    )
    alone = apply(qformer, params, frames[1:], ids_bl[1:, :4], keep_bl[1:, :4], example_b[1:])
    np.testing.assert_allclose(alone, whole[1:], rtol=1e-5, atol=1e-5)


def test_every_frame_is_dropped_anew() -> None:
    """Three times the same frame, without positions and words."""
    qformer = make(num_layers=1, dropout=0.3, vocab_size=0)
    params = jax.tree.map(jnp.asarray, without(random_params(qformer, False), "frame_position"))
    frames, *rest = inputs(3, False)
    given = ours(np.repeat(frames[:, :1], 3, axis=1), *rest)

    @functools.partial(jax.jit, static_argnums=0)
    def run(deterministic: bool) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        found = qformer.apply({"params": params}, *given, deterministic, rngs=rngs)
        return jnp.reshape(found, (2, 3, 5, -1))  # type: ignore[arg-type]

    for deterministic in (True, False):
        first, second, third = jnp.moveaxis(run(deterministic), 1, 0)
        apart = [np.abs(a - b).max() for a, b in ((first, second), (second, third))]
        assert max(apart) < 1e-5 if deterministic else min(apart) > 0.1


@pytest.mark.parametrize("gate", ["none", "zero"])
def test_gradients_of_a_new_model(gate: str) -> None:
    """A closed gate keeps gradients from what lies behind it, and gets one itself."""
    qformer = make(temporal_gate=gate, aggregate="mean",
                   routing={"enabled": True, "schedule": "all"})  # fmt: skip
    params = without(random_params(qformer), "time_gate")

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(apply(qformer, params, *inputs(3))))

    size = {k: float(jnp.abs(v).max()) for k, v in named(jax.grad(loss)(params)).items()}
    behind = [v for k, v in size.items() if "lora_time" in k or "router_time" in k]
    assert len(behind) == 4 * (4 + 3)
    assert max(behind) == 0 if gate == "zero" else min(behind) > 0
    if gate == "zero":
        assert min(v for k, v in size.items() if "time_gate" in k) > 0
    assert min(v for k, v in size.items() if "lora_space" in k) > 0


@pytest.mark.parametrize("aggregate,tokens", [("mean", 5), ("max", 5), ("last", 5), ("concat", 15)])
def test_tokens_after_aggregation(aggregate: str, tokens: int) -> None:
    every = make(aggregate="concat")
    params, args = random_params(every), inputs(3)
    x_btqd = np.asarray(apply(every, params, *args)).reshape(2, 3, 5, 32)
    want = {
        "mean": x_btqd.mean(1), "max": x_btqd.max(1), "last": x_btqd[:, -1],
        "concat": x_btqd.reshape(2, 15, 32),
    }[aggregate]  # fmt: skip
    got = apply(make(aggregate=aggregate), params, *args)
    assert got.shape == (2, tokens, 32)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 4, 8, 16])
def test_as_many_tokens_whatever_the_number_of_frames(num_frames: int) -> None:
    qformer = make(aggregate="mean", max_frames=16)
    args = inputs(num_frames)
    shapes = jax.eval_shape(lambda: qformer.init_with_output(jax.random.key(0), *ours(*args), True))
    assert shapes[0].shape == (2, 5, 32)


@pytest.mark.parametrize("combine", ["hadamard", "mixture", "log"])
def test_routing_that_hides_nothing_changes_nothing(combine: str) -> None:
    """Masks of ones for any weights, bands as wide as the axis, and one mask alone."""
    args = inputs(3)
    plain = make()
    wide: tuple[tuple[int, ...], ...] = ((0, 0, 0), (0, 9), (0,))
    for orders in wide:
        routing = {"enabled": True, "schedule": "all", "combine": combine, "orders": orders}
        routed = make(routing=routing)
        params = random_params(routed)
        assert any("router_" in path for path in named(params)) == (len(orders) > 1)
        got, want = (apply(model, params, *args) for model in (routed, plain))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    narrow = make(routing={"enabled": True, "schedule": "all", "combine": combine})
    params = random_params(narrow)
    moved = apply(narrow, params, *args) - apply(plain, params, *args)
    assert np.abs(moved).max() > 1e-2


def test_what_does_not_fit_is_refused() -> None:
    qformer = make()
    params, (frames, ids_bl, keep_bl, example_b) = random_params(qformer), inputs(3)
    with pytest.raises(UserError, match="9 frames, but frame_position has 8 rows"):
        apply(qformer, params, *inputs(9))
    long_bl = np.ones((2, 13), np.int32)
    with pytest.raises(UserError, match="13 words, but there are 12 positions"):
        apply(qformer, params, frames, long_bl, long_bl > 0, example_b)
    with pytest.raises(ValueError, match="without a word table"):
        apply(make(vocab_size=0), params, frames, ids_bl, keep_bl, example_b)
    with pytest.raises(ValueError, match="example_b: dim 'b' is 1, but frames_btpf says 2"):
        apply(qformer, params, frames, ids_bl, keep_bl, example_b[:1])
    with pytest.raises(UserError, match="5 heads do not divide width 32"):
        make(num_heads=5).init(jax.random.key(0), *ours(*inputs(3)), True)
