"""Pairs of videos as batches, by hand; which scores answer a question; scores of a source."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.pair_batches import PairExamples, mean_table, score_stats, split_rows
from jaxvsa.data.pairs import KINDS, Pairs
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.scored import DIMENSIONS, ScoredVideo
from jaxvsa.data.videocross import VideoCross

pytestmark = pytest.mark.smoke

LOOKS, ALIGNED = DIMENSIONS.index("visual_aesthetics"), DIMENSIONS.index("text_alignment")
NAN = np.nan


def video(name: str, source: str, looks: float | None, aligned: float | None) -> ScoredVideo:
    given = {"visual_aesthetics": looks, "text_alignment": aligned}
    scores = {dimension: score for dimension, score in given.items() if score is not None}
    return ScoredVideo(name, source, "x", scores, dict.fromkeys(scores, (1.0, 5.0)))


VIDEOS = (
    video("u", "one", 1.0, 5.0), video("v", "one", 4.0, None), video("w", "two", 3.0, 2.0),
    video("x", "one", 2.0, 1.0),
)  # fmt: skip
# Prompts 0 and 2 are near-duplicates: one group.
PAIRS = Pairs.of(
    6,
    question_n=[0, 1, 1, 0, 2, 2],
    dimension_n=[LOOKS, ALIGNED, ALIGNED, LOOKS, ALIGNED, ALIGNED],
    source_n=[0, 0, 0, 2, 0, 0],
    kind_n=[KINDS.index(kind) for kind in
            ("cross_prompt", "same_prompt", "mismatch", "native", "same_prompt", "native")],
    split_n=[0, 0, 0, 2, 2, 1],
    video_a_n=[0, 0, 3, 1, 3, 1],
    video_b_n=[1, 3, 0, 2, 0, 1],
    prompt_a_n=[0, 0, 1, 0, 2, 1],
    prompt_b_n=[1, 0, 0, 1, 0, 1],
    asked_n=[0, 0, 0, 0, 0, 1],
    answer_n=[-1, 1, -1, 0, 1, 1],
    gap_n=[1.5, 0.5, NAN, NAN, 2.0, NAN],
    weight_n=[1.0, 0.5, 1.0, 1.0, 0.25, 1.0],
)  # fmt: skip
CROSS = VideoCross(
    VIDEOS, ("one", "two", "across"), ("looks?", "aligned: a?", "aligned: b?"), ("a", "b", "a!"),
    ("g9", "g1", "g9"), PAIRS, tuple("pqrstu"), {},
)  # fmt: skip
# The table has its own order: x, w, v, u with 1, 5, 2 and 3 rows; a video that no pair needs.
FRAMES = FeatureTable.from_counts(
    np.arange(24, dtype=np.float16).reshape(12, 2), np.array([1, 5, 2, 3, 1]), list("xwvuz")
)
WORDS = FeatureTable.from_counts(
    np.arange(18, dtype=np.float16).reshape(6, 3), np.array([3, 1, 2]),
    ["aligned: b?", "aligned: a?", "looks?"],
)  # fmt: skip


def make(row_n: Any = range(6), videos: Any = FRAMES, questions: Any = WORDS, **changes: Any):
    options = {"num_frames": 3, "num_words": 2, "resident": False} | changes
    return PairExamples(CROSS, np.array(row_n), videos, questions, **options)


def load(examples: PairExamples, index: list[int], **sizes: int) -> dict[str, np.ndarray]:
    index_b = np.array(index)
    sizes = {"t": 3, "l": 2, "k": len(index), "m": len(index), **sizes}
    return examples.batch(index_b, index_b >= 0, sizes, 1)


WANT = {
    "index_b": np.int32([2, 0, 1]),
    "valid_b": np.array([True, True, True]),
    "answer_b": np.int32([0, -1, -1]),
    "weight_b": np.float32([1, 1, 1]),
    "gap_b": np.float32([0, 1.5, 0]),
    "source_b": np.int32([2, 0, 0]),
    "dimension_b": np.int32([LOOKS, LOOKS, ALIGNED]),
    "group_b": np.int32([1, 1, 1]),
    "score_bv": np.float32([[NAN, NAN], [1, 4], [NAN, 5]]),
    # w has five rows, of which three are read: 0, 2, 4 of 1 to 5.
    "video_bvt": np.int32(
        [[[6, 7, -1], [1, 3, 5]], [[8, 9, 10], [6, 7, -1]], [[0, -1, -1], [8, 9, 10]]]
    ),
    # Two rows ask the same; the third place holds nothing.
    "asked_b": np.int32([0, 0, 1]),
    "question_gk": np.int32([[0, 1, -1]]),
    "text_gkl": np.int32([[[4, 5], [3, -1], [-1, -1]]]),
    "frames_bvtf": np.float16(
        [
            [[[12, 13], [14, 15], [0, 0]], [[2, 3], [6, 7], [10, 11]]],
            [[[16, 17], [18, 19], [20, 21]], [[12, 13], [14, 15], [0, 0]]],
            [[[0, 1], [0, 0], [0, 0]], [[16, 17], [18, 19], [20, 21]]],
        ]
    ),
    "words_gkle": np.float16(
        [[[[12, 13, 14], [15, 16, 17]], [[9, 10, 11], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]]
    ),
}


def test_batch_equals_the_hand_made_one():
    examples = make([0, 2, 3])
    assert len(examples) == 3 and examples.row_n.tolist() == [0, 2, 3]
    assert examples.source_n.tolist() == [0, 0, 2]
    assert examples.video_nv.tolist() == [[0, 1], [3, 0], [1, 2]]
    found = load(examples, [2, 0, 1])
    assert list(found) == [
        "index_b", "valid_b", "answer_b", "weight_b", "gap_b", "source_b", "dimension_b",
        "group_b", "score_bv", "asked_b", "question_gk", "video_bvt", "frames_bvtf", "text_gkl",
        "words_gkle",
    ]  # fmt: skip
    for name, want in WANT.items():
        np.testing.assert_array_equal(found[name], want, err_msg=name)
        assert found[name].dtype == want.dtype, name


def test_resident_tables_leave_their_rows_on_the_device():
    full, found = load(make(), [5, 0]), load(make(resident=True), [5, 0])
    assert full.keys() - found.keys() == {"frames_bvtf", "words_gkle"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, full[name])


def test_scores_answer_the_question_that_is_asked():
    score_bv = load(make(), [0, 1, 2, 3, 4, 5])["score_bv"]
    want = [
        [1, 4],  # any prompt, since the question has none
        [5, 1],
        [NAN, 5],  # x was made from another prompt than the one that is asked
        [NAN, NAN],  # scales of two sources
        [1, 5],  # a near-duplicate of the prompt
        [NAN, NAN],  # v has no such score
    ]
    np.testing.assert_array_equal(score_bv, np.float32(want))


def test_without_a_table_its_fields_are_absent():
    found = load(make(videos=None), [0, 1])
    assert not {"video_bvt", "frames_bvtf"} & found.keys() and "words_gkle" in found
    bare = make(videos=None, questions=None)
    assert {name: axis.need_b.tolist() for name, axis in bare.axes().items()} == {
        "t": [1] * 6, "l": [1] * 6, "k": [1] * 6,
    }  # fmt: skip
    assert "score_bv" in load(bare, [0]) and bare.in_order().tolist() == list(range(6))


def test_each_group_has_its_questions_and_anchors():
    """Rows 1, 2, 4 and 5 are about a prompt and decided; only row 5 has another prompt's group."""
    examples, index_b = make(contrasts=True), np.array([1, 0, 2, 4, 5, 3])
    sizes = {"t": 3, "l": 2, "k": 3, "m": 2}
    found = examples.batch(index_b, np.ones(6, bool), sizes, 2)
    assert found["question_gk"].tolist() == [[0, 1, -1], [0, 2, -1]]
    assert found["asked_b"].tolist() == [1, 0, 1, 1, 1, 0]
    assert found["text_gkl"].tolist() == [
        [[4, 5], [3, -1], [-1, -1]], [[4, 5], [0, 2], [-1, -1]],
    ]  # fmt: skip
    assert found["anchor_gm"].tolist() == [[0, -1], [0, 1]]
    valid_b = np.array([False, True, True, True, False, True])
    found = examples.batch(index_b, valid_b, sizes, 2)
    assert found["anchor_gm"].tolist() == [[2, -1], [0, -1]]
    axes = examples.axes()
    assert axes["k"].sizes(index_b.reshape(1, 2, 3)) == 128
    assert axes["m"].need_b.tolist() == [0, 1, 1, 0, 1, 1]
    plan = BatchPlan(axes, 6, groups=2, order=index_b)
    assert plan[0].sizes == {"t": 3, "l": 2, "k": 3, "m": 3}  # no more than a group has rows
    none = make([0, 3], contrasts=True)  # about no prompt: an axis for nobody
    plan = BatchPlan(none.axes(), 2, order=np.arange(2))
    assert plan[0].sizes["m"] == 2
    assert next(iter(iterate(batches(plan, none))))["anchor_gm"].tolist() == [[-1, -1]]
    assert "m" not in make().axes() and "anchor_gm" not in load(make(), [1])


