"""BLIP tensors; torch and transformers are the oracle of Q-Former and vision transformer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.qformer_oracle import (
    SIZES,
    STILL,
    Video,
    apply,
    hf_frames,
    hf_model,
    inputs,
    make,
    ours,
    random_params,
    without,
)

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.blip import read_projection, read_qformer, read_vision, sizes_of, to_names
from jaxvsa.layers import bert_blocks
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.vision import VisionOptions, VisionTransformer


@pytest.mark.torch
@pytest.mark.parametrize("text", [True, False])
def test_a_h_image_model_frame_by_frame(text: bool) -> None:
    """Anchors A and H: attention over time off, no changes; InstructBLIP and BLIP-2."""
    qformer = make(temporal=False, vocab_size=31 if text else 0)
    params = without(random_params(qformer, text), *STILL)
    args = inputs(3, text)
    want = hf_frames(hf_model(qformer, params), params, args)
    np.testing.assert_allclose(apply(qformer, params, *args), want, rtol=0, atol=5e-5)


@pytest.mark.torch
@pytest.mark.parametrize("num_frames", [1, 4])
def test_b_a_closed_gate_is_the_image_model(num_frames: int) -> None:
    qformer = make(temporal_gate="zero")
    params = without(random_params(qformer), *STILL, "time_gate")
    args = inputs(num_frames)
    want = hf_frames(hf_model(qformer, params), params, args)
    np.testing.assert_allclose(apply(qformer, params, *args), want, rtol=0, atol=5e-5)


@pytest.mark.torch
def test_c_one_frame_is_not_the_image_model_without_a_gate() -> None:
    """Attention over one frame is not the identity: it still projects."""
    qformer = make()
    params = without(random_params(qformer), *STILL)
    args = inputs(1)
    want = hf_frames(hf_model(qformer, params), params, args)
    assert np.abs(np.asarray(apply(qformer, params, *args)) - want).max() > 0.1


@pytest.mark.torch
def test_d_space_time_and_patches_with_three_changes() -> None:
    qformer = make()
    params, args = random_params(qformer), inputs(4)
    want = Video(qformer, params)(*args).detach().numpy()
    np.testing.assert_allclose(apply(qformer, params, *args), want, rtol=0, atol=5e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [{}, {"vocab_size": 0, "temporal": False}, {"temporal_tokens": "all", "order": "s-c-t"}],
)
def test_dropout_stands_where_transformers_has_it(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides halve what they would drop from."""
    torch = pytest.importorskip("torch")

    def halve(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return x / 2 if training and p > 0 else x

    monkeypatch.setattr(torch.nn.functional, "dropout", halve)
    monkeypatch.setattr(bert_blocks, "Dropout", lambda rate, name: lambda x, *of: x / 2)
    qformer, text = make(num_layers=2, dropout=0.1, **changes), "vocab_size" not in changes
    params, args = random_params(qformer, text), inputs(3, text)
    video = Video(qformer, params)
    want = {}
    for training in (True, False):
        video.model.train(training)
        want[training] = video(*args).detach().numpy()
        got = qformer.apply({"params": params}, *ours(*args), not training)
        np.testing.assert_allclose(got, want[training], rtol=0, atol=5e-5)
    assert np.abs(want[True] - want[False]).max() > 0.1


ROUTED = {"enabled": True, "schedule": "all"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_frame": {"num_frames": 1},
    "no_text": {"text": False, "vocab_size": 0},
    "no_time": {"temporal": False},
    "turned": {
        "temporal_gate": "zero", "order": "s-c-t", "temporal_tokens": "all",
        "lora": LoraOptions(2, 2.0, ("space", "time")),
    },
    "max": {"aggregate": "max"},
    "grown": {"routing": {"enabled": True, "combine": "hadamard"}},
    "hadamard_not_normal": {"routing": {**ROUTED, "combine": "hadamard", "norm": "none"}},
    "mixture": {"routing": {**ROUTED, "combine": "mixture", "temporal": False}},
    "log_apart": {"routing": {**ROUTED, "combine": "log", "cross_modal": "none"}},
    "hard": {"routing": {**ROUTED, "combine": "mixture", "routing": "hard"}},
    "everything": {
        "routing": {**ROUTED, "combine": "mixture", "pool": "all"}, "temporal_gate": "zero",
        "order": "s-c-t", "temporal_tokens": "all", "aggregate": "mean",
    },
}  # fmt: skip
# What gets no gradient by its nature: one frame is attended to whatever the query, weights of one
# mask alone do not depend on the router, and attention over time may be off.
ASLEEP = {"one_frame": "query/lora_time", "no_time": "lora_time", "hard": "router_"}


@pytest.mark.torch
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_choice_forward_and_all_gradients(variant: str) -> None:
    """Against the oracle: what is new, what is frozen, and the patches that come in."""
    torch = pytest.importorskip("torch")
    changes = dict(VARIANTS[variant])
    num_frames, text = changes.pop("num_frames", 3), changes.pop("text", True)
    qformer = make(**{"num_layers": 2, **changes})
    params, (frames, *rest) = random_params(qformer, text), inputs(num_frames, text)
    video = Video(qformer, params)
    patches = torch.tensor(frames, requires_grad=True)
    want = video(patches, *rest)
    weight = np.random.default_rng(1).normal(size=want.shape).astype(np.float32)
    (want * torch.tensor(weight)).sum().backward()

    def loss(params: Any, frames: Any) -> tuple[jax.Array, jax.Array]:
        got = apply(qformer, params, frames, *rest)
        return jnp.sum(got * weight), got

    back = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, got), (tree, moved) = back(params, frames)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=0, atol=5e-5)
    assert patches.grad is not None
    np.testing.assert_allclose(moved, patches.grad.numpy(), rtol=1e-4, atol=1e-4)
    grads, mine = video.grads(), named(tree)
    assert grads.keys() == mine.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(mine[path], grad, rtol=1e-4, atol=1e-4, err_msg=path)
    asleep = ASLEEP.get(variant, "nothing")
    for path in video.leaf:
        assert (np.abs(grads[path]).max() < 1e-5) == (asleep in path), path


