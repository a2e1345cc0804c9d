"""Comments with their labels and splits: what every source returns and every later stage reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

SPLITS = ("train", "dev", "test")
UNSPLIT = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class Comments:
    """Comments of one split, column by column; every column has the same length.

    Attributes:
        key: unique name of each comment.
        video: name of the video each comment answers.
        text: the comments as published; an empty string is a comment.
        labels: task -> int32 (b,), indices into `Corpus.label_names[task]`.
        extra: further columns that no model reads, such as the hashtag.
    """

    key: list[str]
    video: list[str]
    text: list[str]
    labels: dict[str, np.ndarray]
    extra: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {"video": self.video, "text": self.text, **self.labels, **self.extra}
        for name, column in columns.items():
            if len(column) != len(self.key):
                raise ValueError(f"column '{name}' has {len(column)} rows, key has {len(self.key)}")

    def __len__(self) -> int:
        return len(self.key)

    def take(self, index_b: np.ndarray | Sequence[int]) -> Comments:
        """The comments at `index_b` (integer positions), in that order, as a new record."""
        at_b = np.asarray(index_b, np.int64)

        def pick(column: list[str]) -> list[str]:
            return [column[i] for i in at_b]

        return Comments(
            key=pick(self.key),
            video=pick(self.video),
            text=pick(self.text),
            labels={task: label_b[at_b] for task, label_b in self.labels.items()},
            extra={name: pick(column) for name, column in self.extra.items()},
        )

    @classmethod
    def join(cls, parts: Sequence[Comments]) -> Comments:
        """All comments of `parts` (at least one, with the same columns), one part after another."""

        def chain(columns: Sequence[list[str]]) -> list[str]:
            return [value for column in columns for value in column]

        return cls(
            key=chain([part.key for part in parts]),
            video=chain([part.video for part in parts]),
            text=chain([part.text for part in parts]),
            labels={
                task: np.concatenate([part.labels[task] for part in parts])
                for task in parts[0].labels
            },
            extra={name: chain([part.extra[name] for part in parts]) for name in parts[0].extra},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A labelled corpus under one protocol, that is, one way of splitting it.

    Attributes:
        splits: "train", "dev", "test" (dev and test may be absent), in this order; or the single
            entry `UNSPLIT` for own data that names no splits.
        label_names: task -> names of its classes, in index order.
        report: what the source counted while reading: JSON values.
    """

    splits: dict[str, Comments]
    label_names: dict[str, tuple[str, ...]]
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    def comments(self) -> Comments:
        """The comments of all splits, one split after another."""
        return Comments.join(list(self.splits.values()))

    def videos(self) -> list[str]:
        """Names of all videos, sorted, each once."""
        return sorted({video for part in self.splits.values() for video in part.video})

    def without_videos(self, dropped: set[str]) -> Corpus:
        """The same corpus without the comments of the videos in `dropped`."""
        kept = {
            split: part.take([i for i, video in enumerate(part.video) if video not in dropped])
            for split, part in self.splits.items()
        }
        return dataclasses.replace(self, splits=kept)


def count_oddities(comments: Comments) -> dict[str, int]:
    """What a reader of the data should know but nothing needs to stop for.

    Returns:
        "empty": blank comments; "duplicates": comments that repeat an earlier one of their video.
    """
    pairs = set(zip(comments.video, comments.text, strict=True))
    return {
        "empty": sum(not text.strip() for text in comments.text),
        "duplicates": len(comments) - len(pairs),
    }
