"""What a trained system makes of the generators G1 to G4, with the settings of CA3."""

from __future__ import annotations

from typing import Any

import numpy as np
from systems.clevereward import arrays

from jaxvsa.data.sources.reward_demo import (
    CosinePairs,
    ScaledSource,
    answer_probabilities,
    bt_cosine,
    mismatch_pairs,
    two_scales,
)
from jaxvsa.metrics.calibration import logit_slope

QUESTION = np.random.default_rng(7).normal(size=(1, 8))
"""The constant question of G2."""


def packed(pairs: CosinePairs, **more: Any) -> tuple[dict, dict]:
    """Fields and tables of pairs with a prompt each."""
    prompt_g, first_g, row_b = np.unique(pairs.prompt_b, return_index=True, return_inverse=True)
    assert len(prompt_g) <= len(pairs.answer_b)
    video_nf = pairs.video_bvf.reshape(-1, pairs.video_bvf.shape[-1])
    fields = arrays.columns(np.arange(len(video_nf)).reshape(-1, 2), row_b, pairs.answer_b, **more)
    return fields, {"video": video_nf, "text": pairs.text_bf[first_g]}


def cosine(
    seed: int, true_k: float | None = None, model: dict | None = None, **loss: Any
) -> dict[str, float]:
    """G1, or G4 with `true_k`: figures on new prompts beside those of the truth."""
    data = bt_cosine(seed, tie_k=true_k)
    system = arrays.system(24, 24, model=model, **loss)
    params = arrays.train(system, *packed(data["train"]), steps=1500, batch_size=512, seed=seed)
    test = data["test"]
    found = arrays.rewards(system, params, *packed(test))
    k = float(np.exp(found["log_k"][0])) if "log_k" in found else None
    difference_b = found["reward"][:, 0] - found["reward"][:, 1]
    return {
        **figures("", test, difference_b, k),
        **figures("bayes_", test, test.logit_b, true_k),
        "slope": logit_slope(difference_b, test.logit_b),
        "k": 1.0 if k is None else k,
        "tie_share": float(np.mean(test.answer_b == 0)),
    }  # fmt: skip


def figures(
    prefix: str, pairs: CosinePairs, logit_b: np.ndarray, k: float | None
) -> dict[str, float]:
    """Accuracy of the decided pairs, log-loss of all, mean probability of a tie."""
    chance_bc = answer_probabilities(logit_b, k)
    column_b = np.array([2, 0, 1])[pairs.answer_b]
    decided_b = pairs.answer_b != 0
    right_b = np.sign(logit_b) == pairs.answer_b
    return {
        f"{prefix}accuracy": float(np.mean(right_b[decided_b])),
        f"{prefix}log_loss": float(-np.mean(np.log(chance_bc[np.arange(len(logit_b)), column_b]))),
        f"{prefix}tie": float(np.mean(chance_bc[:, 2])),
    }


def scales(
    seed: int, model: dict | None = None, steps: int = 4000, own_curve: bool = True, **loss: Any
) -> tuple[float, float, float]:
    """G2: accuracy within A, within B and across, on random pairs of new videos.

    Regression sees every scored video once an epoch; preferences 8,000 random pairs of each source.
    """
    data = two_scales(seed, own_curve)
    train = [data[name, "train"] for name in "AB"]
    ends = [
        [part.score_n.mean(), part.score_n.std(), *ends]
        for part, ends in zip(train, ((0, 100), (1, 4)), strict=True)
    ]
    made = arrays.build(arrays.config(model, **loss), arrays.facts(16, 8, "AB", ends))
    system = arrays.by_rows(made)
    rng, video_bv, source_b = np.random.default_rng(100 + seed), [], []
    for number, part in enumerate(train):
        rows_bv = np.stack(part.pairs(8000, rng), axis=1)
        if loss.get("kind") == "mse":
            rows_bv = rng.permutation(len(part.score_n)).reshape(-1, 2)
        video_bv.append(rows_bv + number * len(train[0].score_n))
        source_b += [number] * len(rows_bv)
    rows_bv = np.concatenate(video_bv)
    turn_b = rng.random(len(rows_bv)) < 0.5
    rows_bv[turn_b] = rows_bv[turn_b, ::-1]
    score_n = np.concatenate([part.score_n for part in train]).astype(np.float32)
    fields = arrays.columns(
        rows_bv, np.zeros(len(rows_bv)), np.where(turn_b, -1, 1),
        dimension_b=np.full(len(rows_bv), arrays.AESTHETICS, np.int32),
        source_b=np.array(source_b, np.int32), score_bv=score_n[rows_bv],
    )  # fmt: skip
    tables = {"video": np.concatenate([part.video_nf for part in train]), "text": QUESTION}
    params = arrays.train(system, fields, tables, steps=steps, batch_size=256, seed=seed)
    a, b = (
        (data[name, "test"], alone(system, params, data[name, "test"].video_nf)) for name in "AB"
    )
    return ordered_right(a, a), ordered_right(b, b), ordered_right(a, b)


def alone(system: Any, params: Any, video_nf: np.ndarray) -> np.ndarray:
    """Reward of every video under the constant question."""
    size = len(video_nf) // 2
    fields = arrays.columns(
        np.arange(2 * size).reshape(size, 2), np.zeros(size), np.zeros(size),
        dimension_b=np.full(size, arrays.AESTHETICS, np.int32),
    )  # fmt: skip
    found = arrays.rewards(system, params, fields, {"video": video_nf, "text": QUESTION})
    return found["reward"].reshape(-1)


def ordered_right(
    first: tuple[ScaledSource, np.ndarray], second: tuple[ScaledSource, np.ndarray]
) -> float:
    """Part of 4,000 random pairs that the rewards order as the truth does."""
    rng = np.random.default_rng(9)
    a, b = (rng.integers(len(part.score_n), size=4000) for part, _ in (first, second))
    truth_b = first[0].quality_n[a] - second[0].quality_n[b]
    keep_b = truth_b != 0
    found_b = np.sign(first[1][a] - second[1][b]) == np.sign(truth_b)
    return float(np.mean(found_b[keep_b]))


def mismatches(
    seed: int, ties: bool = False, weight: float = 1.0, steps: int = 800, **loss: Any
) -> float:
    """G3: part of the test pairs whose own video is preferred.

    `ties` drops the coin's answers; `weight` 0 leaves only the contrastive term.
    """
    data = mismatch_pairs(seed)
    system = arrays.system(16, 16, **loss)
    fields, tables = packed(data["train"])
    if ties:
        fields["answer_b"] = np.zeros_like(fields["answer_b"])
    fields["weight_b"] = np.full_like(fields["weight_b"], weight)
    params = arrays.train(system, fields, tables, steps=steps, batch_size=128, seed=seed)
    reward_bv = arrays.rewards(system, params, *packed(data["test"]))["reward"]
    return float(np.mean(reward_bv[:, 0] > reward_bv[:, 1]))
