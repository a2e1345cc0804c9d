import ml_dtypes
import numpy as np
import pytest

from jaxvsa.data.comments import CommentExamples
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.text import Tokens

pytestmark = pytest.mark.smoke

PAD = 1


def tokens_of(*rows):
    length_b = np.array([len(row) for row in rows], np.int32)
    ids_n = np.array([i for row in rows for i in row], np.int32)
    return Tokens(ids_n, np.cumsum(length_b, dtype=np.int64) - length_b, length_b)


TOKENS = tokens_of([0, 7, 2], [0, 8, 9, 8, 2], [0, 2])
LABELS = {"opinion": np.array([2, 0, 1], np.int32), "mood": np.array([5, 6, 7], np.int32)}
TABLE = FeatureTable.from_counts(
    np.arange(12, dtype=np.float16).reshape(6, 2), np.array([4, 2]), ["u.mp4", "v.mp4"]
)


def make(**changes):
    arguments = {
        "tokens": TOKENS,
        "labels": LABELS,
        "video_row_b": np.array([1, 0, 1], np.int32),
        "features": TABLE,
        "pad_id": PAD,
        "text_len": 5,
        "frames_limit": 3,
    }
    return CommentExamples(**arguments | changes)


def make_text(**changes):
    return make(**{"video_row_b": None, "features": None, "frames_limit": 0} | changes)


def load(examples, index, valid=None, **sizes):
    valid = [True] * len(index) if valid is None else valid
    return examples.batch(np.array(index), np.array(valid), sizes)


def test_batch_equals_the_hand_made_one():
    batch = load(make(resident=False), [2, 1, 0], [True, True, False], l=5, t=3)
    want = {
        "ids_bl": np.int32([[0, 2, 1, 1, 1], [0, 8, 9, 8, 2], [0, 7, 2, 1, 1]]),
        "length_b": np.int32([2, 5, 3]),
        "valid_b": np.array([True, True, False]),
        "label_opinion_b": np.int32([1, 0, 2]),
        "label_mood_b": np.int32([7, 6, 5]),
        "frame_bt": np.int32([[4, 5, -1], [0, 1, 2], [4, 5, -1]]),
        "video_btf": np.float16(
            [[[8, 9], [10, 11], [0, 0]], [[0, 1], [2, 3], [4, 5]], [[8, 9], [10, 11], [0, 0]]]
        ),
    }
    assert batch.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(batch[name], array, strict=True, err_msg=name)


def test_resident_features_leave_the_frames_on_the_device():
    assert load(make(), [0], l=4, t=2).keys() == load(
        make(resident=False), [0], l=4, t=2
    ).keys() - {"video_btf"}


def test_text_alone_has_no_frames():
    examples = make_text()
    assert examples.needs().keys() == examples.limits.keys() == {"l"}
    assert not {"frame_bt", "video_btf"} & load(examples, [0], l=4).keys()


def test_needs_keep_one_pad_unless_the_text_is_full():
    examples = make()
    np.testing.assert_array_equal(examples.needs()["l"], [4, 5, 3])
    np.testing.assert_array_equal(examples.needs()["t"], [2, 3, 2])  # the limit cuts 4 to 3
    assert examples.limits == {"l": 5, "t": 3}
    np.testing.assert_array_equal(make_text(text_len=9).needs()["l"], [4, 6, 3])


def test_padding_only_appends():
    examples = make(resident=False, text_len=64, frames_limit=4)
    small, large = load(examples, [0, 1], l=6, t=4), load(examples, [0, 1], l=64, t=32)
    np.testing.assert_array_equal(small["ids_bl"], large["ids_bl"][:, :6])
    np.testing.assert_array_equal(small["frame_bt"], large["frame_bt"][:, :4])
    np.testing.assert_array_equal(small["video_btf"], large["video_btf"][:, :4])
    assert (large["ids_bl"][:, 6:] == PAD).all() and not large["video_btf"][:, 4:].any()
    assert (large["frame_bt"][:, 4:] == -1).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_comment_comes_back_whole_through_plan_and_threads(dtype):
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 99, n).tolist() for n in rng.integers(2, 20, 57)]
    count_g = rng.integers(1, 9, 8)
    dtype = TABLE.values_nf.dtype if dtype == "float16" else ml_dtypes.bfloat16
    values_nf = rng.normal(size=(count_g.sum(), 3)).astype(dtype)
    table = FeatureTable.from_counts(values_nf, count_g, [f"{g}" for g in range(8)])
    video_b, labels = rng.integers(0, 8, 57), {"n": np.arange(57, dtype=np.int32)}
    examples = CommentExamples(
        tokens_of(*rows), labels, video_b, table,
        pad_id=PAD, text_len=19, frames_limit=6, resident=False,
    )  # fmt: skip
    rungs = {"l": (8, 19), "t": (3, 6)}
    plan = BatchPlan(examples.needs(), rungs, 8, limits=examples.limits, seed=1)
    seen = []
    for batch in iterate(batches(plan, examples)):
        for b in np.flatnonzero(batch["valid_b"]):
            n = int(batch["label_n_b"][b])
            assert batch["ids_bl"][b, : batch["length_b"][b]].tolist() == rows[n]
            frames = table.of(str(video_b[n]))[:6]
            np.testing.assert_array_equal(batch["video_btf"][b, : len(frames)], frames)
            assert (batch["frame_bt"][b] >= 0).sum() == len(frames)
            seen.append(n)
    assert sorted(seen) == list(range(57))


def test_two_batches_share_no_memory():
    examples = make(resident=False)
    first = load(examples, [0, 1], l=5, t=3)
    for leaf in first.values():
        leaf[...] = 0
    assert load(examples, [0], l=5, t=3)["ids_bl"].tolist() == [[0, 7, 2, 1, 1]]
    assert TABLE.values_nf[4, 0] == 8 and LABELS["opinion"][0] == 2


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"labels": {"opinion": np.zeros(2, int)}}, "'tokens': 3, 'opinion': 2"),
        ({"video_row_b": np.zeros(4, int)}, "'video_row_b': 4"),
        ({"video_row_b": None}, "go together"),
        ({"features": None}, "go together"),
        ({"text_len": 4}, "a comment has 5 tokens; encode them with max_len=4"),
    ],
)
def test_examples_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
