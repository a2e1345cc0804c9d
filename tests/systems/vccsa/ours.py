"""The Flax model of a published configuration, and its outputs under the golden names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from systems.vccsa import golden as helper
from systems.vccsa import plain

from jaxvsa.core.precision import Precision
from jaxvsa.interop.vccsa import from_published
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.systems.vccsa.inputs import Shots, Words
from jaxvsa.systems.vccsa.loss import LossOptions, task_loss
from jaxvsa.systems.vccsa.model import VCCSA, ConsensusOptions, Padding

PUBLISHED = Padding(False, False, False, False, False)
FOCAL = LossOptions("focal", 2.0, "uniform", 0.0)
LAYOUTS: dict[str, dict[str, int]] = {
    "rectangle": {},
    "packed": {"words": 1},
    "packed with a tail": {"words": 2, "tail": 2},
}
"""How `inputs` lays out a case: the function must not depend on it."""


def make(model: Mapping[str, Any], roberta: Mapping[str, Any], dtype: str, **more: Any) -> VCCSA:
    """Our model of a published configuration."""
    precision = Precision(dtype, dtype)
    text = TextEncoder(
        kind="roberta",
        vocab_size=roberta["vocab_size"],
        width=roberta["hidden_size"],
        num_layers=roberta["num_hidden_layers"],
        num_heads=roberta["num_attention_heads"],
        mlp_width=roberta["intermediate_size"],
        max_positions=roberta["max_position_embeddings"],
        num_types=roberta["type_vocab_size"],
        norm_eps=roberta["layer_norm_eps"],
        pad_id=roberta["pad_token_id"],
        dropout=0.0,
        attention_dropout=0.0,
        precision=precision,
    )
    fields = {
        "variant": "both",
        "visual_length": model["visual_length"],
        "visual_width": model["visualcnn_dim"],
        "num_scales": model["multiview_num"],
        "consensus": ConsensusOptions(
            model["consensus_Transformer_fdim"],
            model["consensus_Transformer_head"],
            1,
            1,
            model["consensus_mask"],
        ),
        "grounding_heads": model["groundAttention_head"],
        "aspect_width": model["vtalign_ground_dim"],
        "final_heads": model["final_Transformer_head"],
        "dropout": 0.0,
        "padding": PUBLISHED,
        "num_classes": {"opinion": model["opinion_num"], "emotion": model["emotion_num"]},
        "text": text,
        "precision": precision,
    }
    return VCCSA(**{**fields, **more})


def inputs(
    golden: helper.Golden, dtype: str, words: int | None = None, tail: int = 0
) -> tuple[Words, Shots, np.ndarray]:
    """The rows of a case, packed: arguments of the model.

    Args:
        golden: the case.
        dtype: of the frames.
        words: padding tokens kept for each row at most; None keeps all, so that the rows fill a
            rectangle and their blocks are rows.
        tail: unused places in multiples of 32 behind words and frames.
    """
    io, model = golden.io, golden.config["model"]
    length_b = io["attention_mask"].sum(1).astype(np.int32)
    count_b = io["video_feat_mask"].sum(1).astype(np.int32)
    full, limit = io["input_ids"].shape[1], model["visual_length"]
    span_b = np.minimum(length_b + (full if words is None else words), full)
    tower_b = np.minimum(count_b + tower_margin(model["multiview_num"]), limit)
    pad = golden.config["roberta"]["pad_token_id"]
    size = None if words is None else (-(-int(span_b.sum()) // 32) + tail) * 32
    word_bl, ids_n = pack(io["input_ids"], span_b, pad, size)
    size = int(np.sum(tower_b + tower_b % 2)) + 32 * tail
    shot_bt, video_mf = pack(io["video_feat"].astype(dtype), tower_b, 0, size, unit=2)
    example_b = np.arange(7, 7 + len(length_b), dtype=np.int32)
    arrays = Words(ids_n, word_bl, length_b), Shots(video_mf, shot_bt, count_b), example_b
    return jax.tree.map(jnp.asarray, arrays)


def expand(outputs: Mapping[str, Any], words: Words, full: int) -> dict[str, np.ndarray]:
    """Outputs over the words as they are with all padding kept: all padding tokens are equal."""
    found = {name: np.asarray(value) for name, value in outputs.items()}
    span_b = np.asarray((words.word_bl >= 0).sum(axis=1))
    place_bl = np.minimum(np.arange(full)[None], span_b[:, None] - 1)
    for name in (
        "text_token_features", "multiview_attention", "multiview_fused", "multiview_fused_masked",
        "text_fusion_pre", "text_fusion",
    ):  # fmt: skip
        found[name] = np.take_along_axis(found[name], place_bl[..., None], axis=1)
    missing = full - words.word_bl.shape[1]
    found["consensus_attention_rows"] = np.pad(
        found["consensus_attention_rows"], ((0, 0), (0, 0), (0, missing))
    )
    return found


def pack(
    x_bld: np.ndarray, span_b: np.ndarray, fill: Any, size: int | None, unit: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The first `span_b` elements of every row one after another, and where they lie.

    Rows begin at multiples of `unit`.
    """
    longest, room_b = int(span_b.max()), -(-span_b // unit) * unit
    start_b, rectangle = np.cumsum(room_b) - room_b, longest * len(span_b)
    if size in (None, rectangle):
        start_b, size = np.arange(len(span_b)) * longest, rectangle
    place_bl = np.arange(longest)[None]
    index_bl = np.where(place_bl < span_b[:, None], start_b[:, None] + place_bl, -1)
    packed = np.full((size, *x_bld.shape[2:]), fill, x_bld.dtype)
    packed[index_bl[index_bl >= 0]] = x_bld[:, :longest][index_bl >= 0]
    return index_bl.astype(np.int32), packed


def params_of(golden: helper.Golden, model: VCCSA, arrays: tuple[Any, ...]) -> Any:
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *arrays, True))["params"]
    return from_published(golden.state, like)


