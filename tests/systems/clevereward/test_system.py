"""The system: what changes nothing, devices, what is refused, facts, rules."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import optax
import pytest
from systems.clevereward import arrays

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.systems import module
from jaxvsa.systems.base import System, abstract_batch
from jaxvsa.systems.clevereward.system import Facts, build
from jaxvsa.training.state import start
from jaxvsa.training.step import gradients, make_step

SFT = ({"head": "regression"}, {"kind": "mse", "target": "per_source_affine"})
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bt": ({}, {"negatives": "both"}),
    "margin": ({"pool_video": "attention"}, {"kind": "bt_margin", "label_smoothing": 0.1}),
    "scaled": ({"scale": "none"}, {"kind": "bt_scaled", "center": 0.01}),
    "btt": (
        {"pool_video": "transformer", "num_layers": 1},
        {"kind": "btt", "negatives": "inbatch"},
    ),
    "mse": SFT,
}
ALL = pytest.mark.parametrize("name", CASES)


def loss_and_gradient(system: System, params: Any, batch: Any) -> list[np.ndarray]:
    @jax.jit
    def both(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda params: arrays.mean_loss(system, params, batch))(params)

    return [np.asarray(leaf) for leaf in jax.tree.leaves(both(params, batch))]


def same(got: list[np.ndarray], want: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@ALL
def test_exchange_of_a_and_b_changes_nothing(name: str) -> None:
    _, system = arrays.small(CASES[name][0], **CASES[name][1])
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    turned = {
        **batch,
        "answer_b": -batch["answer_b"],
        **{field: batch[field][:, ::-1] for field in ("video_bvt", "frames_bvtf", "score_bv")},
    }
    same(loss_and_gradient(system, params, turned), loss_and_gradient(system, params, batch))
    rank = system.tasks["rank"]
    got, want = (rank.outputs(params, one) for one in (turned, batch))
    np.testing.assert_allclose(got["reward"], want["reward"][:, ::-1], rtol=1e-5, atol=1e-6)


@ALL
def test_row_that_is_not_valid_changes_nothing(name: str) -> None:
    _, system = arrays.small(CASES[name][0], **CASES[name][1])
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    other = {field: column.copy() for field, column in batch.items()}
    for field, column in other.items():
        column[-1] = column[0] if field != "valid_b" else False
    same(loss_and_gradient(system, params, other), loss_and_gradient(system, params, batch))


@ALL
def test_tie_counts_where_it_is_learned_from(name: str) -> None:
    model, loss = CASES[name]
    _, system = arrays.small(model, **{**loss, "negatives": "none"})
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    weight = float(system.loss(params, batch, None)["loss"].weight)
    scores = np.isfinite(batch["score_bv"]).sum(1) if name == "mse" else 1
    counts_b = batch["valid_b"] & ((name in ("btt", "mse")) | (batch["answer_b"] != 0))
    scaled_b = batch["gap_b"] if name == "scaled" else 1
    assert (batch["answer_b"][:-1] == 0).any()
    hand = np.sum(batch["weight_b"] * counts_b * scores * scaled_b)
    assert weight == pytest.approx(hand, rel=1e-6)
    other = {**batch, "frames_bvtf": batch["frames_bvtf"].copy(), "score_bv": batch["score_bv"] + 0}
    other["frames_bvtf"][batch["answer_b"] == 0] += 3
    other["score_bv"][batch["answer_b"] == 0] += 3
    got, want = (loss_and_gradient(system, params, one) for one in (other, batch))
    if name in ("btt", "mse"):
        assert abs(got[0] - want[0]) > 1e-4
    else:
        same(got, want)


@pytest.mark.parametrize("name", ["bt", "mse"])
def test_source_weight_multiplies_the_weights_of_its_rows(name: str) -> None:
    model, loss = CASES[name]
    _, system = arrays.small(model, **loss)
    _, weighted = arrays.small(model, **loss, source_weights=("two=0.25",))
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    by_hand = {**batch, "weight_b": batch["weight_b"] * np.float32([1, 0.25])[batch["source_b"]]}
    got, want = weighted.loss(params, batch, None), system.loss(params, by_hand, None)
    for got_term, want_term in zip(got.values(), want.values(), strict=True):
        np.testing.assert_allclose(got_term.total, want_term.total, rtol=1e-6)
        np.testing.assert_allclose(got_term.weight, want_term.weight, rtol=1e-6)
    plain = system.loss(params, batch, None)["pref_loss"]
    assert abs(float(got["pref_loss"].weight) - float(plain.weight)) > 0.1


def test_tie_has_no_part_in_the_contrastive_term_either() -> None:
    _, system = arrays.small(negatives="inbatch")
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    other = {**batch, "words_ble": batch["words_ble"] + (batch["answer_b"] == 0)[:, None, None]}
    same(loss_and_gradient(system, params, other), loss_and_gradient(system, params, batch))


def test_terms_are_what_the_loss_is_made_of() -> None:
    _, system = arrays.small(negatives="inbatch", contrastive=0.3)
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    terms = system.loss(params, batch, None)
    mean = {name: float(term.total / term.weight) for name, term in terms.items()}
    assert mean["loss"] == pytest.approx(mean["pref_loss"] + 0.3 * mean["clip_loss"], rel=1e-6)
    assert terms["loss"].weight == 11
    _, alone = arrays.small(negatives="materialised")
    found = alone.loss(params, batch, None)
    assert set(found) == {"loss", "pref_loss"} and not alone.couples_batch
    assert found["loss"].total == pytest.approx(float(terms["pref_loss"].total), rel=1e-6)
    empty = {**batch, "valid_b": np.zeros(12, bool)}
    values = loss_and_gradient(system, params, empty)
    assert all(np.isfinite(leaf).all() for leaf in values[1:])
    assert all((leaf == 0).all() for leaf in values[1:])


@pytest.mark.parametrize(
    ("field", "value", "takes_part"),
    [
        ("dimension_b", 2, False),
        ("dimension_b", 4, True),
        ("group_b", 0, False),  # the second pair of the first row's group
        ("question_b", 0, True),  # an anchor still, but no negative of the first row
        ("answer_b", 0, False),
        ("valid_b", False, False),
    ],
)
def test_who_takes_part_in_the_contrastive_term(field: str, value: Any, takes_part: bool) -> None:
    """Against a double loop over the rewards of all videos and texts."""
    _, system = arrays.small(negatives="inbatch")
    batch = arrays.random_batch(6)
    batch |= {
        "valid_b": np.ones(6, bool),
        "answer_b": np.array([1, -1, 1, -1, 1, 1], np.int32),
        "dimension_b": np.full(6, 6, np.int32),
        "group_b": np.arange(6, dtype=np.int32),
        "question_b": np.arange(6, dtype=np.int32),
    }
    batch[field][3] = value
    params = arrays.random_params(system, batch)
    chosen = (batch["answer_b"] < 0).astype(int)
    logits = np.zeros((6, 6))
    for j in range(6):
        asked = {name: np.repeat(batch[name][j : j + 1], 6, 0) for name in ("words_ble", "text_bl")}
        reward_bv = system.tasks["rank"].outputs(params, {**batch, **asked})["reward"]
        logits[:, j] = np.asarray(reward_bv, np.float64)[np.arange(6), chosen]
    kept = [i for i in range(6) if i != 3 or takes_part]
    total = 0.0
    for i in kept:
        seen = [j for j in kept if j == i or batch["question_b"][j] != batch["question_b"][i]]
        rows, columns = logits[i, seen], logits[seen, i]
        total += (np.logaddexp.reduce(rows) + np.logaddexp.reduce(columns)) / 2 - logits[i, i]
    term = system.loss(params, batch, None)["clip_loss"]
    assert term.weight == len(kept)
    assert float(term.total) == pytest.approx(total, rel=1e-5)


def real(name: str, **model: Any) -> tuple[System, System]:
    """The system, and the same on rows with a question each."""
    config, by_rows = arrays.small({**CASES[name][0], **model}, **CASES[name][1])
    return build(config, arrays.facts(6, 5, ("one", "two"))), by_rows


@pytest.mark.parametrize("groups", [1, 4])
@ALL
def test_shared_questions_and_named_anchors_change_nothing(name: str, groups: int) -> None:
    """Loss, gradients and rewards, dropout and padding of both axes included."""
    system, by_rows = real(name, dropout=0.2)
    batch = arrays.same_words(arrays.random_batch(24))
    batch["question_b"] %= 7
    batch = arrays.same_words(batch)
    params = arrays.random_params(by_rows, batch)
    packed = arrays.shared(batch, groups)
    assert packed["question_gk"].size < 24 + 4 * groups
    if not system.couples_batch:
        del packed["anchor_gm"]

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(system: System, params: Any, batch: Any) -> Any:
        def value(params: Any) -> jax.Array:
            term = system.loss(params, batch, jax.random.key(3))["loss"]
            return term.total / term.weight

        return jax.value_and_grad(value)(params), system.tasks["rank"].outputs(params, batch)

    got, want = all_of(system, params, packed), all_of(by_rows, params, batch)
    same(jax.tree.leaves(got), jax.tree.leaves(want))


MESHES = {"data": (4, 1), "fsdp": (2, 2)}


@pytest.mark.parametrize("name", ["bt", "btt", "mse"])
def test_four_devices_compute_what_one_does(name: str) -> None:
    system, by_rows = real(name)
    batch = arrays.same_words(arrays.random_batch(16 if name == "btt" else 512))
    params = arrays.random_params(by_rows, batch)
    found = {}
    for mesh_name, (data, fsdp) in {"one": (1, 1), **MESHES}.items():
        micro = {f: column[None] for f, column in arrays.shared(batch, data * fsdp).items()}
        mesh = meshes.make_mesh(meshes.MeshOptions(data, fsdp, 1, "jit"))
        state = start(system, optax.sgd(0.1), params, jax.random.key(0))
        places = meshes.shardings(state, system.partition, mesh, params=state.params())
        state = jax.device_put(state, places)
        if fsdp > 1:
            assert len(state.learn["video"]["kernel"].sharding.spec) > 0
        placed = meshes.put_batch(micro, mesh, axis=1)
        grads, terms = jax.jit(lambda s, b: gradients(system, s, {}, b))(state, placed)
        values = {term: np.float64(mean.total) / mean.weight for term, mean in terms.items()}
        found[mesh_name] = {**trees.named(grads), **values}
    assert ("clip_loss" in found["one"]) == system.couples_batch == (name != "mse")
    for mesh_name in MESHES:
        for path, value in found["one"].items():
            np.testing.assert_allclose(
                found[mesh_name][path], value, rtol=1e-5, atol=1e-5, err_msg=f"{mesh_name} {path}"
            )


def test_contrastive_term_refuses_accumulation() -> None:
    _, system = arrays.small(negatives="inbatch")
    batch = arrays.random_batch(8)
    micro = {field: column.reshape(2, 4, *column.shape[1:]) for field, column in batch.items()}
    state = start(system, optax.sgd(0.1), arrays.random_params(system, batch), jax.random.key(0))
    with pytest.raises(ValueError, match="accumulation must be 1"):
        gradients(system, state, {}, micro)


def test_accumulation_changes_nothing_without_it() -> None:
    _, system = arrays.small(kind="btt", center=0.1)
    batch = arrays.random_batch(8)
    state = start(system, optax.sgd(0.1), arrays.random_params(system, batch), jax.random.key(0))
    whole, parts = (
        gradients(
            system, state, {}, {f: c.reshape(count, -1, *c.shape[1:]) for f, c in batch.items()}
        )[0]
        for count in (1, 4)
    )
    same(*([np.asarray(leaf) for leaf in jax.tree.leaves(one)] for one in (parts, whole)))


@ALL
def test_step_on_a_mesh_runs_and_rules_are_total(name: str) -> None:
    model, loss = CASES[name]
    _, system = arrays.small(model, **loss)
    batch = arrays.random_batch(8)
    params = arrays.random_params(system, batch)
    assert trees.decide(trees.named(params), system.partition)
    tx = optax.adam(0.1)
    mesh = meshes.make_mesh(meshes.MeshOptions(1, 2, 2, "jit"))
    state = start(system, tx, params, jax.random.key(0))
    places = meshes.shardings(state, system.partition, mesh, params=state.params())
    step = make_step(system, tx, mesh, "jit", places)
    micro = {field: column[None] for field, column in batch.items()}
    state, terms = step(jax.device_put(state, places), {}, micro)
    assert terms["finite"]


def test_fields_are_those_of_the_batch() -> None:
    batch = arrays.shared(arrays.same_words(arrays.random_batch(8)), 2)
    config, _ = arrays.small(negatives="inbatch")
    system = build(config, arrays.facts(6, 5, ("one", "two")))
    sizes = {"b": 8, "v": 2, "t": 3, "l": 4, "f": 6, "e": 5, "g": 2}
    sizes |= {"k": batch["question_gk"].shape[1], "m": batch["anchor_gm"].shape[1]}
    shapes = abstract_batch(system, sizes)
    assert {f: (s.shape, s.dtype) for f, s in shapes.items()} == {
        f: (c.shape, c.dtype) for f, c in batch.items()
    }
    config, _ = arrays.small()
    without = build(config, arrays.facts(6, 5, ("one", "two"))).fields
    assert system.fields.keys() - without.keys() == {"anchor_gm"}
    params = jax.eval_shape(system.init, jax.random.key(0), shapes)
    assert set(params) == {"video", "text", "logit_scale"}
    terms = jax.eval_shape(lambda p, b: system.loss(p, b, None), params, shapes)
    assert terms["loss"].total.shape == ()


def test_rank_gives_rewards_and_k_and_counts_pairs() -> None:
    _, system = arrays.small(kind="btt", tie_k=3.0, learn_tie_k=False)
    batch = arrays.random_batch(12)
    params = arrays.random_params(system, batch)
    assert "loss" not in params
    rank = system.tasks["rank"]
    found = rank.outputs(params, batch)
    np.testing.assert_allclose(found["log_k"], np.full(12, np.log(3)), rtol=1e-6)
    counts = np.asarray(rank.measure(found, batch)["pairs"].counts_aj)
    reward_bv = np.asarray(found["reward"])
    hand = np.zeros((3, 3), int)
    for b in range(11):
        row = {1: 0, -1: 1, 0: 2}[int(batch["answer_b"][b])]
        hand[row, 0 if reward_bv[b, 0] > reward_bv[b, 1] else 1] += 1
    np.testing.assert_array_equal(counts, hand)


def test_bare_cosine_cannot_leave_its_range() -> None:
    """CA1: without scale P(A) stays within .119203 and .880797, and the loss over .126928."""
    _, system = arrays.small({"scale": "none", "pool_text": "mean"})
    batch = arrays.random_batch(2)
    params = arrays.random_params(system, batch)
    params = {**params, "video": {"kernel": 0 * params["video"]["kernel"], "bias": 0}}
    params["text"] = {"kernel": 0 * params["text"]["kernel"], "bias": np.eye(16)[0]}
    params["video"] = {"kernel": np.eye(6, 16), "bias": np.zeros(16)}
    frames = np.zeros((2, 2, 1, 6), np.float32)
    frames[:, 0, 0, 0], frames[:, 1, 0, 0] = 50, -50
    batch |= {"frames_bvtf": frames, "video_bvt": np.zeros((2, 2, 1), np.int32)}
    batch |= {"answer_b": np.array([1, 1], np.int32), "valid_b": np.ones(2, bool)}
    reward_bv = np.asarray(system.tasks["rank"].outputs(params, batch)["reward"])
    chance = 1 / (1 + np.exp(reward_bv[:, 1] - reward_bv[:, 0]))
    np.testing.assert_allclose(chance, 0.880797, atol=1e-6)
    assert float(arrays.mean_loss(system, params, batch)) == pytest.approx(0.126928, abs=1e-5)
    batch["answer_b"] = -batch["answer_b"]
    assert float(arrays.mean_loss(system, params, batch)) == pytest.approx(2.126928, abs=1e-5)


def test_learned_scale_stays_within_one_and_a_hundred() -> None:
    _, system = arrays.small()
    batch = arrays.random_batch(4)
    params = arrays.random_params(system, batch)

    def reward(logit_scale: float) -> np.ndarray:
        changed = {**params, "logit_scale": np.float32(logit_scale)}
        return np.asarray(system.tasks["rank"].outputs(changed, batch)["reward"])

    np.testing.assert_allclose(reward(np.log(100)), 100 * reward(0), rtol=1e-5)
    np.testing.assert_array_equal(reward(50), reward(np.log(100)))
    np.testing.assert_array_equal(reward(-3), reward(0))


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        ({}, {"kind": "mse"}, "config.loss.kind is 'mse', but config.model.head is 'cosine'"),
        ({"head": "regression"}, {}, "config.loss.kind is 'bt', but config.model.head is 'regres"),
        (SFT[0], {**SFT[1], "negatives": "both"}, "config.loss.negatives is 'both', but config"),
        ({}, {"source_weights": ("tow=1",)}, "source_weights: unknown source 'tow'; did you mean"),
        ({"width": 0}, {}, "config.model.width is 0; 1 is the least"),
        ({"hidden": -1}, {}, "config.model.hidden is -1; 1 is the least"),
        ({"num_layers": 0}, {}, "config.model.num_layers is 0"),
        ({"dropout": 1.0}, {}, "config.model.dropout is 1.0; it must be at least 0 and below 1"),
        ({"scale_init": 0.5}, {}, "config.model.scale_init is 0.5; it must be from 1 to 100"),
        (
            {"pool_video": "transformer", "num_heads": 3},
            {},
            "num_heads is 3, which does not divide",
        ),
        ({"pool_video": "max"}, {}, "config.model.pool_video: expected one of"),
        ({"widht": 3}, {}, "unknown key config.model.widht; did you mean 'width'"),
        ({}, {"kind": "bpt"}, "config.loss.kind: expected one of .* did you mean"),
        ({}, {"tie_k": 1.0}, "config.loss.tie_k is 1.0; it must be over 1"),
        ({}, {"label_smoothing": 0.5}, "config.loss.label_smoothing is 0.5; it must be"),
        ({}, {"contrastive": -0.1}, "config.loss.contrastive is -0.1; it must be at least 0"),
        ({}, {"center": float("nan")}, "config.loss.center is nan"),
        ({}, {"margin_size": -1.0}, "config.loss.margin_size is -1.0"),
    ],
)
def test_refused(model: dict[str, Any], loss: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        arrays.small(model, **loss)
    assert "\n" not in str(caught.value)


def test_facts_survive_json_and_the_system_has_its_name() -> None:
    facts = arrays.facts(6, 5, ("one", "two"), [[50, 16, 0, 100], [2.5, 0.9, 1, 4]])
    assert Facts.from_dict(json.loads(json.dumps(dataclasses.asdict(facts)))) == facts
    found = module("clevereward")
    assert found.Facts is Facts and found.build is build


def test_contrastive_factor_of_zero_switches_the_term_off() -> None:
    assert not arrays.small(negatives="both", contrastive=0.0)[1].couples_batch
    assert arrays.small(negatives="both")[1].couples_batch
