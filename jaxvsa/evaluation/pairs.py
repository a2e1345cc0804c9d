"""What a model's rewards say about pairs of videos: figures and rows.

Host code on columns of numpy; where the rewards come from does not matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxvsa.metrics.calibration import (
    calibration,
    decided_logit,
    fit_temperature,
    log_losses,
    tie_log_probs,
)
from jaxvsa.metrics.clustered import linearised_error
from jaxvsa.metrics.correlation import correlations
from jaxvsa.metrics.pairwise import (
    accuracy_with_ties,
    gap_bins,
    pair_credit,
    position_bias,
    tie_credit,
)

TASK = "pairs"
PARTS = ("source", "dimension", "kind", "gap")
NAMES = {1: "A", -1: "B", 0: "tie"}
MISMATCH = "mismatch"
"""Kind of pair whose video B (or A) was made from another prompt: its score is no answer here."""


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedPairs:
    """Pairs of one split as people judged them; every field has one entry a pair.

    Attributes:
        pair_id: unique names.
        question: what was asked about the two videos.
        video_a: ids.
        video_b: ids.
        source: data set.
        dimension: of the question.
        kind: what made the pair.
        group: prompt group of the question; errors take the pairs of a group as dependent.
        answer_b: 1 A is better, -1 B is, 0 a tie.
        gap_b: gap of the scores in deviations of the source, nan if unknown.
        score_bv: people's scores of A and B in this dimension, (b, 2), nan = none; None = no
            correlation with scores is wanted.
        model_a: generator of A, None or "" if unknown; () if of no video.
        model_b: likewise.
    """

    pair_id: Sequence[str]
    question: Sequence[str]
    video_a: Sequence[str]
    video_b: Sequence[str]
    source: Sequence[str]
    dimension: Sequence[str]
    kind: Sequence[str]
    group: Sequence[str]
    answer_b: np.ndarray
    gap_b: np.ndarray
    score_bv: np.ndarray | None = None
    model_a: Sequence[str | None] = ()
    model_b: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.pair_id)


@dataclasses.dataclass(frozen=True)
class DevFit:
    """What was chosen on dev; None where dev does not say.

    Attributes:
        eps: differences up to this size are ties.
        temperature: P(A > B) = sigmoid(difference / temperature); may be infinite.
    """

    eps: float | None = None
    temperature: float | None = None


def fit_on_dev(
    answer_b: np.ndarray, difference_b: np.ndarray, log_k_b: np.ndarray | None = None
) -> DevFit:
    """Chooses the threshold of ties and the temperature, on the pairs of dev.

    Args:
        answer_b: 1, -1 or 0.
        difference_b: reward of A minus reward of B.
        log_k_b: of a model of ties; its temperature is that of the log-odds without ties.

    Returns:
        No temperature if every dev pair is ordered right, or wrong, or none is decided; nothing at
        all without pairs.
    """
    if not len(answer_b):
        return DevFit()
    eps = accuracy_with_ties(answer_b, difference_b).eps
    try:
        return DevFit(eps, fit_temperature(answer_b, model_logit(difference_b, log_k_b)))
    except ValueError:
        return DevFit(eps)


def difference(reward_bv: np.ndarray) -> np.ndarray:
    """Reward of A minus reward of B, float64 (b,)."""
    reward_bv = np.asarray(reward_bv, np.float64)
    return reward_bv[:, 0] - reward_bv[:, 1]


def measure_pairs(
    pairs: JudgedPairs,
    reward_bv: np.ndarray,
    split: str,
    dev: DevFit | None = None,
    log_k_b: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """All figures of one split, and their standard errors by prompt group.

    "SPLIT/pairs/...": "without_ties", a zero difference being half right; "with_ties_oracle" with
    the eps that is best on these very pairs, "eps_oracle"; "with_ties" with dev's eps, "eps";
    "num_pairs", "num_decided"; "bias", accuracy where A is better minus where B is; with dev's
    temperature "log_loss", "brier", "ece" and "temperature", and "log_loss_raw", "brier_raw",
    "ece_raw" without; with `log_k_b` "log_loss_ties", three classes over all pairs, and
    "tie_probability", its mean. Where videos have scores, "kendall" and "spearman" of rewards and
    scores over the videos of a source and dimension, means over these, and "kendall_by_prompt",
    "spearman_by_prompt", means over questions. The accuracies again for "SPLIT/source NAME/",
    "SPLIT/dimension NAME/", "SPLIT/kind NAME/", "SPLIT/gap BIN/", correlations for sources.

    A figure that is not defined (no decided pair, rewards that are not finite) is left out.

    Source: A6 and CA1; Cochran (1977) for the errors. Accuracies and log-losses have one.

    Args:
        pairs: of the split.
        reward_bv: of A and B, (b, 2), in the order of `pairs`; nan is always wrong.
        split: prefix of the names.
        dev: from `fit_on_dev`; None leaves out what needs it.
        log_k_b: as in `fit_on_dev`.

    Raises:
        ValueError: arguments of different length; an answer that is not 1, -1 or 0.
    """
    dev, difference_b = dev or DevFit(), difference(reward_bv)
    if len(pairs) != len(difference_b):
        raise ValueError(f"{len(pairs)} pairs and {len(difference_b)} pairs of rewards")
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    whole = np.ones(len(pairs), bool)
    for name, at_b in [(TASK, whole), *_parts(pairs)]:
        found, spread = _accuracies(pairs, difference_b, at_b, dev.eps)
        values |= {f"{split}/{name}/{figure}": value for figure, value in found.items()}
        errors |= {f"{split}/{name}/{figure}": error for figure, error in spread.items()}
    found, spread = _probabilities(pairs, difference_b, dev, log_k_b)
    bias = position_bias(np.asarray(pairs.answer_b), difference_b)["bias"]
    if bias is not None:
        found["bias"] = bias
    values |= {f"{split}/{TASK}/{figure}": value for figure, value in found.items()}
    errors |= {f"{split}/{TASK}/{figure}": error for figure, error in spread.items()}
    for name, found in _correlations(pairs, reward_bv).items():
        values |= {f"{split}/{name}/{figure}": value for figure, value in found.items()}
    return values, {name: error for name, error in errors.items() if math.isfinite(error)}


def reward_rows(
    pairs: JudgedPairs,
    reward_bv: np.ndarray,
    dev: DevFit | None = None,
    log_k_b: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One JSON object a pair, for a file of predictions.

    A row is {"pair_id", "source", "dimension", "kind", "question", "video_a", "video_b", "answer",
    "reward_a", "reward_b", "p_a", "predicted"}. "p_a" is P(A > B) without ties, with dev's
    temperature if there is one; with `log_k_b` "p_a", "p_b" and "p_tie" are those of the model.
    "predicted" is "tie" where the rewards differ by dev's eps at most, else "A" or "B"; without
    dev eps is 0. A reward that is nan predicts None.
    """
    dev, difference_b = dev or DevFit(), difference(reward_bv)
    shares = answer_shares(difference_b, log_k_b, dev.temperature or 1.0)
    sign_b = np.where(np.abs(difference_b) <= (dev.eps or 0.0), 0, np.sign(difference_b))
    columns = {
        "pair_id": pairs.pair_id,
        "source": pairs.source,
        "dimension": pairs.dimension,
        "kind": pairs.kind,
        "question": pairs.question,
        "video_a": pairs.video_a,
        "video_b": pairs.video_b,
        "answer": [NAMES[answer] for answer in np.asarray(pairs.answer_b).tolist()],
        "reward_a": _numbers(reward_bv[:, 0]),
        "reward_b": _numbers(reward_bv[:, 1]),
        **{name: _numbers(share_b) for name, share_b in shares.items()},
        "predicted": [NAMES.get(sign) for sign in sign_b.tolist()],
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def answer_shares(
    difference_b: np.ndarray, log_k_b: np.ndarray | None, temperature: float = 1.0
) -> dict[str, np.ndarray]:
    """Probabilities of the answers, (b,) each: "p_a" alone, or with `log_k_b` also "p_b", "p_tie".

    Args:
        difference_b: reward of A minus reward of B.
        log_k_b: of a model of ties, whose probabilities are taken as they are.
        temperature: what the difference is divided by without ties.
    """
    with np.errstate(invalid="ignore"):  # of nan, which stays
        if log_k_b is None:
            return {"p_a": np.exp(-np.logaddexp(0, -difference_b / temperature))}
        share_cb = np.exp(tie_log_probs(difference_b, log_k_b)).T
        return dict(zip(("p_a", "p_b", "p_tie"), share_cb, strict=True))


def _parts(pairs: JudgedPairs) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each part and which pairs are in it."""
    columns: dict[str, Sequence[str]] = {
        "source": pairs.source,
        "dimension": pairs.dimension,
        "kind": pairs.kind,
        "gap": gap_bins(np.asarray(pairs.gap_b, np.float64)),
    }
    for part in PARTS:
        names, number_b = np.unique(np.asarray(columns[part], np.str_), return_inverse=True)
        known = names.tolist()
        for name in sorted(known, key=_bin_start) if part == "gap" else known:
            yield f"{part} {name}", number_b == known.index(name)


def _bin_start(bin_name: str) -> float:
    """Where a bin of gaps begins."""
    if bin_name == "unknown":
        return math.inf
    return -1.0 if bin_name[0] == "<" else float(bin_name.removeprefix(">=").partition("-")[0])


def _accuracies(
    pairs: JudgedPairs, difference_b: np.ndarray, at_b: np.ndarray, eps: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies of some of the pairs, and their errors."""
    answer_n, difference_n = np.asarray(pairs.answer_b)[at_b], difference_b[at_b]
    group_n = np.asarray(pairs.group, np.str_)[at_b]
    decided = int(np.sum(answer_n != 0))
    values: dict[str, float] = {"num_pairs": len(answer_n), "num_decided": decided}
    errors: dict[str, float] = {}
    if not len(answer_n):
        return values, errors
    oracle = accuracy_with_ties(answer_n, difference_n)
    values["eps_oracle"] = oracle.eps
    credits = {"with_ties_oracle": tie_credit(answer_n, difference_n, oracle.eps)}
    if decided:
        credits["without_ties"] = pair_credit(answer_n, difference_n)
    if eps is not None:
        values["eps"] = eps
        credits["with_ties"] = tie_credit(answer_n, difference_n, eps)
    for name, credit_n in credits.items():
        values[name] = float(np.nanmean(credit_n))
        errors[name] = linearised_error(credit_n, group_n)
    return values, errors


def _probabilities(
    pairs: JudgedPairs, difference_b: np.ndarray, dev: DevFit, log_k_b: np.ndarray | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Log-losses, Brier scores and calibration errors, where they are defined."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    answer_b, logit_b = np.asarray(pairs.answer_b), model_logit(difference_b, log_k_b)
    if not len(answer_b) or not np.isfinite(difference_b).all():
        return values, errors
    if log_k_b is not None:
        log_p_bc = tie_log_probs(difference_b, log_k_b)
        loss_b = -log_p_bc[np.arange(len(answer_b)), np.array([2, 0, 1])[answer_b]]
        values["log_loss_ties"] = float(loss_b.mean())
        errors["log_loss_ties"] = linearised_error(loss_b, pairs.group)
        values["tie_probability"] = float(np.exp(log_p_bc[:, 2]).mean())
    if not np.any(answer_b):
        return values, errors
    if dev.temperature is not None:
        values["temperature"] = dev.temperature
    for end, temperature in (("", dev.temperature), ("_raw", 1.0)):
        if temperature is None:
            continue
        found = calibration(answer_b, logit_b, temperature)
        values |= {f"{name}{end}": found[name] for name in ("log_loss", "brier", "ece")}
        loss_b = log_losses(answer_b, logit_b, temperature)
        errors[f"log_loss{end}"] = linearised_error(loss_b, pairs.group)
    return values, errors


def _correlations(pairs: JudgedPairs, reward_bv: np.ndarray) -> dict[str, dict[str, float]]:
    """Rank correlation of rewards with scores: name of a part -> figures.

    A video counts once for each question. Pairs with a foreign prompt are left out: the score of
    that video answers another question.
    """
    if pairs.score_bv is None:
        return {}
    cells: dict[tuple[str, str], dict[tuple[str, str], tuple[float, float]]] = {}
    asked = zip(pairs.source, pairs.dimension, pairs.question, pairs.kind, strict=True)
    videos = zip(pairs.video_a, pairs.video_b, strict=True)
    numbers = zip(np.asarray(reward_bv).tolist(), np.asarray(pairs.score_bv).tolist(), strict=True)
    for (source, dimension, question, kind), names, (rewards, scores) in zip(
        asked, videos, numbers, strict=True
    ):
        if kind == MISMATCH:
            continue
        cell = cells.setdefault((source, dimension), {})
        for name, reward, score in zip(names, rewards, scores, strict=True):
            if math.isfinite(score) and math.isfinite(reward):
                cell.setdefault((question, name), (reward, score))
    found: dict[str, dict[str, list[float]]] = {}
    for (source, _), cell in cells.items():
        if not cell:
            continue
        reward_n, score_n = np.array(list(cell.values())).T
        questions = [question for question, _ in cell]
        by_prompt = len(set(questions)) > 1
        figures = correlations(reward_n, score_n, questions if by_prompt else None)
        for figure, value in figures.items():
            stem, _, rest = figure.partition("_by_")
            if value is None or stem not in ("kendall", "spearman"):
                continue
            name = f"{stem}_by_prompt" if rest else stem
            for part in (TASK, f"source {source}"):
                found.setdefault(part, {}).setdefault(name, []).append(value)
    return {
        part: {name: float(np.mean(known)) for name, known in figures.items()}
        for part, figures in found.items()
    }


def model_logit(difference_b: np.ndarray, log_k_b: np.ndarray | None) -> np.ndarray:
    """Log-odds of A without ties: the difference itself, or what a model of ties makes of it."""
    with np.errstate(invalid="ignore"):  # of nan, which stays nan
        return difference_b if log_k_b is None else decided_logit(difference_b, log_k_b)


def _numbers(values_b: np.ndarray) -> list[float | None]:
    """JSON numbers with the digits of their own type; None for what is not finite."""
    if values_b.dtype != np.float64:
        values_b = np.array([float(str(value)) for value in values_b.astype(np.float32)])
    return [value if math.isfinite(value) else None for value in values_b.tolist()]
