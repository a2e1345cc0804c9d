"""The contrastive term against double loops and autodiff; who takes part and what is masked."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.systems.clevereward.contrastive import anchors, info_nce


def looped(video: Any, text: Any, keep: Any, question: Any) -> float:
    """The same by the definition, in float64."""
    video, text = np.asarray(video, np.float64), np.asarray(text, np.float64)
    total, kept = 0.0, np.flatnonzero(keep)
    for i in kept:
        others = [j for j in kept if j == i or question[j] != question[i]]
        rows = [video[i] @ text[j] for j in others]
        columns = [video[j] @ text[i] for j in others]
        own = video[i] @ text[i]
        total += 0.5 * (np.logaddexp.reduce(rows) + np.logaddexp.reduce(columns)) - own
    return total / max(len(kept), 1)


def case(size: int, kept: float, scale: float, seed: int = 0, dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(seed)
    unit = rng.normal(size=(2, size, 8))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    keep_b, question_b = rng.random(size) < kept, rng.integers(0, size, size)
    return [(scale * unit[0]).astype(dtype), unit[1].astype(dtype), keep_b, question_b]


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("size", [1, 7, 24])
def test_value_is_the_double_loop(size: int, scale: float) -> None:
    for seed, kept in enumerate((1.0, 0.6)):
        given = case(size, kept, scale, seed)
        np.testing.assert_allclose(jax.jit(info_nce)(*given), looped(*given), rtol=1e-5, atol=1e-5)


def plain(video_bd: Any, text_bd: Any, keep_b: Any, question_b: Any) -> jax.Array:
    """The definition on whole arrays, for autodiff."""
    same = question_b[:, None] == question_b[None]
    seen = keep_b[:, None] & keep_b[None] & (~same | jnp.eye(len(keep_b), dtype=bool))
    logits = jnp.where(seen, video_bd @ text_bd.T, -1e9)
    both = sum(jax.nn.logsumexp(logits, axis=axis) / 2 for axis in (0, 1)) - jnp.diag(logits)
    return jnp.sum(jnp.where(keep_b, both, 0)) / jnp.maximum(jnp.sum(keep_b), 1)


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize(("size", "kept"), [(20, 0.7), (64, 0.1), (512, 0.95)])
def test_gradient_is_autodiffs_in_float64(size: int, kept: float, scale: float) -> None:
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in case(size, kept, scale, dtype=np.float64)]

        def both(function: Any) -> Any:
            cubed = lambda video, text: function(video, text, *given[2:]) ** 3  # noqa: E731
            return jax.jit(jax.value_and_grad(cubed, argnums=(0, 1)))(*given[:2])

        (got, got_grads), (want, want_grads) = both(info_nce), both(plain)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        for one, other in zip(got_grads, want_grads, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


def test_without_rows_it_is_zero_with_a_zero_gradient() -> None:
    given = case(6, 0.0, 10.0)
    value, grads = jax.value_and_grad(info_nce, argnums=(0, 1))(*given)
    assert value == 0
    np.testing.assert_array_equal(grads, 0)


def test_anchor_is_the_first_row_of_its_group_that_takes_part() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        part_b, group_b = rng.random(30) < 0.6, rng.integers(0, 12, 30).astype(np.int32)
        seen: set[int] = set()
        want = []
        for part, group in zip(part_b, group_b.tolist(), strict=True):
            want.append(bool(part) and group not in seen)
            seen |= {group} if part else set()
        np.testing.assert_array_equal(anchors(jnp.asarray(part_b), jnp.asarray(group_b)), want)
