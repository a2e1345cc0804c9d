"""MTransLLAMA as a `System`: batch fields, likelihood of answers, ranking and writing, rules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxvsa.core.config import build as build_options
from jaxvsa.core.errors import UserError
from jaxvsa.metrics.confusion import Confusion
from jaxvsa.systems.base import Batch, Mean, Params, System, Task
from jaxvsa.systems.mtransllama.loss import token_losses
from jaxvsa.systems.mtransllama.model import (
    Clip,
    ModelOptions,
    MTransLLAMA,
    choice_likelihood,
    write,
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What only data and weights know.

    Attributes:
        label_names: the task whose answers are ranked -> its answers' short names; {} if answers
            are open.
        vocab_size: rows of the language model's word table.
        pad_id: padding token of the language model.
        eos_id: end token of the language model.
        words_size: rows of the Q-Former's word table.
        video: what the data holds of a video: its frames' "pixels", "patches" as the vision
            transformer gives them, or nothing ("").
        feature_width: values of a frame, or of a patch.
        feature_dtype: their dtype's name.
    """

    label_names: Mapping[str, tuple[str, ...]]
    vocab_size: int
    pad_id: int
    eos_id: int
    words_size: int
    video: str
    feature_width: int
    feature_dtype: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """The facts that `dataclasses.asdict` gave, after a way through JSON."""
        names = {task: tuple(found) for task, found in values["label_names"].items()}
        return cls(**{**values, "label_names": names})


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """Section `weights` of a configuration.

    Attributes:
        base: the image model: a Hugging Face folder of InstructBLIP or BLIP-2 (for variant "text",
            of a LLaMA), or a run that trained all weights (its best ones); "" starts at random.
        learn: "adapters": what the paper trains, and nothing else; "all" weights, but for the
            positions that do not learn.
        positions: which rows of Eq. 6 learn: of frames and queries ("both"), of queries alone,
            "none": zeros. Without those of frames the model is blind to their order.
    """

    base: str
    learn: Literal["adapters", "all"]
    positions: Literal["both", "query", "none"]


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Section `loss`: the paper's has no choice (Eq. 3)."""


def build(config: Mapping[str, Any], facts: Facts) -> System:
    """The system of a resolved configuration.

    Args:
        config: plain values; sections "model", "loss" and "weights" are read.
        facts: see `Facts`.

    Raises:
        UserError: an unknown, missing or mistyped key; video asked of data without.
    """
    options = ModelOptions.of(config["model"], facts.words_size)
    weights = build_options(WeightsOptions, config["weights"], "config.weights")
    build_options(LossOptions, config["loss"], "config.loss")
    model = build_model(options, facts)

    def init(rng: jax.Array, batch: Batch) -> Params:
        return model.init(rng, **_inputs(options, batch), deterministic=True)["params"]

    def loss(params: Params, batch: Batch, rng: jax.Array | None) -> dict[str, Mean]:
        inputs = _inputs(options, batch)
        logits_bav: Any = model.apply(
            {"params": params}, **inputs, deterministic=rng is None,
            rngs=None if rng is None else {"dropout": rng},
        )  # fmt: skip
        lost_ba = token_losses(logits_bav, inputs["answer_ba"])
        counts_ba = inputs["keep_ba"] & batch["valid_b"][:, None]
        total = jnp.sum(jnp.where(counts_ba, lost_ba, jnp.zeros((), lost_ba.dtype)))
        weight = jax.lax.stop_gradient(jnp.sum(counts_ba, dtype=lost_ba.dtype))
        return {"loss": Mean(total, weight)}

    learn = trainable(options, weights)
    return System(
        name="mtransllama",
        fields=_fields(options, facts),
        init=init,
        loss=loss,
        tasks=_tasks(model, facts),
        shared=functools.partial(_shared, model),
        tables=_tables(options, facts),
        trainable=learn,
        parts=PARTS,
        partition=_partition(options, model.sees_pixels),
    )


def build_model(options: ModelOptions, facts: Facts) -> MTransLLAMA:
    """The module.

    Raises:
        UserError: the data has no video, or not the video that the options speak of.
    """
    if options.variant == "both":
        vision = options.vision
        pixels = 3 * vision.image_size**2
        expected = {"pixels": pixels, "patches": vision.width}.get(facts.video)
        if expected is None:
            raise UserError(
                "config.model.variant is 'both', but the data has no frames; prepare it with "
                "--frames, or use variant 'text'"
            )
        if facts.feature_width != expected:
            raise UserError(
                f"the data has {facts.video} of {facts.feature_width} values, but config.model."
                f"vision (image_size {vision.image_size}, width {vision.width}) reads {expected}; "
                "prepare the data for this model"
            )
    return MTransLLAMA(options, facts.vocab_size, facts.video == "pixels")


def _tasks(model: MTransLLAMA, facts: Facts) -> dict[str, Task]:
    """Ranking among the answers of the task, if there are such, and writing."""

    def rank(params: Params, batch: Batch) -> dict[str, jax.Array]:
        choice_bcy = batch["choice_bcy"]
        place_11y = jnp.arange(choice_bcy.shape[-1])[None, None]
        keep_bcy = place_11y < batch["choice_length_bc"][..., None]
        before = batch["before_bzd"], batch["real_bz"]
        score_bc = choice_likelihood(model, params, *before, choice_bcy, keep_bcy)
        return dict.fromkeys(facts.label_names, jax.nn.softmax(score_bc, axis=-1))

    def measure(found: Mapping[str, jax.Array], batch: Batch) -> dict[str, Confusion]:
        return {
            task: Confusion.from_batch(found[task], batch[f"label_{task}_b"], batch["valid_b"])
            for task in facts.label_names
        }

    def generate(params: Params, batch: Batch) -> dict[str, jax.Array]:
        before = batch["before_bzd"], batch["real_bz"]
        written = write(model, params, *before, eos_id=facts.eos_id, pad_id=facts.pad_id)
        return {"answer": written}

    tasks = {"generate": Task(generate, lambda outputs, batch: {})}
    return tasks | ({"classify": Task(rank, measure)} if facts.label_names else {})


