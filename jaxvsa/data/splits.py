"""A split by video, and the measure of how far two splits share their videos."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS, Comments, Corpus

SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}


def by_video(corpus: Corpus, seed: int) -> Corpus:
    """The same comments, split again so that no video is in two splits.

    Videos are shuffled and laid on a line, each as long as it has comments; a video belongs to the
    split in which its middle lies. A boundary is then off by at most half a video, so each split
    has its share of the comments within the share of the largest video: within 0.5 points as soon
    as no video has more than 0.5 % of the comments.

    Source: VC-CSA specification, section 4: the official split is by comment; 99.9 % of its test
    comments answer videos that train has seen.
    Chosen: 70/10/20 % of the comments, as the official split; every split has at least one video;
    comments keep their order.

    Args:
        corpus: any protocol, or `UNSPLIT` data: the comments of all its splits are used.
        seed: of the shuffle; the result depends on it, the videos and their numbers of comments.

    Raises:
        UserError: fewer than three videos.
    """
    comments = corpus.comments()
    videos = corpus.videos()
    if len(videos) < len(SPLITS):
        raise UserError(f"a split by video needs at least 3 videos, the data has {len(videos)}")
    row = {video: g for g, video in enumerate(videos)}
    row_b = np.fromiter((row[video] for video in comments.video), np.int64, len(comments))
    order_g = np.random.default_rng(seed).permutation(len(videos))
    split_g = _cut(np.bincount(row_b, minlength=len(videos))[order_g])[np.argsort(order_g)]
    parts = [comments.take(np.flatnonzero(split_g[row_b] == s)) for s in range(len(SPLITS))]
    _check(parts, comments)
    report = {**corpus.report, "by_video_seed": seed}
    return dataclasses.replace(corpus, splits=dict(zip(SPLITS, parts, strict=True)), report=report)


def leak_report(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """Per split: comments, videos, and for dev and test what train has seen.

    Returns:
        split -> "comments", "videos"; for splits beside train also "videos_in_train" and
        "comments_in_train": videos also in train, and comments answering one of them.
    """
    train = set(corpus.splits["train"].video) if "train" in corpus.splits else set()
    report: dict[str, dict[str, Any]] = {}
    for split, part in corpus.splits.items():
        videos = set(part.video)
        report[split] = {"comments": len(part), "videos": len(videos)}
        if split != "train":
            report[split]["videos_in_train"] = len(videos & train)
            report[split]["comments_in_train"] = sum(video in train for video in part.video)
    return report


def _cut(count_g: np.ndarray) -> np.ndarray:
    """Split (0, 1, 2) of videos with `count_g` comments in line order; each split gets a video."""
    middle_g = np.cumsum(count_g) - count_g / 2
    total = count_g.sum()
    num = len(count_g)
    dev = int(np.clip(np.searchsorted(middle_g, SHARES["train"] * total), 1, num - 2))
    end = (SHARES["train"] + SHARES["dev"]) * total
    test = int(np.clip(np.searchsorted(middle_g, end), dev + 1, num - 1))
    return np.repeat(np.arange(len(SPLITS)), [dev, test - dev, num - test])


def _check(parts: list[Comments], comments: Comments) -> None:
    """What the construction promises, asserted: disjoint videos, shares within a video's width."""
    videos = [set(part.video) for part in parts]
    assert not (videos[0] & videos[1] or videos[0] & videos[2] or videos[1] & videos[2])
    largest = max(np.unique(np.array(comments.video), return_counts=True)[1])
    if largest <= 0.005 * len(comments):
        for split, part in zip(SPLITS, parts, strict=True):
            assert abs(len(part) / len(comments) - SHARES[split]) <= 0.005, split
