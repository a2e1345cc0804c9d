"""The system on arrays: configurations, batches, and a short training loop under one jit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvsa.data.scored import ALIGNED_NUMBERS
from jaxvsa.systems.base import Batch, System, expand
from jaxvsa.systems.clevereward.system import Facts, build
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import start
from jaxvsa.training.step import train_step

OVERALL = 6
AESTHETICS = 2
CHUNK = 50

MODEL: dict[str, Any] = {
    "head": "cosine",
    "width": 256,
    "pool_video": "mean",
    "pool_text": "mean",
    "num_layers": 2,
    "num_heads": 4,
    "mlp_width": 64,
    "scale": "learned",
    "scale_init": 10.0,
    "dropout": 0.0,
    "hidden": 64,
    "precision": {"param": "float32", "compute": "float32"},
}
LOSS: dict[str, Any] = {
    "kind": "bt",
    "margin": "gap",
    "margin_size": 0.57,
    "label_smoothing": 0.0,
    "source_weights": (),
    "tie_k": 2.0,
    "learn_tie_k": True,
    "negatives": "none",
    "contrastive": 0.1,
    "center": 0.0,
    "target": "raw",
}


def config(model: Mapping[str, Any] | None = None, **loss: Any) -> dict[str, Any]:
    """Sections "model" and "loss", with changes."""
    return {"model": {**MODEL, **(model or {})}, "loss": {**LOSS, **loss}}


def facts(
    video_width: int,
    text_width: int,
    sources: Sequence[str] = ("one",),
    scores: Sequence[Sequence[float]] | None = None,
) -> Facts:
    """Facts of float32 features.

    Args:
        video_width: f.
        text_width: e.
        sources: names.
        scores: mean, deviation, lowest and highest score of each source, in all dimensions.
    """
    ends = np.array(scores or [[0, 1, 0, 1]] * len(sources), float)
    tables = (tuple((float(x),) * 7 for x in ends[:, column]) for column in range(4))
    return Facts(tuple(sources), video_width, "float32", text_width, "float32", *tables)


def alone(batch: Batch) -> Batch:
    """A real batch from one whose rows have a question each: "question_b", "text_bl", "words_ble".

    Nothing is shared, and whoever may be an anchor is named as one. Can be traced.
    """
    batch = {name: jnp.asarray(column) for name, column in batch.items()}
    at_b = jnp.arange(len(batch["answer_b"]))
    part_b = batch["valid_b"] & jnp.isin(batch["dimension_b"], jnp.array(ALIGNED_NUMBERS))
    part_b &= batch["answer_b"] != 0
    given = {"question_gk": "question_b", "text_gkl": "text_bl", "words_gkle": "words_ble"}
    own = {new: batch.pop(old)[None] for new, old in given.items()}
    return {**batch, **own, "asked_b": at_b, "anchor_gm": jnp.where(part_b, at_b, -1)[None]}


def by_rows(system: System) -> System:
    """The same system on batches whose rows have a question each."""
    rank = system.tasks["rank"]
    return dataclasses.replace(
        system,
        init=lambda rng, batch: system.init(rng, alone(batch)),
        loss=lambda params, batch, rng: system.loss(params, alone(batch), rng),
        tasks={
            "rank": dataclasses.replace(
                rank, outputs=lambda params, batch: rank.outputs(params, alone(batch))
            )
        },
        tables={"frames_bvtf": ("video", "video_bvt"), "words_ble": ("text", "text_bl")},
    )


def system(video_width: int, text_width: int, **changes: Any) -> System:
    """A system of one source, on batches as `columns` makes them."""
    return by_rows(build(config(**changes), facts(video_width, text_width)))


def columns(video_bv: np.ndarray, text_b: np.ndarray, answer_b: np.ndarray, **more: Any) -> dict:
    """Fields of pairs with one row for a video and a question; `more` replaces or adds.

    Args:
        video_bv: rows of the table of videos.
        text_b: rows of the table of texts; also numbers of group and question.
        answer_b: 1, -1, 0.
        **more: other fields.
    """
    size = len(answer_b)

    def whole(value: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, np.int32), size)

    fields = {
        "index_b": np.arange(size, dtype=np.int32),
        "valid_b": np.ones(size, bool),
        "answer_b": whole(answer_b),
        "weight_b": np.ones(size, np.float32),
        "gap_b": np.zeros(size, np.float32),
        "source_b": whole(0),
        "dimension_b": whole(OVERALL),
        "group_b": whole(text_b),
        "question_b": whole(text_b),
        "score_bv": np.full((size, 2), np.nan, np.float32),
        "video_bvt": np.asarray(video_bv, np.int32)[..., None],
        "text_bl": whole(text_b)[:, None],
    }
    return {**fields, **more}


def train(
    system: System,
    fields: Mapping[str, np.ndarray],
    tables: Mapping[str, np.ndarray],
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    lr: float = 3e-3,
    part_lr: float = 1.0,
    weight_decay: float = 1e-4,
) -> Any:
    """Parameters after `steps` updates by AdamW, the rate falling to 0 as a cosine.

    The real `train_step`, 50 of them in one program; batches are runs of shuffled epochs.

    Args:
        system: what is trained.
        fields: columns of all pairs.
        tables: "video" and "text".
        steps: a multiple of 50.
        batch_size: pairs of a step.
        seed: of parameters and order.
        lr: first rate.
        part_lr: factor on it of the loss's own parameters.
        weight_decay: of AdamW.
    """
    device = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}
    rows = {name: jnp.asarray(column) for name, column in fields.items()}
    first = expand(system, device, {name: column[:2] for name, column in rows.items()})
    params = system.init(jax.random.key(seed), first)
    optim = OptimOptions(
        lr, 0.9, 0.999, 1e-8, "torch", weight_decay, "kernels", 0.0, "cosine", 0.0,
        {"loss": part_lr, "model": 1.0},
    )  # fmt: skip
    tx, _ = make_optimizer(optim, steps, system.parts, params)

    @jax.jit
    def chunk(state: Any, device: Any, rows: Any, place_sb: jax.Array) -> Any:
        def one(state: Any, place_b: jax.Array) -> tuple[Any, None]:
            micro = {name: column[place_b][None] for name, column in rows.items()}
            return train_step(system, tx, state, device, micro)[0], None

        return jax.lax.scan(one, state, place_sb)[0]

    state = start(system, tx, params, jax.random.key(seed))
    place_sb = _order(len(fields["index_b"]), steps, batch_size, seed)
    for at in range(0, steps, CHUNK):
        state = chunk(state, device, rows, jnp.asarray(place_sb[at : at + CHUNK]))
    assert int(state.skipped) == 0
    return state.params()


def _order(num: int, steps: int, batch_size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(1000 + seed)
    epochs = -(-steps * batch_size // num)
    order = np.concatenate([rng.permutation(num) for _ in range(epochs)])
    return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def rewards(
    system: System, params: Any, fields: Mapping[str, Any], tables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the task "rank" gives for all pairs, in float64."""
    device = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}

    @jax.jit
    def rank(params: Any, fields: Any) -> dict[str, jax.Array]:
        return system.tasks["rank"].outputs(params, expand(system, device, fields))

    found = rank(params, dict(fields))
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def random_batch(size: int = 8, seed: int = 0, rows: int = 3, words: int = 4) -> dict[str, Any]:
    """A batch with everything in it: ties, padding, shared groups and questions, missing scores.

    Rows have words of a question each, also where the questions' numbers are the same. Features are
    given, widths 6 and 5; the last row is padding.
    """
    rng = np.random.default_rng(seed)
    count_bv = rng.integers(1, rows + 1, (size, 2, 1))
    count_b = rng.integers(1, words + 1, (size, 1))
    video_bvt = np.where(np.arange(rows) < count_bv, 7, -1).astype(np.int32)
    text_bl = np.where(np.arange(words) < count_b, 7, -1).astype(np.int32)
    score_bv = rng.normal(size=(size, 2)).astype(np.float32)
    return {
        "index_b": np.arange(size, dtype=np.int32),
        "valid_b": np.arange(size) < size - 1,
        "answer_b": rng.choice(np.array([1, -1, 1, -1, 0], np.int32), size),
        "weight_b": rng.uniform(0.2, 1, size).astype(np.float32),
        "gap_b": rng.uniform(0.1, 2, size).astype(np.float32),
        "source_b": rng.integers(0, 2, size).astype(np.int32),
        "dimension_b": rng.choice(np.array([4, 6, 6, 2], np.int32), size),
        "group_b": rng.integers(0, size, size).astype(np.int32),
        "question_b": rng.integers(0, 2 * size, size).astype(np.int32),
        "score_bv": np.where(rng.random((size, 2)) < 0.2, np.nan, score_bv).astype(np.float32),
        "video_bvt": video_bvt,
        "text_bl": text_bl,
        "frames_bvtf": (rng.normal(size=(size, 2, rows, 6)) * (video_bvt >= 0)[..., None]).astype(
            np.float32
        ),
        "words_ble": (rng.normal(size=(size, words, 5)) * (text_bl >= 0)[..., None]).astype(
            np.float32
        ),
    }


