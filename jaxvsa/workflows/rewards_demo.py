"""The synthetic rewards of the demo: two scales, votes across them, votes on prompts.

Four sources, written as a VideoCross folder like any other:

    mos, levels   one quality, graded on two scales (G2, each around its own mean)
    across        votes between a video of mos and one of levels by that quality; not in train
    aligned       votes on two videos of one prompt (G4: cosines, ties by Rao and Kupper)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core import distributed
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.scored import QUESTIONS, RewardRows, ScoredVideo, Vote
from jaxvsa.data.scored_pairs import Settings
from jaxvsa.data.sources.reward_demo import BETA, bt_cosine, random_prompts, two_scales
from jaxvsa.data.videocross import VideoCross, build
from jaxvsa.data.videocross_files import Features, write_videocross
from jaxvsa.workflows.demo import DEMO

QUALITY, ALIGNMENT = "visual_aesthetics", "text_alignment"
WIDTH = 24
TIE_K = 3.0
"""True k of the ties of "aligned"."""
RANGES = {"mos": (0.0, 100.0), "levels": (1.0, 4.0)}
ENCODER = "synthetic"
PER_PROMPT = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Chosen: about 4 s to write; two projections to 256 and a learned scale, 4,000 updates of 256
    pairs, get .987 of mos, .997 of levels, .989 of across and .871 of aligned right in test, where
    .897 of aligned is the most (seed 0).

    Attributes:
        graded: videos of each scale in train, dev and test; multiples of `PER_PROMPT`.
        across: votes across the scales in train, dev and test.
        prompts: prompts of "aligned" in train, dev and test.
        votes: of each of these prompts.
    """

    graded: tuple[int, int, int] = (2000, 200, 600)
    across: tuple[int, int, int] = (0, 400, 1200)
    prompts: tuple[int, int, int] = (2000, 100, 300)
    votes: int = 5


def ensure_rewards(run: Path, root: str, seed: int) -> Path:
    """The VideoCross folder `root`; the demo's is made by one process if it is not there yet.

    Args:
        run: the run directory; the demo lies in `data/prepared`.
        root: a folder, or "demo".
        seed: of the generator, the pairs and their order.

    Raises:
        UserError: the demo that is there has another seed.
    """
    if root != DEMO:
        return Path(root)
    prepared = run / "data" / "prepared"
    with distributed.first_before_others("demo rewards"):
        if not prepared.exists():
            write_rewards(prepared, seed)
        found = rewards_facts(prepared)
        if found is None or found["seed"] != seed:
            other = "no demo" if found is None else f"the demo of seed {found['seed']}"
            raise UserError(f"{prepared} is {other}, not of seed {seed}; choose another --run")
    return prepared


def rewards_facts(root: Path) -> dict[str, Any] | None:
    """What is known of the demo in a folder, None for any other data.

    Returns:
        "seed"; "tie_k"; "slope", of the true log-odds on the difference of the cosines; "bayes",
        split -> source -> accuracy that nothing but chance exceeds: share of the decided pairs
        that the truth behind them answers right.
    """
    return read_json(root / "card.json", "the data card").get("demo")


