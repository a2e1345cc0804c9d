"""The system: losses, ranking, what learns, sizes of the published model."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems.mtransllama import tiny

from jaxvsa.core import trees
from jaxvsa.core.config import build as build_options
from jaxvsa.core.errors import UserError
from jaxvsa.systems.base import System, abstract_batch, outputs
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import State, start
from jaxvsa.training.step import train_step


@functools.cache
def whole() -> tuple[System, Any, dict[str, np.ndarray]]:
    system = tiny.system()
    return system, tiny.params(system), tiny.batch(system)


@functools.cache
def loss_of() -> Any:
    system, _, _ = whole()
    return jax.jit(lambda params, batch: system.loss(params, batch, None)["loss"])


@pytest.mark.torch
def test_loss_is_torch_cross_entropy_over_answer_tokens_of_real_questions() -> None:
    torch = pytest.importorskip("torch")
    _, params, batch = whole()
    batch = {**batch, "valid_b": np.array([True, False, True])}
    given = tiny.arguments(batch)
    logits = np.asarray(tiny.answer_logits(tiny.model(), params, given))
    counts = given["keep_ba"] & batch["valid_b"][:, None]
    labels = torch.tensor(np.where(counts, batch["answer_ba"], -100)).reshape(-1).long()
    want = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(len(labels), -1), labels, reduction="sum"
    )
    got = loss_of()(params, batch)
    assert float(got.weight) == counts.sum() == batch["answer_length_b"][[0, 2]].sum()
    np.testing.assert_allclose(got.total, want.item(), rtol=1e-5)


def test_invalid_row_changes_nothing() -> None:
    _, params, batch = whole()
    batch = {**batch, "valid_b": np.array([True, True, False])}
    kept = ("valid_b", "ids_gw", "word_bl")
    other = {k: v if k in kept else np.concatenate([v[:2], v[:1]]) for k, v in batch.items()}
    other["ids_gw"] = batch["ids_gw"].copy()
    other["ids_gw"][0, batch["word_bl"][2]] = 9
    got, want = loss_of()(params, other), loss_of()(params, batch)
    np.testing.assert_allclose(got.total, want.total, rtol=1e-6)
    assert got.weight == want.weight


@functools.cache
def ranked() -> np.ndarray:
    system, params, batch = whole()
    return np.asarray(jax.jit(functools.partial(outputs, system, "classify"))(params, batch)["way"])


def test_rank_is_the_mean_likelihood_of_each_answer_on_its_own() -> None:
    _, params, batch = whole()
    model, score_bc = tiny.model(), np.full(batch["choice_length_bc"].shape, -np.inf)
    for c in range(score_bc.shape[1]):
        length_b = batch["choice_length_bc"][:, c]
        one = {**batch, "answer_ba": batch["choice_bcy"][:, c], "answer_length_b": length_b}
        logits = np.asarray(tiny.answer_logits(model, params, tiny.arguments(one)), np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for b, length in enumerate(length_b):
            if length:
                tokens = one["answer_ba"][b, :length]
                score_bc[b, c] = logs[b, np.arange(length), tokens].mean()
    want = np.exp(score_bc) / np.exp(score_bc).sum(-1, keepdims=True)
    np.testing.assert_allclose(ranked(), want, rtol=1e-5, atol=1e-6)
    assert len(set(batch["choice_length_bc"].ravel().tolist())) > 2


def test_answer_that_is_not_offered_has_no_probability() -> None:
    _, _, batch = whole()
    assert batch["choice_length_bc"][0].tolist()[-1] == 0 and ranked()[0, -1] == 0
    np.testing.assert_allclose(ranked().sum(-1), 1, rtol=1e-6)
    assert (ranked()[1:] > 0).all()


def test_measure_counts_real_questions_by_hand() -> None:
    system, _, _ = whole()
    probs = np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
    batch = {"label_way_b": np.array([1, 2, 2]), "valid_b": np.array([True, True, False])}
    counts = system.tasks["classify"].measure({"way": probs}, batch)["way"].counts_cc
    assert np.asarray(counts).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_open_answers_are_only_written() -> None:
    system = tiny.system(tiny.facts(label_names={}))
    assert list(system.tasks) == ["generate"]
    assert not any(name.startswith(("choice", "label")) for name in system.fields)
    assert system.tasks["generate"].measure({}, {}) == {}


def begin(system: System, config: dict[str, Any]) -> tuple[State, Any]:
    """A state whose every leaf is random, and its optimizer."""
    params = tiny.params(system)
    learn, _ = trees.split(params, system.trainable)
    options = build_options(OptimOptions, config["optim"], "config.optim")
    tx, _ = make_optimizer(options, 10, system.parts, learn)
    return start(system, tx, jax.tree.map(jnp.asarray, params), jax.random.key(0)), tx


@pytest.mark.parametrize(("gate", "frozen"), [("none", "float32"), ("zero", "bfloat16")])
def test_frozen_weights_do_not_move_and_have_no_moments(gate: str, frozen: str) -> None:
    sections = {
        "model": {
            "qformer": {"temporal_gate": gate}, "frozen": {"param": frozen, "compute": frozen},
        }
    }  # fmt: skip
    system, config = tiny.system(**sections), tiny.config(**sections)
    state, tx = begin(system, config)
    before = jax.device_get((state.learn, state.held))
    step = jax.jit(lambda state, batch: train_step(system, tx, state, {}, batch)[0])
    for seed in range(5):
        batch = tiny.batch(system, seed)
        state = step(state, {name: leaf[None] for name, leaf in batch.items()})
    learn, held = jax.device_get((state.learn, state.held))
    jax.tree.map(np.testing.assert_array_equal, held, before[1])
    moved, names = trees.named(learn), ("lora_", "router_", "_position", "time_gate")
    assert all(any(name in path for name in names) for path in moved)
    for path, leaf in trees.named(before[0]).items():
        assert np.abs(leaf - moved[path]).max() > 0, path
    assert {path.split("/")[0] for path in trees.named(held)} == {"qformer", "project", "decoder"}
    assert not any(any(name in path for name in names) for path in trees.named(held))
    for moment in ("mu", "nu"):
        paths = [path for path in trees.named(state.opt) if f"/{moment}/" in path]
        assert sorted(path.partition(f"/{moment}/")[2] for path in paths) == sorted(moved)


def learning(**sections: Any) -> set[str]:
    """Kinds of parameters that learn, from shapes alone."""
    system = tiny.system(**sections)
    shapes = jax.eval_shape(system.init, jax.random.key(0), abstract_batch(system, tiny.SIZES))
    learn, _ = trees.split(shapes, system.trainable)
    kinds = ("lora_space", "lora_time", "lora_cross", "router_space", "router_time",
             "query_position", "frame_position", "time_gate", "decoder/word")  # fmt: skip
    found = {path: [kind for kind in kinds if kind in path] for path in trees.named(learn)}
    return {kind for kinds in found.values() for kind in kinds}


LORA = {"lora_space", "lora_time", "lora_cross"}
ROUTERS = {"router_space", "router_time"}
ROWS = {"query_position", "frame_position"}


@pytest.mark.parametrize(
    ("sections", "want"),
    [
        ({}, LORA | ROUTERS | ROWS),
        ({"weights": {"positions": "query"}}, LORA | ROUTERS | {"query_position"}),
        ({"weights": {"positions": "none"}}, LORA | ROUTERS),
        ({"model": {"routing": {"hidden": 0}}}, LORA | ROWS),
        ({"model": {"routing": {"enabled": False}}}, LORA | ROWS),
        ({"model": {"routing": {"temporal": False}}}, LORA | ROWS | {"router_space"}),
        ({"model": {"lora": {"rank": 0}}}, ROUTERS | ROWS),
        ({"model": {"lora": {"sites": ["cross"]}}}, {"lora_cross"} | ROUTERS | ROWS),
        (
            {"model": {"qformer": {"temporal_gate": "zero"}}},
            LORA | ROUTERS | ROWS | {"time_gate"},
        ),
        (
            {"model": {"qformer": {"temporal": False}, "lora": {"sites": ["space"]}}},
            {"lora_space", "router_space"} | ROWS,
        ),
        ({"weights": {"learn": "all"}}, LORA | ROUTERS | ROWS | {"decoder/word"}),
    ],
)
def test_what_learns_is_what_the_configuration_says(sections: Any, want: set[str]) -> None:
    assert learning(**sections) == want


@pytest.mark.parametrize(
    ("sections", "given", "match"),
    [
        (
            {
                "model": {"lora": {"rank": 0}, "routing": {"hidden": 0}},
                "weights": {"positions": "none"},
            },
            {},
            "config.weights: nothing learns; give config.model.lora a rank",
        ),
        ({"model": {"variant": "text"}}, {"video": ""}, "'text' has no Q-Former; use 'all'"),
        ({}, {"video": ""}, "variant is 'both', but the data has no frames"),
        ({}, {"feature_width": 31}, "the data has patches of 31 values, .* reads 32"),
        (
            {"model": {"vision": {"image_size": 20}}},
            {"video": "pixels"},
            "the data has pixels of 768 values, .* reads 1200",
        ),
        ({"weights": {"positions": "frame"}}, {}, r"config\.weights\.positions: .*'frame'"),
    ],
)  # fmt: skip
def test_system_refuses(sections: Any, given: Any, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        tiny.system(tiny.facts(**given), **sections)
    assert "\n" not in str(caught.value)


def test_eight_questions_are_learned_by_heart() -> None:
    system = tiny.system(weights={"learn": "all"})
    batch = tiny.batch(system, b=8)
    batch["answer_length_b"][:] = 4
    batch["answer_ba"][:, -1] = tiny.EOS
    params = jax.jit(system.init)(jax.random.key(0), batch)
    tx = optax.adam(3e-3)
    state = start(system, tx, params, jax.random.key(0))
    step = jax.jit(lambda state, batch: train_step(system, tx, state, {}, batch)[0])
    write = jax.jit(functools.partial(outputs, system, "generate"))
    stacked, right = {name: leaf[None] for name, leaf in batch.items()}, 0.0
    for number in range(1, 300):
        state = step(state, stacked)
        if number % 20 == 0:
            written = np.asarray(write(state.params(), batch)["answer"])
            right = float((written == batch["answer_ba"]).all(axis=1).mean())
        if right == 1:
            break
    assert right == 1, f"{right:.2f} of the answers after {number} updates"


def test_temperature_of_hard_routing_falls_with_the_updates() -> None:
    hard = {"routing": "hard", "combine": "log", "tau": 10.0, "tau_last": 0.1, "tau_updates": 6}
    changes = [hard, {**hard, "tau": 5.05, "tau_updates": 0}]
    params, batch = jax.tree.map(jnp.asarray, whole()[1:])
    found = []
    for routing in changes:
        system = tiny.system(model={"routing": routing})
        loss = jax.jit(lambda t, of=system: of.loss(params, batch | t, jax.random.key(0))["loss"])
        found.append([float(loss({"update": jnp.asarray(t)}).total) for t in (0, 3, 6)])
    falling, still = found
    assert still[0] == still[1] == still[2]
    np.testing.assert_allclose(falling[1], still[1], rtol=1e-5)
    assert min(abs(falling[0] - falling[1]), abs(falling[1] - falling[2])) > 1e-4


@functools.cache
def paper() -> tuple[System, Any, dict[str, Any]]:
    """The published setting with InstructBLIP's tables: system, shapes of parameters and batch."""
    given = tiny.facts(
        label_names={"sarcasm": ("no", "yes")}, vocab_size=32001, words_size=30523, video="pixels",
        feature_width=3 * 224**2,
    )  # fmt: skip
    system = tiny.build(tiny.config("mustard"), given)
    sizes = {
        "b": 4, "n": 256, "a": 32, "g": 1, "w": 800, "l": 320, "c": 2, "y": 32, "t": 8,
        "i": 3 * 224**2,
    }  # fmt: skip
    batch = abstract_batch(system, sizes)
    return system, jax.eval_shape(system.init, jax.random.key(0), batch), batch


