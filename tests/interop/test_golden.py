"""The Q-Former against golden numbers, without torch; and the numbers against torch, with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop import golden
from interop.qformer_oracle import NEW, STILL, apply, without

from jaxvsa.core.trees import named, nest
from jaxvsa.layers.routing import routed_softmax


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(golden.FILE) as file:
        return dict(file)


def test_the_file_is_small() -> None:
    assert golden.FILE.stat().st_size < 200_000


def test_image_model(stored: dict[str, np.ndarray]) -> None:
    params = without(golden.parameters(stored), *STILL)
    got = apply(golden.model("image"), params, *golden.arguments(stored))
    np.testing.assert_allclose(got, stored["image/out"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", golden.GRADED)
def test_video_model_forward_and_backward(stored: dict[str, np.ndarray], case: str) -> None:
    params = named(golden.parameters(stored))
    new = {k: v for k, v in params.items() if k == "queries" or any(part in k for part in NEW)}
    frames, *rest = golden.arguments(stored)

    def loss(new: Any, frames: Any) -> tuple[jax.Array, jax.Array]:
        got = apply(golden.model(case), nest({**params, **new}), frames, *rest)
        return jnp.sum(got * stored["weight"]), got

    back = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, got), (grads, moved) = back(new, frames)
    np.testing.assert_allclose(got, stored[f"{case}/out"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(moved, stored[f"{case}/frames"], rtol=1e-4, atol=1e-4)
    for path, grad in grads.items():
        want = stored[f"{case}/grad/{path}"]
        np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("combine", golden.COMBINE)
def test_routed_softmax(stored: dict[str, np.ndarray], combine: str) -> None:
    got = routed_softmax(
        jnp.asarray(stored["routed/score"]), stored["routed/keep"],
        jnp.asarray(stored["routed/weight"]), golden.BANDS, combine,
    )  # fmt: skip
    # A padded query may see nothing real: zeros here, anything there.
    real = stored["routed/keep"][:, None, :, None]
    np.testing.assert_allclose(got * real, stored[f"routed/{combine}"] * real, rtol=0, atol=1e-6)


@pytest.mark.torch
def test_golden_numbers_are_those_of_torch(stored: dict[str, np.ndarray]) -> None:
    pytest.importorskip("transformers")
    want = golden.compute(stored)
    given = {k for k in stored if "/" not in k or k.startswith("params/")}
    given |= {f"routed/{k}" for k in ("score", "keep", "weight")}
    assert stored.keys() == given | want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(stored[name], array, rtol=1e-6, atol=1e-6, err_msg=name)
