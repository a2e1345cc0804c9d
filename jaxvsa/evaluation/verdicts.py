"""One model's scores or votes against people's votes: what each pair counts, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxvsa.metrics.clustered import NUM_RESAMPLES, estimate, linearised_error
from jaxvsa.metrics.pairwise import (
    MISSING,
    accuracy_with_ties,
    fit_rho,
    four_way,
    pair_credit,
    position_bias,
    tie_credit,
    vote_credits,
)

FIGURES = {
    "without_ties": "without ties",
    "with_ties": "with ties",
    "with_ties_oracle": "with ties\noracle eps",
    "four_way": "four-way",
    "four_way_oracle": "four-way\noracle eps, rho",
}
"""Figure -> heading. Of scores those without "oracle" use thresholds of dev."""
_CLUSTERS = 20_000_000  # drawn for one interval
_ANSWER = np.array([1, -1, 0, 0])


class Scored(Protocol):
    """A model's scores, as `jaxvsa.data.verdicts.Scores`."""

    @property
    def score_bv(self) -> np.ndarray:
        """Of A and B, (b, 2), nan = none."""

    @property
    def absent_b(self) -> np.ndarray:
        """No score of A or of B."""

    @property
    def unused(self) -> int:
        """Rows of no vote."""


class Voted(Protocol):
    """A model's votes, as `jaxvsa.data.verdicts.Votes`."""

    @property
    def vote_b(self) -> np.ndarray:
        """0 to 3, or `MISSING`."""

    @property
    def absent_b(self) -> np.ndarray:
        """No row for the pair."""

    @property
    def unread(self) -> int:
        """Rows without a vote."""

    @property
    def four_classes(self) -> bool:
        """Ties are good or bad."""

    @property
    def unused(self) -> int:
        """Rows of no pair."""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What turns scores into votes; None = not chosen.

    Attributes:
        eps: differences up to this size are ties.
        rho: mean score from which a tie is both good.
    """

    eps: float | None = None
    rho: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """One model, judged pair by pair.

    Attributes:
        name: of the model.
        is_votes: it votes, and does not score.
        zero: "half" or "wrong", the rule for a tie on a decided pair.
        said_b: difference of the scores, nan without; or votes, `MISSING` without.
        credits: figure -> float64 (b,), what each pair counts; nan = not at all.
        counted_b: bool; False was dropped.
        absent: pairs without score or vote in the file.
        unread: votes that could not be read, or are blank.
        unused: rows of the file that no vote asks for.
        oracle: thresholds that are best on these very votes, of scores.
        dev: thresholds from dev, of scores.
        bias: accuracy where A is better minus where B is; None if a side has no pair.
    """

    name: str
    is_votes: bool
    zero: str
    said_b: np.ndarray
    credits: dict[str, np.ndarray]
    counted_b: np.ndarray
    absent: int
    unread: int
    unused: int
    oracle: Thresholds
    dev: Thresholds
    bias: float | None

    def figures(
        self, cluster: Sequence[str], at_b: np.ndarray | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the credits and their errors by cluster; over all pairs also ".../low" and high.

        Args:
            cluster: prompt of each pair.
            at_b: bool, which pairs; None = all, with intervals.
        """
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        names: Any = np.asarray(cluster, np.str_)
        for figure in (name for name in FIGURES if name in self.credits):
            credit_b = self.credits[figure]
            credit_n, names_n = (credit_b, names) if at_b is None else (credit_b[at_b], names[at_b])
            if np.isnan(credit_n).all():
                continue
            if at_b is None:
                found = estimate(credit_n, names_n, resamples(cluster))
                values[figure], errors[figure] = found.value, found.error
                values |= {f"{figure}/low": found.low, f"{figure}/high": found.high}
            else:
                values[figure] = float(np.nanmean(credit_n))
                errors[figure] = linearised_error(credit_n, names_n)
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        return values, {name: error for name, error in errors.items() if not math.isnan(error)}

    def facts(self) -> dict[str, Any]:
        """What the report says besides figures."""
        return {
            "name": self.name,
            "says": "votes" if self.is_votes else "scores",
            "zero": self.zero,
            "pairs": int(self.counted_b.sum()),
            "coverage": float(self.counted_b.mean()),
            "absent": self.absent,
            "unread": self.unread,
            "unused_rows": self.unused,
            "position_bias": self.bias,
            "oracle": vars(self.oracle),
            "dev": vars(self.dev),
        }

    def notes(self) -> Iterator[str]:
        """What a reader of the table must know, a sentence each."""
        what = "a tie vote" if self.is_votes else "a zero difference"
        yield f"on decided pairs {what} {'is wrong' if self.zero == 'wrong' else 'counts half'}"
        lost = f"{self.absent:,} of {len(self.said_b):,} pairs have no {self._noun}"
        if not self.counted_b.all():
            yield f"{lost} and were dropped; {100 * self.counted_b.mean():.2f} % are covered"
        elif self.absent:
            yield f"{lost} and count as wrong"
        if self.unread:
            yield f"{self.unread:,} votes are blank or unreadable and count as wrong"
        if self.unused:
            yield f"{self.unused:,} rows are about no pair of the votes"
        if self.is_votes:
            return
        yield f"oracle thresholds, chosen on these votes: {_said(self.oracle)}"
        if self.dev.eps is not None:
            yield f"thresholds of dev: {_said(self.dev)}"

    @property
    def _noun(self) -> str:
        return "vote" if self.is_votes else "score"