def random_params(model: VCCSA, *arrays: Any) -> Any:
    """Normal values of a size that makes attention sharp."""
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *arrays, True))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), like)


def run(model: VCCSA, params: Any, *arrays: Any) -> dict[str, np.ndarray]:
    """Logits without dropout."""
    return jax.jit(lambda p, a: model.apply({"params": p}, *a, True))(params, arrays)


def losses(model: VCCSA, params: Any, arrays: Any, golden: helper.Golden) -> tuple[Any, Any]:
    """Total loss, and all outputs under the names of the golden files."""
    logits, found = model.apply({"params": params}, *arrays, True, mutable=["intermediates"])
    sown = {k: v[0] for k, v in found["intermediates"].items() if isinstance(v, tuple)}
    outputs = {
        "opinion_predict": jax.nn.softmax(logits["opinion"]),
        "emotion_predict": jax.nn.softmax(logits["emotion"]),
    }
    for task, scores in logits.items():
        label_b = golden.io[f"{task}_label"].argmax(-1)
        count_c = (1,) * scores.shape[-1]
        outputs[f"{task}_loss"] = jnp.mean(task_loss(FOCAL, scores, label_b, count_c))
    outputs["total_loss"] = outputs["opinion_loss"] + outputs["emotion_loss"]
    words, _, example_b = arrays
    scales, batch = model.num_scales, len(example_b)
    attn_nkhv = sown.pop("grounding_attention")
    heads = attn_nkhv.shape[-2:]
    sown["grounding_attention"] = jnp.swapaxes(attn_nkhv.reshape(scales, batch, *heads), 0, 1)
    for name in ("consensus_features", "consensus_attention_rows", "lstm_cell_final", "cg_score"):
        sown[name] = sown[name][:, :, 0]  # one token
    sown["visual_encoded"] = sown["visual_encoded"][:, 0]
    keep_bl = np.arange(words.word_bl.shape[1])[None] < words.length_b[:, None]
    fused_bld = sown["multiview_fused"]
    sown["multiview_fused_masked"] = jnp.where(keep_bl[..., None], fused_bld, 0)
    return outputs["total_loss"], {**outputs, **sown}


def random_golden(dtype: str) -> helper.Golden:
    """`random_case` in the form of a golden case, without results."""
    model, roberta, state, batch = random_case(dtype)
    return helper.Golden("random", {"model": model, "roberta": roberta}, state, {}, batch)


def random_case(dtype: str = "float64") -> tuple[dict, dict, dict, dict]:
    """Published settings, state and a batch whose rows end well before the padded lengths."""
    model = {
        "text_len": 24, "visual_length": 40, "visual_dim": 7, "visual_out_dim": 12,
        "visualcnn_dim": 12, "vtalign_ground_dim": 10, "text_dim": 16, "multiview_num": 3,
        "consensus_Transformer_head": 2, "consensus_Transformer_fdim": 8,
        "final_Transformer_head": 4, "groundAttention_head": 4, "opinion_num": 3,
        "emotion_num": 8, "consensus_mask": True, "dropout": 0.0,
    }  # fmt: skip
    roberta = {
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 20, "max_position_embeddings": 26, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "pad_token_id": 1,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    state = {
        name: rng.normal(0, 0.3, shape).astype(dtype)
        for name, shape in plain.shapes(model, roberta).items()
    }
    for task, size in (("opinion", 3), ("emotion", 8)):
        state[f"{task}_loss.weight"] = np.full(size, np.float32(1 / size), dtype)
    lengths, counts = np.array([2, 5, 9, 7]), np.array([1, 12, 9, 4])
    ids_bl = np.where(
        np.arange(24)[None] < lengths[:, None], rng.integers(2, 30, (4, 24)), 1
    ).astype(np.int32)
    video_btf = rng.normal(size=(4, 40, 7)) * (np.arange(40)[None] < counts[:, None])[..., None]
    batch = {
        "input_ids": ids_bl,
        "attention_mask": (ids_bl != 1).astype(np.int32),
        "video_feat": video_btf.astype(dtype),
        "video_feat_mask": (np.arange(40)[None] < counts[:, None]).astype(np.int32),
        "opinion_label": np.eye(3)[rng.integers(3, size=4)],
        "emotion_label": np.eye(8)[rng.integers(8, size=4)],
    }
    return model, roberta, state, batch
