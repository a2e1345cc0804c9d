"""Published VC-CSA names to our tree and back, on the committed golden case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named
from jaxvsa.interop.vccsa import TEXT, from_published, live_tensors, to_published
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.systems.vccsa.inputs import Shots, Words
from jaxvsa.systems.vccsa.model import VCCSA, ConsensusOptions, Padding

CASE = Path(__file__).resolve().parents[1] / "systems" / "vccsa" / "golden" / "small"
CONFIG = json.loads((CASE / "config.json").read_text())
TASKS = ("opinion", "emotion")


def make_model(**changed: Any) -> VCCSA:
    """Our model of the case, with published settings changed by name."""
    given, roberta = CONFIG["model"] | changed, CONFIG["roberta"]
    text = TextEncoder(
        kind="roberta",
        vocab_size=roberta["vocab_size"],
        width=roberta["hidden_size"],
        num_layers=roberta["num_hidden_layers"],
        num_heads=roberta["num_attention_heads"],
        mlp_width=roberta["intermediate_size"],
        max_positions=roberta["max_position_embeddings"],
        num_types=1,
        norm_eps=roberta["layer_norm_eps"],
        pad_id=roberta["pad_token_id"],
        dropout=0.0,
        attention_dropout=0.0,
        precision=Precision(),
    )
    return VCCSA(
        variant=given.get("variant", "both"),
        visual_length=given["visual_length"],
        visual_width=given["visualcnn_dim"],
        num_scales=given["multiview_num"],
        consensus=ConsensusOptions(
            width=given["consensus_Transformer_fdim"],
            num_heads=given["consensus_Transformer_head"],
            num_layers=given.get("num_layers", 1),
            num_tokens=given.get("num_tokens", 1),
            masked=True,
        ),
        grounding_heads=given["groundAttention_head"],
        aspect_width=given["vtalign_ground_dim"],
        final_heads=given["final_Transformer_head"],
        dropout=0.0,
        padding=Padding(*[False] * 5),
        num_classes={task: given[f"{task}_num"] for task in TASKS},
        text=text,
        precision=Precision(),
    )


def inputs(
    ids_bl: np.ndarray, length_b: np.ndarray, video_btf: np.ndarray, count_b: np.ndarray
) -> tuple[Words, Shots, Any]:
    """Arguments of our model: every row with all of its padding."""

    def rectangle(rows: int, length: int) -> Any:
        return jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)

    words = Words(jnp.asarray(ids_bl).reshape(-1), rectangle(*ids_bl.shape), jnp.asarray(length_b))
    rows, frames, width = video_btf.shape
    video_mf = jnp.asarray(video_btf).reshape(-1, width)
    shots = Shots(video_mf, rectangle(rows, frames), jnp.asarray(count_b))
    return words, shots, jnp.arange(rows)


def shapes(**changed: Any) -> dict[str, Any]:
    """Abstract parameters of `make_model`."""
    length, frames = CONFIG["model"]["text_len"], CONFIG["model"]["visual_length"]
    video_btf = np.zeros((2, frames, CONFIG["model"]["visual_dim"]), np.float32)
    one_b, ids_bl = np.ones(2, np.int32), np.ones((2, length), np.int32)
    model, arrays = make_model(**changed), inputs(ids_bl, one_b, video_btf, one_b)

    def init() -> Any:
        return model.init(jax.random.key(0), *arrays, True)

    return jax.eval_shape(init)["params"]


def published() -> dict[str, np.ndarray]:
    return load_file(CASE / "state_dict.safetensors")


def neutral(name: str, array: np.ndarray) -> np.ndarray:
    """What `to_published` must give for a tensor of the case, written out part by part."""
    if name in (
        "grounding_Attention.v_proj_weight",
        "grounding_Attention.out_proj.weight",
        "grounding_Attention.out_proj.bias",
        "multiview_attention_fusion.ffn_visual.bias",
        f"{TEXT}pooler.dense.weight",
        f"{TEXT}pooler.dense.bias",
    ):
        return np.zeros_like(array)
    if name.endswith("in_proj_bias"):
        query, key, value = np.split(array, 3)
        value = value * (name != "grounding_Attention.in_proj_bias")
        return np.concatenate([query, 0 * key, value])
    return array


def test_round_trip_is_exact_and_fills_what_has_no_influence() -> None:
    state = published()
    got = to_published(from_published(state, shapes()))
    assert got.keys() == state.keys()
    for name, array in state.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], neutral(name, array), err_msg=name)


def test_round_trip_of_random_parameters_is_exact() -> None:
    rng = np.random.default_rng(0)
    like = shapes()
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), like)
    back = from_published(to_published(params), like)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_layout_by_hand() -> None:
    state, leaves = published(), named(from_published(published(), shapes()))
    heads, width = 6, 2  # consensus attention: head 4, its second column, is row 9 of a third
    packed = state["stack_Consensus_Transformer_inview.2.transformer.in_proj_weight"]
    for third, part in enumerate(("query", "key", "value")):
        kernel = leaves[f"consensus/layer_0/{part}_kernel"]
        assert kernel.shape == (3, 12, heads, width)
        assert kernel[2, 5, 4, 1] == packed[12 * third + 9, 5]
    out = state["stack_Consensus_Transformer_inview.2.transformer.out_proj.weight"]
    assert leaves["consensus/layer_0/out_kernel"][2, 4, 1, 7] == out[7, 9]
    assert (
        leaves["pyramid/conv_kernel_1"][2 * 14 + 3, 5] == state["stack_cnn.1.conv.weight"][5, 3, 2]
    )
    assert leaves["fusion_video_kernel"][3, 4] == state["fusion_linear.weight"][4, 20 + 3]
    assert leaves["cell/hidden_kernel"][2, 8 + 1] == state["ground_lstm.weight_hh_l0"][8 + 1, 2]
    key = state["grounding_Attention.k_proj_weight"]
    assert leaves["grounding/key_kernel"][13, 1, 3] == key[6 + 3, 13]


def test_model_with_published_weights_predicts_what_was_published() -> None:
    with np.load(CASE / "io.npz") as io:
        stored = dict(io)
    arrays = inputs(
        stored["input_ids"],
        stored["attention_mask"].sum(1),
        stored["video_feat"],
        stored["video_feat_mask"].sum(1),
    )
    params = {"params": from_published(published(), shapes())}
    scores = jax.jit(make_model().apply, static_argnums=4)(params, *arrays, True)
    for task in TASKS:
        got, want = jax.nn.softmax(scores[task]), stored[f"out_{task}_predict"]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_live_tensors_of_gradients_are_zero_where_nothing_has_influence() -> None:
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes())
    live = live_tensors(ones)
    bias = live["grounding_Attention.in_proj_bias"]
    np.testing.assert_array_equal(bias, np.repeat([1, 0, 0], 12))
    missing = {name for name in published() if name not in live}
    assert missing == {
        "opinion_loss.weight",
        "emotion_loss.weight",
        "grounding_Attention.v_proj_weight",
        "grounding_Attention.out_proj.weight",
        "grounding_Attention.out_proj.bias",
        "multiview_attention_fusion.ffn_visual.bias",
        f"{TEXT}pooler.dense.weight",
        f"{TEXT}pooler.dense.bias",
    }


def test_tensors_without_influence_may_be_missing() -> None:
    like, state = shapes(), published()
    want = from_published(state, like)
    live = {name: state[name] for name in live_tensors(want)}
    live[f"{TEXT}embeddings.position_ids"] = np.arange(17)[None]
    jax.tree.map(np.testing.assert_array_equal, from_published(live, like), want)


def test_dtype_is_the_models() -> None:
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes())
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(from_published(published(), like))}
    assert dtypes == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fusion_linear.bias": None}, "tensor 'fusion_linear.bias' is missing"),
        (
            {f"{TEXT}encoder.layer.1.output.dense.bias": None},
            "layer.1.output.dense.bias' is missing",
        ),
        ({"fusion.bias": np.zeros(3)}, "tensor 'fusion.bias' has no place in the model; did you"),
        ({f"{TEXT}encoder.layer.2.output.dense.bias": np.zeros(20)}, "layer.2.* has no place"),
        ({"stack_cnn.3.conv.bias": np.zeros(14)}, "'stack_cnn.3.conv.bias' has no place"),
        ({"consensus_token": np.zeros((2, 12))}, r"'consensus_token' is \(2, 12\), .* \(1, 12\)"),
        ({"opinion_loss.weight": np.zeros(3)}, r"'opinion_loss.weight' is \(3,\), .* \(7,\)"),
        ({"fusion_linear.weight": np.zeros((34, 20))}, r"'fusion_linear.weight' is \(34, 20\)"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, Any], message: str) -> None:
    state = {name: array for name, array in (published() | change).items() if array is not None}
    with pytest.raises(UserError, match=message):
        from_published(state, shapes())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"variant": "text"}, "only variant 'both'"),
        ({"variant": "video"}, "only variant 'both'"),
        ({"num_layers": 2}, "only one consensus layer and one token"),
        ({"num_tokens": 2}, "only one consensus layer and one token"),
    ],
)
def test_model_without_published_names_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_published(published(), shapes(**change))


@pytest.mark.torch
@pytest.mark.parametrize("frame", [14, 12])  # 12 is the consensus width: torch packs q, k and v
def test_published_names_load_strictly_in_torch(
    frame: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(CASE.parents[4] / "benchmarks"))
    import peer_vccsa

    sizes = {"visualcnn_dim": frame, "visual_out_dim": frame}
    roberta = transformers.RobertaConfig.from_dict(CONFIG["roberta"])
    peer = peer_vccsa.VCCSA(CONFIG["model"] | sizes, roberta)
    like = shapes(**sizes)
    state = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    ours = to_published(from_published(state, like))
    peer.load_state_dict({name: torch.tensor(array) for name, array in ours.items()}, strict=True)
    for name, tensor in peer.state_dict().items():
        np.testing.assert_array_equal(ours[name], tensor.numpy(), err_msg=name)
    jax.tree.map(
        np.testing.assert_array_equal, from_published(ours, like), from_published(state, like)
    )
