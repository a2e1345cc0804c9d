"""From scores and votes to rows of pairs: steps 2 and 3 of VideoCross."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.catalogue import Catalogue, usable
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.pairing import (
    count_same_prompt,
    cross_prompt,
    label_gaps,
    mismatch,
    same_prompt,
)
from jaxvsa.data.pairs import KINDS, Pairs
from jaxvsa.data.scored import ALIGNED, DIMENSIONS, QUESTIONS, RewardRows
from jaxvsa.data.sources.t2vqa import STD

THRESHOLDS = {"t2vqa": (STD / 2, STD / 10), "videofeedback": (0.5, 0.0)}
"""Source -> delta and tie_eps in its own units; others have .5 and .1 of their deviation."""
MOST_PAIRS = 5_000_000
"""Pairs of one prompt in a source and dimension, above which memory would not do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the pairs, beside the rows.

    Attributes:
        seed: of splits, draws and order.
        budget: most pairs of all splits together. CleveReward section 3 has 300,000.
        cap: cross-prompt pairs of a video in each of its dimensions.
        mismatches: mismatch pairs of a video in each of its dimensions.
        delta: source -> gap above which a pair is decided, in its units.
        tie_eps: source -> gap up to which a pair is a tie.
        rater_sd: source -> deviation of one rater's score; then weights are the reliability of
            the answer, Phi(gap / (sqrt 2 se)) with se = rater_sd / sqrt(n_raters); ties have 1.
        cross_source_mismatch: the other video of a mismatch may be of another source.
    """

    seed: int = 0
    budget: int = 300_000
    cap: int = 8
    mismatches: int = 1
    delta: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tie_eps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rater_sd: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cross_source_mismatch: bool = False


class Questions:
    """The texts that are asked, each once."""

    def __init__(self, found: Catalogue) -> None:
        self.texts: list[str] = []
        self._place: dict[str, int] = {}
        self._prompts = found.texts

    def number(self, dimension: str, key: int, text: str | None = None) -> int:
        """Place of `text`, or of the template of the dimension with the prompt of `key`."""
        if text is None:
            text = QUESTIONS[dimension]
            text = text.format(prompt=self._prompts[key]) if dimension in ALIGNED else text
        if text not in self._place:
            self._place[text] = len(self.texts)
            self.texts.append(text)
        return self._place[text]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """One row per score; all but `score_n` and `upper_n` are places in lists or counts."""

    video_n: np.ndarray
    source_n: np.ndarray
    dimension_n: np.ndarray
    key_n: np.ndarray
    question_n: np.ndarray
    score_n: np.ndarray
    upper_n: np.ndarray  # bool, in the upper half of its range
    raters_n: np.ndarray  # 0 if unknown
    group_n: np.ndarray
    split_n: np.ndarray

    @classmethod
    def of(
        cls, parts: Sequence[RewardRows], found: Catalogue, asked: Questions, dropped: Counter
    ) -> Scores:
        """The scores of all usable videos, those left out counted in `dropped`."""
        rows: list[tuple] = []
        source = {name: number for number, name in enumerate(found.sources)}
        for video in (video for part in parts for video in usable(part, found, dropped)):
            g, k = found.video[video.video_id], found.key[video.prompt]
            for name, score in video.scores.items():
                upper = score >= sum(video.score_range[name]) / 2
                number = asked.number(name, k)
                place = (g, source[video.source], DIMENSIONS.index(name), k, number)
                rows.append((*place, score, upper, video.n_raters or 0))
        names = [field.name for field in dataclasses.fields(cls)][:8]
        columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.empty(0, int)] * 8
        made = dict(zip(names, columns, strict=True))
        group_n, split_n = found.group_k[made["key_n"]], found.split_k[made["key_n"]]
        return cls(**made, group_n=group_n, split_n=split_n)

    def take(self, rows: np.ndarray) -> Scores:
        """The rows at these places."""
        return Scores(**{name: column[rows] for name, column in vars(self).items()})


def scored_pairs(
    scores: Scores, found: Catalogue, settings: Settings, dropped: Counter
) -> Iterator[Pairs]:
    """Pairs made from scores, each data set and dimension by itself.

    Raises:
        UserError: thresholds that contradict each other; no number of raters where it is needed;
            more than `MOST_PAIRS` pairs of one prompt.
    """
    for source, dimension in np.unique(np.stack([scores.source_n, scores.dimension_n]), axis=1).T:
        of_n = (scores.source_n == source) & (scores.dimension_n == dimension)
        part = scores.take(np.flatnonzero(of_n))
        name, std = found.sources[source], _deviation(part, found.sources[source])
        delta, tie_eps = _thresholds(name, std, settings)
        total = count_same_prompt(part.key_n)
        if total > MOST_PAIRS:
            raise UserError(
                f"source '{name}' has {total:,} pairs of one prompt in {DIMENSIONS[dimension]}; "
                f"give it at most {MOST_PAIRS:,}, with fewer videos for each prompt"
            )
        first_m, second_m = same_prompt(part.key_n)
        gap_m = part.score_n[first_m] - part.score_n[second_m]
        answer_m, keep_m = label_gaps(gap_m, delta, tie_eps)
        dropped["gap_between_tie_eps_and_delta"] += int(np.sum(~keep_m))
        same = _pairs(part, first_m, second_m, "same_prompt", answer_m, std, settings, name)
        yield same.take(keep_m)
        for split in range(len(SPLITS)):
            at_n = np.flatnonzero(part.split_n == split)
            key = f"{settings.seed}\x1f{name}\x1f{DIMENSIONS[dimension]}\x1f{SPLITS[split]}"
            digest = hashlib.sha1(key.encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest, "big"))
            if DIMENSIONS[dimension] in ALIGNED:
                yield _mismatches(scores, part, at_n, found, settings, rng, dropped)
                continue
            first_m, second_m = cross_prompt(
                part.score_n[at_n], part.group_n[at_n], part.video_n[at_n], delta, settings.cap, rng
            )
            first_m, second_m = at_n[first_m], at_n[second_m]
            answer_m = np.sign(part.score_n[first_m] - part.score_n[second_m])
            yield _pairs(part, first_m, second_m, "cross_prompt", answer_m, std, settings, name)


def _mismatches(
    scores: Scores,
    part: Scores,
    at_n: np.ndarray,
    found: Catalogue,
    settings: Settings,
    rng: np.random.Generator,
    dropped: Counter,
) -> Pairs:
    """Videos with a good score, each against one of another prompt."""
    if not len(at_n):
        return Pairs.join([])
    pool = part.take(at_n)
    asked_m = np.repeat(np.flatnonzero(pool.upper_n), settings.mismatches)
    other_n = np.arange(len(at_n))
    if settings.cross_source_mismatch:
        rest_n = (scores.split_n == pool.split_n[0]) & (scores.dimension_n == pool.dimension_n[0])
        rest = scores.take(np.flatnonzero(rest_n & (scores.source_n != pool.source_n[0])))
        columns = vars(pool).keys()
        pool = Scores(**{c: np.concatenate([vars(pool)[c], vars(rest)[c]]) for c in columns})
        other_n = np.arange(len(pool.key_n))
    first_m, second_m = mismatch(
        asked_m, other_n, found.keys, pool.key_n, pool.group_n, pool.video_n, rng
    )
    dropped["no_mismatch_found"] += len(asked_m) - len(first_m)
    answer_m = np.ones(len(first_m))
    return _pairs(pool, first_m, second_m, "mismatch", answer_m, np.nan, settings, "")


def _pairs(
    part: Scores,
    first_m: np.ndarray,
    second_m: np.ndarray,
    kind: str,
    answer_m: np.ndarray,
    std: float,
    settings: Settings,
    source: str,
) -> Pairs:
    """Rows from positions; `std` nan leaves the gap unknown."""
    gap_m = np.abs(part.score_n[first_m] - part.score_n[second_m])
    weight_m = np.ones(len(first_m))
    if source in settings.rater_sd:
        from scipy.special import ndtr

        raters_m = np.minimum(part.raters_n[first_m], part.raters_n[second_m])
        if np.any(raters_m < 1):
            raise UserError(f"--rater-sd {source}: its rows have no n_raters; add them, or leave")
        reliability_m = ndtr(gap_m * np.sqrt(raters_m / 2) / settings.rater_sd[source])
        weight_m = np.where(answer_m != 0, reliability_m, 1.0)
    return Pairs.of(
        len(first_m),
        question_n=part.question_n[first_m],
        dimension_n=part.dimension_n[first_m],
        source_n=part.source_n[first_m],
        kind_n=KINDS.index(kind),
        split_n=part.split_n[first_m],
        video_a_n=part.video_n[first_m],
        video_b_n=part.video_n[second_m],
        prompt_a_n=part.key_n[first_m],
        prompt_b_n=part.key_n[second_m],
        asked_n=part.key_n[first_m],
        answer_n=answer_m,
        gap_n=gap_m / std,
        weight_n=weight_m,
    )


def _deviation(part: Scores, source: str) -> float:
    """Population deviation of the scores of train; that of T2VQA-DB is given."""
    if source == "t2vqa":
        return STD
    train_n = part.score_n[part.split_n == 0]
    return float(np.std(train_n if len(train_n) else part.score_n)) or 1.0


def _thresholds(source: str, std: float, settings: Settings) -> tuple[float, float]:
    delta, tie_eps = THRESHOLDS.get(source, (std / 2, std / 10))
    delta = settings.delta.get(source, delta)
    tie_eps = settings.tie_eps.get(source, min(tie_eps, delta))
    if not 0 <= tie_eps <= delta:
        raise UserError(
            f"source '{source}': tie_eps {tie_eps:g} must lie from 0 to delta {delta:g}; "
            "change --tie-eps or --delta"
        )
    return delta, tie_eps


def voted_pairs(
    parts: Sequence[RewardRows], found: Catalogue, asked: Questions, dropped: Counter
) -> Pairs:
    """What raters compared themselves, as rows of kind "native".

    Votes near a benchmark's prompts, and those whose prompts are in two splits, are left out and
    counted in `dropped`.
    """
    rows: list[tuple] = []
    source = {name: number for number, name in enumerate(found.sources)}
    for part in parts:
        for vote in part.votes:
            a, b = found.key[vote.prompt_a], found.key[vote.prompt_b]
            if (found.benchmark_k[a] or found.benchmark_k[b]) and not part.benchmark:
                dropped["benchmark_prompt"] += 1
                continue
            if found.split_k[a] != found.split_k[b]:
                dropped["across_splits"] += 1
                continue
            videos = (found.video[vote.video_a], found.video[vote.video_b])
            question = asked.number(vote.dimension, a, vote.question)
            place = (question, DIMENSIONS.index(vote.dimension), source[vote.source], 0)
            gap = np.nan if vote.gap is None else abs(vote.gap)
            rows.append((*place, found.split_k[a], *videos, a, b, a, vote.answer, gap, vote.weight))
    names = [field.name for field in dataclasses.fields(Pairs)]
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return Pairs.of(len(rows), **dict(zip(names, map(np.array, columns), strict=True)))
