"""Rows of pairs that need no model: chance, one side, and how often each generator wins."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvsa.evaluation.pairs import (
    MISMATCH,
    TASK,
    DevFit,
    JudgedPairs,
    difference,
    fit_on_dev,
    measure_pairs,
)
from jaxvsa.evaluation.tables import Row

_Key = tuple[str, str, str]  # source, dimension, generator


def pair_baselines(pairs: Mapping[str, JudgedPairs], splits: Sequence[str]) -> list[Row]:
    """Rows to stand below a model's.

    "random": what a guess reaches on average; a threshold of ties, chosen on dev, would call all
    pairs ties or none, whichever is better there. "always A". "generator prior": the videos'
    generators alone, each with its log-odds to win in train, by source and dimension; an unknown
    one has even odds. It is there if train names two generators: the score of a video should say
    more than who made it. Thresholds and temperatures come from dev.

    Chosen: a win more and a loss more than seen for each generator, so that odds are finite; pairs
    with a foreign prompt do not count, since there the prompt decides.

    Args:
        pairs: of "train" (for the prior), "dev" (for thresholds) and all of `splits`.
        splits: to measure.
    """
    dev = pairs.get("dev")
    rows = [Row("random", _chance(pairs, splits))]
    rewards = {
        "always A": {split: _always_a(found) for split, found in pairs.items()},
        "generator prior": _priors(pairs),
    }
    for name, reward in rewards.items():
        if not reward:
            continue
        fit = DevFit()
        if dev is not None:
            fit = fit_on_dev(dev.answer_b, difference(reward["dev"]))
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        for split in splits:
            found, spread = measure_pairs(pairs[split], reward[split], split, fit)
            values, errors = values | found, errors | spread
        if name == "always A":  # one difference for all pairs is no probability
            values = {key: value for key, value in values.items() if not _is_probable(key)}
            errors = {key: error for key, error in errors.items() if key in values}
        rows.append(Row(name, values, errors))
    return rows


def generator_odds(train: JudgedPairs) -> dict[_Key, float]:
    """Log-odds of each generator to win, by (source, dimension, generator); a tie is half a win."""
    wins: dict[_Key, float] = defaultdict(float)
    counts: dict[_Key, int] = defaultdict(int)
    for key_a, key_b, kind, answer in zip(
        _keys(train, train.model_a),
        _keys(train, train.model_b),
        train.kind,
        np.asarray(train.answer_b).tolist(),
        strict=True,
    ):
        if kind == MISMATCH or key_a == key_b:
            continue
        for key, won in ((key_a, (1 + answer) / 2), (key_b, (1 - answer) / 2)):
            if key[-1]:
                wins[key] += won
                counts[key] += 1
    return {
        key: math.log((wins[key] + 1) / (count - wins[key] + 1)) for key, count in counts.items()
    }


def _priors(pairs: Mapping[str, JudgedPairs]) -> dict[str, np.ndarray]:
    """Rewards of every split by generators alone; {} without generators."""
    if "train" not in pairs:
        return {}
    odds = generator_odds(pairs["train"])
    if len({model for *_, model in odds}) < 2:
        return {}
    return {
        split: np.array(
            [[odds.get(key, 0.0) for key in _keys(found, found.model_a)],
             [odds.get(key, 0.0) for key in _keys(found, found.model_b)]]
        ).T.reshape(-1, 2)
        for split, found in pairs.items()
    }  # fmt: skip


def _keys(pairs: JudgedPairs, models: Sequence[str | None]) -> list[_Key]:
    names = models or [None] * len(pairs)
    return [
        (source, dimension, model or "")
        for source, dimension, model in zip(pairs.source, pairs.dimension, names, strict=True)
    ]


def _is_probable(name: str) -> bool:
    figure = name.rpartition("/")[2].removesuffix("_raw")
    return figure in ("log_loss", "brier", "ece", "temperature")


def _always_a(pairs: JudgedPairs) -> np.ndarray:
    return np.tile([1.0, 0.0], (len(pairs), 1))


def _chance(pairs: Mapping[str, JudgedPairs], splits: Sequence[str]) -> dict[str, float]:
    """Expected figures of rewards drawn at random."""
    values = {}
    for split in splits:
        decided_b = np.asarray(pairs[split].answer_b) != 0
        for name in ("without_ties", "log_loss", "log_loss_raw") if decided_b.any() else ():
            values[f"{split}/{TASK}/{name}"] = math.log(2) if "loss" in name else 0.5
        ties = float(np.mean(~decided_b))
        if "dev" in pairs and len(pairs["dev"]):
            dev = float(np.mean(np.asarray(pairs["dev"].answer_b) == 0))
            share = ties if dev > (1 - dev) / 2 else (1 - ties) / 2
            values[f"{split}/{TASK}/with_ties"] = share
        for source in sorted(set(np.asarray(pairs[split].source, np.str_)[decided_b].tolist())):
            values[f"{split}/source {source}/without_ties"] = 0.5
    return values
