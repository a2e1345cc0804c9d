"""The model: PyTorch's values and gradients, numbers kept from it, padding, the zero vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems.clevereward import arrays, oracle

from jaxvsa.core import trees
from jaxvsa.systems.clevereward.model import Block, ModelOptions, Pool, masked_mean, sinusoids, unit

# Model, loss, and what PyTorch gave once: loss, rewards of the first pair, norm of the gradient.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "mean": ({}, {}, [1.117676, 0.327623, -1.432254, 1.520506]),
    "attention": (
        {"pool_video": "attention", "pool_text": "attention"},
        {"kind": "btt", "negatives": "inbatch"},
        [2.544091, -0.472916, 1.461899, 2.821986],
    ),
    "transformer": (
        {"pool_video": "transformer"},
        {"negatives": "both"},
        [1.370345, -0.288674, -2.01108, 3.360167],
    ),
    "no_scale": (
        {"scale": "none"},
        {"negatives": "both", "contrastive": 1.0},
        [2.395049, 0.065269, -0.307381, 0.475819],
    ),
    "regression": (
        {"head": "regression", "pool_video": "attention"},
        {"kind": "mse", "target": "per_source_affine"},
        [2.158533, -0.134521, -0.189993, 3.115172],
    ),
}


def ours(name: str) -> tuple[dict[str, Any], Any, Any, Any, Any, Any]:
    """Configuration, parameters, batch; loss, rewards and gradient."""
    model, loss, _ = CASES[name]
    config, system = arrays.small(model, **loss)
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)

    @jax.jit
    def all_of(params: Any, batch: Any) -> Any:
        grads = jax.value_and_grad(lambda params: arrays.mean_loss(system, params, batch))(params)
        return grads, system.tasks["rank"].outputs(params, batch)["reward"]

    (value, grads), reward = all_of(params, batch)
    return config, params, batch, value, reward, grads


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_loss_rewards_and_gradients_are_torchs(name: str) -> None:
    pytest.importorskip("torch")
    config, params, batch, value, reward, grads = ours(name)
    tensors = oracle.tensors(params)
    want, want_reward = oracle.loss(config, tensors, batch)
    want.backward()
    np.testing.assert_allclose(value, want.item(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reward, want_reward.detach(), rtol=1e-4, atol=1e-5)
    want_grads, got = trees.named(oracle.gradients(tensors)), trees.named(grads)
    assert got.keys() == want_grads.keys()
    for path, grad in got.items():
        np.testing.assert_allclose(grad, want_grads[path], rtol=1e-4, atol=2e-5, err_msg=path)
        assert path.endswith(("key_bias",)) or np.abs(grad).max() > 0, path


@pytest.mark.parametrize("name", CASES)
def test_numbers_that_torch_gave_once(name: str) -> None:
    *_, value, reward, grads = ours(name)
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(grads)))
    found = [float(value), *np.asarray(reward[0]).tolist(), norm]
    np.testing.assert_allclose(found, CASES[name][2], rtol=1e-4)


def options(**changes: Any) -> ModelOptions:
    return ModelOptions.of({**arrays.MODEL, **arrays.SMALL, **changes})


@pytest.mark.torch
def test_block_is_torchs_encoder_layer() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x_ntd = rng.normal(size=(3, 5, 16)).astype(np.float32)
    keep_nt = np.arange(5) < np.array([[5], [2], [1]])
    place = np.broadcast_to(np.arange(5, dtype=np.int32), (3, 5))
    block = Block(options())
    params = block.init(jax.random.key(0), x_ntd, keep_nt, place, place, True)["params"]
    params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape) * 0.1, params)
    layer = torch.nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=True
    ).train()
    a = params["attention"]
    q, k, v = (np.asarray(a[f"{n}_kernel"]).reshape(16, 16).T for n in ("query", "key", "value"))
    weights = {
        "self_attn.in_proj_weight": np.concatenate([q, k, v]),
        "self_attn.in_proj_bias": np.concatenate(
            [np.ravel(a["query_bias"]), np.zeros(16), np.ravel(a["value_bias"])]
        ),
        "self_attn.out_proj.weight": np.asarray(a["out_kernel"]).reshape(16, 16).T,
        "self_attn.out_proj.bias": a["out_bias"],
        "norm1.weight": params["norm_attention"]["scale"],
        "norm1.bias": params["norm_attention"]["bias"],
        "norm2.weight": params["norm_mlp"]["scale"],
        "norm2.bias": params["norm_mlp"]["bias"],
        "linear1.weight": params["mlp_in"]["kernel"].T,
        "linear1.bias": params["mlp_in"]["bias"],
        "linear2.weight": params["mlp_out"]["kernel"].T,
        "linear2.bias": params["mlp_out"]["bias"],
    }
    layer.load_state_dict({n: torch.tensor(np.float32(w)) for n, w in weights.items()}, strict=True)
    given = torch.tensor(x_ntd, requires_grad=True)
    want = layer(given, src_key_padding_mask=torch.tensor(~keep_nt))
    want.square().sum().backward()

    def squared(x_ntd: jax.Array) -> Any:
        out = block.apply({"params": params}, x_ntd, jnp.asarray(keep_nt), place, place, True)
        return jnp.sum(out**2), out

    grad, got = jax.grad(squared, has_aux=True)(jnp.asarray(x_ntd))
    np.testing.assert_allclose(got, want.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, given.grad, rtol=1e-4, atol=1e-4)


def test_mean_is_over_real_rows_and_zero_without() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    keep = np.array([[True, False, True], [False] * 3])
    np.testing.assert_array_equal(masked_mean(x, keep), [[2, 3], [0, 0]])


def test_attention_begins_as_the_mean() -> None:
    rng = np.random.default_rng(0)
    x, keep = (
        rng.normal(size=(4, 3, 6)).astype(np.float32),
        np.arange(3) < np.array([[1], [2], [3], [0]]),
    )
    number = np.zeros(4, np.int32)
    pool = Pool("attention", options())
    params = pool.init(jax.random.key(0), x, keep, number, number, True)
    got = pool.apply(params, x, keep, number, number, True)
    np.testing.assert_allclose(got, masked_mean(x, keep), rtol=1e-6, atol=1e-6)


def test_positions_are_those_of_the_formula() -> None:
    found = sinusoids(4, 6)
    np.testing.assert_array_equal(found[0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(
        found[3, 2:4], [np.sin(3 / 1e4 ** (2 / 6)), np.cos(3 / 1e4 ** (2 / 6))]
    )


def test_zero_vector_stays_zero_with_a_finite_gradient() -> None:
    grad = jax.jacobian(unit)(jnp.zeros((1, 3)))
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(unit(jnp.float32([[3, 4]])), [[0.6, 0.8]], rtol=1e-6)
    batch = arrays.random_batch()
    batch["frames_bvtf"][0] = 0
    batch["words_ble"][1] = 0
    _, system = arrays.small(negatives="both")
    params = system.init(jax.random.key(0), batch)  # whose biases are zero
    reward_bv = np.asarray(system.tasks["rank"].outputs(params, batch)["reward"])
    np.testing.assert_array_equal(reward_bv[:2], 0)
    assert np.all(reward_bv[2:] != 0)
    loss = jax.value_and_grad(lambda params: arrays.mean_loss(system, params, batch))
    value, grads = jax.jit(loss)(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", CASES)
def test_more_padding_changes_nothing(name: str) -> None:
    model, loss, _ = CASES[name]
    _, system = arrays.small(model, **loss)
    batch = arrays.random_batch()
    params = arrays.random_params(system, batch)

    def padded(array: np.ndarray, axis: int, value: float) -> np.ndarray:
        widths = [(0, 2 if at == axis else 0) for at in range(array.ndim)]
        return np.pad(array, widths, constant_values=value)

    longer = {
        **batch,
        "video_bvt": padded(batch["video_bvt"], 2, -1),
        "frames_bvtf": padded(batch["frames_bvtf"], 2, 9.0),
        "text_bl": padded(batch["text_bl"], 1, -1),
        "words_ble": padded(batch["words_ble"], 1, 9.0),
    }
    longer = {field: np.concatenate([column, column[:2]]) for field, column in longer.items()}
    longer["valid_b"][-2:] = False

    def all_of(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda params: arrays.mean_loss(system, params, batch))(params)

    got, want = (jax.jit(all_of)(params, one) for one in (longer, batch))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


def test_dropout_draws_belong_to_the_example() -> None:
    model = {"dropout": 0.3, "pool_video": "transformer", "num_layers": 1}
    _, system = arrays.small(model)
    batch = arrays.random_batch()
    params = arrays.random_params(system, batch)

    @jax.jit
    def value(batch: Any, key: int) -> jax.Array:
        return system.loss(params, batch, jax.random.key(key))["loss"].total

    order = np.array([3, 1, 0, 2, 6, 5, 4, 7])
    turned = {field: column[order] for field, column in batch.items()}
    assert float(value(turned, 0)) == pytest.approx(float(value(batch, 0)), rel=1e-5)
    assert abs(value(batch, 1) - value(batch, 0)) > 1e-3