def same_words(batch: Mapping[str, Any]) -> dict[str, Any]:
    """`random_batch` where rows with the same question have the same words."""
    number_b = batch["question_b"].tolist()
    first_b = [number_b.index(number) for number in number_b]
    return {**batch, **{name: batch[name][first_b] for name in ("text_bl", "words_ble")}}


def shared(batch: Mapping[str, Any], groups: int, spare: int = 2) -> dict[str, Any]:
    """A real batch from `same_words`, row by row: each question and each anchor once in a group.

    `spare` places of both axes hold nothing.
    """
    rows = len(batch["answer_b"]) // groups
    asked, questions, anchors = [], [], []
    for first in range(0, groups * rows, rows):
        known: list[int] = []
        taken: dict[int, int] = {}
        for b in range(first, first + rows):
            if batch["question_b"][b] not in [batch["question_b"][k] for k in known]:
                known.append(b)
            asked.append([batch["question_b"][k] for k in known].index(batch["question_b"][b]))
            part = batch["valid_b"][b] and batch["dimension_b"][b] in ALIGNED_NUMBERS
            if part and batch["answer_b"][b]:
                taken.setdefault(int(batch["group_b"][b]), b - first)
        questions.append(known)
        anchors.append(list(taken.values()))

    def fill(column: np.ndarray, value: float) -> np.ndarray:
        size = max(map(len, questions)) + spare
        out = np.full((groups, size, *column.shape[1:]), value, column.dtype)
        for g, known in enumerate(questions):
            out[g, : len(known)] = column[known]
        return out

    anchor_gm = np.full((groups, max(map(len, anchors)) + spare), -1, np.int32)
    for g, row in enumerate(anchors):
        anchor_gm[g, : len(row)] = row
    kept = {n: c for n, c in batch.items() if n not in ("question_b", "text_bl", "words_ble")}
    return {
        **kept,
        "asked_b": np.array(asked, np.int32),
        "question_gk": fill(batch["question_b"], -1),
        "text_gkl": fill(batch["text_bl"], -1),
        "words_gkle": fill(batch["words_ble"], 9.0),
        "anchor_gm": anchor_gm,
    }


