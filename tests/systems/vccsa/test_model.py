"""The Flax model against the golden cases, and what its options change."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems.vccsa import golden as helper
from systems.vccsa.ours import (
    PUBLISHED,
    inputs,
    losses,
    make,
    params_of,
    random_case,
    run,
    shorten,
)

from jaxvsa.core.config import build
from jaxvsa.core.precision import Precision
from jaxvsa.interop.vccsa import to_published
from jaxvsa.systems.vccsa.model import ConsensusOptions, Padding
from jaxvsa.training.optim import scale_by_adam_hf

CASES = pytest.mark.parametrize("case", helper.cases(), ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@functools.cache
def start(case: Path, dtype: str) -> tuple[Any, Any]:
    """Parameters of a case, and params -> ((loss, outputs), gradients) compiled once for it."""
    golden = helper.load(case)
    model, arrays = make(golden.model, golden.roberta, dtype), inputs(golden, dtype)
    whole = jax.value_and_grad(lambda p: losses(model, p, arrays, golden), has_aux=True)
    return params_of(golden, model, arrays), jax.jit(whole)


@pytest.mark.smoke
@CASES
@DTYPES
def test_model_equals_the_golden_outputs_and_gradients(case: Path, dtype: Any) -> None:
    golden = helper.load(case)
    with jax.enable_x64(dtype == "float64"):
        params, run = start(case, dtype)
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
    tx = adam(beta1, beta2, settings["eps"])
    with jax.enable_x64(dtype == "float64"):
        params, run = start(case, dtype)

        @jax.jit
        def update(params: Any, grads: Any, opt: Any, rate: Any) -> Any:
            steps, opt = tx.update(grads, opt, params)
            return jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, steps), opt

        opt, found = jax.jit(tx.init)(params), []
        for rate in golden.io["traj_lr"]:
            (loss, _), grads = run(params)
            params, opt = update(params, grads, opt, jnp.asarray(rate))
            found.append(float(loss))
    helper.check_trajectory(golden, rule, found, dtype)


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
