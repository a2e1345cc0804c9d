"""Draws of dropout: the generator bit by bit, their statistics, and what they may depend on."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32 as jax_threefry

from jaxvsa.layers.dropout import Dropout, threefry_2x32, value_number

pytestmark = pytest.mark.smoke


def test_threefry_by_the_published_vectors() -> None:
    """Known answers of Random123 for 2x32 words and 20 rounds."""
    for key, counter, want in (
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ):
        words = [jnp.uint32(word) for word in (*key, *counter)]
        got = threefry_2x32((words[0], words[1]), words[2], words[3])
        assert tuple(int(word) for word in got) == want


def test_threefry_equals_that_of_jax() -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, (2, 1001), dtype=np.uint32)
    for seed in (0, 1, 12345):
        key = jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)
        got = threefry_2x32((key[0], key[1]), *jnp.asarray(words))
        want = jax_threefry((key[0], key[1]), jnp.asarray(words.ravel()))
        np.testing.assert_array_equal(np.concatenate(got), want, strict=True)


def drop(
    rate: float, x: Any, example: Any, value: Any, seed: int = 0, deterministic: bool = False
) -> np.ndarray:
    module = Dropout(rate)
    rngs = {"dropout": jax.random.key(seed)}
    return np.asarray(module.apply({}, x, example, value, deterministic, rngs=rngs))


EXAMPLES, VALUES = 400, 500
NUMBERS = jnp.arange(EXAMPLES)[:, None], jnp.arange(VALUES)[None]


def kept(rate: float, seed: int = 0) -> np.ndarray:
    return drop(rate, jnp.ones((EXAMPLES, VALUES)), *NUMBERS, seed) > 0


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_share_and_scale_of_what_is_kept(rate: float) -> None:
    x = 1 + jnp.arange(EXAMPLES * VALUES, dtype=jnp.float32).reshape(EXAMPLES, VALUES)
    got = drop(rate, x, *NUMBERS)
    keep = got != 0
    np.testing.assert_allclose(got[keep], np.asarray(x)[keep] / (1 - rate), rtol=1e-6)
    error = math.sqrt(rate * (1 - rate) / keep.size)
    assert abs(keep.mean() - (1 - rate)) < 4 * error
    # The counts of examples and of values scatter as those of independent draws do.
    for axis, size in ((0, EXAMPLES), (1, VALUES)):
        counts, expected = keep.sum(axis=axis), rate * (1 - rate) * size
        spread = counts.var() / expected
        assert abs(spread - 1) < 4 * math.sqrt(2 / len(counts))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """In units of its standard error."""
    found = np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1]
    return float(abs(found) * math.sqrt(one.size))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbours_and_keys_are_independent(rate: float) -> None:
    keep = kept(rate)
    for distance in (1, 2, 32, 64):
        assert correlation(keep[:, distance:], keep[:, :-distance]) < 4
        assert correlation(keep[distance:], keep[:-distance]) < 4
    assert correlation(keep[1:, 1:], keep[:-1, :-1]) < 4
    assert correlation(keep, kept(rate, seed=1)) < 4
    size = min(EXAMPLES, VALUES)
    assert correlation(keep[:size, :size], keep[:size, :size].T) < 4  # (i, j) against (j, i)


def test_draws_belong_to_example_and_value_and_not_to_the_layout() -> None:
    keep, rng = kept(0.4), np.random.default_rng(1)
    example_n, value_n = rng.integers(0, EXAMPLES, 999), rng.integers(0, VALUES, 999)
    picked = drop(0.4, jnp.ones(999), jnp.asarray(example_n), jnp.asarray(value_n)) > 0
    np.testing.assert_array_equal(picked, keep[example_n, value_n])
    folded = drop(0.4, jnp.ones((2, 200, 500)), NUMBERS[0].reshape(2, 200, 1), NUMBERS[1][None])
    np.testing.assert_array_equal(folded.reshape(EXAMPLES, VALUES) > 0, keep)
    module = Dropout(0.4)

    def one(example: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        x_n, number_n = jnp.ones(VALUES), jnp.arange(VALUES)
        return module.apply({}, x_n, jnp.full(1, example), number_n, False, rngs=rngs)

    mapped = jax.jit(jax.vmap(one))(jnp.arange(EXAMPLES))
    np.testing.assert_array_equal(mapped > 0, keep)


def test_value_number_by_hand() -> None:
    got = value_number(jnp.array([0, 2, 1]), 3)
    assert got.dtype == jnp.uint32
    np.testing.assert_array_equal(got, [[0, 1, 2], [6, 7, 8], [3, 4, 5]])


class Two(nn.Module):
    """Two instances of one module, of which the second is called twice in a scan."""

    @nn.compact
    def __call__(self, x_bn: jax.Array) -> tuple[jax.Array, ...]:
        numbers = jnp.arange(len(x_bn))[:, None], jnp.arange(x_bn.shape[1])[None]
        first = Dropout(0.5, name="first")(x_bn, *numbers, False)
        second = Dropout(0.5, name="second")(x_bn, *numbers, False)

        def body(module: nn.Module, carry: None, _: None) -> tuple[None, jax.Array]:
            return carry, Dropout(0.5, name="third")(x_bn, *numbers, False)

        scan = nn.scan(body, variable_axes={}, split_rngs={"dropout": True}, length=2)
        _, layers = scan(self, None, None)
        return first, second, layers[0], layers[1]


def test_every_instance_and_layer_draws_its_own() -> None:
    found = Two().apply({}, jnp.ones((100, 100)), rngs={"dropout": jax.random.key(0)})
    for i in range(4):
        for j in range(i):
            assert correlation(np.asarray(found[i]), np.asarray(found[j])) < 4


def test_without_a_rate_or_when_deterministic_nothing_is_dropped_and_no_key_needed() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    numbers = jnp.arange(2)[:, None], jnp.arange(3)[None]
    assert Dropout(0.5).apply({}, x, *numbers, True) is x
    assert Dropout(0.0).apply({}, x, *numbers, False) is x


def test_dropped_values_have_no_gradient_and_infinities_stay_out() -> None:
    x = jnp.ones((4, 50)).at[0].set(jnp.inf)
    numbers = jnp.arange(4)[:, None], jnp.arange(50)[None]

    def total(x: jax.Array) -> jax.Array:
        out = Dropout(0.5).apply({}, x, *numbers, False, rngs={"dropout": jax.random.key(0)})
        return jnp.sum(jnp.where(jnp.isfinite(out), out, 0))

    keep = drop(0.5, x, *numbers) != 0
    assert keep.any() and not keep.all()
    assert not np.isnan(drop(0.5, x, *numbers)).any()
    np.testing.assert_array_equal(jax.grad(total)(x)[1:], 2.0 * keep[1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_stays(dtype: str) -> None:
    x = jnp.ones((3, 40), dtype)
    got = drop(0.25, x, jnp.arange(3)[:, None], jnp.arange(40)[None])
    assert got.dtype == dtype
    want = kept(0.25)[:3, :40]
    np.testing.assert_array_equal(got > 0, want)
