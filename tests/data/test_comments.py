import ml_dtypes
import numpy as np
import pytest

from jaxvsa.data.comments import CommentExamples, Videos
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


TOKENS = tokens_of([0, 7, 2], [0, 8, 9, 8, 2], [0, 2], [0, 6, 2])
LABELS = {"opinion": np.array([2, 0, 1, 2], np.int32), "mood": np.array([5, 6, 7, 8], np.int32)}
TABLE = FeatureTable.from_counts(
    np.arange(14, dtype=np.float16).reshape(7, 2), np.array([5, 2]), ["u.mp4", "v.mp4"]
)


def videos(**changes):
    """Comment 1 answers u, cut from 5 frames to 4, the others v of 2 frames, which keeps 1 more."""
    fields = {
        "row_b": np.array([1, 0, 1, 1], np.int32),
        "features": TABLE,
        "limit": 4,
        "margin": 1,
        "resident": False,
        "share": False,
    }
    return Videos(**fields | changes)


def make(**changes):
    arguments = {
        "tokens": TOKENS,
        "labels": LABELS,
        "videos": videos(),
        "pad_id": PAD,
        "text_len": 5,
    }
    return CommentExamples(**arguments | changes)


def load(examples, index, valid=None, groups=1, **sizes):
    valid = [True] * len(index) if valid is None else valid
    return examples.batch(np.array(index), np.array(valid), sizes, groups)


def assert_batch(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, strict=True, err_msg=name)


# Two groups: comments 2 and 1, comments 0 and 3.
ROWS = {
    "index_b": np.int32([2, 1, 0, 3]),
    "valid_b": np.array([True, True, True, False]),
    "label_opinion_b": np.int32([1, 0, 2, 2]),
    "label_mood_b": np.int32([7, 6, 5, 8]),
}
WORDS = {
    # Comment 1 is full: no padding token of its own. One place behind each group is free.
    "ids_gn": np.int32([[0, 2, 1, 0, 8, 9, 8, 2, 1], [0, 7, 2, 1, 0, 6, 2, 1, 1]]),
    "word_bl": np.int32(
        [
            [0, 1, 2, -1, -1, -1],
            [3, 4, 5, 6, 7, -1],
            [0, 1, 2, 3, -1, -1],
            [4, 5, 6, 7, -1, -1],
        ]
    ),
    "length_b": np.int32([2, 5, 3, 3]),
}
FRAMES = {
    # A video of 3 rows leaves one free: the next begins at an even row.
    "frame_gm": np.int32(
        [[5, 6, -1, -1, 0, 1, 2, 3, -1, -1], [5, 6, -1, -1, 5, 6, -1, -1, -1, -1]]
    ),
    "shot_bt": np.int32([[0, 1, 2, -1], [4, 5, 6, 7], [0, 1, 2, -1], [4, 5, 6, -1]]),
    "count_b": np.int32([2, 4, 2, 2]),
}
NOTHING, V = [[0, 0]], [[10, 11], [12, 13]]
FRAMES["video_gmf"] = np.float16(
    [
        V + NOTHING * 2 + [[0, 1], [2, 3], [4, 5], [6, 7]] + NOTHING * 2,
        V + NOTHING * 2 + V + NOTHING * 4,
    ]
)


def load_hand_made(examples):
    return load(examples, [2, 1, 0, 3], [True, True, True, False], groups=2, n=9, l=6, m=10, t=4)


def test_batch_of_two_groups_equals_the_hand_made_one():
    assert_batch(load_hand_made(make()), ROWS | WORDS | FRAMES)


def test_comments_of_a_group_on_one_video_share_its_frames():
    """By hand as above: the second group holds v once, the first has nothing to share."""
    shared = FRAMES | {
        "frame_gm": np.int32([[0, 1, 2, 3, 5, 6] + [-1] * 4, [5, 6] + [-1] * 8]),
        "shot_bt": np.int32([[4, 5, 6, -1], [0, 1, 2, 3], [0, 1, 2, -1], [0, 1, 2, -1]]),
    }
    video_gmf = np.zeros((2, 10, 2), np.float16)
    video_gmf[0, :4], video_gmf[0, 4:6] = TABLE.values_nf[:4], TABLE.values_nf[5:]
    video_gmf[1, :2] = TABLE.values_nf[5:]
    shared["video_gmf"] = video_gmf
    assert_batch(load_hand_made(make(videos=videos(share=True))), ROWS | WORDS | shared)