def test_paper_learns_2_454_966_values() -> None:
    system, params, _ = paper()
    learn, held = trees.split(params, system.trainable)
    assert trees.num_values(learn) == 2_454_966
    assert {leaf.dtype.name for leaf in jax.tree.leaves(learn)} == {"float32"}
    by_kind = {
        kind: sum(leaf.size for path, leaf in trees.named(learn).items() if kind in path)
        for kind in ("lora_", "router_", "_position")
    }
    assert by_kind == {"lora_": 1_536_000, "router_": 888_246, "_position": 40 * 768}
    assert {path.split("/")[0] for path in trees.named(held)} == {
        "vision", "qformer", "project", "decoder",
    }  # fmt: skip


def test_bytes_of_the_parts_of_the_paper() -> None:
    """Language model and vision transformer in bfloat16, the Q-Former in float32."""
    _, params, _ = paper()
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert trees.num_values(params["decoder"]) == 32 * layer + 2 * 32001 * 4096 + 4096
    gib = {part: trees.num_bytes(tree) / 2**30 for part, tree in params.items()}
    want = {"decoder": 12.55, "vision": 1.84, "qformer": 0.70, "project": 0.006}
    assert gib == {part: pytest.approx(size, abs=0.005) for part, size in want.items()}


def test_paper_traces_at_full_size() -> None:
    system, params, batch = paper()
    loss = jax.eval_shape(lambda params, batch: system.loss(params, batch, None), params, batch)
    assert loss["loss"].total.shape == () and loss["loss"].total.dtype == "float32"
    found = jax.eval_shape(functools.partial(outputs, system, "classify"), params, batch)
    assert found["sarcasm"].shape == (4, 2)
    found = jax.eval_shape(functools.partial(outputs, system, "generate"), params, batch)
    assert found["answer"].shape == (4, 32) and found["answer"].dtype == "int32"
