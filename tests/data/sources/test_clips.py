"""Synthetic clips: what is seen, and that only the order of the frames tells the answer."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvsa.data.sources import clips

pytestmark = pytest.mark.smoke

SIZES = {"train": 40, "dev": 6, "test": 8}


def images(found: clips.Clips) -> np.ndarray:
    """Frames of every clip, (n,t,row,column,colour)."""
    count = found.frames.count_g[0]
    return found.frames.values_nf.reshape(-1, count, clips.SIDE, clips.SIDE, 3)


def columns(image_ntyxk: np.ndarray) -> np.ndarray:
    """Left edge of the square in every frame: everything else is below 96."""
    bright = (image_ntyxk >= 160).all(-1)
    assert (bright.sum((-1, -2)) == clips.SQUARE**2).all()
    assert (image_ntyxk.max(-1)[~bright] < 96).all()
    return bright.any(-2).argmax(-1)


def test_square_moves_the_way_that_is_asked_for() -> None:
    found = clips.order_clips(0, SIZES)
    way_nt = np.sign(np.diff(columns(images(found)), axis=1))
    label_n = np.array([question.label for question in found.questions.questions])
    assert (way_nt == np.where(label_n, 1, -1)[:, None]).all()
    assert label_n.mean() == 0.5


def test_the_other_answer_has_the_same_frames_backwards() -> None:
    image_ntyxk = images(clips.order_clips(3, SIZES))
    np.testing.assert_array_equal(image_ntyxk[1::2], image_ntyxk[::2, ::-1])
    assert np.ptp(image_ntyxk[::2].reshape(27, -1), axis=0).max() > 0


def test_half_is_that_of_the_square() -> None:
    found = clips.half_frames(0, SIZES)
    column_n = columns(images(found))[:, 0]
    label_n = np.array([question.label for question in found.questions.questions])
    middle = clips.PLACES // 2
    np.testing.assert_array_equal(label_n, column_n > middle)
    assert not (column_n == middle).any() and 0.2 < label_n.mean() < 0.8


@pytest.mark.parametrize("make", [clips.order_clips, clips.half_frames])
def test_questions_and_frames_belong_together(make) -> None:
    found = make(0, SIZES)
    asked = found.questions.questions
    assert {split: len(found.questions.split(split)) for split in SIZES} == SIZES
    assert list(found.frames.row) == [question.video for question in asked]
    assert len({question.id for question in asked}) == len(asked)
    assert found.frames.dtype == "uint8" and found.frames.values_nf.shape[1] == 768
    for question in asked:
        assert question.answer == question.options[question.label] == clips.WAYS[question.label]


def test_seed_decides() -> None:
    one, same, other = (clips.order_clips(seed, SIZES).frames.values_nf for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_splits_share_no_clip() -> None:
    found = clips.order_clips(0, SIZES)
    rows = found.frames.values_nf.reshape(sum(SIZES.values()), -1)
    assert len(np.unique(rows, axis=0)) == len(rows)