def write_rewards(out: Path, seed: int, sizes: Sizes | None = None) -> None:
    """Writes the synthetic rewards; the same seed gives the same files.

    Args:
        out: a new folder.
        seed: of everything.
        sizes: None = the demo's.

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    sizes = sizes or Sizes()
    made = _Made({}, {}, {}, {})
    rng = np.random.default_rng((seed, len(SPLITS)))
    num = 2 * sum(sizes.graded) // PER_PROMPT + sum(sizes.prompts)
    prompts = iter(random_prompts(rng, num))
    graded = _graded(made, prompts, seed, sizes, rng)
    aligned = _aligned(made, prompts, seed, sizes)
    settings = Settings(
        seed=seed,
        mismatches=0,
        delta={"mos": 8.3, "levels": 0.5},
        tie_eps={"mos": 1.66, "levels": 0.0},
    )
    cross = build([*graded, _across(made, sizes, rng), aligned], settings)
    facts = {"seed": seed, "tie_k": TIE_K, "slope": BETA, "bayes": _bayes(cross, made.truth)}
    cross = dataclasses.replace(cross, card={**cross.card, "demo": facts})
    questions = {text: made.texts[text] for text in cross.questions}
    write_videocross(out, cross, _table(made.features), _table(questions))


@dataclasses.dataclass(frozen=True, eq=False)
class _Made:
    """What stands behind the rows.

    Attributes:
        features: video -> (f,).
        texts: question -> (f,).
        truth: video -> what its answers are drawn from, comparable where videos are compared.
        graded: (source, split) -> videos with a score.
    """

    features: dict[str, np.ndarray]
    texts: dict[str, np.ndarray]
    truth: dict[str, float]
    graded: dict[tuple[str, str], list[ScoredVideo]]


def _graded(
    made: _Made, prompts: Iterator[str], seed: int, sizes: Sizes, rng: np.random.Generator
) -> list[RewardRows]:
    """The two scales, several videos for each prompt."""
    rotation_ff = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    found = two_scales(seed, num=max(sizes.graded[0], sum(sizes.graded[1:])))
    parts = []
    for source, theirs in (("mos", "A"), ("levels", "B")):
        rows: list[ScoredVideo] = []
        first = {"train": 0, "dev": 0, "test": sizes.graded[1]}
        for split, count in zip(SPLITS, sizes.graded, strict=True):
            of = found[theirs, "train" if split == "train" else "test"]
            low, high = RANGES[source]
            videos = made.graded.setdefault((source, split), [])
            prompt = ""
            for i in range(count):
                prompt = prompt if i % PER_PROMPT else next(prompts)
                n = first[split] + i
                score = float(np.clip(of.score_n[n], low, high))
                name = f"{source}_{split}_{i:05d}"
                scores, ranges = {QUALITY: score}, {QUALITY: (low, high)}
                videos.append(ScoredVideo(name, source, prompt, scores, ranges, split=split))
                made.features[name] = of.video_nf[n] @ rotation_ff[: of.video_nf.shape[1]]
                made.truth[name] = float(of.quality_n[n])
            rows += videos
        parts.append(RewardRows(tuple(rows)))
    return parts


def _across(made: _Made, sizes: Sizes, rng: np.random.Generator) -> RewardRows:
    """Votes on a video of each scale, by the quality behind both."""
    votes = []
    for split, count in zip(SPLITS, sizes.across, strict=True):
        mos, levels = (made.graded[source, split] for source in ("mos", "levels"))
        pick_n = rng.choice(len(mos) * len(levels), count, replace=False)
        for n in pick_n.tolist():
            a, b = mos[n // len(levels)], levels[n % len(levels)]
            answer = 1 if made.truth[a.video_id] > made.truth[b.video_id] else -1
            votes.append(_vote("across", QUALITY, a, b, answer, split))
    shown = {video.video_id: video for part in made.graded.values() for video in part}
    named = {name for vote in votes for name in (vote.video_a, vote.video_b)}
    videos = [ScoredVideo(name, "across", shown[name].prompt) for name in sorted(named)]
    return RewardRows(tuple(videos), tuple(votes))


def _aligned(made: _Made, prompts: Iterator[str], seed: int, sizes: Sizes) -> RewardRows:
    """Votes on two videos of one prompt each; every video is in one vote alone."""
    num_train, *rest = sizes.prompts
    drawn = bt_cosine(seed, num_train, sum(rest), sizes.votes, TIE_K)
    videos: list[ScoredVideo] = []
    votes = []
    for half in ("train", "test"):
        pairs = drawn[half]
        for n, prompt_number in enumerate(pairs.prompt_b.tolist()):
            if n % sizes.votes == 0:
                prompt = next(prompts)
                split = SPLITS[
                    int(np.searchsorted(np.cumsum(sizes.prompts), prompt_number, "right"))
                ]
                made.texts[QUESTIONS[ALIGNMENT].format(prompt=prompt)] = pairs.text_bf[n]
            a, b = (
                ScoredVideo(f"aligned_{half}_{n:05d}{side}", "aligned", prompt, split=split)
                for side in "ab"
            )
            for v, video in enumerate((a, b)):
                made.features[video.video_id] = pairs.video_bvf[n, v]
                made.truth[video.video_id] = float(pairs.logit_b[n]) * (v == 0)
            videos += [a, b]
            votes.append(_vote("aligned", ALIGNMENT, a, b, int(pairs.answer_b[n]), split))
    # The direction in which prompts differ least, so that one bilinear form can serve them and it.
    texts_nf = drawn["train"].text_bf
    made.texts[QUESTIONS[QUALITY]] = 2 * np.linalg.svd(texts_nf, full_matrices=False)[2][-1]
    return RewardRows(tuple(videos), tuple(votes))


def _vote(
    source: str, dimension: str, a: ScoredVideo, b: ScoredVideo, answer: int, split: str
) -> Vote:
    return Vote(
        source, dimension, a.video_id, b.video_id, a.prompt, b.prompt, answer, "the demo",
        split=split,
    )  # fmt: skip


def _bayes(cross: VideoCross, truth: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Split -> source -> share of the decided pairs whose answer is that of the truth."""
    pairs = cross.pairs
    truth_g = np.array([truth[video.video_id] for video in cross.videos])
    gap_n = truth_g[pairs.video_a_n] - truth_g[pairs.video_b_n]
    found: dict[str, dict[str, float]] = {}
    for number, split in enumerate(SPLITS):
        for s, source in enumerate(cross.sources):
            of_n = (pairs.split_n == number) & (pairs.source_n == s) & (pairs.answer_n != 0)
            if of_n.any():
                right_n = gap_n[of_n] * pairs.answer_n[of_n] > 0
                found.setdefault(split, {})[source] = float(right_n.mean())
    return found


def _table(rows: Mapping[str, np.ndarray]) -> Features:
    """One float16 row for each name, sorted."""
    names = sorted(rows)
    values_nf = np.stack([rows[name] for name in names]).astype(np.float16)
    table = FeatureTable.from_counts(values_nf, np.ones(len(names), np.int32), names)
    return table, table.describe(ENCODER)