def resamples(cluster: Sequence[str]) -> int:
    """How many resamples of an interval: 10,000, fewer from 2,000 clusters on, at least 1,000."""
    return min(max(_CLUSTERS // len(set(cluster)), 1000), NUM_RESAMPLES)


def fit_thresholds(found: Any, vote_b: np.ndarray, four_classes: bool) -> Thresholds:
    """The best thresholds of a model's scores on these votes; none of a model that votes.

    Pairs without scores are left out.

    Args:
        found: `Scored` or `Voted`.
        vote_b: people's, 0 to 3.
        four_classes: people tell both good from both bad.
    """
    if hasattr(found, "vote_b"):
        return Thresholds()
    keep_b = ~found.absent_b
    difference_b = found.score_bv[keep_b, 0] - found.score_bv[keep_b, 1]
    vote_b = vote_b[keep_b]
    eps = accuracy_with_ties(_ANSWER[vote_b], difference_b).eps
    rho = fit_rho(vote_b, found.score_bv[keep_b].mean(axis=1)) if four_classes else None
    return Thresholds(eps, rho)


def judge(
    name: str,
    found: Any,
    vote_b: np.ndarray,
    four_classes: bool,
    dev: Thresholds | None = None,
    zero: str | None = None,
    drop: bool = False,
) -> Verdict:
    """What each pair counts for one model.

    Source: A6; CA2, 1 to 3. A pair without score or vote is wrong in all figures, never a tie.

    Args:
        name: of the model.
        found: `Scored` or `Voted`.
        vote_b: people's, 0 to 3.
        four_classes: people tell both good from both bad.
        dev: thresholds from `fit_thresholds` on dev.
        zero: "half" or "wrong"; None = half for scores, wrong for votes.
        drop: pairs that the file does not have count nowhere.
    """
    dev = dev or Thresholds()
    is_votes = hasattr(found, "vote_b")
    zero = zero or ("wrong" if is_votes else "half")
    oracle = fit_thresholds(found, vote_b, four_classes)
    if is_votes:
        said_b = found.vote_b
        credits = _vote_credits(found, vote_b, four_classes, zero)
        bias_b = np.where(said_b == MISSING, np.nan, _ANSWER[np.maximum(said_b, 0)])
    else:
        said_b = bias_b = found.score_bv[:, 0] - found.score_bv[:, 1]
        credits = _score_credits(found, vote_b, oracle, dev, zero)
    counted_b = ~found.absent_b if drop else np.ones(len(vote_b), bool)
    return Verdict(
        name=name,
        is_votes=is_votes,
        zero=zero,
        said_b=said_b,
        credits={n: np.where(counted_b, credit_b, np.nan) for n, credit_b in credits.items()},
        counted_b=counted_b,
        absent=int(found.absent_b.sum()),
        unread=found.unread if is_votes else 0,
        unused=found.unused,
        oracle=oracle,
        dev=dev,
        bias=position_bias(_ANSWER[vote_b][counted_b], bias_b[counted_b])["bias"],
    )


def _vote_credits(
    found: Voted, vote_b: np.ndarray, four_classes: bool, zero: str
) -> dict[str, np.ndarray]:
    credits = vote_credits(vote_b, found.vote_b)
    half = credits.pop("without_ties_half")
    if zero == "half":
        credits["without_ties"] = half
    if not (four_classes and found.four_classes):
        del credits["four_way"]
    return credits


def _score_credits(
    found: Scored, vote_b: np.ndarray, oracle: Thresholds, dev: Thresholds, zero: str
) -> dict[str, np.ndarray]:
    difference_b = found.score_bv[:, 0] - found.score_bv[:, 1]
    answer_b = _ANSWER[vote_b]
    credits = {"without_ties": pair_credit(answer_b, difference_b, strict=zero == "wrong")}
    for end, chosen in (("", dev), ("_oracle", oracle)):
        if chosen.eps is None:
            continue
        credits[f"with_ties{end}"] = tie_credit(answer_b, difference_b, chosen.eps)
        if chosen.rho is not None and oracle.rho is not None:
            mean_b = found.score_bv.mean(axis=1)
            said_b = four_way(difference_b, mean_b, chosen.eps, chosen.rho)
            credits[f"four_way{end}"] = (said_b == vote_b).astype(np.float64)
    return credits


def _said(chosen: Thresholds) -> str:
    eps = f"eps {chosen.eps:.6g}"
    return eps if chosen.rho is None else f"{eps}, rho {chosen.rho:.6g}"
