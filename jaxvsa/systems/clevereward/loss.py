"""Losses of pairs and of scores; pure functions. The contrastive term is in `contrastive.py`.

A pair's difference d is reward of A minus reward of B; its answer is 1 (A better), -1 or 0 (tie).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.precision import island
from jaxvsa.data.scored import DIMENSIONS

LEAST_KAPPA = -10.0
"""Below it log(k^2 - 1) would leave float32."""


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Section `loss` of a configuration.

    Attributes:
        kind: "bt" (Bradley-Terry), "bt_margin", "bt_scaled", "btt" (Rao-Kupper, learns from ties),
            or "mse" on scores, which belongs to the regression head.
        margin: of "bt_margin": the "gap" of the scores in deviations of the source (0 where
            unknown), or "constant".
        margin_size: the constant.
        label_smoothing: share of answers that are taken as the opposite; ties stay.
        source_weights: "name=weight"; a source that is not named has 1.
        tie_k: first value of k of "btt", over 1.
        learn_tie_k: k is learned.
        negatives: "inbatch" adds the contrastive term, "materialised" keeps the pairs of kind
            mismatch in train, "both", "none".
        contrastive: factor of the contrastive term; 0 switches it off.
        center: factor of the mean square of the rewards.
        target: of "mse": the "raw" score, "minmax" within the declared range, "zscore" within the
            source, or "per_source_affine": z-scores, to which each source and dimension maps the
            common score by its own a > 0 and b, both learned.
    """

    kind: Literal["bt", "bt_margin", "bt_scaled", "btt", "mse"]
    margin: Literal["gap", "constant"]
    margin_size: float
    label_smoothing: float
    source_weights: tuple[str, ...]
    tie_k: float
    learn_tie_k: bool
    negatives: Literal["inbatch", "materialised", "both", "none"]
    contrastive: float
    center: float
    target: Literal["raw", "minmax", "zscore", "per_source_affine"]

    def __post_init__(self) -> None:
        """Refuses numbers that no loss can have."""
        for name in ("margin_size", "contrastive", "center"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                raise UserError(f"config.loss.{name} is {value}; it must be at least 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"config.loss.label_smoothing is {self.label_smoothing}; it must be at least 0 "
                "and below 0.5"
            )
        if not (1 < self.tie_k < math.inf):
            raise UserError(f"config.loss.tie_k is {self.tie_k}; it must be over 1")

    @property
    def contrasts(self) -> bool:
        """The contrastive term is on."""
        return self.negatives in ("inbatch", "both") and self.contrastive > 0

    @property
    def learns_from_ties(self) -> bool:
        """Ties have a weight."""
        return self.kind in ("btt", "mse")


def source_weights(entries: Sequence[str], sources: Sequence[str]) -> np.ndarray:
    """Weight of every source, float64, in their order.

    Args:
        entries: "name=weight", each source at most once.
        sources: all there are.

    Raises:
        UserError: another form, a source that is not there or there twice, a weight below 0, or
            none above 0.
    """
    found: dict[str, float] = {}
    for entry in entries:
        name, _, number = entry.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 <= weight < math.inf:
            raise UserError(
                f"config.loss.source_weights: '{entry}' is not name=weight with a weight of at "
                "least 0"
            )
        if name not in sources:
            raise UserError(
                f"config.loss.source_weights: unknown source '{name}'{nearest(name, sources)}; "
                f"known: {', '.join(sources)}"
            )
        if name in found:
            raise UserError(f"config.loss.source_weights: source '{name}' is there twice")
        found[name] = weight
    weights = np.array([found.get(name, 1.0) for name in sources])
    if not weights.any():
        raise UserError("config.loss.source_weights: no source has a weight above 0")
    return weights


def own_parameters(options: LossOptions, num_sources: int, dtype: Any) -> dict[str, jax.Array]:
    """First values of what the loss itself learns; {} if nothing.

    Returns:
        "tie_bias": kappa of k = 1 + softplus(kappa); "source_scale" (s,c), log a; "source_bias"
        (s,c), b.
    """
    if options.kind == "btt" and options.learn_tie_k:
        return {"tie_bias": jnp.asarray(kappa_of(options.tie_k), dtype)}
    if options.kind == "mse" and options.target == "per_source_affine":
        shape = (num_sources, len(DIMENSIONS))
        return {"source_scale": jnp.zeros(shape, dtype), "source_bias": jnp.zeros(shape, dtype)}
    return {}


def kappa_of(k: float) -> float:
    """kappa with 1 + softplus(kappa) = k > 1."""
    return math.log(math.expm1(k - 1)) if k < 30 else k - 1


def log_k(kappa: jax.Array) -> jax.Array:
    """log(1 + softplus(kappa)), kappa at least -10."""
    return jnp.log1p(jax.nn.softplus(jnp.maximum(kappa, LEAST_KAPPA)))


def tie_log_probabilities(difference_b: jax.Array, kappa: jax.Array) -> jax.Array:
    """Log-probabilities of A, of B and of a tie, (b,3).

    Source: Rao and Kupper (1967): P(A) = sigmoid(d - ln k), P(B) = sigmoid(-d - ln k), P(tie) =
    (k^2 - 1) P(A) P(B); k = 1 + softplus(kappa). VideoReward has k = 5. In log space throughout;
    k^2 - 1 is (k - 1) (k + 1), which loses no digit near k = 1.

    Args:
        difference_b: d, float32 or wider.
        kappa: scalar.
    """
    excess = jax.nn.softplus(jnp.maximum(kappa, LEAST_KAPPA)).astype(difference_b.dtype)
    threshold = jnp.log1p(excess)
    a_b = -jax.nn.softplus(threshold - difference_b)
    b_b = -jax.nn.softplus(threshold + difference_b)
    tie_b = jnp.log(excess) + jnp.log(2 + excess) + a_b + b_b
    return jnp.stack([a_b, b_b, tie_b], axis=1)


def pair_losses(
    options: LossOptions,
    reward_bv: jax.Array,
    answer_b: jax.Array,
    gap_b: jax.Array,
    kappa: jax.Array,
) -> jax.Array:
    """Loss of every pair, (b,), before weights; of a tie only "btt" means anything.

    Source: CleveReward, section 3.1 (bt); our notes, A3 and CA1. With a margin m the loss is
    softplus(m - d). Smoothing is the expectation over answers that are wrong at its rate; so a
    margin turns round with the answer.

    Args:
        options: see `LossOptions`.
        reward_bv: of A and B, float32 or wider.
        answer_b: 1, -1, 0.
        gap_b: of the scores, in deviations of the source; 0 = unknown.
        kappa: see `own_parameters`; read by "btt".
    """
    smooth, difference_b = options.label_smoothing, reward_bv[:, 0] - reward_bv[:, 1]
    if options.kind == "btt":
        a_b, b_b, tie_b = jnp.unstack(tie_log_probabilities(difference_b, kappa), axis=1)
        right_b, wrong_b = (jnp.where(answer_b > 0, *x) for x in ((a_b, b_b), (b_b, a_b)))
        value_b = -(right_b if not smooth else (1 - smooth) * right_b + smooth * wrong_b)
        value_b = jnp.where(answer_b == 0, -tie_b, value_b)
    else:
        signed_b = jnp.where(answer_b < 0, -difference_b, difference_b)
        margin_b = jnp.zeros_like(signed_b)
        if options.kind == "bt_margin":
            constant = options.margin == "constant"
            margin_b += options.margin_size if constant else gap_b.astype(signed_b.dtype)
        value_b = jax.nn.softplus(margin_b - signed_b)
        if smooth:
            value_b = (1 - smooth) * value_b + smooth * jax.nn.softplus(margin_b + signed_b)
    if options.center:
        value_b += options.center * jnp.mean(reward_bv**2, axis=1)
    return value_b


def pair_weights(
    options: LossOptions,
    weight_b: jax.Array,
    valid_b: jax.Array,
    answer_b: jax.Array,
    gap_b: jax.Array,
) -> jax.Array:
    """Weight of every pair in the mean, (b,): 0 for padding, and for ties except under "btt".

    "bt_scaled" multiplies by the gap. Chosen: a gap that is not known, 0, counts as one deviation;
    otherwise votes, which have none, would not count at all.
    """
    counts_b = valid_b if options.learns_from_ties else valid_b & (answer_b != 0)
    if options.kind == "bt_scaled":
        weight_b = weight_b * jnp.where(gap_b > 0, gap_b, 1).astype(weight_b.dtype)
    return jnp.where(counts_b, weight_b, jnp.zeros((), weight_b.dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What scores become before they are regressed: (score - shift) / size.

    Attributes:
        shift_sc: float64, by source and dimension.
        size_sc: likewise.
        middle_c: mean over sources of the mean target, where the head begins.
        spread_c: deviation of the targets around it.
    """

    shift_sc: np.ndarray
    size_sc: np.ndarray
    middle_c: np.ndarray
    spread_c: np.ndarray

    @classmethod
    def of(
        cls, kind: str, mean_sc: np.ndarray, std_sc: np.ndarray, low_sc: np.ndarray,
        high_sc: np.ndarray,
    ) -> Targets:  # fmt: skip
        """From mean, deviation and declared range of the train videos' scores.

        Args:
            kind: `LossOptions.target`.
            mean_sc: by source and dimension; 0 where there are no scores.
            std_sc: likewise; 1.
            low_sc: likewise; 0.
            high_sc: likewise; 1.
        """
        zero, one = np.zeros_like(mean_sc), np.ones_like(mean_sc)
        shift_sc, size_sc = {
            "raw": (zero, one),
            "minmax": (low_sc, high_sc - low_sc),
            "zscore": (mean_sc, std_sc),
            "per_source_affine": (mean_sc, std_sc),
        }[kind]
        size_sc = np.where(size_sc > 0, size_sc, 1.0)
        missing_sc = (mean_sc == 0) & (std_sc == 1) & (low_sc == 0) & (high_sc == 1)
        share_sc = np.where(missing_sc, 0.0, 1.0)
        share_sc /= np.maximum(share_sc.sum(axis=0), 1)[None]
        mean_sc = (mean_sc - shift_sc) / size_sc
        middle_c = np.sum(share_sc * mean_sc, axis=0)
        square_sc = (std_sc / size_sc) ** 2 + (mean_sc - middle_c[None]) ** 2
        spread_c = np.sqrt(np.sum(share_sc * square_sc, axis=0))
        return cls(shift_sc, size_sc, middle_c, np.where(spread_c > 0, spread_c, 1.0))


def score_losses(
    targets: Targets,
    own: dict[str, jax.Array],
    reward_bv: jax.Array,
    score_bv: jax.Array,
    source_b: jax.Array,
    dimension_b: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Squared errors of both videos' scores.

    Source: CleveReward, section 4.1.1; our notes, A2 and CA2, 9.
    Chosen: "per_source_affine" maps to z-scores, so that no source counts for more because its
    units are smaller.

    Args:
        targets: see `Targets`.
        own: "source_scale" and "source_bias" of "per_source_affine", or nothing.
        reward_bv: what the head said.
        score_bv: on the source's own scale; nan = none.
        source_b: number of the source.
        dimension_b: number of the dimension.

    Returns:
        (b,v) errors, 0 where there is no score, and bool (b,v), where there is one.
    """
    wide, known_bv = island(reward_bv), jnp.isfinite(score_bv)

    def of_row(table_sc: Any) -> jax.Array:
        return jnp.asarray(table_sc).astype(wide)[source_b, dimension_b][:, None]

    target_bv = (score_bv.astype(wide) - of_row(targets.shift_sc)) / of_row(targets.size_sc)
    if own:
        scale_b1, bias_b1 = of_row(own["source_scale"]), of_row(own["source_bias"])
        reward_bv = jnp.exp(scale_b1) * reward_bv + bias_b1
    error_bv = jnp.where(known_bv, reward_bv - target_bv, jnp.zeros((), wide))
    return error_bv**2, known_bv
