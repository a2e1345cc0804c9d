"""Every configuration and variant: all keys are read, and the model traces at full size."""

from __future__ import annotations

import functools
from typing import Any

import jax
import pytest

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.config import build, load_config, to_plain, variants
from jaxvsa.systems import module
from jaxvsa.systems.base import abstract_batch
from jaxvsa.systems.vccsa.system import Facts
from jaxvsa.training.loop import TrainOptions
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import start
from jaxvsa.training.step import train_step
from jaxvsa.workflows.assemble import Batching, DataOptions, WeightsOptions

WIDTHS = {"r2plus1d": 512, "videomaev2": 1408}
VARIANTS = pytest.mark.parametrize("variant", variants("configs/vccsa.py"))


def facts(variant: str, config: dict[str, Any]) -> Facts:
    """Of the published release, whose training split has these label counts."""
    text = config["model"]["variant"] == "text"
    return Facts(
        label_names={"opinion": ("a", "b", "c"), "emotion": tuple("abcdefgh")},
        label_counts={"opinion": (3, 2, 1), "emotion": (8, 7, 6, 5, 4, 3, 2, 1)},
        vocab_size=50265,
        pad_id=1,
        feature_width=None if text else WIDTHS.get(variant, 1024),
        feature_dtype=None if text else "float16",
    )


@VARIANTS
def test_variant_has_exactly_the_keys_that_are_read(variant: str) -> None:
    config = to_plain(load_config(f"configs/vccsa.py:{variant}"))
    sections = {
        "data": DataOptions,
        "weights": WeightsOptions,
        "optim": OptimOptions,
        "train": TrainOptions,
        "mesh": meshes.MeshOptions,
    }
    for name, options in sections.items():
        build(options, config[name], f"config.{name}")
    module(config["system"]).build(config, facts(variant, config))
    known = {*sections, "system", "seed", "init_from", "profile", "model", "loss"}
    assert set(config) == known


@VARIANTS
def test_variant_traces_one_update_at_full_size(variant: str) -> None:
    config = to_plain(load_config(f"configs/vccsa.py:{variant}"))
    given = facts(variant, config)
    system = module(config["system"]).build(config, given)
    size = config["train"]["batch_size"]
    sizes = Batching.of(config).full_sizes(size)
    assert sizes["n"] == size * config["data"]["text_len"]
    batch = abstract_batch(system, {"f": given.feature_width or 0, **sizes})
    rng = jax.random.key(0)
    params = jax.eval_shape(system.init, rng, batch)
    learn, _ = trees.split(params, system.trainable)
    tx, _ = make_optimizer(
        build(OptimOptions, config["optim"], "config.optim"), 10, system.parts, learn
    )
    state = jax.eval_shape(functools.partial(start, system, tx), params, rng)
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    after, terms = jax.eval_shape(
        lambda state, micro: train_step(system, tx, state, {}, micro), state, micro
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {"loss", "opinion_loss", "emotion_loss"} <= set(terms)
    probs = jax.eval_shape(system.tasks["classify"].outputs, params, batch)
    assert probs["emotion"].shape == (size, 8)
    options = meshes.MeshOptions(1, 2, 2, "jit")
    placed = meshes.shardings(state, system.partition, meshes.make_mesh(options), params=params)
    assert jax.tree.structure(placed) == jax.tree.structure(state)


def test_paper_has_the_published_number_of_parameters() -> None:
    """146.05 M, less what cannot change an output (see `interop.vccsa.to_published`)."""
    config = to_plain(load_config("configs/vccsa.py:paper"))
    given = facts("paper", config)
    system = module("vccsa").build(config, given)
    batch = abstract_batch(system, {"b": 1, "g": 1, "n": 32, "l": 33, "m": 64, "t": 45, "f": 1024})
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    dead_pooler = 768 * 768 + 768
    dead_grounding = 512 * 768 + 512 * 512 + 512 + 2 * 512
    dead_key_biases = 4 * 512 + 768 + 768  # consensus, final attention, scales over words
    weights_of_losses = 3 + 8
    published = (
        trees.num_values(params)
        + dead_pooler + dead_grounding + dead_key_biases + weights_of_losses
    )  # fmt: skip
    assert published / 1e6 == pytest.approx(146.05, abs=0.005)
