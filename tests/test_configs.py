"""Every configuration and variant: all keys are read, and the model traces at full size.

Of one variant for each system a whole update is traced, of the others the loss, which is the half
of it that their options change.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import pytest

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.config import build, load_config, to_plain, variants
from jaxvsa.systems import module
from jaxvsa.systems.base import System, abstract_batch
from jaxvsa.systems.clevereward.loss import LossOptions as RewardLoss
from jaxvsa.systems.clevereward.system import Facts as RewardFacts
from jaxvsa.systems.mtransllama.system import Facts as AnswerFacts
from jaxvsa.systems.mtransllama.system import LossOptions as AnswerLoss
from jaxvsa.systems.mtransllama.system import WeightsOptions as BaseOptions
from jaxvsa.systems.vccsa.system import Facts
from jaxvsa.training.loop import TrainOptions
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import State, start
from jaxvsa.training.step import train_step
from jaxvsa.workflows import pairs, questions
from jaxvsa.workflows.comments import Batching, DataOptions, WeightsOptions

WIDTHS = {"r2plus1d": 512, "videomaev2": 1408}
VARIANTS = pytest.mark.parametrize("variant", variants("configs/vccsa.py"))
ANSWERING = pytest.mark.parametrize("variant", variants("configs/mtransllama.py"))
OPEN = ("qaego4d", "youcook2")
WHOLE = ("paper", "mustard")


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
def test_variant_traces_at_full_size(variant: str) -> None:
    config = to_plain(load_config(f"configs/vccsa.py:{variant}"))
    given = facts(variant, config)
    system = module(config["system"]).build(config, given)
    size = config["train"]["batch_size"]
    sizes = Batching.of(config).full_sizes(size)
    assert sizes["n"] == size * config["data"]["text_len"]
    batch = abstract_batch(system, {"f": given.feature_width or 0, **sizes})
    params, state, terms = trace(system, config, batch, variant in WHOLE)
    assert {"loss", "opinion_loss", "emotion_loss"} <= set(terms)
    probs = jax.eval_shape(system.tasks["classify"].outputs, params, batch)
    assert probs["emotion"].shape == (size, 8)
    check_shardings(system, state, params)


def trace(
    system: System, config: dict[str, Any], batch: dict[str, Any], whole: bool
) -> tuple[Any, State, dict[str, Any]]:
    """Shapes of parameters, state and loss terms; a whole update changes no shape."""
    rng = jax.random.key(0)
    params = jax.eval_shape(system.init, rng, batch)
    learn, _ = trees.split(params, system.trainable)
    tx, _ = make_optimizer(
        build(OptimOptions, config["optim"], "config.optim"), 10, system.parts, learn
    )
    state = jax.eval_shape(functools.partial(start, system, tx), params, rng)
    if not whole:
        return params, state, jax.eval_shape(lambda p, b: system.loss(p, b, None), params, batch)
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    after, terms = jax.eval_shape(
        lambda state, micro: train_step(system, tx, state, {}, micro), state, micro
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    return params, state, terms


def check_shardings(system: System, state: State, params: Any) -> None:
    """Every rule of the partition decides something, and the sizes divide."""
    options = meshes.MeshOptions(1, 2, 2, "jit")
    placed = meshes.shardings(state, system.partition, meshes.make_mesh(options), params=params)
    assert jax.tree.structure(placed) == jax.tree.structure(state)


def answer_facts(variant: str, config: dict[str, Any]) -> AnswerFacts:
    """Of clips as pixels, and of InstructBLIP's tables or of tokenizers that are trained."""
    own, text = config["data"]["vocab_size"], config["model"]["variant"] == "text"
    small = variant.startswith("demo") or text
    return AnswerFacts(
        label_names={} if variant in OPEN else {"task": ("no", "yes")},
        vocab_size=own if small else 32001,
        pad_id=1,
        eos_id=2,
        words_size=own if small else 30523,
        video="" if text else "pixels",
        feature_width=0 if text else 3 * config["model"]["vision"]["image_size"] ** 2,
        feature_dtype="" if text else "uint8",
    )


