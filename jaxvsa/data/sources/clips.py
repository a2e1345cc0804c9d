"""Synthetic clips: a square moves over noise, and only the order of the frames says which way.

Source: MTransLLAMA specification, section 1.3, "Order task". The clips of both answers consist of
the same frames, so that a model that is blind to their order cannot be better than chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxvsa.data.features import FeatureTable
from jaxvsa.data.questions import QuestionSet, VideoQuestion

SIDE = 16
"""Pixels of each side of a frame."""
SQUARE = 4
"""Pixels of each side of the square."""
PLACES = SIDE - SQUARE + 1
SIZES = {"train": 2000, "dev": 400, "test": 2000}
BASE_SIZES = {"train": 2000, "dev": 400, "test": 400}

ORDER = "Is the square moving left or right?"
HALF = "Is the square in the left or the right half?"
WAYS = ("left", "right")


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """Questions and the frames that they are about.

    Attributes:
        questions: of all splits.
        frames: a row of pixels (row, column, colour; uint8) for every frame.
    """

    questions: QuestionSet
    frames: FeatureTable


def order_clips(seed: int, sizes: Mapping[str, int] = SIZES, num_frames: int = 4) -> Clips:
    """Clips of `num_frames` frames; label 1 moves right. Clip 2i + 1 is clip 2i backwards."""
    rng = np.random.default_rng((seed, 1))
    asked, parts = [], []
    for split, count in sizes.items():
        pairs = count // 2
        column_pt = 2 * np.sort(_distinct(rng, pairs, num_frames), axis=1)
        row_pt = np.repeat(rng.integers(PLACES, size=(pairs, 1)), num_frames, axis=1)
        right_pti = _draw(rng, column_pt, row_pt)
        both = np.stack([right_pti, right_pti[:, ::-1]], axis=1)
        parts.append(both.reshape(-1, num_frames, both.shape[-1]))
        asked += [_question(f"{split}-{at}", ORDER, 1 - at % 2, split) for at in range(2 * pairs)]
    return _table(asked, np.concatenate(parts))


def half_frames(seed: int, sizes: Mapping[str, int] = BASE_SIZES) -> Clips:
    """Single frames; label 1 is the right half. What an image model is trained on."""
    rng = np.random.default_rng((seed, 0))
    asked, parts = [], []
    for split, count in sizes.items():
        column_n1 = rng.integers(PLACES - 1, size=(count, 1))
        column_n1 += column_n1 >= PLACES // 2  # never in the middle
        parts.append(_draw(rng, column_n1, rng.integers(PLACES, size=(count, 1))))
        right_n = (column_n1[:, 0] > PLACES // 2).astype(int)
        asked += [
            _question(f"{split}-{at}", HALF, label, split)
            for at, label in enumerate(right_n.tolist())
        ]
    return _table(asked, np.concatenate(parts))


def _question(name: str, text: str, label: int, split: str) -> VideoQuestion:
    return VideoQuestion(
        id=name, video=name, question=text, answer=WAYS[label], options=WAYS, label=label,
        split=split,
    )  # fmt: skip


def _distinct(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """`count` different ones of the even columns, halved, in every row."""
    return np.argsort(rng.random((rows, (PLACES + 1) // 2)), axis=1)[:, :count]


def _draw(rng: np.random.Generator, column_nt: np.ndarray, row_nt: np.ndarray) -> np.ndarray:
    """Frames with a bright square over noise, uint8 (n,t,i); a clip keeps its colour."""
    clips, frames = column_nt.shape
    image = rng.integers(0, 96, size=(clips, frames, SIDE, SIDE, 3), dtype=np.uint8)
    colour = rng.integers(160, 256, size=(clips, 1, 1, 1, 3), dtype=np.uint8)
    at = np.arange(SIDE)
    inside_y = (at >= row_nt[..., None]) & (at < row_nt[..., None] + SQUARE)
    inside_x = (at >= column_nt[..., None]) & (at < column_nt[..., None] + SQUARE)
    inside = inside_y[..., :, None, None] & inside_x[..., None, :, None]
    return np.where(inside, colour, image).reshape(clips, frames, -1)


def _table(asked: list[VideoQuestion], pixel_nti: np.ndarray) -> Clips:
    count_n = np.full(len(asked), pixel_nti.shape[1])
    names = [question.video for question in asked]
    rows = pixel_nti.reshape(-1, pixel_nti.shape[-1])
    return Clips(QuestionSet(tuple(asked)), FeatureTable.from_counts(rows, count_n, names))
