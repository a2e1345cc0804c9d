"""BLIP tensors; torch and transformers are the oracle of Q-Former and vision transformer."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.blip import modern, read_qformer, read_vision, to_names
from jaxvsa.layers.lora import LoraOptions, merge
from jaxvsa.layers.qformer import QFormer, QFormerOptions
from jaxvsa.layers.routing import RoutingOptions
from jaxvsa.layers.vision import VisionOptions, VisionTransformer

SIZES: dict[str, Any] = {
    "num_layers": 4, "width": 32, "num_heads": 4, "mlp_width": 40, "num_queries": 5,
    "vocab_size": 31, "max_positions": 12, "cross_every": 2, "norm_eps": 1e-12, "max_frames": 8,
    "temporal": True, "temporal_gate": "none", "order": "s-t-c", "temporal_tokens": "query",
    "aggregate": "concat",
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "enabled": False, "combine": "hadamard", "orders": (0, 1, 2, 3), "schedule": "grow",
    "cross_modal": "full", "temporal": True, "pool": "query", "hidden": 6, "norm": "softmax",
    "routing": "soft", "tau": 1.0, "first_bias": 3.0,
}  # fmt: skip
LORA = LoraOptions(3, 6.0, ("space", "time", "cross"))
PATCHES, VISION_WIDTH = 7, 24


def make(lora: LoraOptions = LORA, routing: dict[str, Any] | None = None, **sizes: Any) -> QFormer:
    return QFormer(
        QFormerOptions(**{**SIZES, **sizes}), lora, RoutingOptions(**{**PLAIN, **(routing or {})}),
        Precision(),
    )  # fmt: skip


def inputs(num_frames: int, text: bool = True, rows: int = 2) -> tuple[Any, ...]:
    rng = np.random.default_rng(num_frames)
    frames = rng.normal(size=(rows, num_frames, PATCHES, VISION_WIDTH)).astype(np.float32)
    if not text:
        return frames, None, None, np.arange(rows)
    ids_bl = rng.integers(1, 31, (rows, 6)).astype(np.int32)
    keep_bl = np.arange(6)[None] < np.array([6, 4, 5, 3])[:rows, None]
    return frames, np.where(keep_bl, ids_bl, 0), keep_bl, np.arange(rows)


@functools.cache
def random_params(qformer: QFormer, text: bool = True) -> Any:
    """Every leaf random, low-rank changes and positions too."""
    shapes = jax.eval_shape(
        lambda: qformer.init(jax.random.key(0), *inputs(2, text), True)
    )["params"]  # fmt: skip
    rng = np.random.default_rng(7)
    return nest({
        path: (path.endswith("scale") + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
        for path, x in named(shapes).items()
    })  # fmt: skip


def without(params: Any, *parts: str) -> Any:
    """Leaves whose path holds one of `parts` are zero."""
    return nest({
        path: np.zeros_like(leaf) if any(part in path for part in parts) else leaf
        for path, leaf in named(params).items()
    })  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def apply(qformer: QFormer, params: Any, *args: Any) -> jax.Array:
    return qformer.apply({"params": params}, *args, True)


def hf_model(qformer: QFormer, params: Any) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = qformer.options
    common = {
        "hidden_size": options.width, "num_hidden_layers": options.num_layers,
        "num_attention_heads": options.num_heads, "intermediate_size": options.mlp_width,
        "encoder_hidden_size": VISION_WIDTH, "cross_attention_frequency": options.cross_every,
        "layer_norm_eps": options.norm_eps, "attn_implementation": "eager",
    }  # fmt: skip
    if options.vocab_size:
        model = transformers.InstructBlipQFormerModel(
            transformers.InstructBlipQFormerConfig(
                **common, vocab_size=options.vocab_size,
                max_position_embeddings=options.max_positions, pad_token_id=0,
            )
        )  # fmt: skip
    else:
        model = transformers.Blip2QFormerModel(
            transformers.Blip2QFormerConfig(**common, use_qformer_text_input=False)
        )
    tensors = to_names(params, options, prefix="")
    del tensors["query_tokens"]
    state = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    # The last layers of a model without text have networks for it that nothing runs.
    assert all("position_ids" in name for name in missing), missing
    return model.eval()


def hf_frames(model: Any, params: Any, args: tuple[Any, ...]) -> np.ndarray:
    """The image model, frame by frame: (b,tq,d)."""
    torch = pytest.importorskip("torch")

    frames, ids_bl, keep_bl, _ = args
    rows, num_frames = frames.shape[:2]
    query_qd = torch.tensor(params["queries"])
    found = []
    with torch.no_grad():
        for t in range(num_frames):
            more = {}
            if ids_bl is not None:
                ones = np.ones((rows, len(query_qd)), np.int64)
                keep = np.concatenate([ones, keep_bl.astype(np.int64)], axis=1)
                more = {"input_ids": torch.tensor(ids_bl).long(),
                        "attention_mask": torch.tensor(keep)}  # fmt: skip
            out = model(
                query_embeds=query_qd[None].expand(rows, -1, -1),
                encoder_hidden_states=torch.tensor(frames[:, t]), **more,
            )  # fmt: skip
            found.append(out.last_hidden_state[:, : len(query_qd)].numpy())
    return np.concatenate(found, axis=1)


STILL = ("lora_", "_position")


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


def merged_layer(layer: Any, ours: Any, block: str, use: str) -> Any:
    """A copy of an attention of the oracle with the low-rank change of one use merged in."""
    torch = pytest.importorskip("torch")

    theirs = copy.deepcopy(layer.attention if block == "attention" else layer.crossattention)
    for name in ("query", "value"):
        kernel = np.asarray(merge(ours[block][name], use, LORA)["kernel"])
        getattr(theirs.attention, name).weight = torch.nn.Parameter(torch.tensor(kernel.T.copy()))
    return theirs


def oracle(qformer: QFormer, params: Any, args: tuple[Any, ...]) -> Any:
    """Anchor D: the video Q-Former put together from the layers of transformers, in torch."""
    torch = pytest.importorskip("torch")

    model = hf_model(qformer, params)
    frames, ids_bl, keep_bl, _ = args
    (rows, num_frames), num_queries = frames.shape[:2], qformer.options.num_queries
    width = qformer.options.width
    query = torch.tensor(params["queries"] + params["query_position"])
    query = query[None] + torch.tensor(params["frame_position"])[:num_frames, None]
    word = model.embeddings.word_embeddings(torch.tensor(ids_bl).long())
    word = word + model.embeddings.position_embeddings.weight[None, : ids_bl.shape[1]]
    x = torch.cat(
        [query.repeat(rows, 1, 1), word.repeat_interleave(num_frames, dim=0)], dim=1
    )  # fmt: skip
    x = model.embeddings.layernorm(x)
    keep = np.concatenate([np.ones((rows, num_queries), bool), keep_bl], axis=1)
    keep = torch.tensor(keep).repeat_interleave(num_frames, dim=0)
    bias = torch.zeros(keep.shape).masked_fill(~keep, -1e9)[:, None, None]
    patches = torch.tensor(frames).reshape(-1, PATCHES, VISION_WIDTH)
    for i, layer in enumerate(model.encoder.layer):
        ours = params[f"layer_{i}"]
        x = merged_layer(layer, ours, "attention", "space")(x, attention_mask=bias)
        query, word = x[:, :num_queries], x[:, num_queries:]
        z = query.reshape(rows, num_frames, num_queries, width).transpose(1, 2)
        z = z.reshape(-1, num_frames, width)
        z = merged_layer(layer, ours, "attention", "time")(z)
        query = z.reshape(rows, num_queries, num_frames, width).transpose(1, 2)
        query = query.reshape(-1, num_queries, width)
        if i % 2 == 0:
            cross = merged_layer(layer, ours, "cross", "cross")
            query = cross(query, encoder_hidden_states=patches)
        query = layer.feed_forward_chunk_query(query)
        x = torch.cat([query, layer.feed_forward_chunk(word)], dim=1)
    return x[:, :num_queries].reshape(rows, -1, width)


@pytest.mark.torch
def test_d_space_time_and_patches_with_three_changes() -> None:
    qformer = make()
    params, args = random_params(qformer), inputs(4)
    want = oracle(qformer, params, args).detach().numpy()
    np.testing.assert_allclose(apply(qformer, params, *args), want, rtol=0, atol=5e-5)


@pytest.mark.parametrize("blind", [True, False])
def test_e_the_order_of_frames_counts_only_with_positions(blind: bool) -> None:
    qformer = make(aggregate="mean")
    params = without(random_params(qformer), "frame_position" if blind else "nothing")
    frames, *rest = inputs(4)
    moved = apply(qformer, params, frames[:, [2, 0, 3, 1]], *rest)
    difference = np.abs(np.asarray(moved - apply(qformer, params, frames, *rest))).max()
    assert difference < 1e-5 if blind else difference > 1e-2


def test_padding_of_the_text_and_other_rows_change_nothing() -> None:
    qformer = make(routing={"enabled": True, "combine": "log", "pool": "all"})
    params = random_params(qformer)
    frames, ids_bl, keep_bl, example_b = inputs(3)
    whole = apply(qformer, params, frames, ids_bl, keep_bl, example_b)
    other = np.where(keep_bl, ids_bl, 9)
    np.testing.assert_allclose(
        apply(qformer, params, frames, other, keep_bl, example_b), whole, rtol=1e-5, atol=1e-5
    )
    alone = apply(qformer, params, frames[1:], ids_bl[1:, :4], keep_bl[1:, :4], example_b[1:])
    np.testing.assert_allclose(alone, whole[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["none", "zero"])
def test_gradients_of_a_new_model(gate: str) -> None:
    """A closed gate keeps gradients from what lies behind it, and gets one itself."""
    qformer = make(temporal_gate=gate, aggregate="mean",
                   routing={"enabled": True, "schedule": "all"})  # fmt: skip
    params = without(random_params(qformer), "time_gate")

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(apply(qformer, params, *inputs(3))))

    size = {k: float(jnp.abs(v).max()) for k, v in named(jax.grad(loss)(params)).items()}
    behind = [v for k, v in size.items() if "lora_time" in k or "router_time" in k]
    assert len(behind) == 4 * (4 + 3)
    assert max(behind) == 0 if gate == "zero" else min(behind) > 0
    if gate == "zero":
        assert min(v for k, v in size.items() if "time_gate" in k) > 0
    assert min(v for k, v in size.items() if "lora_space" in k) > 0


@pytest.mark.parametrize("aggregate,tokens", [("mean", 5), ("max", 5), ("last", 5), ("concat", 15)])
def test_tokens_after_aggregation(aggregate: str, tokens: int) -> None:
    every = make(aggregate="concat")
    params, args = random_params(every), inputs(3)
    x_btqd = np.asarray(apply(every, params, *args)).reshape(2, 3, 5, 32)
    want = {
        "mean": x_btqd.mean(1), "max": x_btqd.max(1), "last": x_btqd[:, -1],
        "concat": x_btqd.reshape(2, 15, 32),
    }[aggregate]  # fmt: skip
    got = apply(make(aggregate=aggregate), params, *args)
    assert got.shape == (2, tokens, 32)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize(
    "lavis,hf",
    [
        ("Qformer.bert.encoder.layer.3.attention.self.query.weight",
         "qformer.encoder.layer.3.attention.attention.query.weight"),
        ("Qformer.bert.encoder.layer.2.crossattention.self.key.bias",
         "qformer.encoder.layer.2.crossattention.attention.key.bias"),
        ("Qformer.bert.encoder.layer.0.attention.output.dense.weight",
         "qformer.encoder.layer.0.attention.output.dense.weight"),
        ("Qformer.bert.embeddings.LayerNorm.weight", "qformer.embeddings.layernorm.weight"),
        ("llm_proj.weight", "language_projection.weight"),
        ("ln_vision.bias", "vision_model.post_layernorm.bias"),
        ("query_tokens", "query_tokens"),
    ],
)  # fmt: skip
def test_lavis_names(lavis: str, hf: str) -> None:
    assert modern(lavis) == hf and modern(hf) == hf


@pytest.mark.torch
def test_vision_transformer_equals_transformers() -> None:
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
    params = read_vision(state, 3)
    vision = VisionTransformer(options, Precision())
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.tensor(image.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    got = jax.jit(lambda p, x: vision.apply({"params": p}, x))(params, image)
    assert got.shape == (2, options.num_tokens, 16)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"post_layernorm\.bias. is missing"):
        read_vision({k: v for k, v in state.items() if "post_layernorm.bias" not in k}, 3)
    with pytest.raises(ValueError, match="images are"):
        vision.apply({"params": params}, image[:, :8])
