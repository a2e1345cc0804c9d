"""From comments to losses: what the layout of a batch must not change, with dropout on."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.mesh import MeshOptions, make_mesh
from jaxvsa.core.trees import named
from jaxvsa.data.comments import CommentExamples, Videos
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.text import Tokens
from jaxvsa.evaluation.evaluator import run
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.systems.base import System, abstract_batch
from jaxvsa.systems.vccsa.system import Facts, build
from jaxvsa.training.state import State, start
from jaxvsa.training.step import gradients, train_step

COMMENTS, VIDEOS, WIDTH, TEXT_LEN, FRAMES = 24, 5, 3, 44, 14
PAD = 1


@functools.cache
def system() -> System:
    """The smallest model of all parts, in float64, its dropout high."""
    config = to_plain(load_config("configs/vccsa.py:tiny"))
    text = {**config["model"]["text"], "dropout": 0.2, "attention_dropout": 0.3}
    config["model"] |= {
        "visual_length": FRAMES,
        "dropout": 0.3,
        "text": text | {"max_positions": TEXT_LEN + 2},
        "precision": {"param": "float64", "compute": "float64"},
    }
    facts = Facts(
        label_names={"opinion": ("a", "b", "c"), "mood": ("d", "e")},
        label_counts={"opinion": (3, 2, 1), "mood": (1, 1)},
        vocab_size=30,
        pad_id=PAD,
        feature_width=WIDTH,
        feature_dtype="float64",
    )
    return build(config, facts)


def examples(share: bool = False) -> CommentExamples:
    """Comments of 2 to 44 tokens, some longer than a block, on videos of 1 to 14 frames."""
    rng = np.random.default_rng(0)
    length_b = rng.integers(2, 20, COMMENTS).astype(np.int32)
    length_b[[8, 6, 11]] = TEXT_LEN, 37, 2
    ids_n = rng.integers(3, 30, length_b.sum()).astype(np.int32)
    count_g = np.array([1, 14, 4, 2, 9])
    features = FeatureTable.from_counts(
        rng.normal(size=(count_g.sum(), WIDTH)), count_g, [f"v{g}" for g in range(VIDEOS)]
    )
    return CommentExamples(
        Tokens(ids_n, np.cumsum(length_b, dtype=np.int64) - length_b, length_b),
        {"opinion": rng.integers(0, 3, COMMENTS), "mood": rng.integers(0, 2, COMMENTS)},
        Videos(rng.integers(0, VIDEOS, COMMENTS), features, FRAMES, tower_margin(2), False, share),
        pad_id=PAD,
        text_len=TEXT_LEN,
    )


ROWS = np.arange(8) + 4
VALID = np.array([True, True, False, True, True, True, False, True])
TX = optax.sgd(0.5, momentum=0.9)


def load(
    sizes: Mapping[str, int],
    groups: int = 1,
    share: bool = False,
    order: Any = slice(None),
    accumulate: int = 1,
) -> dict[str, np.ndarray]:
    """The rows as one batch, leaves (accumulate, ...)."""
    batch = examples(share).batch(ROWS[order], VALID[order], sizes, groups)
    return {k: v.reshape(accumulate, -1, *v.shape[1:]) for k, v in batch.items()}


@functools.cache
def begin() -> State:
    """Parameters of a size at which all get a gradient: sharp attention, flat probabilities."""
    sizes = {"b": 1, "g": 1, "n": 32, "l": 32, "m": FRAMES, "t": FRAMES, "f": WIDTH}
    like = jax.eval_shape(system().init, jax.random.key(0), abstract_batch(system(), sizes))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.36, leaf.shape)), like)
    params |= {name: leaf / 5 for name, leaf in params.items() if name.startswith("head")}
    return start(system(), TX, params, jax.random.key(5))


# The spans of the rows are 8, 3, 38, 3, 44, 17, 14, 3; their videos take 88 rows, 44 if shared.
SIZES = {"n": 160, "l": 44, "m": 100, "t": 14}


@functools.cache
def wanted() -> Any:
    """Gradients and loss terms of one group, packed, every video for itself."""
    with jax.enable_x64(True):
        grads, terms = gradients_of(begin(), load(SIZES))
    for path, leaf in named(grads).items():  # softmax does not see the keys' bias
        assert path.endswith("key/bias") or jnp.abs(leaf).max() > 1e-4, path
    return grads, terms


@jax.jit
def gradients_of(state: State, batch: dict[str, Any]) -> Any:
    return gradients(system(), state, {}, batch)


@jax.jit
def update(state: State, batch: dict[str, Any]) -> Any:
    return train_step(system(), TX, state, {}, batch)


def assert_close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)


LAYOUTS: dict[str, dict[str, Any]] = {
    "rectangles": {"sizes": {"n": 8 * 44, "l": 44, "m": 8 * 14, "t": 14}},
    "a longer tail": {"sizes": SIZES | {"n": 224, "m": 131}, "order": [3, 7, 0, 2, 6, 4, 1, 5]},
    "two groups": {"sizes": SIZES | {"n": 96, "m": 51}, "groups": 2},
    "four groups, frames a rectangle": {"sizes": SIZES | {"n": 64, "m": 28}, "groups": 4},
    "shared videos": {"sizes": SIZES | {"m": 45}, "share": True},
}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "rectangles")) for name in LAYOUTS],
)
def test_layout_does_not_change_losses_and_gradients_under_dropout(layout: str) -> None:
    with jax.enable_x64(True):
        assert_close(gradients_of(begin(), load(**LAYOUTS[layout])), wanted())


def test_order_of_the_rows_does_not_change_losses_and_gradients_under_dropout() -> None:
    with jax.enable_x64(True):
        turned = load(SIZES, order=slice(None, None, -1))
        assert_close(gradients_of(begin(), turned), wanted())


@pytest.mark.parametrize(
    ("accumulate", "sizes"),
    [
        pytest.param(2, {"n": 96, "m": 51}, marks=pytest.mark.slow),
        pytest.param(4, {"n": 64, "m": 28}),
    ],
)
def test_accumulation_does_not_change_an_update_under_dropout(
    accumulate: int, sizes: dict[str, int]
) -> None:
    with jax.enable_x64(True):
        batch = load(SIZES | sizes, accumulate, accumulate=accumulate)
        assert batch["ids_gn"].shape[:2] == (accumulate, 1)
        after, terms = update(begin(), batch)
        want, want_terms = update(begin(), load(SIZES))
        assert_close(after.replace(rng=None), want.replace(rng=None))
        assert_close(terms, want_terms)
        assert np.abs(after.learn["token"] - begin().learn["token"]).max() > 1e-4


def test_key_step_and_number_of_the_example_decide_what_is_dropped() -> None:
    batch = {name: leaf[0] for name, leaf in load(SIZES).items()}
    with jax.enable_x64(True):
        params = begin().params()
        loss = jax.jit(lambda p, b, rng: system().loss(p, b, rng)["loss"].total)
        with_key = [float(loss(params, batch, jax.random.key(seed))) for seed in (0, 0, 1)]
        moved = batch | {"index_b": batch["index_b"] + 1}
        renamed = float(loss(params, moved, jax.random.key(0)))
        calm = float(loss(params, batch, None))
        states = [begin().replace(step=jnp.int32(step)) for step in (0, 0, 1)]
        later = [float(gradients_of(s, load(SIZES))[1]["loss"].total) for s in states]
    assert with_key[0] == with_key[1] and later[0] == later[1]
    others = [with_key[0], with_key[2], renamed, calm, later[0], later[2]]
    assert min(abs(a - b) for i, a in enumerate(others) for b in others[:i]) > 1e-4


def test_shared_videos_give_the_same_outputs_in_the_order_of_the_examples() -> None:
    """Evaluation in its own order, against every comment with a video of its own."""
    mesh = make_mesh(MeshOptions(1, 1, 1, "jit"))
    outcomes = []
    with jax.enable_x64(True):
        for share in (True, False):
            given = examples(share)
            order = given.in_order() if share else np.arange(COMMENTS)
            plan = BatchPlan(given.axes(), 10, order=order, shapes=1)
            stream, params = batches(plan, given), begin().params()
            found = run(system(), ["classify"], params, {}, stream, mesh)
            outcomes.append((plan[0], *found))
    (shared, got, states), (own, want, counted) = outcomes
    assert shared.index_b.tolist() != own.index_b.tolist()
    assert shared.sizes["m"] < own.sizes["m"]
    for name, probs_bc in want.items():
        assert len(probs_bc) == COMMENTS and np.ptp(probs_bc, axis=0).max() > 0.01
        np.testing.assert_allclose(got[name], probs_bc, rtol=1e-12)
        np.testing.assert_array_equal(states[name].counts_cc, counted[name].counts_cc)
