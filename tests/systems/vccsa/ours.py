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
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.systems.vccsa.loss import LossOptions, task_loss
from jaxvsa.systems.vccsa.model import VCCSA, ConsensusOptions, Padding

PUBLISHED = Padding(False, False, False, False, False)
FOCAL = LossOptions("focal", 2.0, "uniform", 0.0)


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
        unroll=more.pop("unroll", False),
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


def inputs(golden: helper.Golden, dtype: str) -> tuple[np.ndarray, ...]:
    """ids, token counts, frames and frame counts of a case."""
    io = golden.io
    counts = io["video_feat_mask"].sum(1).astype(np.int32)
    return (
        io["input_ids"],
        io["attention_mask"].sum(1).astype(np.int32),
        io["video_feat"].astype(dtype),
        counts,
    )


def shorten(arrays: tuple[np.ndarray, ...], words: int, frames: int) -> tuple[np.ndarray, ...]:
    """The same rows cut to `words` tokens and `frames` frames."""
    ids_bl, length_b, video_btf, count_b = arrays
    return ids_bl[:, :words], length_b, video_btf[:, :frames], count_b


def params_of(golden: helper.Golden, model: VCCSA, arrays: tuple[np.ndarray, ...]) -> Any:
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), *arrays, True))["params"]
    return from_published(golden.state, like)


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
    scales, batch = model.num_scales, len(arrays[0])
    attn_nkhv = sown.pop("grounding_attention")
    heads = attn_nkhv.shape[-2:]
    sown["grounding_attention"] = jnp.swapaxes(attn_nkhv.reshape(scales, batch, *heads), 0, 1)
    for name in ("consensus_features", "consensus_attention_rows", "lstm_cell_final", "cg_score"):
        sown[name] = sown[name][:, :, 0]  # one token
    sown["visual_encoded"] = sown["visual_encoded"][:, 0]
    keep_bl = np.arange(arrays[0].shape[1])[None] < arrays[1][:, None]
    fused_bld = sown["multiview_fused"]
    sown["multiview_fused_masked"] = jnp.where(keep_bl[..., None], fused_bld, 0)
    return outputs["total_loss"], {**outputs, **sown}


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
