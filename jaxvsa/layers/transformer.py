"""What all transformers here are made of: linear layer, LayerNorm, GELU."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxvsa.core.precision import Precision

INIT = nn.initializers.normal(0.02)
"""Initial values of kernels and tables, as in BERT (Devlin et al., 2019)."""


def dense(features: int, name: str, precision: Precision, *, bias: bool = True) -> nn.Dense:
    """A linear layer with BERT's initial values."""
    return nn.Dense(
        features, use_bias=bias, kernel_init=INIT, name=name,
        dtype=precision.compute_dtype, param_dtype=precision.param_dtype,
    )  # fmt: skip


def layer_norm(name: str, epsilon: float, precision: Precision) -> nn.LayerNorm:
    """LayerNorm over the last axis, its statistics in at least float32.

    In two passes: E[x^2] - E[x]^2 loses digits that parity with PyTorch needs.
    """
    return nn.LayerNorm(
        epsilon=epsilon, use_fast_variance=False, name=name,
        dtype=precision.compute_dtype, param_dtype=precision.param_dtype,
    )  # fmt: skip


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the exact Phi, from erf: `jax.nn.gelu` takes erfc, one exponential more."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))
