"""CleveReward as a `System`: batch fields, losses of pairs or scores, ranking, parameter rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxvsa.core.config import build as build_options
from jaxvsa.core.errors import UserError
from jaxvsa.metrics.pairwise import PairCounts
from jaxvsa.systems.base import Batch, Mean, Params, System, Task
from jaxvsa.systems.clevereward.contrastive import anchors, info_nce
from jaxvsa.systems.clevereward.loss import (
    LossOptions,
    Targets,
    kappa_of,
    log_k,
    own_parameters,
    pair_losses,
    pair_weights,
    score_losses,
    source_weights,
)
from jaxvsa.systems.clevereward.model import CleveReward, ModelOptions, Scored, unit

Table = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What only data knows. Letters of the tables: s sources, d dimensions of `data.scored`.

    Attributes:
        sources: names, in the order of `source_b`.
        video_width: values of a row of a video's features.
        video_dtype: their dtype's name.
        text_width: likewise of a question's.
        text_dtype: their dtype's name.
        score_mean_sd: mean of the train videos' scores; 0 where there are none.
        score_std_sd: their deviation (of the population); 1.
        score_low_sd: lowest possible score; 0.
        score_high_sd: highest; 1.
    """

    sources: tuple[str, ...]
    video_width: int
    video_dtype: str
    text_width: int
    text_dtype: str
    score_mean_sd: Table
    score_std_sd: Table
    score_low_sd: Table
    score_high_sd: Table

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """The facts that `dataclasses.asdict` gave, after a way through JSON."""
        tables = {
            name: tuple(tuple(row) for row in found)
            for name, found in values.items()
            if name.startswith("score_")
        }
        return cls(**{**values, **tables, "sources": tuple(values["sources"])})


def build(config: Mapping[str, Any], facts: Facts) -> System:
    """The system of a resolved configuration.

    Args:
        config: plain values; sections "model" and "loss" are read.
        facts: see `Facts`.

    Raises:
        UserError: an unknown, missing or mistyped key, a value that cannot be, or two that
            contradict each other.
    """
    options = ModelOptions.of(config["model"])
    losses = build_options(LossOptions, config["loss"], "config.loss")
    check_together(options, losses)
    weights = source_weights(losses.source_weights, facts.sources)
    tables = ("score_mean_sd", "score_std_sd", "score_low_sd", "score_high_sd")
    targets = Targets.of(losses.target, *(np.array(getattr(facts, name)) for name in tables))
    ends = (tuple(x.tolist()) for x in (targets.middle_c, targets.spread_c))
    model = CleveReward(options, *ends)

    def init(rng: jax.Array, batch: Batch) -> Params:
        params = model.init(rng, **_inputs(batch), deterministic=True)["params"]
        own = own_parameters(losses, len(facts.sources), options.precision.param_dtype)
        return {**params, "loss": own} if own else params

    def loss(params: Params, batch: Batch, rng: jax.Array | None) -> dict[str, Mean]:
        found = _scored(model, params, batch, rng)
        terms = {"pref_loss": _preference(losses, targets, weights, params, batch, found)}
        if not losses.contrasts:
            return {"loss": terms["pref_loss"], **terms}
        terms["clip_loss"] = _contrast(batch, found)
        pref, clip = (term.total / _or_one(term.weight) for term in terms.values())
        count = jnp.sum(batch["valid_b"], dtype=pref.dtype)
        return {"loss": Mean((pref + losses.contrastive * clip) * count, count), **terms}

    def outputs(params: Params, batch: Batch) -> dict[str, jax.Array]:
        reward_bv = _scored(model, params, batch, None).reward_bv
        if losses.kind != "btt":
            return {"reward": reward_bv}
        tie = log_k(_kappa(losses, params)).astype(reward_bv.dtype)
        return {"reward": reward_bv, "log_k": jnp.broadcast_to(tie, reward_bv.shape[:1])}

    def measure(found: Mapping[str, jax.Array], batch: Batch) -> dict[str, PairCounts]:
        reward_bv = found["reward"]
        difference_b = reward_bv[:, 0] - reward_bv[:, 1]
        return {"pairs": PairCounts.from_batch(batch["answer_b"], difference_b, batch["valid_b"])}

    return System(
        name="clevereward",
        fields=_fields(facts, losses.contrasts),
        init=init,
        loss=loss,
        tasks={"rank": Task(outputs, measure)},
        tables={"frames_bvtf": ("video", "video_bvt"), "words_gkle": ("text", "text_gkl")},
        parts=PARTS,
        partition=_partition(options),
        couples_batch=losses.contrasts,
    )


