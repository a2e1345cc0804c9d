"""The Flax model against the golden cases and the plain oracle, and each exact reduction alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems.vccsa import golden as helper
from systems.vccsa import plain

from jaxvsa.core.config import build
from jaxvsa.core.flops import count_flops
from jaxvsa.core.precision import Precision
from jaxvsa.interop.vccsa import from_published, to_published
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.systems.vccsa.loss import LossOptions, task_loss
from jaxvsa.systems.vccsa.model import VCCSA, ConsensusOptions, Padding
from jaxvsa.training.optim import scale_by_adam_hf

CASES = pytest.mark.parametrize("case", helper.cases(), ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
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


@pytest.mark.smoke
@CASES
@DTYPES
def test_model_equals_the_golden_outputs_and_gradients(case: Path, dtype: Any) -> None:
    golden = helper.load(case)
    with jax.enable_x64(dtype == "float64"):
        model, arrays = make(golden.model, golden.roberta, dtype), inputs(golden, dtype)
        params = params_of(golden, model, arrays)
        run = jax.jit(jax.value_and_grad(lambda p: losses(model, p, arrays, golden), has_aux=True))
        (_, outputs), grads = run(params)
        helper.check_outputs(golden, outputs, dtype)
        published = to_published(jax.device_get(grads))
    published["opinion_loss.weight"] = published["emotion_loss.weight"] = np.zeros(1)
    helper.check_grads(golden, published, dtype)


@CASES
@DTYPES
@pytest.mark.parametrize("rule", ["hf", "torch"])
def test_adamw_follows_the_golden_trajectory(case: Path, dtype: Any, rule: Any) -> None:
    golden = helper.load(case)
    settings = golden.config["trajectory"]
    beta1, beta2 = settings["betas"]
    adam = scale_by_adam_hf if rule == "hf" else optax.scale_by_adam
    with jax.enable_x64(dtype == "float64"):
        model, arrays = make(golden.model, golden.roberta, dtype), inputs(golden, dtype)
        params = params_of(golden, model, arrays)
        tx = adam(beta1, beta2, settings["eps"])

        @jax.jit
        def update(params: Any, opt: Any, rate: Any) -> Any:
            (loss, _), grads = jax.value_and_grad(
                lambda p: losses(model, p, arrays, golden), has_aux=True
            )(params)
            steps, opt = tx.update(grads, opt, params)
            return jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, steps), opt, loss

        opt, found = tx.init(params), []
        for rate in golden.io["traj_lr"]:
            params, opt, loss = update(params, opt, jnp.asarray(rate))
            found.append(float(loss))
    helper.check_trajectory(golden, rule, found, dtype)


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


@pytest.mark.parametrize(
    ("words", "frames"),
    [(24, 40), (10, 40), (11, 40), (24, 12), (24, 13), (10, 12)],
    ids=["full", "cropped", "crop+1", "short tower", "short+1", "both"],
)
def test_cropped_text_and_short_tower_are_exact(words: int, frames: int) -> None:
    model_config, roberta, state, batch = random_case()
    golden = helper.Golden("random", {"model": model_config, "roberta": roberta}, state, {}, batch)
    with jax.enable_x64(True):
        whole = jax.value_and_grad(
            lambda s: plain.run(s, model_config, roberta, batch), has_aux=True
        )
        (want_loss, want), want_grads = jax.jit(whole)(state)
        model = make(model_config, roberta, "float64")
        arrays = inputs(golden, "float64")
        params = params_of(golden, model, arrays)
        short = shorten(arrays, words, frames)
        ours = jax.value_and_grad(lambda p: losses(model, p, short, golden), has_aux=True)
        (loss, got), grads = jax.jit(ours)(params)
        published = to_published(jax.device_get(grads))
    np.testing.assert_allclose(loss, want_loss, rtol=1e-12)
    for name in ("opinion_predict", "emotion_predict", "cnn_features", "cg_score"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-12, err_msg=name)
    for name, grad in want_grads.items():
        if not name.endswith("loss.weight"):
            np.testing.assert_allclose(published[name], grad, atol=1e-12, err_msg=name)


def test_one_pad_fewer_would_be_another_function() -> None:
    model_config, roberta, state, batch = random_case()
    golden = helper.Golden("random", {"model": model_config, "roberta": roberta}, state, {}, batch)
    with jax.enable_x64(True):
        model = make(model_config, roberta, "float64")
        arrays = inputs(golden, "float64")
        params = params_of(golden, model, arrays)
        full = run(model, params, *arrays)
        longest = int(arrays[1].max())
        bare = run(model, params, *shorten(arrays, longest, 40))
    assert np.abs(full["opinion"] - bare["opinion"]).max() > 1e-6


def test_consensus_mask_changes_nothing_in_one_layer_but_in_two() -> None:
    model_config, roberta, _, batch = random_case("float32")
    golden = helper.Golden("random", {}, {}, {}, batch)
    arrays = inputs(golden, "float32")

    def logits(layers: int, masked: bool) -> np.ndarray:
        options = ConsensusOptions(8, 2, layers, 2, masked)
        model = make(model_config, roberta, "float32", consensus=options)
        params = jax.jit(lambda: model.init(jax.random.key(1), *arrays, True))()["params"]
        params = jax.tree.map(lambda leaf: 4 * leaf, params)  # sharp attention
        return np.asarray(run(model, params, *arrays)["emotion"])

    np.testing.assert_array_equal(logits(1, True), logits(1, False))
    assert np.abs(logits(2, True) - logits(2, False)).max() > 1e-6


@pytest.mark.parametrize("variant", ["text", "video"])
def test_variant_does_not_depend_on_the_input_it_leaves_out(variant: Any) -> None:
    model_config, roberta, _, batch = random_case("float32")
    arrays = inputs(helper.Golden("random", {}, {}, {}, batch), "float32")
    text = {} if variant == "text" else {"text": None}
    model = make(model_config, roberta, "float32", variant=variant, **text)
    used = (*arrays[:2], None, None) if variant == "text" else (None, None, *arrays[2:])
    params = jax.jit(lambda: model.init(jax.random.key(0), *used, True))()["params"]
    paths = {path.split("/")[0] for path in params}
    assert ("pyramid" in paths) == (variant == "video")
    assert ("text" in paths) == (variant == "text")
    logits = run(model, params, *used)
    assert logits["opinion"].shape == (4, 3)
    assert np.ptp(np.asarray(logits["opinion"]), axis=0).max() > 1e-4


@pytest.mark.parametrize(
    "field", ["mask_frames", "mask_grounding", "stop_cell", "mask_gate", "mask_pool"]
)
def test_padding_switch_changes_the_function(field: str) -> None:
    model_config, roberta, state, batch = random_case("float32")
    golden = helper.Golden("random", {}, state, {}, batch)
    arrays = inputs(golden, "float32")
    default = make(model_config, roberta, "float32")
    params = params_of(golden, default, arrays)
    switched = default.clone(padding=Padding(**{**vars(PUBLISHED), field: True}))
    before = run(default, params, *arrays)["emotion"]
    after = run(switched, params, *arrays)["emotion"]
    assert np.abs(before - after).max() > 1e-5


def test_without_any_padding_leak_padded_length_is_irrelevant() -> None:
    model_config, roberta, state, batch = random_case("float32")
    golden = helper.Golden("random", {}, state, {}, batch)
    arrays = inputs(golden, "float32")
    model = make(model_config, roberta, "float32", padding=Padding(*(True,) * 5))
    params = params_of(golden, model, arrays)
    wide = run(model, params, *arrays)["emotion"]
    ids_bl, length_b, video_btf, count_b = shorten(arrays, 9, 12)
    noisy_btf = video_btf + 5.0 * (np.arange(12)[None, :, None] >= count_b[:, None, None])
    noise = run(model, params, ids_bl, length_b, noisy_btf.astype("f4"), count_b)
    np.testing.assert_allclose(noise["emotion"], wide, rtol=1e-5, atol=1e-5)


def test_default_graph_needs_at_most_015_of_the_plain_flops() -> None:
    """At RoBERTa-base size, text length 512 against the mean longest comment of 16 (37)."""
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
    model = make(model_config, roberta, "float32", unroll=True)
    arrays = (
        shape(16, 40, dtype=jnp.int32), shape(16, dtype=jnp.int32), shape(16, 180, 1024),
        shape(16, dtype=jnp.int32),
    )  # fmt: skip
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
    assert exact == pytest.approx(0.52e12, rel=0.1)


def test_bfloat16_compute_stays_near_float32_and_its_logits_are_float32() -> None:
    model_config, roberta, state, batch = random_case("float32")
    golden = helper.Golden("random", {}, state, {}, batch)
    arrays = inputs(golden, "float32")
    exact = make(model_config, roberta, "float32")
    params = params_of(golden, exact, arrays)
    precision = Precision("float32", "bfloat16")
    coarse = exact.clone(precision=precision, text=exact.text.clone(precision=precision))
    want, got = run(exact, params, *arrays), run(coarse, params, *arrays)
    for task in want:
        assert got[task].dtype == np.float32
        error = np.linalg.norm(got[task] - want[task]) / np.linalg.norm(want[task])
        assert 1e-5 < error < 3e-2


def test_model_refuses_more_frames_than_its_length() -> None:
    model_config, roberta, _, batch = random_case("float32")
    ids_bl, length_b, video_btf, count_b = inputs(
        helper.Golden("random", {}, {}, {}, batch), "float32"
    )
    model = make({**model_config, "visual_length": 30}, roberta, "float32")
    with pytest.raises(ValueError, match="40 frames, visual_length is 30"):
        model.init(jax.random.key(0), ids_bl, length_b, video_btf, count_b, True)


def test_consensus_section_names_the_misspelt_key() -> None:
    section = {"width": 8, "num_heads": 2, "num_layers": 1, "num_token": 1, "masked": True}
    with pytest.raises(ValueError, match=r"config\.model\.consensus\.num_token; did you mean"):
        build(ConsensusOptions, section, "config.model.consensus")
