"""Dtypes of a model and its islands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision, island


@pytest.mark.smoke
def test_precision_names_become_dtypes():
    precision = Precision(param="float32", compute="bfloat16")
    assert precision.param_dtype == jnp.float32
    assert precision.compute_dtype == jnp.bfloat16
    assert Precision() == Precision("float32", "float32")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (("bfloat16",), "float32"),
        (("float16", "bfloat16"), "float32"),
        (("float32", "bfloat16"), "float32"),
        (("int32",), "float32"),
        (("float64",), "float64"),
        (("bfloat16", "float64"), "float64"),
    ],
)
def test_island_is_at_least_float32_and_never_narrows(inputs, expected):
    with jax.enable_x64(True):
        assert island(*(np.zeros(2, jnp.dtype(name)) for name in inputs)) == expected


def test_island_is_not_widened_by_a_python_scalar():
    assert island(jnp.zeros(2, jnp.bfloat16), 1.0) == jnp.float32


def test_precision_refuses_an_unknown_dtype_with_the_nearest_one():
    with pytest.raises(
        UserError, match=r"precision\.compute is 'bflaot16'.*did you mean 'bfloat16'"
    ):
        Precision(compute="bflaot16")
    with pytest.raises(UserError, match=r"precision\.param is 'int8', not one of float32"):
        Precision(param="int8")
