"""The records of the frame."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.systems import module
from jaxvsa.systems.base import Mean, System, abstract_batch, expand


def test_mean_counts_real_examples_only() -> None:
    mean = Mean.of(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    assert (float(mean.total), float(mean.weight), mean.compute()) == (4.0, 2.0, 2.0)
    assert np.isnan(Mean.of(jnp.ones(1), jnp.zeros(1, bool)).compute())


def test_means_add_up_over_parts() -> None:
    value_b, valid_b = jnp.arange(6.0), jnp.array([True, False, True, True, True, False])
    whole = Mean.of(value_b, valid_b)
    parts = [Mean.of(value_b[i : i + 2], valid_b[i : i + 2]) for i in (0, 2, 4)]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert summed.compute() == whole.compute() == 2.25


def system(**more: object) -> System:
    fields = {"row_bt": ("bt", jnp.int32), "x_btf": ("btf", jnp.float16)}
    nothing = {"init": lambda rng, batch: {}, "loss": lambda p, b, r: {}, "tasks": {}}
    return System("one", fields, tables={"x_btf": ("rows", "row_bt")}, **nothing)  # type: ignore[arg-type]


def test_expand_gathers_rows_and_leaves_a_host_gathered_field_alone() -> None:
    rows, batch = jnp.arange(6.0).reshape(3, 2), {"row_bt": jnp.array([[2, -1]])}
    np.testing.assert_array_equal(
        expand(system(), {"rows": rows}, batch)["x_btf"], [[[4.0, 5.0], [0.0, 0.0]]]
    )
    given = {**batch, "x_btf": jnp.ones((1, 2, 2))}
    np.testing.assert_array_equal(expand(system(), {}, given)["x_btf"], 1)


def test_abstract_batch_has_the_shapes_of_the_fields() -> None:
    found = abstract_batch(system(), {"b": 3, "t": 5, "f": 7})
    assert found["x_btf"].shape == (3, 5, 7) and found["x_btf"].dtype == jnp.float16


def test_unknown_system_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"system 'vcsa'; known: vccsa, .*; did you mean 'vccsa'"):
        module("vcsa")