def test_axes_hold_the_longer_video_and_limits_hold():
    axes = make([0, 1, 2, 3]).axes()
    assert axes["t"].need_b.tolist() == [3, 3, 3, 3] and axes["l"].need_b.tolist() == [2, 1, 1, 2]
    assert make([5], num_frames=9).axes()["t"].need_b.tolist() == [2]
    wide = make([3, 5], num_frames=9, num_words=9)
    assert wide.axes()["t"].need_b.tolist() == [5, 2]
    assert wide.axes()["l"].need_b.tolist() == [2, 3]
    assert wide.in_order().tolist() == [1, 0]
    assert wide.axes()["t"].largest(1) == 5  # not rounded up to a multiple
    assert make(num_frames=1, num_words=1).axes()["t"].largest(1) == 1
    np.testing.assert_array_equal(
        load(make([3], num_frames=2), [0], t=2)["video_bvt"], [[[6, 7], [2, 4]]]
    )


def test_pairs_flow_through_the_pipeline_with_their_strata():
    examples = make()
    plan = BatchPlan(examples.axes(), 4, strata_b=examples.source_n, power=0.0, num_steps=4)
    found = list(iterate(batches(plan, examples)))
    assert [batch["index_b"].shape for batch in found] == [(4,)] * 4
    shown = np.concatenate([batch["source_b"][batch["valid_b"]] for batch in found[:2]])
    assert np.bincount(shown, minlength=3).tolist() == [3, 0, 3]
    micro = BatchPlan(examples.axes(), 4, groups=2)
    one = next(iter(iterate(batches(micro, examples, accumulate=2))))
    assert one["video_bvt"].shape[:3] == (2, 2, 2) and one["score_bv"].shape == (2, 2, 2)


