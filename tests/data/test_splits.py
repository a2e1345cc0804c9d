"""The split by video: shares, disjointness, determinism, and the leak it removes."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import UNSPLIT, Comments, Corpus
from jaxvsa.data.splits import by_video, leak_report

pytestmark = pytest.mark.smoke


def corpus_of(*videos: str) -> Corpus:
    """One split per argument; each letter is a comment on the video of that name."""
    names = ("train", "dev", "test")[: len(videos)] if len(videos) > 1 else (UNSPLIT,)
    splits = {}
    for name, letters in zip(names, videos, strict=True):
        splits[name] = Comments(
            key=[f"{name}{i}" for i in range(len(letters))],
            video=list(letters),
            text=list(letters),
            labels={"mood": np.zeros(len(letters), np.int32)},
        )
    return Corpus(splits, {"mood": ("a", "b")}, {"rows": 1})


def large(seed: int) -> Corpus:
    """1,500 videos of 1 to 20 comments, in random order."""
    rng = np.random.default_rng(seed)
    video = rng.permutation(np.repeat(np.arange(1500), rng.integers(1, 21, 1500)))
    comments = Comments(
        key=[str(i) for i in range(len(video))],
        video=[f"v{g}" for g in video],
        text=[""] * len(video),
        labels={"mood": np.arange(len(video), dtype=np.int32)},
    )
    return Corpus({UNSPLIT: comments}, {"mood": ("a", "b")})


def test_leak_report_of_five_comments_by_hand():
    report = leak_report(corpus_of("aab", "ac", "cdd"))
    assert report == {
        "train": {"comments": 3, "videos": 2},
        "dev": {"comments": 2, "videos": 2, "videos_in_train": 1, "comments_in_train": 1},
        "test": {"comments": 3, "videos": 2, "videos_in_train": 0, "comments_in_train": 0},
    }


def test_leak_report_weighs_videos_by_their_comments():
    report = leak_report(corpus_of("ab", "aaac", "d"))
    assert (report["dev"]["videos_in_train"], report["dev"]["comments_in_train"]) == (1, 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_by_video_shares_are_within_half_a_point_and_no_video_is_shared(seed):
    corpus = large(seed)
    split = by_video(corpus, seed)
    videos = {name: set(part.video) for name, part in split.splits.items()}
    assert not videos["train"] & (videos["dev"] | videos["test"])
    assert not videos["dev"] & videos["test"]
    for name, share in {"train": 70, "dev": 10, "test": 20}.items():
        assert abs(100 * len(split.splits[name]) / len(corpus) - share) <= 0.5
    keys = sorted(key for part in split.splits.values() for key in part.key)
    assert keys == sorted(corpus.splits[UNSPLIT].key)
    assert leak_report(split)["test"]["comments_in_train"] == 0


def test_by_video_is_a_function_of_the_seed_and_not_of_the_order():
    corpus = large(0)
    comments = corpus.comments()
    shuffled = Corpus(
        {UNSPLIT: comments.take(np.random.default_rng(9).permutation(len(comments)))},
        corpus.label_names,
    )
    videos = [
        {name: set(part.video) for name, part in by_video(c, seed).splits.items()}
        for c, seed in ((corpus, 0), (corpus, 0), (shuffled, 0), (corpus, 1))
    ]
    assert videos[0] == videos[1] == videos[2] != videos[3]


def test_by_video_keeps_the_order_and_the_labels_of_the_comments():
    split = by_video(large(0), 0)
    for part in split.splits.values():
        numbers = [int(key) for key in part.key]
        assert numbers == sorted(numbers)
        np.testing.assert_array_equal(part.labels["mood"], numbers)
    assert split.report["by_video_seed"] == 0


@pytest.mark.parametrize("videos", ["abc", "aaaaaaaaab" + "c", "a" + "bbbbbbbbbb" + "c" * 50])
def test_by_video_gives_every_split_a_video_however_few_there_are(videos):
    for seed in range(6):
        split = by_video(corpus_of(videos), seed)
        assert list(split.splits) == ["train", "dev", "test"]
        assert all(len(part) for part in split.splits.values())


def test_by_video_needs_three_videos():
    with pytest.raises(UserError, match="at least 3 videos, the data has 2"):
        by_video(corpus_of("aab"), 0)
