"""Questions as padded batches, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.language import ragged
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.question_batches import Clips, QuestionExamples, choices_of, padded

pytestmark = pytest.mark.smoke

PAD = 1
PROMPTS = ragged([[0, 5, 6], [0, 7], [0, 8, 9, 10]])
ANSWERS = ragged([[20, 2], [21, 22, 2], [2]])
WORDS = ragged([[3, 30, 4], [3, 4], [3, 31, 32, 4]])
OFFERED = ragged([[20, 2], [23, 24, 2], [21, 22, 2], [20, 2], [25, 2], [2]])
# Clips of 1, 6 and 2 frames.
TABLE = FeatureTable.from_counts(
    np.arange(18, dtype=np.uint8).reshape(9, 2), np.array([1, 6, 2]), ["u", "v", "w"]
)


def clips(**changes: Any) -> Clips:
    fields = {
        "row_b": np.array([1, 0, 2]), "features": TABLE, "num_frames": 3, "num_patches": 0,
        "resident": False,
    }  # fmt: skip
    return Clips(**{**fields, **changes})


def make(**changes: Any) -> QuestionExamples:
    fields: dict[str, Any] = {
        "prompts": PROMPTS, "answers": ANSWERS, "words": WORDS,
        "labels": {"way": np.array([0, 0, 2])}, "choices": choices_of(OFFERED, [2, 1, 3]),
        "clips": clips(), "pad_id": PAD,
    }  # fmt: skip
    return QuestionExamples(**{**fields, **changes})


def load(
    examples: QuestionExamples, index: list[int], sizes: Mapping[str, int], valid: Any = None
) -> dict[str, np.ndarray]:
    valid = [True] * len(index) if valid is None else valid
    return examples.batch(np.array(index), np.array(valid), sizes, 1)


SIZES = {"n": 5, "a": 4, "w": 12, "l": 5}
WANT = {
    "index_b": np.int32([2, 0, 1]),
    "valid_b": np.array([True, True, False]),
    "label_way_b": np.int32([2, 0, 0]),
    "prompt_bn": np.int32([[1, 0, 8, 9, 10], [1, 1, 0, 5, 6], [1, 1, 1, 0, 7]]),
    "prompt_length_b": np.int32([4, 3, 2]),
    "answer_ba": np.int32([[2, 1, 1, 1], [20, 2, 1, 1], [21, 22, 2, 1]]),
    "answer_length_b": np.int32([1, 2, 3]),
    "ids_gw": np.int32([[3, 31, 32, 4, 3, 30, 4, 3, 4, 0, 0, 0]]),
    "word_bl": np.int32([[0, 1, 2, 3, -1], [4, 5, 6, -1, -1], [7, 8, -1, -1, -1]]),
    # What is not offered repeats the last answer, and has no length.
    "choice_bcy": np.int32(
        [
            [[20, 2, 1], [25, 2, 1], [2, 1, 1]],
            [[20, 2, 1], [23, 24, 2], [23, 24, 2]],
            [[21, 22, 2], [21, 22, 2], [21, 22, 2]],
        ]
    ),
    "choice_length_bc": np.int32([[2, 2, 1], [2, 3, 0], [3, 0, 0]]),
    # Of 6 frames the second, fourth and last; of fewer than 3 the last again.
    "frame_bt": np.int32([[7, 8, 8], [2, 4, 6], [0, 0, 0]]),
    "pixel_bti": np.uint8(
        [
            [[14, 15], [16, 17], [16, 17]],
            [[4, 5], [8, 9], [12, 13]],
            [[0, 1], [0, 1], [0, 1]],
        ]
    ),
}


def assert_batch(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, strict=True, err_msg=name)


def test_batch_equals_the_hand_made_one() -> None:
    assert_batch(load(make(), [2, 0, 1], SIZES, [True, True, False]), WANT)


def test_words_are_packed_for_each_group_of_its_own() -> None:
    index, valid = np.array([2, 1, 0, 0]), np.ones(4, bool)
    got = make().batch(index, valid, {**SIZES, "w": 8}, 2)
    want = np.int32([[3, 31, 32, 4, 3, 4, 0, 0], [3, 30, 4, 3, 30, 4, 0, 0]])
    np.testing.assert_array_equal(got["ids_gw"], want, strict=True)
    want = np.int32([[0, 1, 2, 3, -1], [4, 5, -1, -1, -1], [0, 1, 2, -1, -1], [3, 4, 5, -1, -1]])
    np.testing.assert_array_equal(got["word_bl"], want, strict=True)


def test_resident_clips_leave_the_pixels_on_the_device() -> None:
    got = load(make(clips=clips(resident=True)), [2, 0, 1], SIZES, [True, True, False])
    assert_batch(got, {name: array for name, array in WANT.items() if name != "pixel_bti"})


def test_patches_of_a_frame_are_consecutive_rows() -> None:
    """Clips of 1, 3 and 2 frames, of two patches each."""
    values = np.arange(12, dtype=np.float16)[:, None]
    table = FeatureTable.from_counts(values, np.array([2, 6, 4]), ["u", "v", "w"])
    found = clips(features=table, num_frames=2, num_patches=2)
    got = load(make(clips=found), [2, 0, 1], SIZES)
    want = np.int32([[[8, 9], [10, 11]], [[2, 3], [6, 7]], [[0, 1], [0, 1]]])
    np.testing.assert_array_equal(got["patch_btp"], want, strict=True)
    np.testing.assert_array_equal(got["frames_btpf"], want[..., None].astype("f2"), strict=True)


@pytest.mark.parametrize(
    ("count", "num_frames", "want"),
    [
        (8, 4, [1, 3, 5, 7]),  # midpoints of [0, 2), [2, 4), ...
        (100, 4, [12, 37, 62, 87]),
        (5, 4, [0, 1, 3, 4]),
        (4, 4, [0, 1, 2, 3]),
        (3, 4, [0, 1, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (7, 1, [3]),
    ],
)
def test_frames_are_midpoints_of_equal_parts(count: int, num_frames: int, want: list[int]) -> None:
    table = FeatureTable.from_counts(np.zeros((count, 1), np.uint8), np.array([count]), ["v"])
    found = clips(features=table, row_b=np.zeros(1, int), num_frames=num_frames)
    assert found.chosen().tolist() == [want]


def test_clip_that_is_no_whole_number_of_frames_is_refused() -> None:
    with pytest.raises(UserError, match="clip 'u' has 1 rows, no multiple of the 2 patches"):
        make(clips=clips(num_patches=2))


def test_what_is_absent_has_no_fields() -> None:
    got = load(make(words=None, choices=None, clips=None, labels={}), [2, 0, 1], SIZES)
    absent = ("ids", "word", "choice", "frame", "pixel", "label")
    want = {k: v for k, v in WANT.items() if not k.startswith(absent)}
    assert_batch(got, {**want, "valid_b": np.ones(3, bool)})
    assert list(make(words=None).axes()) == ["n", "a"]
    assert choices_of(ragged([]), [0, 0, 0]) is None


def test_axes_hold_every_question() -> None:
    axes = make().axes()
    needs = {name: axis.need_b.tolist() for name, axis in axes.items()}
    assert needs == {"n": [3, 2, 4], "a": [2, 3, 1], "w": [3, 2, 4], "l": [3, 2, 4]}
    assert [name for name, axis in axes.items() if axis.packed] == ["w"]
    assert make().in_order().tolist() == [1, 0, 2]


def test_padding_is_on_the_side_that_is_asked_for() -> None:
    index = np.array([1, 2])
    assert padded(PROMPTS, index, 4, 9).tolist() == [[0, 7, 9, 9], [0, 8, 9, 10]]
    assert padded(PROMPTS, index, 4, 9, left=True).tolist() == [[9, 9, 0, 7], [0, 8, 9, 10]]
    assert padded(ragged([[], [3]]), np.array([0, 1]), 2, 9).tolist() == [[9, 9], [3, 9]]


def test_every_question_comes_back_whole_through_plan_and_threads() -> None:
    rng = np.random.default_rng(0)
    rows = {
        name: [rng.integers(3, 99, n).tolist() for n in rng.integers(1, 40, 57)]
        for name in ("prompts", "answers", "words")
    }
    tables = {name: ragged(found) for name, found in rows.items()}
    examples = QuestionExamples(
        **tables, labels={"n": np.arange(57)}, choices=None, clips=None, pad_id=PAD
    )
    plan, seen = BatchPlan(examples.axes(), 8, groups=2, shapes=3, seed=1), []
    assert len(plan.shapes()) <= 3
    for batch in iterate(batches(plan, examples, shards=((0, 1), 2))):
        for b in np.flatnonzero(batch["valid_b"]):
            number = int(batch["index_b"][b])
            length = batch["prompt_length_b"][b]
            assert batch["prompt_bn"][b, -length:].tolist() == rows["prompts"][number]
            length = batch["answer_length_b"][b]
            assert batch["answer_ba"][b, :length].tolist() == rows["answers"][number]
            place_l = batch["word_bl"][b][batch["word_bl"][b] >= 0]
            assert batch["ids_gw"][b // 4, place_l].tolist() == rows["words"][number]
            seen.append(number)
    assert sorted(seen) == list(range(57))


def test_two_batches_share_no_memory() -> None:
    examples = make()
    for leaf in load(examples, [2, 0, 1], SIZES).values():
        leaf[...] = 0
    assert_batch(load(examples, [2, 0, 1], SIZES, [True, True, False]), WANT)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": {"way": np.zeros(2, int)}}, "'way': 2"),
        ({"answers": ragged([[2]])}, "'answers': 1"),
        ({"words": ragged([[2]])}, "'words': 1"),
        ({"choices": choices_of(OFFERED, [6])}, "'choices': 1"),
        ({"clips": clips(row_b=np.zeros(5, int))}, "'clips': 5"),
    ],
)
def test_examples_refuse(changes: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(**changes)
