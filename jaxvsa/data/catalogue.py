"""Videos and prompts of all sources as numbered lists, with the group and split of each prompt."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.prompts import components, group_names, near_duplicates, prompt_key, split_of
from jaxvsa.data.scored import RewardRows, ScoredVideo, Vote

TEST = SPLITS.index("test")


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """Everything that rows refer to.

    Attributes:
        videos: sorted by id; of several with one hash the smallest id.
        video: id -> place in `videos`, ids that were merged included.
        sources: names, sorted.
        keys: `prompt_key`s, each once.
        texts: for each key the prompt as it was first written.
        key: prompt -> place in `keys`.
        group_k: prompt group of each key, int64.
        groups: name of each group.
        split_k: index into `SPLITS` of each key.
        benchmark_k: bool, whether a benchmark has a prompt of the group.
    """

    videos: list[ScoredVideo]
    video: dict[str, int]
    sources: list[str]
    keys: list[str]
    texts: list[str]
    key: dict[str, int]
    group_k: np.ndarray
    groups: list[str]
    split_k: np.ndarray
    benchmark_k: np.ndarray


def make_catalogue(parts: Sequence[RewardRows], seed: int) -> Catalogue:
    """Numbers videos and prompts, groups the prompts, draws the split of each group.

    Near-duplicate prompts are one group, and so are prompts that share a video. A group with a
    prompt of a benchmark is test; one for which rows declare a split has the last of these in the
    order train, dev, test; the others are drawn by a hash of their name.

    Source: A5, steps 1, 6 and 8; CA2, 12.

    Raises:
        UserError: one id for two scored videos; a vote on an unknown video.
    """
    videos, number = _number_videos(parts)
    keys, texts, key = _number_prompts(parts)
    edges = np.concatenate([near_duplicates(keys), _shared(parts, number, key)])
    group_k = components(len(keys), edges)
    groups = group_names(keys, group_k)
    benchmark_g, declared_g = np.zeros(len(groups), bool), np.full(len(groups), -1)
    for part, prompt, declared in _prompts(parts):
        group = group_k[key[prompt]]
        benchmark_g[group] |= part.benchmark
        if declared is not None:
            declared_g[group] = max(declared_g[group], SPLITS.index(declared))
    drawn_g = np.array([split_of(name, seed) for name in groups], np.int64)
    split_g = np.where(declared_g >= 0, declared_g, drawn_g)
    split_g[benchmark_g] = TEST
    return Catalogue(
        videos, number, sorted({video.source for part in parts for video in part.videos}),
        keys, texts, key, group_k, groups, split_g[group_k], benchmark_g[group_k],
    )  # fmt: skip


def check_votes(parts: Sequence[RewardRows], found: Catalogue) -> None:
    """A vote's declared split must be that of both its prompts.

    Raises:
        UserError: it is not; file and line are named.
    """
    for vote in (vote for part in parts if not part.benchmark for vote in part.votes):
        for prompt in (vote.prompt_a, vote.prompt_b):
            k = found.key[prompt]
            split = SPLITS[found.split_k[k]]
            if vote.split not in (None, split) and not found.benchmark_k[k]:
                raise UserError(
                    f"{vote.where}: a pair of {vote.split}, but the prompt {prompt[:40]!r}, or one "
                    f"near it, is declared {split} elsewhere; give both one split"
                )


def _number_videos(parts: Sequence[RewardRows]) -> tuple[list[ScoredVideo], dict[str, int]]:
    """The videos by id, and the place of every id."""
    known: dict[str, ScoredVideo] = {}
    for video in (video for part in parts for video in part.videos):
        other = known.get(video.video_id)
        if other is not None and other.scores and video.scores:
            raise UserError(
                f"video '{video.video_id}' is scored by {other.source} and again by "
                f"{video.source}; give --source each file once, and each video its own id"
            )
        if other is None or video.scores:
            known[video.video_id] = video
    smallest: dict[str, str] = {}
    for name in sorted(known):
        if known[name].hash is not None:
            smallest.setdefault(str(known[name].hash), name)
    merged = {name: smallest.get(str(known[name].hash), name) for name in known}
    kept = sorted(set(merged.values()))
    place = {name: g for g, name in enumerate(kept)}
    for vote in (vote for part in parts for vote in part.votes):
        for name in (vote.video_a, vote.video_b):
            if name not in known:
                raise UserError(f"{vote.where}: no video '{name}'; list it in a scored file")
    return [known[name] for name in kept], {name: place[of] for name, of in merged.items()}


def _number_prompts(parts: Sequence[RewardRows]) -> tuple[list[str], list[str], dict[str, int]]:
    """Keys, their first prompts, and the place of the key of every prompt."""
    place: dict[str, int] = {}
    key: dict[str, int] = {}
    texts: list[str] = []
    for _, prompt, _ in _prompts(parts):
        if prompt not in key:
            name = prompt_key(prompt)
            if name not in place:
                place[name] = len(place)
                texts.append(prompt)
            key[prompt] = place[name]
    return list(place), texts, key


def _prompts(parts: Sequence[RewardRows]) -> Iterator[tuple[RewardRows, str, str | None]]:
    """Every prompt with the split that its row declares."""
    for part in parts:
        for video in part.videos:
            yield part, video.prompt, video.split
        for vote in part.votes:
            yield part, vote.prompt_a, vote.split
            yield part, vote.prompt_b, vote.split


def _shared(parts: Sequence[RewardRows], number: dict[str, int], key: dict[str, int]) -> np.ndarray:
    """Pairs of prompts that share a video, int64 (n, 2)."""
    first: dict[int, int] = {}
    edges = []
    for part in parts:
        for name, prompt in _shown(part.videos, part.votes):
            k = key[prompt]
            one = first.setdefault(number[name], k)
            if one != k:
                edges.append((one, k))
    return np.array(sorted(set(edges)), np.int64).reshape(-1, 2)


def _shown(videos: Sequence[ScoredVideo], votes: Sequence[Vote]) -> Iterator[tuple[str, str]]:
    for video in videos:
        yield video.video_id, video.prompt
    for vote in votes:
        yield vote.video_a, vote.prompt_a
        yield vote.video_b, vote.prompt_b


def usable(part: RewardRows, found: Catalogue, dropped: Counter) -> Iterator[ScoredVideo]:
    """The scored videos that may enter pairs; the others are counted in `dropped`.

    Left out are "benchmark_prompt", rows near a benchmark's prompts, and "declared_split", rows
    that declare another split than rows near them.
    """
    for video in part.videos:
        k = found.key[video.prompt]
        if not video.scores:
            continue
        if found.benchmark_k[k] and not part.benchmark:
            dropped["benchmark_prompt"] += 1
        elif video.split not in (None, SPLITS[found.split_k[k]]):
            dropped["declared_split"] += 1
        else:
            yield video
