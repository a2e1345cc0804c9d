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
    LAYOUTS,
    PUBLISHED,
    expand,
    inputs,
    losses,
    make,
    params_of,
    random_golden,
    random_params,
    run,
)

from jaxvsa.core.config import build
from jaxvsa.core.precision import Precision
from jaxvsa.interop.vccsa import to_published
from jaxvsa.systems.vccsa.model import ConsensusOptions, Padding
from jaxvsa.training.optim import scale_by_adam_hf

CASES = pytest.mark.parametrize("case", helper.cases(), ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


@functools.cache
def start(case: Path, dtype: str, layout: str) -> tuple[Any, ...]:
    """Inputs and parameters of a case, and params -> ((loss, outputs), gradients), compiled once.

    A rectangle is what the published code computes; the other layouts are compared with it.
    """
    golden = helper.load(case)
    model = make(golden.model, golden.roberta, dtype)
    arrays = inputs(golden, dtype, **LAYOUTS[layout])
    whole = jax.value_and_grad(lambda p: losses(model, p, arrays, golden), has_aux=True)
    return arrays, params_of(golden, model, arrays), jax.jit(whole)


@pytest.mark.smoke
@CASES
@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_equals_the_golden_outputs_and_gradients(case: Path, dtype: Any, layout: str) -> None:
    golden = helper.load(case)
    with jax.enable_x64(dtype == "float64"):
        arrays, params, run = start(case, dtype, layout)
        (_, outputs), grads = run(params)
    outputs = expand(outputs, arrays[0], golden.io["input_ids"].shape[1])
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
        _, params, run = start(case, dtype, "packed")

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
    golden = random_golden("float32")
    arrays = inputs(golden, "float32", words=1)

    def logits(layers: int, masked: bool) -> np.ndarray:
        options = ConsensusOptions(8, 2, layers, 2, masked)
        model = make(golden.model, golden.roberta, "float32", consensus=options)
        return np.asarray(run(model, random_params(model, *arrays), *arrays)["emotion"])

    np.testing.assert_array_equal(logits(1, True), logits(1, False))
    assert np.abs(logits(2, True) - logits(2, False)).max() > 1e-6


@pytest.mark.parametrize("variant", ["text", "video"])
def test_variant_does_not_depend_on_the_input_it_leaves_out(variant: Any) -> None:
    golden = random_golden("float32")
    words, shots, example_b = inputs(golden, "float32", words=1)
    text = {} if variant == "text" else {"text": None}
    model = make(golden.model, golden.roberta, "float32", variant=variant, **text)
    used = (words, None, example_b) if variant == "text" else (None, shots, example_b)
    params = random_params(model, *used)
    paths = {path.split("/")[0] for path in params}
    assert ("pyramid" in paths) == (variant == "video")
    assert ("text" in paths) == (variant == "text")
    logits = run(model, params, *used)
    assert logits["opinion"].shape == (4, 3)
    assert np.ptp(np.asarray(logits["opinion"]), axis=0).max() > 1e-4
    both = run(model, params, words, shots, example_b)
    np.testing.assert_array_equal(both["opinion"], logits["opinion"])


@pytest.mark.parametrize(
    "field", ["mask_frames", "mask_grounding", "stop_cell", "mask_gate", "mask_pool"]
)
def test_padding_switch_changes_the_function(field: str) -> None:
    golden = random_golden("float32")
    arrays = inputs(golden, "float32", words=1)
    default = make(golden.model, golden.roberta, "float32")
    params = params_of(golden, default, arrays)
    switched = default.clone(padding=Padding(**{**vars(PUBLISHED), field: True}))
    before = run(default, params, *arrays)["emotion"]
    after = run(switched, params, *arrays)["emotion"]
    assert np.abs(before - after).max() > 1e-5


def test_without_any_padding_leak_padding_is_irrelevant() -> None:
    """Without padding tokens, and with noise in the rows behind the frames."""
    golden = random_golden("float32")
    arrays = inputs(golden, "float32")
    model = make(golden.model, golden.roberta, "float32", padding=Padding(*(True,) * 5))
    params = params_of(golden, model, arrays)
    want = run(model, params, *arrays)["emotion"]
    words, shots, example_b = inputs(golden, "float32", words=0, tail=1)
    noise = np.full(len(shots.video_mf), 5.0)
    for at, count in zip(shots.shot_bt[:, 0], shots.count_b, strict=True):
        noise[at : at + count] = 0
    noisy = shots.replace(video_mf=shots.video_mf + noise[:, None].astype("f4"))
    got = run(model, params, words, noisy, example_b)["emotion"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    default = model.clone(padding=PUBLISHED)
    leaked = run(default, params, words, noisy, example_b)["emotion"]
    assert np.abs(leaked - run(default, params, words, shots, example_b)["emotion"]).max() > 1e-3


def test_bfloat16_compute_stays_near_float32_and_its_logits_are_float32() -> None:
    golden = random_golden("float32")
    arrays = inputs(golden, "float32", words=1)
    exact = make(golden.model, golden.roberta, "float32")
    params = params_of(golden, exact, arrays)
    precision = Precision("float32", "bfloat16")
    coarse = exact.clone(precision=precision, text=exact.text.clone(precision=precision))
    want, got = run(exact, params, *arrays), run(coarse, params, *arrays)
    for task in want:
        assert got[task].dtype == np.float32
        error = np.linalg.norm(got[task] - want[task]) / np.linalg.norm(want[task])
        assert 1e-5 < error < 3e-2


def test_model_refuses_more_frames_than_its_length() -> None:
    golden = random_golden("float32")
    arrays = inputs(golden, "float32", words=1)
    model = make({**golden.model, "visual_length": 18}, golden.roberta, "float32")
    with pytest.raises(ValueError, match="shot_bt has 19 frames, visual_length is 18"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), *arrays, True))


def test_consensus_section_names_the_misspelt_key() -> None:
    section = {"width": 8, "num_heads": 2, "num_layers": 1, "num_token": 1, "masked": True}
    with pytest.raises(ValueError, match=r"config\.model\.consensus\.num_token; did you mean"):
        build(ConsensusOptions, section, "config.model.consensus")
