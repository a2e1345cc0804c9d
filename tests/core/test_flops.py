"""Operation counts against counts by hand and against the compiler's on graphs without loops."""

import jax
import jax.numpy as jnp
import pytest

from jaxvsa.core.flops import count_flops

X = jax.ShapeDtypeStruct((5, 3), jnp.float32)
W = jax.ShapeDtypeStruct((3, 3), jnp.float32)
MATMUL = 2 * 5 * 3 * 3


def matmul(x, w):
    return x @ w


def conv(x, k, **options):
    return jax.lax.conv_general_dilated(
        x, k, dimension_numbers=("NTC", "TIO", "NTC"), **{"window_strides": (1,), **options}
    )


def compiled(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_matmul_by_hand():
    assert count_flops(matmul, X, W) == MATMUL
    assert count_flops(jax.jit(matmul), jnp.ones((5, 3)), jnp.ones((3, 3))) == MATMUL


def test_batched_einsum_by_hand():
    q, k = jnp.ones((2, 7, 4, 5)), jnp.ones((2, 9, 4, 5))
    assert (
        count_flops(lambda q, k: jnp.einsum("bqhe,bthe->bhqt", q, k), q, k) == 2 * 2 * 4 * 7 * 9 * 5
    )


@pytest.mark.parametrize(
    "options,pairs",
    [
        ({"padding": "VALID"}, 8 * 3),
        ({"padding": "SAME"}, 10 * 3 - 2),  # each end misses one of its three taps
        ({"padding": "VALID", "window_strides": (2,)}, 4 * 3),
        ({"padding": "VALID", "rhs_dilation": (2,)}, 6 * 3),
        ({"padding": [(2, 2)], "lhs_dilation": (2,)}, 10 * 3),  # every input meets every tap
    ],
)
def test_convolution_by_hand(options, pairs):
    x, k = jnp.ones((2, 10, 4)), jnp.ones((3, 4, 6))
    assert count_flops(lambda x, k: conv(x, k, **options), x, k) == 2 * 2 * pairs * 4 * 6


def test_grouped_convolution_by_hand():
    x, k = jnp.ones((2, 10, 4)), jnp.ones((3, 2, 6))
    fn = lambda x, k: conv(x, k, padding="VALID", feature_group_count=2)  # noqa: E731
    assert count_flops(fn, x, k) == 2 * 2 * 8 * 3 * 2 * 6


def test_scan_counts_its_body_times_its_length():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert count_flops(layers, X, jnp.ones((7, 3, 3))) == 7 * MATMUL


def test_scan_keeps_its_carry_and_drops_an_unused_stack():
    def layers(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, x @ w @ w), x, w)

    ws = jnp.ones((7, 3, 3))
    assert count_flops(lambda x, w: layers(x, w)[0], X, ws) == 7 * MATMUL
    assert count_flops(lambda x, w: layers(x, w)[1], X, ws) == 21 * MATMUL


def test_nested_scans_multiply():
    def twice(x, w):
        body = lambda x, _: (jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], None)  # noqa: E731
        return jax.lax.scan(body, x, None, length=2)[0]

    assert count_flops(twice, X, jnp.ones((7, 3, 3))) == 14 * MATMUL


def test_vmap_multiplies():
    assert count_flops(jax.vmap(matmul, (0, None)), jnp.ones((6, 5, 3)), W) == 6 * MATMUL


def test_value_and_grad_is_three_forwards():
    def loss(x, w):
        return jnp.sum((x @ w) ** 2)

    assert count_flops(jax.value_and_grad(loss, (0, 1)), X, W) == 3 * MATMUL
    scanned = lambda x, w: jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])  # noqa: E731
    assert count_flops(jax.value_and_grad(scanned, (0, 1)), X, jnp.ones((7, 3, 3))) == 21 * MATMUL


def test_gradient_of_a_convolution_costs_what_the_forward_costs():
    x, k = jnp.ones((2, 10, 4)), jnp.ones((3, 4, 6))
    loss = lambda x, k: jnp.sum(conv(x, k, padding="SAME", window_strides=(2,)) ** 2)  # noqa: E731
    assert count_flops(jax.value_and_grad(loss, (0, 1)), x, k) == 3 * count_flops(loss, x, k)


def test_remat_adds_the_recomputed_forward():
    def loss(x, w):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ w))(x))

    # forward 2, gradient 4, and both products again for the two cosines
    assert count_flops(jax.value_and_grad(loss, (0, 1)), X, W) == 8 * MATMUL


def test_cond_counts_the_branch_that_costs_most():
    def fn(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

    assert count_flops(fn, True, X, W) == 2 * MATMUL


def test_while_counts_one_turn():
    def fn(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x @ w) > 0, lambda x: x @ w @ w, x)

    assert count_flops(fn, X, W) == 3 * MATMUL


def test_custom_gradients_are_followed():
    @jax.custom_vjp
    def fn(x, w):
        return x @ w

    fn.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T @ w, w))
    assert count_flops(fn, X, W) == MATMUL
    assert count_flops(lambda x, w: jax.vjp(fn, x, w)[1](x), X, W) == 2 * MATMUL


def test_unused_results_are_not_counted():
    def fn(x, w):
        return jax.jit(lambda x: (x @ w, x @ w @ w))(x)[0]

    assert count_flops(fn, X, W) == MATMUL
    assert count_flops(jax.grad(lambda x, w: jnp.sum(x @ w)), X, W) == MATMUL


def test_shard_map_counts_all_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    fn = jax.shard_map(matmul, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    assert count_flops(fn, jnp.ones((10, 3)), W) == 2 * MATMUL


def test_count_agrees_with_the_compiler_without_loops():
    def mlp(x, w):
        return x @ w @ w @ w

    x, k = jnp.ones((2, 16, 4)), jnp.ones((3, 4, 6))
    fn = lambda x, k: conv(x, k, padding="SAME")  # noqa: E731
    assert count_flops(mlp, X, W) == compiled(mlp, X, W)
    assert count_flops(fn, x, k) == compiled(fn, x, k)
