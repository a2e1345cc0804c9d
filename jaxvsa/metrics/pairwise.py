"""Accuracy of scorers and voters on pairs: without ties, with ties, four-way, and by part.

People answer 1 if A is better, -1 if B is, 0 for a tie. A scorer is judged by its difference m,
score of A minus score of B.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxvsa.core.shapes import bind_dims

A, B, BOTH_GOOD, BOTH_BAD = range(4)
"""Votes of GenAI-Bench; `MISSING` is a vote that could not be read."""
MISSING = -1
_ANSWER = np.array([1, -1, 0, 0], np.int8)


class PairCounts(struct.PyTreeNode):
    """Pairs by what people answered and by the sign of the scorer's difference; states add up.

    Attributes:
        counts_aj: int32 (3, 3); rows are A, B, tie by people, columns A, B, zero by the scorer.
    """

    counts_aj: jax.Array | np.ndarray

    @classmethod
    def empty(cls) -> PairCounts:
        """The state of no pairs."""
        return cls(jnp.zeros((3, 3), jnp.int32))

    @classmethod
    def from_batch(
        cls, answer_b: jax.Array, difference_b: jax.Array, valid_b: jax.Array
    ) -> PairCounts:
        """Count one batch on the device.

        Args:
            answer_b: int, 1, -1 or 0.
            difference_b: score of A minus score of B; a nan counts as B for A and the reverse.
            valid_b: bool; False is padding and counts nowhere.

        Raises:
            ValueError: the arguments differ in b.
        """
        bind_dims(answer_b=answer_b, difference_b=difference_b, valid_b=valid_b)
        row_b = jnp.where(answer_b > 0, 0, jnp.where(answer_b < 0, 1, 2))
        column_b = jnp.where(difference_b > 0, 0, jnp.where(difference_b < 0, 1, 2))
        column_b = jnp.where(jnp.isnan(difference_b), 1 - jnp.minimum(row_b, 1), column_b)
        counts_aj = jnp.zeros((3, 3), jnp.int32).at[row_b, column_b].add(valid_b.astype(jnp.int32))
        return cls(counts_aj)

    @classmethod
    def from_pairs(cls, answer_b: np.ndarray, difference_b: np.ndarray) -> PairCounts:
        """Count on the host; arguments as in `from_batch`, without padding."""
        counts_aj = np.zeros((3, 3), np.int32)
        row_b, wrong_b = np.array([2, 0, 1])[answer_b], np.isnan(difference_b)
        column_b = np.select([difference_b > 0, difference_b < 0], [0, 1], 2)
        column_b = np.where(wrong_b, 1 - np.minimum(row_b, 1), column_b)
        np.add.at(counts_aj, (row_b, column_b), 1)
        return cls(counts_aj)

    def merge(self, other: PairCounts) -> PairCounts:
        """The state of both sets of pairs together."""
        return self.replace(counts_aj=self.counts_aj + other.counts_aj)

    def compute(self) -> dict[str, float | None]:
        """Figures on the host, None where nothing was decided.

        Returns:
            "without_ties": a zero difference is half right; "without_ties_strict": it is wrong;
            "a_share": part of the decided pairs for which the scorer prefers A, zeros as half;
            "decided", "ties": numbers of pairs.
        """
        counts_aj = np.asarray(self.counts_aj, np.int64)
        decided, zeros = int(counts_aj[:2].sum()), int(counts_aj[:2, 2].sum())
        right, of_a = int(counts_aj[0, 0] + counts_aj[1, 1]), int(counts_aj[:2, 0].sum())
        return {
            "without_ties": (right + 0.5 * zeros) / decided if decided else None,
            "without_ties_strict": right / decided if decided else None,
            "a_share": (of_a + 0.5 * zeros) / decided if decided else None,
            "decided": decided,
            "ties": int(counts_aj[2].sum()),
        }


def pair_credit(answer_b: np.ndarray, difference_b: np.ndarray, strict: bool = False) -> np.ndarray:
    """What each pair counts in the accuracy without ties: 1, 0.5 or 0; nan for ties of people.

    Source: A6: a zero difference counts as a guess; `strict` counts it as wrong, as published
    evaluations do. A difference that is nan is wrong.

    Returns:
        float64 (b,).

    Raises:
        ValueError: another answer, or arrays of different length.
    """
    answer_b, difference_b = _checked(answer_b, difference_b)
    credit_b = np.where(np.sign(difference_b) == answer_b, 1.0, 0.0)
    credit_b = np.where(difference_b == 0, 0.0 if strict else 0.5, credit_b)
    return np.where(answer_b == 0, np.nan, credit_b)


def accuracy_without_ties(
    answer_b: np.ndarray, difference_b: np.ndarray, strict: bool = False
) -> float | None:
    """Part of the decided pairs that are ordered right, see `pair_credit`; None without any."""
    credit_b = pair_credit(answer_b, difference_b, strict)
    credit_b = credit_b[~np.isnan(credit_b)]
    return float(credit_b.mean()) if credit_b.size else None


def tie_credit(answer_b: np.ndarray, difference_b: np.ndarray, eps: float) -> np.ndarray:
    """What each pair counts in `accuracy_with_ties` with a given threshold: 1 or 0.

    Returns:
        float64 (b,).

    Raises:
        ValueError: as `pair_credit`.
    """
    answer_b, difference_b = _checked(answer_b, difference_b)
    right_b = (np.sign(difference_b) == answer_b) & (answer_b != 0)
    return np.where(np.abs(difference_b) <= eps, answer_b == 0, right_b).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class TieAccuracy:
    """Accuracy over three classes, and the threshold behind it.

    Attributes:
        accuracy: 0 to 1, None without pairs.
        eps: differences up to this size were read as ties.
    """

    accuracy: float | None
    eps: float


def accuracy_with_ties(
    answer_b: np.ndarray, difference_b: np.ndarray, eps: float | None = None
) -> TieAccuracy:
    """Part of all pairs whose answer is right, where |difference| <= eps is read as a tie.

    Without `eps` the best one is taken on these very pairs, as is published: of 0 and all sizes
    of differences, the smallest of those that are equally good. That threshold has seen the
    answers; `fit_eps` on dev gives one that has not.

    Source: Deutsch et al., "Ties Matter" (2023), algorithm 1; A6 and CA2, 3.
    Deviation: VideoAlign's code never tries a threshold below the smallest difference, and scores
    inside a group of equal ones, which makes the result depend on the order of the pairs.

    Args:
        answer_b: 1, -1 or 0.
        difference_b: a nan is never right, and never a tie.
        eps: None = the best.

    Raises:
        ValueError: another answer, or arrays of different length.
    """
    answer_b, difference_b = _checked(answer_b, difference_b)
    if not len(answer_b):
        return TieAccuracy(None, eps or 0.0)
    if eps is not None:
        return TieAccuracy(float(tie_credit(answer_b, difference_b, eps).mean()), eps)
    size_b = np.abs(difference_b)
    right_b = (np.sign(difference_b) == answer_b) & (answer_b != 0)
    order_b = np.argsort(size_b, kind="stable")  # nan comes last
    gain_b = (answer_b == 0).astype(np.int64) - right_b
    sizes_g, start_g = np.unique(
        np.concatenate([[0.0], size_b[order_b][~np.isnan(size_b[order_b])]]), return_index=True
    )
    end_g = np.append(start_g[1:] - 1, len(size_b) - np.sum(np.isnan(size_b)))
    total_g = right_b.sum() + np.concatenate([[0], np.cumsum(gain_b[order_b])])[end_g]
    best = int(np.argmax(total_g))
    return TieAccuracy(float(total_g[best] / len(answer_b)), float(sizes_g[best]))


def fit_eps(answer_b: np.ndarray, difference_b: np.ndarray) -> float:
    """The best threshold of `accuracy_with_ties` on these pairs, which should be those of dev."""
    return accuracy_with_ties(answer_b, difference_b).eps


def fit_rho(vote_b: np.ndarray, mean_b: np.ndarray) -> float:
    """The mean reward from which a tie is "both good": best on these pairs, the smallest if equal.

    Args:
        vote_b: `A`, `B`, `BOTH_GOOD`, `BOTH_BAD`; only the last two are looked at.
        mean_b: mean of the rewards of A and B.

    Returns:
        One of the means, or infinity if it is best to call all bad.
    """
    good_b = mean_b[vote_b == BOTH_GOOD]
    bad_b = mean_b[vote_b == BOTH_BAD]
    edges = np.append(np.unique(np.concatenate([good_b, bad_b])), np.inf)
    hits = [np.sum(good_b >= edge) + np.sum(bad_b < edge) for edge in edges]
    return float(edges[int(np.argmax(hits))])


def four_way(difference_b: np.ndarray, mean_b: np.ndarray, eps: float, rho: float) -> np.ndarray:
    """Votes of a scorer: A or B, or within `eps` both good (mean reward >= `rho`) or both bad.

    Source: A6; both thresholds come from dev. A nan is `MISSING`.

    Returns:
        int64 (b,).
    """
    tie_b = np.where(mean_b >= rho, BOTH_GOOD, BOTH_BAD)
    vote_b = np.where(np.abs(difference_b) <= eps, tie_b, np.where(difference_b > 0, A, B))
    return np.where(np.isnan(difference_b), MISSING, vote_b)


def vote_credits(vote_b: np.ndarray, predicted_b: np.ndarray) -> dict[str, np.ndarray]:
    """What each pair counts in the figures of `vote_accuracy`: 1, 0.5 or 0; nan counts nowhere.

    Args:
        vote_b: people's, 0 to 3.
        predicted_b: 0 to 3, or `MISSING`.

    Returns:
        "four_way", "with_ties", "without_ties", "without_ties_half": float64 (b,).

    Raises:
        ValueError: another vote, or arrays of different length.
    """
    vote_b, predicted_b = np.asarray(vote_b), np.asarray(predicted_b)
    if vote_b.shape != predicted_b.shape or vote_b.ndim != 1:
        raise ValueError(f"votes {vote_b.shape} and predictions {predicted_b.shape} differ")
    if not (np.isin(vote_b, range(4)).all() and np.isin(predicted_b, range(-1, 4)).all()):
        raise ValueError("votes run from 0 to 3, predictions from -1 to 3")
    answer_b = _ANSWER[vote_b]
    said_b = np.where(predicted_b == MISSING, 2, _ANSWER[np.maximum(predicted_b, 0)])
    right_b, tie_b = (said_b == answer_b).astype(np.float64), answer_b == 0
    return {
        "four_way": (vote_b == predicted_b).astype(np.float64),
        "with_ties": right_b,
        "without_ties": np.where(tie_b, np.nan, right_b),
        "without_ties_half": np.where(tie_b, np.nan, right_b + 0.5 * (said_b == 0)),
    }


def vote_accuracy(vote_b: np.ndarray, predicted_b: np.ndarray) -> dict[str, float | None]:
    """Accuracy of votes against people's votes.

    A missing vote is wrong in all three figures and never a tie. Without ties, a predicted tie on a
    decided pair is wrong (`strict`), or counts half in "without_ties_half".

    Source: A6; CA2, 1 and 2.

    Returns:
        "four_way", "with_ties" (both good and both bad are one class), "without_ties",
        "without_ties_half", None where there is no pair; "pairs", "decided", "missing".

    Raises:
        ValueError: as `vote_credits`, whose arguments it has.
    """
    credits = vote_credits(vote_b, predicted_b)
    return {
        **{name: _mean(credit_b[~np.isnan(credit_b)]) for name, credit_b in credits.items()},
        "pairs": len(vote_b),
        "decided": int(np.sum(~np.isnan(credits["without_ties"]))),
        "missing": int(np.sum(np.asarray(predicted_b) == MISSING)),
    }


def accuracy_by(
    answer_b: np.ndarray, difference_b: np.ndarray, part: Sequence[str], eps: float | None = None
) -> dict[str, dict[str, float | None]]:
    """The figures of each part: of a source, dimension, kind or bin of gaps.

    Args:
        answer_b: 1, -1 or 0.
        difference_b: score of A minus score of B.
        part: name of the part of each pair.
        eps: threshold for ties, from dev.

    Returns:
        part, sorted -> "without_ties", "without_ties_strict", "a_share", "decided", "ties";
        "with_ties_oracle" and its "eps_oracle"; with `eps` also "with_ties".

    Raises:
        ValueError: arguments of different length.
    """
    answer_b, difference_b = _checked(answer_b, difference_b)
    if len(part) != len(answer_b):
        raise ValueError(f"{len(part)} names of parts for {len(answer_b)} pairs")
    names, part_b = np.unique(np.asarray(part, np.str_), return_inverse=True)
    found: dict[str, dict[str, float | None]] = {}
    for number, name in enumerate(names.tolist()):
        at_b = part_b == number
        answer_n, difference_n = answer_b[at_b], difference_b[at_b]
        oracle = accuracy_with_ties(answer_n, difference_n)
        found[name] = {
            **PairCounts.from_pairs(answer_n, difference_n).compute(),
            "with_ties_oracle": oracle.accuracy,
            "eps_oracle": oracle.eps,
        }
        if eps is not None:
            found[name]["with_ties"] = accuracy_with_ties(answer_n, difference_n, eps).accuracy
    return found


def gap_bins(gap_b: np.ndarray, edges: Sequence[float] = (0.5, 1.0, 2.0)) -> list[str]:
    """Names of bins of gaps, in standard deviations of the source; nan is "unknown"."""
    names = [f"<{edges[0]:g}", *(f"{a:g}-{b:g}" for a, b in itertools.pairwise(edges))]
    names += [f">={edges[-1]:g}"]
    bin_b = np.digitize(gap_b, edges)
    return [
        "unknown" if unknown else names[number]
        for number, unknown in zip(bin_b.tolist(), np.isnan(gap_b).tolist(), strict=True)
    ]


def position_bias(answer_b: np.ndarray, difference_b: np.ndarray) -> Mapping[str, float | None]:
    """Whether a scorer prefers a side: its accuracy where A is better, where B is, and the gap.

    Returns:
        "when_a", "when_b" and "bias", their difference; None where a side has no pair.
    """
    credit_b = pair_credit(answer_b, difference_b)
    when_a, when_b = _mean(credit_b[answer_b == 1]), _mean(credit_b[answer_b == -1])
    known = when_a is not None and when_b is not None
    return {"when_a": when_a, "when_b": when_b, "bias": when_a - when_b if known else None}  # type: ignore[operator]


def _checked(answer_b: np.ndarray, difference_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answer_b, difference_b = np.asarray(answer_b), np.asarray(difference_b, np.float64)
    if answer_b.shape != difference_b.shape or answer_b.ndim != 1:
        raise ValueError(f"answers {answer_b.shape} and differences {difference_b.shape} differ")
    if not np.isin(answer_b, (-1, 0, 1)).all():
        raise ValueError("answers are 1 (A), -1 (B) and 0 (tie)")
    return answer_b.astype(np.int8), difference_b


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