def check_together(options: ModelOptions, losses: LossOptions) -> None:
    """Refuses a head and a loss that do not belong together.

    Raises:
        UserError: the keys are named.
    """
    regression = options.head == "regression"
    if regression and losses.kind != "mse":
        raise UserError(
            f"config.loss.kind is '{losses.kind}', but config.model.head is 'regression', which "
            "learns scores; set kind to 'mse', or head to 'cosine'"
        )
    if not regression and losses.kind == "mse":
        raise UserError(
            "config.loss.kind is 'mse', but config.model.head is 'cosine', which learns from "
            "pairs; set head to 'regression', or another kind"
        )
    if regression and losses.negatives in ("inbatch", "both"):
        raise UserError(
            f"config.loss.negatives is '{losses.negatives}', but config.model.head is "
            "'regression', which has no contrastive term; set it to 'none' or 'materialised'"
        )


def _inputs(batch: Batch) -> dict[str, Any]:
    """Arguments of the module; questions of all groups lie one after another."""
    text_gkl, words_gkle = batch["text_gkl"], batch["words_gkle"]
    groups, questions, length = text_gkl.shape
    return {
        "frames_bvtf": batch["frames_bvtf"],
        "keep_bvt": batch["video_bvt"] >= 0,
        "words_kle": words_gkle.reshape(groups * questions, length, -1),
        "keep_kl": text_gkl.reshape(groups * questions, length) >= 0,
        "question_k": batch["question_gk"].reshape(-1),
        "asked_b": _asked(batch),
        "dimension_b": batch["dimension_b"],
        "example_b": batch["index_b"],
    }


def _asked(batch: Batch) -> jax.Array:
    """Place of each row's question among those of all groups."""
    groups, questions = batch["question_gk"].shape
    asked_b = batch["asked_b"]
    return asked_b + jnp.arange(len(asked_b)) // (len(asked_b) // groups) * questions


def _scored(model: CleveReward, params: Params, batch: Batch, rng: jax.Array | None) -> Scored:
    """What the model says; dropout if a key is given."""
    params = {name: tree for name, tree in params.items() if name != "loss"}
    found: Any = model.apply(
        {"params": params}, **_inputs(batch), deterministic=rng is None,
        rngs=None if rng is None else {"dropout": rng},
    )  # fmt: skip
    return found


def _kappa(losses: LossOptions, params: Params) -> jax.Array:
    """The learned kappa, or the constant."""
    return params["loss"]["tie_bias"] if losses.learn_tie_k else jnp.asarray(kappa_of(losses.tie_k))


def _preference(
    losses: LossOptions,
    targets: Targets,
    weights: np.ndarray,
    params: Params,
    batch: Batch,
    found: Scored,
) -> Mean:
    """The loss of pairs or of scores; sums of weighted values and of weights."""
    reward_bv, source_b = found.reward_bv, batch["source_b"]
    signs = batch["answer_b"], batch["gap_b"]
    weight_b = pair_weights(losses, batch["weight_b"], batch["valid_b"], *signs)
    weight_b = weight_b.astype(reward_bv.dtype) * jnp.asarray(weights, reward_bv.dtype)[source_b]
    if losses.kind == "mse":
        value_bv, known_bv = score_losses(
            targets, params.get("loss", {}), reward_bv, batch["score_bv"], source_b,
            batch["dimension_b"],
        )  # fmt: skip
        value, weight = value_bv.reshape(-1), (weight_b[:, None] * known_bv).reshape(-1)
    else:
        kappa = _kappa(losses, params) if losses.kind == "btt" else jnp.zeros(())
        value, weight = pair_losses(losses, reward_bv, *signs, kappa), weight_b
    value = jnp.where(weight > 0, value, jnp.zeros((), value.dtype))
    return Mean(jnp.sum(weight * value), jax.lax.stop_gradient(jnp.sum(weight)))


