"""What people's votes alone give away: agreement of voters that see no video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvsa.evaluation.tables import Row
from jaxvsa.metrics.pairwise import BOTH_BAD, BOTH_GOOD, A, B, accuracy_with_ties

_DRAWS, _MOST = 200, 2_000_000  # of the random scorer: at most so many pairs in all


def vote_baselines(
    vote_b: np.ndarray, four_classes: bool, zero: Sequence[str] = ("wrong",)
) -> list[Row]:
    """Rows to stand below a model's, by the names of `verdicts.FIGURES`.

    Figures of the random voter and of the random scorer are expectations; that of the scorer with
    the best threshold is a mean over drawn scores. Without ties a tie vote counts as the rules in
    `zero` say, or, if the models have different ones, as wrong.

    Source: A6 and CA2, 1 and 5.

    Args:
        vote_b: people's, 0 to 3.
        four_classes: people tell both good from both bad.
        zero: rules of the models in the table, "half" or "wrong".
    """
    half = 0.5 if set(zero) == {"half"} else 0.0
    left, right, good, bad = (
        float(np.mean(vote_b == vote)) for vote in (A, B, BOTH_GOOD, BOTH_BAD)
    )
    ties, decided = good + bad, left + right
    share = 0.25 if four_classes else 1 / 3
    rows = {
        "always left": {"with_ties": left, "four_way": left},
        "always right": {"with_ties": right, "four_way": right},
        "always tie": {"with_ties": ties},
        "random voter": {
            "with_ties": share * decided + (1 - 2 * share) * ties,
            "four_way": 0.25,
        },
        "random scorer": {"with_ties_oracle": _random_scorer(vote_b)},
    }
    if decided:
        rows["always left"]["without_ties"] = left / decided
        rows["always right"]["without_ties"] = right / decided
        rows["always tie"]["without_ties"] = half
        rows["random voter"]["without_ties"] = share + half * (1 - 2 * share)
        rows["random scorer"]["without_ties"] = 0.5
    if not four_classes:
        for values in rows.values():
            values.pop("four_way", None)
    return [Row(name, values) for name, values in rows.items()]


def _random_scorer(vote_b: np.ndarray) -> float:
    """Mean accuracy with ties of scores drawn at random, each with its best threshold."""
    rng = np.random.default_rng(0)
    answer_b = np.array([1, -1, 0, 0])[vote_b]
    draws = max(min(_DRAWS, _MOST // len(vote_b)), 5)
    found = [
        accuracy_with_ties(answer_b, rng.normal(size=len(vote_b))).accuracy for _ in range(draws)
    ]
    return float(np.mean(found))  # type: ignore[arg-type]