def test_numbers_of_sources_are_those_asked_for():
    found = make(sources=["across", "new", "one"])
    assert found.source_n.tolist() == [2, 2, 2, 0, 2, 2]
    assert load(found, [3])["source_b"].tolist() == [0]
    np.testing.assert_array_equal(load(found, [0])["score_bv"], [[1, 4]])
    with pytest.raises(UserError, match=r"no source 'across' among \['one'\]"):
        make(sources=["one"])
    assert len(make([0], sources=["one"])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "config.data.num_frames is 0"),
        ({"num_words": 0}, "config.data.num_words is 0"),
        ({"videos": WORDS}, r"4 videos have no features in the table, first: \['u', 'v', 'w'"),
        ({"questions": FRAMES}, "3 questions have no features in the table, first: .*aligned: a"),
    ],
)
def test_examples_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_rows_of_a_split_with_and_without_mismatches():
    assert split_rows(CROSS, "train").tolist() == [0, 1, 2]
    assert split_rows(CROSS, "train", mismatches=False).tolist() == [0, 1]
    assert split_rows(CROSS, "dev").tolist() == [5]
    assert split_rows(CROSS, "test", False).tolist() == [3, 4]


@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_mean_table_is_the_mean_in_float32(monkeypatch, block, dtype):
    monkeypatch.setattr("jaxvsa.data.pair_batches.BLOCK_ROWS", block)
    rng = np.random.default_rng(0)
    count_g = rng.integers(1, 6, 20)
    table = FeatureTable.from_counts(
        rng.normal(size=(count_g.sum(), 3)).astype(dtype), count_g, [str(g) for g in range(20)]
    )
    found = mean_table(table)
    assert (
        found.dtype == "float32" and found.row == table.row and found.count_g.tolist() == [1] * 20
    )
    for name in table.row:
        np.testing.assert_allclose(
            found.of(name)[0], table.of(name).astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-6
        )


def test_score_statistics_are_of_the_videos_of_train():
    """Train has u, v, x of source one; w of source two is in test alone."""
    mean, std, low, high = score_stats(CROSS)
    assert len(mean) == 3 and len(mean[0]) == len(DIMENSIONS)
    assert mean[0][LOOKS] == pytest.approx(7 / 3) and mean[0][ALIGNED] == 3.0
    assert std[0][LOOKS] == pytest.approx((14 / 9) ** 0.5) and std[0][ALIGNED] == 2.0
    assert (low[0][LOOKS], high[0][LOOKS]) == (1.0, 5.0)
    nothing = {(s, d) for s in range(3) for d in range(7)} - {(0, LOOKS), (0, ALIGNED)}
    assert {(mean[s][d], std[s][d], low[s][d], high[s][d]) for s, d in nothing} == {(0, 1, 0, 1)}
