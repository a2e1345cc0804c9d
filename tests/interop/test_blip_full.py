"""The Q-Former at its full size against transformers: anchors A, B, D and H."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.qformer_oracle import (
    NEW,
    Video,
    apply,
    hf_frames,
    hf_model,
    inputs,
    make,
    ours,
    random_like,
)

from jaxvsa.core.trees import named, nest
from jaxvsa.interop.blip import read_qformer, sizes_of
from jaxvsa.layers.lora import LoraOptions

pytestmark = [pytest.mark.slow, pytest.mark.torch]
FULL: dict[str, Any] = {
    "num_layers": 12, "width": 768, "num_heads": 12, "mlp_width": 3072, "num_queries": 32,
    "vocab_size": 30523, "max_positions": 512, "lora": LoraOptions(16, 32.0, ("space", "time",
    "cross")),
}  # fmt: skip
PATCHES, WIDTH = 257, 1408


def start(text: bool = True, **changes: Any) -> tuple[Any, dict[str, Any], tuple[Any, ...]]:
    """The model, parameters with what is new at zero, and one clip of four frames."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    qformer = make(**{**FULL, **({} if text else {"vocab_size": 0}), **changes})
    if text:
        theirs = transformers.InstructBlipQFormerModel(
            transformers.InstructBlipQFormerConfig(vocab_size=30523)
        )
    else:
        theirs = transformers.Blip2QFormerModel(transformers.Blip2QFormerConfig())
    state = {f"qformer.{name}": tensor.numpy() for name, tensor in theirs.state_dict().items()}
    rng = np.random.default_rng(0)
    state["query_tokens"] = 0.02 * rng.normal(size=(1, 32, 768)).astype(np.float32)
    if text:
        sizes = sizes_of(state)["qformer"]
        assert sizes == {k: FULL.get(k, 2) for k in sizes}
    args = inputs(4, text, 1, PATCHES, WIDTH, 40, 30523)
    shapes = jax.eval_shape(lambda: qformer.init(jax.random.key(0), *ours(*args), True))["params"]
    new = {k: np.zeros(v.shape, np.float32) for k, v in named(shapes).items()}
    return qformer, nest({**new, **named(read_qformer(state, qformer.options))}), args


@pytest.mark.parametrize("kind", ["a_no_time", "b_closed_gate", "h_no_text"])
def test_the_image_model(kind: str) -> None:
    changes = {"temporal_gate": "zero"} if kind == "b_closed_gate" else {"temporal": False}
    qformer, params, args = start(kind != "h_no_text", **changes)
    want = hf_frames(hf_model(qformer, params, WIDTH), params, args)
    got = np.asarray(apply(qformer, params, *args))
    print(f"{kind}: max |difference| {np.abs(got - want).max():.1e} of {np.abs(want).max():.1f}")
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-5)


def test_d_the_video_model_forward_and_backward() -> None:
    torch = pytest.importorskip("torch")
    qformer, params, args = start()
    flat = named(params)
    new = named(random_like({k: v for k, v in flat.items() if any(n in k for n in NEW)}, 0.05))
    params = nest({**flat, **new})
    video = Video(qformer, params, vision_width=WIDTH)
    video.model.requires_grad_(False)
    want = video(*args)
    weight = np.random.default_rng(1).normal(size=want.shape).astype(np.float32)
    (want * torch.tensor(weight)).sum().backward()

    def loss(new: Any) -> tuple[jax.Array, jax.Array]:
        got = apply(qformer, nest({**flat, **new}), *args)
        return jnp.sum(got * weight), got

    (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(new)
    theirs = want.detach().numpy()
    far = np.abs(np.asarray(got) - theirs).max()
    print(f"d: max |difference| {far:.1e} of {np.abs(theirs).max():.1f}")
    np.testing.assert_allclose(got, theirs, rtol=0, atol=5e-5)
    worst = 0.0
    for path, grad in grads.items():
        other = video.leaf[path].grad.numpy()
        scale = np.abs(other).max()
        assert scale > 0, path
        worst = max(worst, float(np.abs(grad - other).max() / scale))
    print(f"d: gradients differ by at most {worst:.1e} of the largest of their array")
    assert worst < 1e-4