def test_published_names_come_back_and_are_all_needed() -> None:
    qformer = make()
    frozen = {k: v for k, v in named(random_params(qformer)).items() if "lora_" not in k}
    state = to_names(nest(frozen), qformer.options)
    found = named(read_qformer(state, qformer.options))
    assert found.keys() == {k for k in frozen if not k.endswith(("y_position", "e_position"))}
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, frozen[path], err_msg=path)
    name = "qformer.encoder.layer.2.crossattention.attention.key.bias"
    with pytest.raises(UserError, match=f"'{name}' is missing"):
        read_qformer({k: v for k, v in state.items() if k != name}, qformer.options)
    with pytest.raises(UserError, match="has no place"):
        read_qformer({**state, "qformer.extra": state[name]}, qformer.options)
    with pytest.raises(UserError, match="query_tokens"):
        read_qformer({**state, "query_tokens": np.zeros((1, 4, 32))}, qformer.options)


@pytest.mark.torch
def test_vision_transformer_equals_transformers_forward_and_backward() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = VisionOptions(12, 4, 16, 3, 4, 20, 1e-6)
    model = transformers.InstructBlipVisionModel(
        transformers.InstructBlipVisionConfig(
            hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
            image_size=12, patch_size=4, layer_norm_eps=1e-6, hidden_act="gelu",
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    state = {f"vision_model.{k}": v.numpy() for k, v in model.state_dict().items()}
    assert sizes_of(state) == {
        "vision": {"image_size": 12, "patch_size": 4, "width": 16, "num_layers": 3, "mlp_width": 20}
    }
    params = read_vision(state, 3)
    vision = VisionTransformer(options, Precision())
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
    weight = rng.normal(size=(2, options.num_tokens, 16)).astype(np.float32)

    pixels = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
    want = model(pixels).last_hidden_state
    (want * torch.tensor(weight)).sum().backward()

    def loss(params: Any, image: Any) -> tuple[jax.Array, jax.Array]:
        got = vision.apply({"params": params}, image)
        return jnp.sum(got * weight), got

    back = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, got), (tree, moved) = back(params, image)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert pixels.grad is not None
    theirs = pixels.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(moved, theirs, rtol=1e-4, atol=1e-4)
    # Gradients have the names and layouts of what they belong to.
    grads = {f"vision_model.{k}": v.grad.numpy() for k, v in model.named_parameters()}
    for path, grad in named(read_vision(grads, 3)).items():
        np.testing.assert_allclose(named(tree)[path], grad, rtol=1e-4, atol=1e-4, err_msg=path)

    with pytest.raises(UserError, match=r"post_layernorm\.bias. is missing"):
        read_vision({k: v for k, v in state.items() if "post_layernorm.bias" not in k}, 3)
    with pytest.raises(ValueError, match="images are"):
        vision.apply({"params": params}, image[:, :8])


def test_the_projection_is_turned_around_and_sizes_are_read() -> None:
    qformer = make()
    state = to_names(random_params(qformer), qformer.options)
    weight = np.arange(6.0).reshape(3, 2)
    state |= {"language_projection.weight": weight, "language_projection.bias": np.ones(3)}
    found = read_projection(state)
    np.testing.assert_array_equal(found["kernel"], weight.T)
    sizes = sizes_of(state)
    assert sizes["projection"] == {"width": 3} and "vision" not in sizes
    assert sizes["qformer"] == {k: SIZES[k] for k in sizes["qformer"]}
    assert {"vocab_size", "max_positions", "cross_every", "num_queries"} <= sizes["qformer"].keys()
    with pytest.raises(UserError, match=r"'language_projection\.bias' is missing"):
        read_projection({"language_projection.weight": weight})