def _contrast(batch: Batch, found: Scored) -> Mean:
    """The contrastive term over the chosen videos and the questions of the whole batch."""
    anchor_gm, answer_b = batch["anchor_gm"], batch["answer_b"]
    groups = len(anchor_gm)
    first_g = jnp.arange(groups) * (len(answer_b) // groups)
    row_m = (first_g[:, None] + jnp.maximum(anchor_gm, 0)).reshape(-1)
    keep_m = anchors(anchor_gm.reshape(-1) >= 0, batch["group_b"][row_m])
    asked_m = _asked(batch)[row_m]
    chosen_md = unit(found.video_bvd[row_m, (answer_b[row_m] < 0).astype(jnp.int32)])
    text_gd = unit(found.text_kd[asked_m])
    question_m = batch["question_gk"].reshape(-1)[asked_m]
    value = info_nce(found.scale * chosen_md, text_gd, keep_m, question_m)
    count = jnp.sum(keep_m, dtype=value.dtype)
    return Mean(value * count, count)


def _or_one(weight: jax.Array) -> jax.Array:
    return jnp.where(weight > 0, weight, jnp.ones((), weight.dtype))


def _fields(facts: Facts, contrasts: bool) -> dict[str, tuple[str, Any]]:
    """Batch field -> (axes, dtype)."""
    whole = ["index_b", "answer_b", "source_b", "dimension_b", "group_b", "asked_b"]
    whole += ["question_gk", "video_bvt", "text_gkl"] + ["anchor_gm"] * contrasts
    fields: dict[str, tuple[str, Any]] = {
        name: (name.rpartition("_")[2], jnp.int32) for name in whole
    }
    fields |= {name: ("b", jnp.float32) for name in ("weight_b", "gap_b")}
    fields |= {"valid_b": ("b", jnp.bool_), "score_bv": ("bv", jnp.float32)}
    fields["frames_bvtf"] = ("bvtf", facts.video_dtype)
    fields["words_gkle"] = ("gkle", facts.text_dtype)
    return fields


PARTS = (("loss", r"loss/.*"), ("model", r".*"))
"""Parts with a learning-rate factor of their own (`config.optim.part_lr`): k of ties and the
sources' scales, and all else."""

_BLOCK_RULES = (
    (r"pool_video/project/kernel", P("fsdp", "tensor")),
    (r"pool_video/layer_\d+/attention/(query|key|value)_kernel", P("fsdp", "tensor")),
    (r"pool_video/layer_\d+/attention/out_kernel", P("tensor", None, "fsdp")),
    (r"pool_video/layer_\d+/mlp_in/kernel", P("fsdp", "tensor")),
    (r"pool_video/layer_\d+/mlp_out/kernel", P("tensor", "fsdp")),
)
_TOWER_RULE = ((r"(video|text)/kernel", P("fsdp", "tensor")),)
_HEAD_RULE = ((r"hidden/kernel", P("tensor", "fsdp")),)


def _partition(options: ModelOptions) -> tuple[tuple[str, P], ...]:
    """Sharding of kernels over the mesh axes fsdp and tensor."""
    blocks = _BLOCK_RULES if options.pool_video == "transformer" else ()
    head = _HEAD_RULE if options.head == "regression" else ()
    return (*blocks, *_TOWER_RULE, *head, (r".*", P()))
