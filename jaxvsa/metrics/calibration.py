"""Whether P(A > B) = sigmoid(difference / temperature) means what it says; ties are left out."""

from __future__ import annotations

import numpy as np

NUM_BINS = 15
_STEPS = 50


def fit_temperature(answer_b: np.ndarray, difference_b: np.ndarray) -> float:
    """The temperature that minimises the mean log-loss on these pairs, which should be dev's.

    Newton's method on the slope 1 / T, started at 1 over the spread of the differences.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017); A6.

    Args:
        answer_b: 1, -1; ties, 0, are left out.
        difference_b: score of A minus score of B, finite.

    Returns:
        T > 0; infinity if no positive slope is better than none.

    Raises:
        ValueError: no decided pair; a difference that is not finite; every pair is ordered right,
            where the best T is zero.
    """
    slope = calibration_slope(answer_b, difference_b)
    return 1 / slope if slope > 0 else np.inf


def calibration_slope(answer_b: np.ndarray, logit_b: np.ndarray) -> float:
    """Slope s of the best P(A > B) = sigmoid(s logit): 1 if calibrated, under 1 if too sure.

    Source: Cox (1958), without intercept, since A and B are exchangeable.

    Raises:
        ValueError: as in `fit_temperature`.
    """
    signed_b = _signed(answer_b, logit_b)
    spread = np.sqrt(np.mean(signed_b**2))
    if spread == 0:
        return 0.0
    if np.all(signed_b >= 0) or np.all(signed_b <= 0):
        raise ValueError(
            "every pair is ordered right, or every one wrong: no finite temperature fits; "
            "fit it on more pairs"
        )
    unit_b, slope = signed_b / spread, 0.0
    for _ in range(_STEPS):
        wrong_b = _sigmoid(-slope * unit_b)
        gradient = np.mean(unit_b * wrong_b)
        step = gradient / np.mean(unit_b**2 * wrong_b * (1 - wrong_b))
        # Halved until the loss falls: far from the optimum the full step may overshoot.
        while _loss((slope + step) * unit_b) > _loss(slope * unit_b) + 1e-15:
            step /= 2
        slope += step
        if abs(step) < 1e-12 * max(abs(slope), 1):
            break
    return float(slope / spread)


def logit_slope(logit_b: np.ndarray, true_logit_b: np.ndarray) -> float:
    """Least-squares slope of a learned logit on the true one, with intercept; nan if constant."""
    true_b = np.asarray(true_logit_b, np.float64)
    centred_b = true_b - true_b.mean()
    total = np.sum(centred_b**2)
    return float(np.sum(centred_b * logit_b) / total) if total else float("nan")


def calibration(
    answer_b: np.ndarray, difference_b: np.ndarray, temperature: float = 1.0
) -> dict[str, float]:
    """Figures of P(A > B) = sigmoid(difference / temperature) on the decided pairs.

    Returns:
        "log_loss" in nats; "brier", mean squared error of P; "ece" over bins of equal mass; "slope"
        of `calibration_slope`, nan where none is finite.

    Raises:
        ValueError: no decided pair; a difference that is not finite; a temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0")
    signed_b = _signed(answer_b, difference_b) / temperature
    decided_b = np.asarray(answer_b) != 0
    logit_b = np.asarray(difference_b, np.float64)[decided_b] / temperature
    rows = reliability(answer_b, difference_b, temperature)
    total = sum(row["pairs"] for row in rows)
    try:
        slope = calibration_slope(np.asarray(answer_b)[decided_b], logit_b)
    except ValueError:
        slope = float("nan")
    return {
        "log_loss": float(_loss(signed_b)),
        "brier": float(np.mean(_sigmoid(-signed_b) ** 2)),
        "ece": sum(row["pairs"] * abs(row["predicted"] - row["observed"]) for row in rows) / total,
        "slope": slope,
    }


def log_losses(
    answer_b: np.ndarray, difference_b: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Log-loss of each pair in nats, whose mean is "log_loss" of `calibration`; nan for ties.

    Raises:
        ValueError: as in `calibration`.
    """
    signed_b = _signed(answer_b, difference_b) / temperature
    loss_b = np.full(len(answer_b), np.nan)
    loss_b[np.asarray(answer_b) != 0] = np.logaddexp(0, -signed_b)
    return loss_b


def tie_log_probs(difference_b: np.ndarray, log_k_b: np.ndarray | float) -> np.ndarray:
    """Logarithms of P(A), P(B) and P(tie) where k = exp(log_k) > 1 is how often raters see a tie.

    Source: Rao and Kupper (1967); VideoReward; A3 and CA1.

    Returns:
        float64 (b, 3).
    """
    difference_b = np.asarray(difference_b, np.float64)
    log_k_b = np.broadcast_to(np.asarray(log_k_b, np.float64), difference_b.shape)
    a_b = -np.logaddexp(0, log_k_b - difference_b)
    b_b = -np.logaddexp(0, log_k_b + difference_b)
    return np.stack([a_b, b_b, np.log(np.expm1(2 * log_k_b)) + a_b + b_b], axis=1)


def decided_logit(difference_b: np.ndarray, log_k_b: np.ndarray | float) -> np.ndarray:
    """Log-odds of A against B, given that there is no tie, under `tie_log_probs`: float64 (b,).

    With log_k = 0 it is the difference itself.
    """
    difference_b = np.asarray(difference_b, np.float64)
    return np.logaddexp(0, log_k_b + difference_b) - np.logaddexp(0, log_k_b - difference_b)


def reliability(
    answer_b: np.ndarray,
    difference_b: np.ndarray,
    temperature: float = 1.0,
    num_bins: int = NUM_BINS,
) -> list[dict[str, float]]:
    """Predicted against observed share of A, in bins of equal mass; rows of a CSV.

    Pairs are sorted by P and cut into `num_bins` runs whose lengths differ by at most one; pairs
    of equal P may fall into two bins, in the order given. Empty bins are left out.

    Returns:
        Rows of "low", "high" (smallest and largest P), "predicted" (mean P), "observed", "pairs".

    Raises:
        ValueError: no decided pair, or a difference that is not finite.
    """
    _signed(answer_b, difference_b)
    answer_b = np.asarray(answer_b)
    decided_b = answer_b != 0
    share_b = _sigmoid(np.asarray(difference_b, np.float64)[decided_b] / temperature)
    order_b = np.argsort(share_b, kind="stable")
    won_b = answer_b[decided_b] > 0
    return [
        {
            "low": float(share_b[at].min()),
            "high": float(share_b[at].max()),
            "predicted": float(share_b[at].mean()),
            "observed": float(won_b[at].mean()),
            "pairs": len(at),
        }
        for at in np.array_split(order_b, num_bins)
        if len(at)
    ]


def _signed(answer_b: np.ndarray, difference_b: np.ndarray) -> np.ndarray:
    """Differences of the decided pairs, positive where they are ordered right."""
    answer_b, difference_b = np.asarray(answer_b), np.asarray(difference_b, np.float64)
    if answer_b.shape != difference_b.shape or answer_b.ndim != 1:
        raise ValueError(f"answers {answer_b.shape} and differences {difference_b.shape} differ")
    signed_b = (answer_b * difference_b)[answer_b != 0]
    if not len(signed_b):
        raise ValueError("no decided pair: calibration needs pairs without a tie")
    if not np.isfinite(signed_b).all():
        raise ValueError("calibration needs finite differences")
    return signed_b


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _loss(signed_b: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, -signed_b)))
