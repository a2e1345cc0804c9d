"""Suffixes against shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.shapes import bind_dims


@pytest.mark.smoke
def test_bind_dims_reads_sizes_from_suffixes():
    dims = bind_dims(video_btf=np.zeros((2, 5, 7)), keep_bt=np.ones((2, 5), bool))
    assert dims == {"b": 2, "t": 5, "f": 7}
    assert list(dims) == ["b", "t", "f"]


def test_bind_dims_uses_only_the_last_part_of_a_name():
    assert bind_dims(opinion_logits_bc=np.zeros((4, 3)), label_b=np.zeros(4)) == {"b": 4, "c": 3}


def test_bind_dims_skips_an_absent_array():
    assert bind_dims(video_btf=None, ids_bl=np.zeros((1, 2))) == {"b": 1, "l": 2}


def test_bind_dims_gives_the_same_under_a_trace():
    seen = []

    def traced(x_bt):
        seen.append(bind_dims(x_bt=x_bt))
        return x_bt

    jax.eval_shape(traced, jax.ShapeDtypeStruct((3, 4), jnp.bfloat16))
    jax.jit(traced)(jnp.zeros((3, 4)))
    assert seen == [{"b": 3, "t": 4}] * 2


def test_bind_dims_refuses_two_sizes_for_one_letter():
    with pytest.raises(ValueError, match="keep_bt: dim 't' is 6, but video_btf says 5"):
        bind_dims(video_btf=np.zeros((2, 5, 7)), keep_bt=np.zeros((2, 6)))


def test_bind_dims_refuses_a_matrix_that_is_not_square_under_a_doubled_letter():
    with pytest.raises(ValueError, match="counts_cc: dim 'c' is 4, but counts_cc says 3"):
        bind_dims(counts_cc=np.zeros((3, 4)))


def test_bind_dims_refuses_another_rank():
    with pytest.raises(ValueError, match=r"keep_bt: shape \(2, 5, 1\) has 3 dims, not 2"):
        bind_dims(keep_bt=np.zeros((2, 5, 1)))


@pytest.mark.parametrize("name", ["x", "_bt", "x_", "x_B", "x_b1"])
def test_bind_dims_refuses_a_name_without_suffix(name):
    with pytest.raises(ValueError, match="needs a suffix"):
        bind_dims(**{name: np.zeros(2)})
