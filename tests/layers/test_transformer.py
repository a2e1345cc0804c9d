import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.precision import Precision
from jaxvsa.layers.transformer import dense, gelu, layer_norm


def test_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-6, 6, 121, dtype=np.float32)
    exact = jax.nn.gelu(x, approximate=False)
    np.testing.assert_allclose(gelu(x), exact, rtol=1e-6, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda value: jax.nn.gelu(value, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), slope, rtol=1e-5, atol=1e-6)


def test_layer_norm_keeps_its_digits_far_from_zero():
    rows = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    layer = layer_norm("norm", 1e-12, Precision())
    params = layer.init(jax.random.key(0), rows)
    mean, std = rows.mean(-1, keepdims=True), rows.std(-1, keepdims=True)
    far = layer.apply(params, rows + 1024)
    np.testing.assert_allclose(far, (rows - mean) / std, atol=1e-3)  # 1024 costs 10 bits itself


@pytest.mark.parametrize("bias", [True, False])
def test_kernels_are_small_at_first_and_values_are_of_the_compute_dtype(bias):
    layer = dense(64, "out", Precision(compute="bfloat16"), bias=bias)
    inputs = jnp.ones((2, 512))
    params = layer.init(jax.random.key(0), inputs)["params"]
    assert set(params) == ({"kernel", "bias"} if bias else {"kernel"})
    assert params["kernel"].dtype == jnp.float32
    assert params["kernel"].std() == pytest.approx(0.02, rel=0.02)
    assert layer.apply({"params": params}, inputs).dtype == jnp.bfloat16
