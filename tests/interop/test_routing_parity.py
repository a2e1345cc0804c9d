"""Anchor F: routed attention against one softmax per mask in torch, forward and backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.qformer_oracle import routed_probs

from jaxvsa.layers.routing import routed_softmax

pytestmark = pytest.mark.torch


def masks(kind: str) -> np.ndarray:
    far = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    orders = {"bands": (5, 1, 2), "no_open_one": (1, 2, 3)}[kind]
    return np.stack([far <= order for order in orders])


@pytest.mark.parametrize("combine", ["hadamard", "mixture", "log"])
@pytest.mark.parametrize("kind", ["bands", "no_open_one"])
def test_routed_softmax_equals_a_softmax_per_mask(combine: str, kind: str) -> None:
    """With padding. Without an open mask some keys are seen by no mask at all."""
    torch = pytest.importorskip("torch")
    rng, sees = np.random.default_rng(0), masks(kind)
    score = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    keep_bz = np.arange(6)[None] < np.array([6, 4])[:, None]
    weight = rng.dirichlet(np.ones(3), 2).astype(np.float32)
    # A padded query at the end sees nothing real under a narrow band; its row means nothing.
    real = keep_bz[:, None, :, None]
    pull = rng.normal(size=score.shape).astype(np.float32) * real

    def loss(score: Any, weight: Any) -> tuple[jax.Array, jax.Array]:
        probs = routed_softmax(score, jnp.asarray(keep_bz), weight, jnp.asarray(sees), combine)
        return jnp.sum(probs * pull), probs

    back = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, got), grads = back(jnp.asarray(score), jnp.asarray(weight))
    leaves = [torch.tensor(x, requires_grad=True) for x in (score, weight)]
    want = routed_probs(torch, leaves[0], torch.tensor(keep_bz)[:, None, None], leaves[1],
                        [torch.tensor(mask) for mask in sees], combine)  # fmt: skip
    (want * torch.tensor(pull)).sum().backward()
    np.testing.assert_allclose(got * real, want.detach().numpy() * real, rtol=0, atol=1e-6)
    for grad, leaf in zip(grads, leaves, strict=True):
        assert leaf.grad is not None and np.isfinite(leaf.grad.numpy()).all()
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)
