"""Likelihood of answers: by hand, and against torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.systems.mtransllama.loss import token_losses

pytestmark = pytest.mark.smoke

PROBS = np.array([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]], np.float32)


def test_token_losses_by_hand() -> None:
    got = token_losses(np.log(PROBS), np.array([[0, 2]]))
    np.testing.assert_allclose(got, [[np.log(2), np.log(10)]], rtol=1e-6)


def test_token_losses_do_not_depend_on_a_constant_and_are_float32_at_least() -> None:
    logits = jnp.log(PROBS)
    moved = token_losses(logits + 300, np.array([[0, 2]]))
    np.testing.assert_allclose(moved, token_losses(logits, np.array([[0, 2]])), atol=1e-4)
    assert token_losses(logits.astype(jnp.bfloat16), np.array([[0, 2]])).dtype == jnp.float32


@pytest.mark.torch
def test_losses_and_gradients_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(4, 6, 50))).astype(np.float32)
    answers = rng.integers(0, 50, (4, 6))
    keep = np.arange(6)[None] < np.array([6, 1, 3, 5])[:, None]

    def mean(logits: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(keep, token_losses(logits, answers), 0)) / keep.sum()

    got, grad = jax.value_and_grad(mean)(jnp.asarray(logits))
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(keep, answers, -100)).reshape(-1)
    want = torch.nn.functional.cross_entropy(theirs.reshape(-1, 50), labels)
    want.backward()
    np.testing.assert_allclose(got, want.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, theirs.grad.numpy(), rtol=1e-5, atol=1e-7)