def test_rows_that_fill_a_rectangle_begin_at_its_rows():
    """Text and frames, shared or not: whoever reads the batch takes it for rows of one length."""
    for share in (False, True):
        batch = load(make(videos=videos(share=share)), [2, 0], n=8, l=4, m=8, t=4)
        assert batch["ids_gn"].tolist() == [[0, 2, 1, 1, 0, 7, 2, 1]]
        assert batch["word_bl"].tolist() == [[0, 1, 2, -1], [4, 5, 6, 7]]
        assert batch["frame_gm"].tolist() == [[5, 6, -1, -1, 5, 6, -1, -1]]
        assert batch["shot_bt"].tolist() == [[0, 1, 2, -1], [4, 5, 6, -1]]


def test_all_padding_tokens_are_kept_if_asked_for():
    examples = make(pad_all=True, text_len=6)
    batch = load(examples, [2, 1], n=12, l=6, m=10, t=4)
    assert batch["ids_gn"].tolist() == [[0, 2, 1, 1, 1, 1, 0, 8, 9, 8, 2, 1]]
    assert batch["word_bl"].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert batch["length_b"].tolist() == [2, 5]
    assert examples.axes()["n"].need_b.tolist() == [6, 6, 6, 6]


def test_resident_features_leave_the_frames_on_the_device():
    resident = load_hand_made(make(videos=videos(resident=True)))
    assert_batch(resident, {k: v for k, v in (ROWS | WORDS | FRAMES).items() if k != "video_gmf"})


def test_one_input_alone_has_no_fields_of_the_other():
    text, video = make(videos=None), make(tokens=None)
    assert list(text.axes()) == ["n", "l"] and list(video.axes()) == ["m", "t"]
    assert_batch(load(text, [2, 1], n=9, l=6), {
        **{k: v[:2] for k, v in (ROWS | WORDS).items() if k != "ids_gn"},
        "ids_gn": WORDS["ids_gn"][:1],
    })  # fmt: skip
    frames = {k: v[: 1 if "_g" in k or k == "frame_gm" else 2] for k, v in FRAMES.items()}
    got = load(video, [2, 1], m=10, t=4)
    assert_batch(got, {k: v[:2] for k, v in ROWS.items()} | frames)


def test_needs_keep_one_pad_and_the_margin_unless_that_is_too_long():
    axes = make().axes()
    assert [axis.packed for axis in axes.values()] == [True, False, True, False]
    assert axes["n"].need_b.tolist() == axes["l"].need_b.tolist() == [4, 5, 3, 4]
    assert axes["t"].need_b.tolist() == [3, 4, 3, 3]
    assert axes["m"].need_b.tolist() == [4, 4, 4, 4]  # up to the next even row
    assert (axes["l"].limit, axes["t"].limit) == (5, 4)
    assert (axes["n"].within, axes["m"].within, axes["m"].owner_b) == ("l", "t", None)
    assert make(text_len=9).axes()["n"].need_b.tolist() == [4, 6, 3, 4]
    assert make(videos=videos(margin=3, limit=7)).axes()["t"].need_b.tolist() == [5, 7, 5, 5]
    assert make(videos=videos(share=True)).axes()["m"].owner_b.tolist() == [1, 0, 1, 1]


def test_order_of_evaluation_is_by_length_of_the_video_then_of_the_text():
    assert make().in_order().tolist() == [2, 0, 3, 1]
    assert make(videos=None).in_order().tolist() == [2, 0, 3, 1]
    turned = videos(row_b=np.array([0, 1, 1, 0], np.int32))
    assert make(videos=turned).in_order().tolist() == [2, 1, 0, 3]
    assert make(tokens=None).in_order().tolist() == [0, 2, 3, 1]
    even = FeatureTable.from_counts(np.ones((6, 2)), np.array([2, 2, 2]), ["a", "b", "c"])
    mixed = videos(features=even, row_b=np.array([2, 0, 1, 0], np.int32))
    assert make(videos=mixed).in_order().tolist() == [3, 1, 2, 0]  # those on one video together


