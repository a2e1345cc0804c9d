"""Predictions that need no model: what any result has to be read beside.

Ties: of several labels that are equally frequent, the one that occurs first in the order of the
train examples wins, unless a function says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def majority(train_label_n: np.ndarray, num_examples: int) -> np.ndarray:
    """The most frequent train label, predicted for every example; int32 (num_examples,)."""
    label = _first_most_common(train_label_n, np.zeros(len(train_label_n), np.int64))[0]
    return np.full(num_examples, label, np.int32)


def video_majority(
    train_video: Sequence[str], train_label_n: np.ndarray, video: Sequence[str]
) -> np.ndarray:
    """The most frequent label among the train comments of the same video.

    It looks at neither text nor video, and on CSMV's official split, where nearly every test
    video has train comments, it is a strong baseline.

    Args:
        train_video: video of each train comment.
        train_label_n: int class index of each train comment, >= 0.
        video: video of each example to predict.

    Returns:
        int32, one label per entry of `video`; a video without train comments gets `majority`.
    """
    names, train_video_n = np.unique(np.asarray(train_video, dtype=np.str_), return_inverse=True)
    label_g = _first_most_common(train_label_n, train_video_n)
    known = dict(zip(names.tolist(), label_g.tolist(), strict=True))
    fallback = int(majority(train_label_n, 1)[0])
    return np.array([known.get(name, fallback) for name in video], np.int32)


def speaker_prior(
    train_speaker: Sequence[str],
    train_label_n: np.ndarray,
    speaker: Sequence[str],
    tie_label: int = 1,
) -> np.ndarray:
    """The most frequent label among the train utterances of the same speaker.

    It reads one name and nothing that is said. On MUStARD's released folds it is right for 476 of
    690 utterances.

    Source: MTransLLAMA specification, section 4.

    Args:
        train_speaker: speaker of each train utterance.
        train_label_n: int class index of each train utterance, >= 0.
        speaker: speaker of each utterance to predict.
        tie_label: wins where it is as frequent as any other label of its speaker; 1 is
            "sarcastic". Among other labels the lowest wins.

    Returns:
        int32, one label per entry of `speaker`; an unseen speaker gets `majority`.
    """
    fallback = int(majority(train_label_n, 1)[0])
    counts: dict[str, Counter[int]] = {}
    for name, label in zip(train_speaker, np.asarray(train_label_n).tolist(), strict=True):
        counts.setdefault(name, Counter())[label] += 1
    best = {
        name: min(found, key=lambda label: (-found[label], label != tie_label, label))
        for name, found in counts.items()
    }
    return np.array([best.get(name, fallback) for name in speaker], np.int32)


def option_chance(num_options: Sequence[int]) -> float:
    """Expected accuracy of a uniform guess among each question's own options, 0 to 1.

    Raises:
        ValueError: no question, or one without options.
    """
    if not num_options or min(num_options) < 1:
        raise ValueError("chance needs questions with at least one option each")
    return sum(1 / count for count in num_options) / len(num_options)


def _first_most_common(label_n: np.ndarray, group_n: np.ndarray) -> np.ndarray:
    """Most frequent label of every group 0..g-1, earliest in order among equals."""
    label_n = np.asarray(label_n)
    if label_n.size == 0:
        raise ValueError("no train labels: a majority label needs at least one")
    shape = int(group_n.max()) + 1, int(label_n.max()) + 1
    count_gc = np.zeros(shape, np.int64)
    np.add.at(count_gc, (group_n, label_n), 1)
    first_gc = np.full(shape, label_n.size)
    np.minimum.at(first_gc, (group_n, label_n), np.arange(label_n.size))
    most_g = count_gc.max(axis=1, keepdims=True)
    return np.argmin(np.where(count_gc == most_g, first_gc, label_n.size), axis=1)