def _shared(model: MTransLLAMA, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """What stands before an answer, however many are asked for."""
    found = _inputs(model.options, batch)
    prompt = found["clip"], found["prompt_bn"], found["keep_bn"]
    before_bzd, real_bz = model.apply({"params": params}, *prompt, True, method=model.prefix)
    return {"before_bzd": before_bzd, "real_bz": real_bz}


def _inputs(options: ModelOptions, batch: Batch) -> dict[str, Any]:
    """Arguments of the module."""
    prompt_bn, answer_ba = batch["prompt_bn"], batch["answer_ba"]
    width = prompt_bn.shape[1]
    return {
        "clip": Clip.of(batch, options.reads_words),
        "prompt_bn": prompt_bn,
        "keep_bn": jnp.arange(width)[None] >= width - batch["prompt_length_b"][:, None],
        "answer_ba": answer_ba,
        "keep_ba": jnp.arange(answer_ba.shape[1])[None] < batch["answer_length_b"][:, None],
    }


def _fields(options: ModelOptions, facts: Facts) -> dict[str, tuple[str, Any]]:
    """Batch field -> (axes, dtype)."""
    names = ["index_b", "prompt_bn", "prompt_length_b", "answer_ba", "answer_length_b"]
    if options.reads_words:
        names += ["ids_gw", "word_bl"]
    if facts.label_names:
        names += ["choice_bcy", "choice_length_bc"]
        names += [f"label_{task}_b" for task in facts.label_names]
    if options.variant == "both":
        names.append("frame_bt" if facts.video == "pixels" else "patch_btp")
    fields = {name: (name.rpartition("_")[2], jnp.int32) for name in names}
    fields["valid_b"] = ("b", jnp.bool_)
    for seen in _tables(options, facts):
        fields[seen] = (seen.rpartition("_")[2], facts.feature_dtype)
    return fields


def _tables(options: ModelOptions, facts: Facts) -> dict[str, tuple[str, str]]:
    """What is gathered inside the step: pixels by frame, or features by patch."""
    if options.variant == "text":
        return {}
    if facts.video == "pixels":
        return {"pixel_bti": ("video", "frame_bt")}
    return {"frames_btpf": ("video", "patch_btp")}


PARTS = (("qformer", r"qformer/.*"), ("decoder", r"decoder/.*"), ("rest", r".*"))
"""Parts with a learning-rate factor of their own (`config.optim.part_lr`)."""


def trainable(options: ModelOptions, weights: WeightsOptions) -> tuple[tuple[str, bool], ...]:
    """What learns.

    Source: the paper trains low-rank changes; the routers and the rows of Eq. 6 are new, too, and
    would do nothing if they stayed as they begin.

    Raises:
        UserError: nothing would learn.
    """
    if weights.learn == "all":
        fixed = {"both": (), "query": ("frame",), "none": ("query", "frame")}[weights.positions]
        if options.variant == "text":
            fixed = ()
        return (*((f"qformer/{which}_position", False) for which in fixed), (r".*", True))
    if options.variant == "text":
        raise UserError(
            "config.weights.learn is 'adapters', but variant 'text' has no Q-Former; use 'all'"
        )
    rules = []
    if options.lora.rank and options.lora.sites:
        rules.append(r"qformer/.*/lora_(space|time|cross)/.*")
    layers = range(options.qformer.num_layers)
    routed = any(options.routing.num_masks(i, len(layers)) > 1 for i in layers)
    if options.routing.hidden and routed:
        rules.append(r"qformer/.*/router_(space|time)/.*")
    if weights.positions != "none":
        which = "(query|frame)" if weights.positions == "both" else "query"
        rules.append(rf"qformer/{which}_position")
    if options.qformer.temporal and options.qformer.temporal_gate == "zero":
        rules.append(r"qformer/.*/time_gate")
    if not rules:
        raise UserError("config.weights: nothing learns; give config.model.lora a rank")
    return (*((rule, True) for rule in rules), (r".*", False))


_DECODER_RULES = (
    (r"decoder/layers/(query|key|value|gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"decoder/layers/(out|down)/kernel", P(None, "tensor", "fsdp")),
    (r"decoder/word", P("tensor", "fsdp")),
)
_HEAD_RULE = ((r"decoder/head", P("fsdp", "tensor")),)
_VISION_RULES = (
    (r"vision/blocks/(qkv|mlp_in)/kernel", P(None, "fsdp", "tensor")),
    (r"vision/blocks/(out|mlp_out)/kernel", P(None, "tensor", "fsdp")),
)
_QFORMER_RULES = (
    (r"qformer/layer_\d+/.*/(query|key|value|in)/kernel", P("fsdp", "tensor")),
    (r"qformer/layer_\d+/.*/out/kernel", P("tensor", "fsdp")),
    (r"project/kernel", P("fsdp", "tensor")),
)


def _partition(options: ModelOptions, sees_pixels: bool) -> tuple[tuple[str, P], ...]:
    """Sharding of large kernels over the mesh axes fsdp and tensor."""
    head = () if options.decoder.tied else _HEAD_RULE
    both = options.variant == "both"
    vision = _VISION_RULES if both and sees_pixels else ()
    return (*_DECODER_RULES, *head, *vision, *(_QFORMER_RULES if both else ()), (r".*", P()))
