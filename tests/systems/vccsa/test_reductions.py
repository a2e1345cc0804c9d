"""Each exact reduction against the plain computation in float64, and what they save."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems.vccsa import plain
from systems.vccsa.ours import (
    FOCAL,
    LAYOUTS,
    inputs,
    losses,
    make,
    params_of,
    random_case,
    random_golden,
    run,
)

from jaxvsa.core.flops import count_flops
from jaxvsa.interop.vccsa import to_published
from jaxvsa.systems.vccsa.inputs import Shots, Words
from jaxvsa.systems.vccsa.loss import task_loss


@functools.cache
def plain_result() -> Any:
    """Loss, outputs and gradients of the plain computation on the random case, in float64."""
    model_config, roberta, state, batch = random_case()
    whole = jax.value_and_grad(lambda s: plain.run(s, model_config, roberta, batch), has_aux=True)
    return jax.jit(whole)(state)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_rows_and_short_towers_are_exact(layout: str) -> None:
    golden = random_golden("float64")
    with jax.enable_x64(True):
        (want_loss, want), want_grads = plain_result()
        model = make(golden.model, golden.roberta, "float64")
        arrays = inputs(golden, "float64", **LAYOUTS[layout])
        params = params_of(golden, model, arrays)
        ours = jax.value_and_grad(lambda p: losses(model, p, arrays, golden), has_aux=True)
        (loss, got), grads = jax.jit(ours)(params)
        published = to_published(jax.device_get(grads))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-12)
    for name in ("opinion_predict", "emotion_predict", "cnn_features", "cg_score"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-12, err_msg=name)
    for name, grad in want_grads.items():
        if not name.endswith("loss.weight"):
            np.testing.assert_allclose(published[name], grad, atol=1e-12, err_msg=name)


def test_one_pad_fewer_would_be_another_function() -> None:
    golden = random_golden("float64")
    with jax.enable_x64(True):
        model = make(golden.model, golden.roberta, "float64")
        arrays = [inputs(golden, "float64", words=words) for words in (1, 0)]
        params = params_of(golden, model, arrays[0])
        one, none = (run(model, params, *given)["opinion"] for given in arrays)
    assert np.abs(one - none).max() > 1e-6


def test_default_graph_needs_at_most_015_of_the_plain_flops() -> None:
    """At RoBERTa-base size: text of 512 and 180 frames against what a batch of 16 takes packed.

    On CSMV, 16 comments have 257 tokens on average and one padding token each, the longest below
    65, and videos of 90 frames, with 9 rows behind each.
    """
    model_config = {
        "text_len": 512, "visual_length": 180, "visual_dim": 1024, "visual_out_dim": 768,
        "visualcnn_dim": 768, "vtalign_ground_dim": 768, "text_dim": 768, "multiview_num": 4,
        "consensus_Transformer_head": 8, "consensus_Transformer_fdim": 512,
        "final_Transformer_head": 4, "groundAttention_head": 16, "opinion_num": 3,
        "emotion_num": 8, "consensus_mask": True, "dropout": 0.0,
    }  # fmt: skip
    roberta = {
        "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1,
    }  # fmt: skip

    def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype)

    state = {name: shape(*dims) for name, dims in plain.shapes(model_config, roberta).items()}
    batch = {
        "input_ids": shape(16, 512, dtype=jnp.int32),
        "attention_mask": shape(16, 512, dtype=jnp.int32),
        "video_feat": shape(16, 180, 1024),
        "video_feat_mask": shape(16, 180, dtype=jnp.int32),
        "opinion_label": shape(16, 3),
        "emotion_label": shape(16, 8),
    }
    before = jax.jit(
        jax.value_and_grad(lambda s, b: plain.run(s, model_config, roberta, b)[0])
    ).lower(state, batch)
    model = make(model_config, roberta, "float32")
    i32 = jnp.int32
    words = Words(shape(288, dtype=i32), shape(16, 65, dtype=i32), shape(16, dtype=i32))
    shots = Shots(shape(1600, 1024), shape(16, 180, dtype=i32), shape(16, dtype=i32))
    arrays = (words, shots, shape(16, dtype=i32))
    params = jax.eval_shape(lambda *a: model.init(jax.random.key(0), *a, True), *arrays)["params"]

    def total(params: Any, *arrays: Any) -> Any:
        logits = model.apply({"params": params}, *arrays, True)
        label_b = jnp.zeros(16, jnp.int32)
        return sum(
            jnp.mean(task_loss(FOCAL, scores, label_b, (1,) * scores.shape[-1]))
            for scores in logits.values()
        )

    after = jax.jit(jax.value_and_grad(total)).lower(params, *arrays)
    counted = [graph.cost_analysis()["flops"] for graph in (before, after)]
    print(f"share of the plain FLOPs: {counted[1] / counted[0]:.3f}")  # shown by pytest -s
    assert counted[1] <= 0.15 * counted[0]
    exact = count_flops(jax.grad(total), params, *arrays)
    assert exact == pytest.approx(0.26e12, rel=0.1)
