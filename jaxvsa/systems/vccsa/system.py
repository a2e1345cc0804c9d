"""VC-CSA as a `System`: batch fields, loss over all tasks, classification, parameter rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxvsa.core.config import build as build_options
from jaxvsa.core.errors import UserError
from jaxvsa.metrics.confusion import Confusion
from jaxvsa.systems.base import Batch, Mean, Params, System, Task
from jaxvsa.systems.vccsa.inputs import Shots, Words
from jaxvsa.systems.vccsa.loss import LossOptions, task_loss
from jaxvsa.systems.vccsa.model import VCCSA, build_model


@dataclasses.dataclass(frozen=True)
class Facts:
    """What only data and weights know.

    Attributes:
        label_names: task -> class names, in label order.
        label_counts: task -> train examples of every class.
        vocab_size: rows of the word embedding.
        pad_id: padding token.
        feature_width: width of the frame features; None without video.
        feature_dtype: their dtype's name; None without video.
    """

    label_names: Mapping[str, tuple[str, ...]]
    label_counts: Mapping[str, tuple[int, ...]]
    vocab_size: int
    pad_id: int
    feature_width: int | None
    feature_dtype: str | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """The facts that `dataclasses.asdict` gave, after a way through JSON."""
        names = {task: tuple(found) for task, found in values["label_names"].items()}
        counts = {task: tuple(found) for task, found in values["label_counts"].items()}
        return cls(**{**values, "label_names": names, "label_counts": counts})


def build(config: Mapping[str, Any], facts: Facts) -> System:
    """The system of a resolved configuration.

    Args:
        config: plain values; sections "model", "loss" and "weights" are read.
        facts: see `Facts`.

    Raises:
        UserError: an unknown, missing or mistyped key; video asked of data without features.
    """
    check_sizes(config["model"], "config.model")
    classes = {task: len(names) for task, names in facts.label_names.items()}
    model = build_model(config["model"], classes, facts.vocab_size, facts.pad_id)
    options = build_options(LossOptions, config["loss"], "config.loss")
    if model.variant != "text" and facts.feature_width is None:
        raise UserError(
            f"config.model.variant is {model.variant!r}, but the data has no video features; "
            "prepare it with --features, or use variant 'text'"
        )

    def init(rng: jax.Array, batch: Batch) -> Params:
        first = jax.tree.map(lambda leaf: leaf[0], _inputs(model, batch))
        return model.init(rng, **first, deterministic=True)["params"]

    def loss(params: Params, batch: Batch, rng: jax.Array | None) -> dict[str, Mean]:
        terms = {}
        for task, logits_bc in _logits(model, params, batch, rng).items():
            count_c = facts.label_counts[task]
            value_b = task_loss(options, logits_bc, batch[f"label_{task}_b"], count_c)
            terms[f"{task}_loss"] = Mean.of(value_b, batch["valid_b"])
        total = sum(term.total for term in terms.values())
        return {"loss": Mean(jnp.asarray(total), next(iter(terms.values())).weight), **terms}

    def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
        found = _logits(model, params, batch, None)
        return {task: jax.nn.softmax(logits_bc, axis=-1) for task, logits_bc in found.items()}

    def measure(found: Mapping[str, jax.Array], batch: Batch) -> dict[str, Confusion]:
        return {
            task: Confusion.from_batch(found[task], batch[f"label_{task}_b"], batch["valid_b"])
            for task in classes
        }

    frozen = bool(config["weights"]["freeze_text"]) and model.variant != "video"
    return System(
        name="vccsa",
        fields=_fields(model, facts),
        init=init,
        loss=loss,
        tasks={"classify": Task(outputs, measure)},
        tables={"video_gmf": ("video", "frame_gm")} if model.variant != "text" else {},
        trainable=((r"text/.*", False), (r".*", True)) if frozen else ((r".*", True),),
        parts=PARTS,
        partition=PARTITION_OF[model.variant],
    )


def check_sizes(section: Mapping[str, Any], path: str) -> None:
    """Refuses sizes below 1 and dropout that keeps nothing, at any depth.

    Raises:
        UserError: the key is named.
    """
    for key, value in section.items():
        name = f"{path}.{key}"
        if isinstance(value, Mapping):
            check_sizes(value, name)
        elif key.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and below 1")
        elif type(value) is int and value < 1 and not key.endswith("dropout"):
            raise UserError(f"{name} is {value}; 1 is the least")


def _inputs(model: VCCSA, batch: Batch) -> dict[str, Any]:
    """Arguments of the module for all groups, each leaf (g, ...); None for what is left out."""
    packed = batch["frame_gm"] if model.variant == "video" else batch["ids_gn"]

    def rows(name: str) -> jax.Array:
        return batch[name].reshape(len(packed), -1, *batch[name].shape[1:])

    words, shots = None, None
    if model.variant != "video":
        words = Words(batch["ids_gn"], rows("word_bl"), rows("length_b"))
    if model.variant != "text":
        shots = Shots(batch["video_gmf"], rows("shot_bt"), rows("count_b"))
    return {"words": words, "shots": shots, "example_b": rows("index_b")}


def _logits(
    model: VCCSA, params: Params, batch: Batch, rng: jax.Array | None
) -> dict[str, jax.Array]:
    """Task -> logits (b,c); dropout if a key is given."""

    def one(group: dict[str, Any]) -> Any:
        return model.apply(
            {"params": params},
            **group,
            deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )

    found = jax.vmap(one)(_inputs(model, batch))
    return {task: logits.reshape(-1, logits.shape[-1]) for task, logits in found.items()}


def _fields(model: VCCSA, facts: Facts) -> dict[str, tuple[str, Any]]:
    """Batch field -> (axes, dtype)."""
    fields: dict[str, tuple[str, Any]] = {"valid_b": ("b", jnp.bool_), "index_b": ("b", jnp.int32)}
    fields |= {f"label_{task}_b": ("b", jnp.int32) for task in facts.label_names}
    if model.variant != "video":
        fields |= {name: (name.rpartition("_")[2], jnp.int32) for name in _TEXT_FIELDS}
    if model.variant != "text":
        fields |= {name: (name.rpartition("_")[2], jnp.int32) for name in _VIDEO_FIELDS}
        fields["video_gmf"] = ("gmf", facts.feature_dtype)
    return fields


_TEXT_FIELDS = ("ids_gn", "word_bl", "length_b")
_VIDEO_FIELDS = ("frame_gm", "shot_bt", "count_b")


PARTS = (("text", r"text/.*"), ("heads", r"head_.*"), ("fusion", r".*"))
"""Parts with a learning-rate factor of their own (`config.optim.part_lr`)."""

_TEXT_RULES = (
    (r"text/layer_\d+/(query|key|value|mlp_in)/kernel", P("fsdp", "tensor")),
    (r"text/layer_\d+/(out|mlp_out)/kernel", P("tensor", "fsdp")),
    (r"text/word/embedding", P("fsdp", "tensor")),
    (r"(words_kernel|fusion_text_kernel)", P("fsdp", "tensor")),
    (r"final/(query|key|value)_kernel", P("fsdp", "tensor")),
    (r"final/out_kernel", P("tensor", None, "fsdp")),
)
_VIDEO_RULES = (
    (r"pyramid/project_kernel", P("fsdp", "tensor")),
    # Not over tensor: on a mesh of all three axes XLA (JAX 0.10.2, 0.11.2) then computes wrong
    # gradients of the pyramid and the LSTM.
    (r"pyramid/conv_kernel_.*", P("fsdp")),
    (r"consensus/layer_\d+/(query|key|value)_kernel", P(None, "fsdp", "tensor")),
    (r"consensus/layer_\d+/out_kernel", P(None, "tensor", None, "fsdp")),
    (r"grounding/.*_kernel", P("fsdp", "tensor")),
    (r"consensus/video_kernel", P(None, "fsdp", "tensor")),
    (r"cell/hidden_kernel", P("fsdp")),
)
_BOTH_RULES = (
    (r"consensus/text_kernel", P(None, "fsdp", "tensor")),
    (r"(scales_kernel|fusion_video_kernel)", P("fsdp", "tensor")),
)
_REST = ((r".*", P()),)
PARTITION_OF: dict[str, tuple[tuple[str, P], ...]] = {
    "both": (*_TEXT_RULES, *_VIDEO_RULES, *_BOTH_RULES, *_REST),
    "text": (*_TEXT_RULES, *_REST),
    "video": (*_VIDEO_RULES, *_REST),
}
"""Variant -> sharding of large kernels over the mesh axes fsdp and tensor."""
