"""Initialisers of PyTorch's layers, which the published systems inherit without saying so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): weight and bias of torch Linear, Conv1d and LSTM."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)): torch MultiheadAttention's projections."""
    bound = math.sqrt(6.0 / (fan_in + fan_out))

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