def test_padding_only_appends():
    examples = make(text_len=64)
    small = load(examples, [0, 1], n=10, l=6, m=10, t=4)
    large = load(examples, [0, 1], n=64, l=33, m=96, t=7)
    for name in ("ids_gn", "frame_gm", "video_gmf"):
        size = small[name].shape[1]
        np.testing.assert_array_equal(small[name], large[name][:, :size])
        assert (large[name][:, size:] == {"ids_gn": PAD, "frame_gm": -1}.get(name, 0)).all()
    for name in ("word_bl", "shot_bt"):
        size = small[name].shape[1]
        np.testing.assert_array_equal(small[name], large[name][:, :size])
        assert (large[name][:, size:] == -1).all()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    ("groups", "shards"), [(1, ((0,), 1)), (2, ((0, 1), 2)), (2, ((0,), 2)), (2, ((1,), 2))]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_comment_comes_back_whole_through_plan_and_threads(dtype, groups, shards, share):
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 99, n).tolist() for n in rng.integers(2, 20, 57)]
    count_g = rng.integers(1, 9, 8)
    dtype = TABLE.values_nf.dtype if dtype == "float16" else ml_dtypes.bfloat16
    values_nf = rng.normal(size=(count_g.sum(), 3)).astype(dtype)
    table = FeatureTable.from_counts(values_nf, count_g, [f"{g}" for g in range(8)])
    video_b, labels = rng.integers(0, 8, 57), {"n": np.arange(57, dtype=np.int32)}
    examples = CommentExamples(
        tokens_of(*rows), labels, Videos(video_b, table, 6, 2, False, share),
        pad_id=PAD, text_len=19,
    )  # fmt: skip
    plan = BatchPlan(examples.axes(), 8, groups=groups, shapes=3, seed=1)
    seen, mine = [], [g for g in range(groups) if g in shards[0]]
    for step, batch in enumerate(iterate(batches(plan, examples, shards=shards))):
        planned = plan[step]
        per_group = 8 // groups
        assert batch["ids_gn"].shape == (len(mine), planned.sizes["n"])
        assert batch["frame_gm"].shape == (len(mine), planned.sizes["m"])
        assert batch["shot_bt"].shape == (8 // groups * len(mine), planned.sizes["t"])
        kept = planned.index_b.reshape(groups, -1)[mine].ravel()
        np.testing.assert_array_equal(batch["index_b"], kept)
        for b in np.flatnonzero(batch["valid_b"]):
            n, g = int(batch["label_n_b"][b]), b // per_group
            assert n == batch["index_b"][b]
            at = batch["word_bl"][b]
            assert (at >= 0).sum() == min(len(rows[n]) + 1, 19)
            ids = batch["ids_gn"][g, at[at >= 0]].tolist()
            assert ids == [*rows[n], PAD][:19] and batch["length_b"][b] == len(rows[n])
            frames = table.of(str(video_b[n]))[:6]
            at = batch["shot_bt"][b]
            assert (at >= 0).sum() == min(len(frames) + 2, 6)
            assert batch["count_b"][b] == len(frames)
            tower = batch["video_gmf"][g, at[at >= 0]]
            np.testing.assert_array_equal(tower[: len(frames)], frames)
            assert not tower[len(frames) :].any()
            seen.append(n)
    of_shards = [plan[step].index_b.reshape(groups, -1)[mine] for step in range(len(plan))]
    valid = [plan[step].valid_b.reshape(groups, -1)[mine] for step in range(len(plan))]
    want = np.concatenate(of_shards, axis=None)[np.concatenate(valid, axis=None)]
    assert sorted(seen) == sorted(want)
    if len(mine) == groups:
        assert sorted(seen) == list(range(57))


def test_two_batches_share_no_memory():
    examples = make()
    for leaf in load_hand_made(examples).values():
        leaf[...] = 0
    assert_batch(load_hand_made(examples), ROWS | WORDS | FRAMES)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"labels": {"opinion": np.zeros(2, int)}}, "'opinion': 2, 'tokens': 4"),
        ({"videos": videos(row_b=np.zeros(5, int))}, "'videos': 5"),
        ({"text_len": 4}, "a comment has 5 tokens; encode them with max_len=4"),
    ],
)
def test_examples_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