SMALL = {"width": 16, "mlp_width": 24, "hidden": 12, "scale_init": 5.0}


def small(model: Mapping[str, Any] | None = None, **loss: Any) -> tuple[dict[str, Any], System]:
    """Configuration and system for `random_batch`."""
    chosen = config({**SMALL, **(model or {})}, **loss)
    return chosen, by_rows(build(chosen, facts(6, 5, ("one", "two"))))


def random_params(system: System, batch: Mapping[str, Any], seed: int = 1) -> Any:
    """Parameters drawn in numpy, so that they are the same wherever they are drawn."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten_with_path(shapes)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        fan = leaf.shape[0] if leaf.ndim > 1 else 4
        value = rng.normal(size=leaf.shape) / fan**0.5
        name = str(path[-1].key)
        middle = 1.0 if name == "scale" else 1.5 if name == "logit_scale" else 0.0
        return np.float32(middle + 0.3 * value if leaf.ndim < 2 else value)

    return jax.tree.unflatten(tree, [draw(*leaf) for leaf in leaves])


def mean_loss(system: System, params: Any, batch: Mapping[str, Any]) -> jax.Array:
    """What is minimised."""
    term = system.loss(params, batch, None)["loss"]
    return term.total / jnp.where(term.weight > 0, term.weight, 1)