@ANSWERING
def test_answering_variant_has_exactly_the_keys_that_are_read(variant: str) -> None:
    config = to_plain(load_config(f"configs/mtransllama.py:{variant}"))
    sections = {
        "data": questions.DataOptions,
        "weights": BaseOptions,
        "loss": AnswerLoss,
        "optim": OptimOptions,
        "train": TrainOptions,
        "mesh": meshes.MeshOptions,
    }
    for name, options in sections.items():
        build(options, config[name], f"config.{name}")
    module(config["system"]).build(config, answer_facts(variant, config))
    assert set(config) == {*sections, "system", "seed", "init_from", "profile", "model", "beside"}
    assert set(config["beside"]) <= set(variants("configs/mtransllama.py"))


@ANSWERING
def test_answering_variant_traces_at_full_size(variant: str) -> None:
    config = to_plain(load_config(f"configs/mtransllama.py:{variant}"))
    facts = answer_facts(variant, config)
    if not facts.label_names:  # what is the same for all variants of one model is traced once
        facts = dataclasses.replace(facts, label_names={"task": ("no", "yes")})
    told = json.dumps({name: config[name] for name in TRACED}, sort_keys=True)
    trace_answers(told, json.dumps(dataclasses.asdict(facts)), variant in WHOLE)


TRACED = ("system", "data", "weights", "model", "loss", "optim", "train")


@functools.cache
def trace_answers(told: str, known: str, whole: bool) -> None:
    """An update, or its loss, and both tasks of a configuration and its facts, both as JSON."""
    config, given = json.loads(told), AnswerFacts.from_dict(json.loads(known))
    system = module(config["system"]).build(config, given)
    data = questions.Assembled(config, None, None, given, "", {})  # type: ignore[arg-type]
    size = config["train"]["batch_size"]
    batch = abstract_batch(system, data.sizes(size))
    assert batch["prompt_bn"].shape == (size, config["model"]["max_prompt"])
    params, state, terms = trace(system, config, batch, whole)
    assert "loss" in terms
    assert system.shared is not None
    batch |= jax.eval_shape(system.shared, params, batch)
    found = jax.eval_shape(system.tasks["generate"].outputs, params, batch)
    assert found["answer"].shape == (size, config["model"]["max_new"])
    found = jax.eval_shape(system.tasks["classify"].outputs, params, batch)
    assert found["task"].shape == (size, 2)
    check_shardings(system, state, params)


REWARDS = pytest.mark.parametrize("variant", variants("configs/clevereward.py"))
TABLE = tuple((1.0,) * 7 for _ in range(3))


@REWARDS
def test_reward_variant_reads_its_keys_and_traces_at_full_size(variant: str) -> None:
    config = to_plain(load_config(f"configs/clevereward.py:{variant}"))
    sections = {
        "data": pairs.DataOptions,
        "loss": RewardLoss,
        "optim": OptimOptions,
        "train": TrainOptions,
        "mesh": meshes.MeshOptions,
    }
    for name, options in sections.items():
        build(options, config[name], f"config.{name}")
    known = {*sections, "weights", "model", "system", "seed", "init_from", "profile", "beside"}
    assert set(config) == known and not config["weights"]
    assert set(config["beside"]) <= set(variants("configs/clevereward.py"))
    given = RewardFacts(("a", "b", "c"), 1408, "float32", 384, "float32", *[TABLE] * 4)
    system = module("clevereward").build(config, given)
    data = pairs.Assembled(config, None, None, given)  # type: ignore[arg-type]
    size = config["train"]["batch_size"]
    batch = abstract_batch(system, data.sizes(size))
    params, state, terms = trace(system, config, batch, variant in WHOLE)
    assert {"loss", "pref_loss"} <= set(terms)
    assert ("clip_loss" in terms) == system.couples_batch
    found = jax.eval_shape(system.tasks["rank"].outputs, params, batch)
    assert found["reward"].shape == (size, 2)
    check_shardings(system, state, params)


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
