"""Questions as rows of a prepared folder: what comes back, and bad frames."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from workflows import small_questions as small

from jaxvsa import doctor as doctor_door
from jaxvsa import prepare as prepare_door
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import write_json
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.questions import QuestionSet, VideoQuestion
from jaxvsa.data.sources import mustard, mvbench, youcook2
from jaxvsa.workflows.prepare_questions import (
    ANONYMOUS,
    PIXELS,
    RECORD,
    clip_names,
    prepare_questions,
    question_table,
    read_asked,
    read_frames,
    read_question,
    read_questions,
    to_corpus,
    write_question,
)

WHOLE = VideoQuestion(
    id="q", video="v.mp4", question="wer? 🐶", answer="(B) zwei", context=(("Ann", 'say "hi"\n'),),
    options=("eins", "zwei"), label=1, start_s=1.5, end_s=2.5, answer_prefix="Best option:(",
    split="test", fold=3, extra={"speaker": "Ann", "show": "x"},
)  # fmt: skip


def test_record_comes_back_but_for_what_a_protocol_decides() -> None:
    assert read_question(write_question(WHOLE)) == dataclasses.replace(
        WHOLE, split="train", fold=None
    )
    bare = VideoQuestion(id="q", video="v", question="?", answer="!")
    assert read_question(write_question(bare)) == bare


def test_prepared_questions_come_back_in_every_protocol(text_root: Path) -> None:
    prepared = Prepared.open(text_root)
    assert prepared.manifest is None and dict(prepared.labels) == {"fun": ("dull", "fun")}
    seen = []
    for fold in range(2):
        comments = prepared.comments(f"own_{fold}", "test")
        found = read_questions(comments, "named")
        assert [one.id for one in found] == comments.key and len(found) == 8
        assert comments.extra["speaker"] == ["Ann"] * 8
        np.testing.assert_array_equal(comments.labels["fun"], [one.label for one in found])
        for one in found:
            number = int(one.id[1:])
            assert one == small.asked(number, "train") and number // 2 % 2 == fold
        seen += comments.key
    assert sorted(seen) == sorted(f"q{n}" for n in range(16))


def test_names_of_speakers_can_be_left_out(text_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data has names alone"):
        read_questions(Prepared.open(text_root).comments("own_0", "train"), "anonymous")
    sets = small.folded(4)
    hidden = QuestionSet(
        tuple(
            dataclasses.replace(one, context=(("Speaker 1", "Hello."),))
            for one in sets["own_0"].questions
        )
    )
    prepared = prepare_questions(sets, tmp_path / "out", "fun", ("dull", "fun"), anonymous=hidden)
    comments = prepared.comments("own_0", "train")
    assert read_questions(comments, "anonymous")[0].context == (("Speaker 1", "Hello."),)
    assert read_questions(comments, "named")[0].context[0] == ("Ann", "Hello.")
    assert {RECORD, ANONYMOUS, "speaker"} <= comments.extra.keys()


def test_ranked_answers_need_a_label() -> None:
    found = QuestionSet((dataclasses.replace(small.asked(0, "train"), label=None),))
    with pytest.raises(UserError, match="question 'q0' has no label; 'fun' needs one for each"):
        to_corpus(found, "fun", ("a", "b"), {})
    assert to_corpus(found, "", (), {}).splits["train"].labels == {}


def test_clips_are_stored_as_pixels(clips_root: Path) -> None:
    prepared = Prepared.open(clips_root)
    assert prepared.manifest["encoder"] == PIXELS and prepared.manifest["dtype"] == "uint8"
    assert prepared.features().count_g.tolist() == [4] * 40


def test_table_counts_questions(text_root: Path) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(question_table(Prepared.open(text_root)))
    text = console.export_text()
    assert "own_0" in text and "own_1" in text and text.count(" 8 ") >= 4


def frames_of(count: int, side: int = 4, **kind: type) -> np.ndarray:
    shape = (count, side, side, 3)
    return np.random.default_rng(count).integers(0, 256, shape).astype(kind.get("dtype", np.uint8))


def test_frames_are_read_from_one_file_each(tmp_path: Path) -> None:
    given = {"a.mp4": frames_of(2), "sub/b.mp4": frames_of(5)}
    (tmp_path / "sub").mkdir()
    for name, frames in given.items():
        np.save((tmp_path / name).with_suffix(".npy"), frames)
    table = read_frames(tmp_path, list(given))
    assert table.dtype == "uint8" and table.count_g.tolist() == [2, 5]
    for name, frames in given.items():
        np.testing.assert_array_equal(table.of(name), frames.reshape(len(frames), -1))


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (None, "b.npy: missing; extract the frames of every clip"),
        (b"nothing", "b.npy: not a plain numeric .npy file"),
        (b"", "b.npy: not a plain numeric .npy file"),
        ("archive", r"b.npy: not a plain numeric .npy file \(a zip archive such as .npz\)"),
        (frames_of(2, dtype=np.float32), r"b.npy holds float32 \(2, 4, 4, 3\); expected uint8"),
        (frames_of(2)[:, :2], r"b.npy holds uint8 \(2, 2, 4, 3\); expected uint8"),
        (frames_of(2)[..., :1], r"b.npy holds uint8 \(2, 4, 4, 1\); expected uint8"),
        (frames_of(2)[0], r"b.npy holds uint8 \(4, 4, 3\); expected uint8"),
        (frames_of(2, side=6), r"b.npy holds 2 frames of \(6, 6, 3\), the others \(4, 4, 3\)"),
        (frames_of(0), "b.npy holds 0 frames"),
    ],
)
def test_bad_frames_are_one_line(tmp_path: Path, frames: object, match: str) -> None:
    np.save(tmp_path / "a.npy", frames_of(1))
    if isinstance(frames, bytes):
        (tmp_path / "b.npy").write_bytes(frames)
    elif isinstance(frames, str):
        np.savez(tmp_path / "b.npz", frames_of(2))
        (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    elif frames is not None:
        np.save(tmp_path / "b.npy", frames)
    with pytest.raises(UserError, match=match) as caught:
        read_frames(tmp_path, ["a.mp4", "b.mp4"])
    assert "\n" not in str(caught.value)


def test_segments_of_one_video_are_clips_of_their_own(tmp_path: Path) -> None:
    ends = ((0, 5), (90, 95.5), (90, 95.5))
    parts = [{"segment": end, "sentence": f"step {at}"} for at, end in enumerate(ends)]
    database = {"x": {"subset": "training", "annotations": parts[:2]},
                "y": {"subset": "validation", "annotations": parts[2:]}}  # fmt: skip
    write_json(tmp_path / youcook2.ANNOTATIONS, {"database": database})
    (tmp_path / "frames").mkdir()
    names = ("x_0-5", "x_90-95.5", "y_90-95.5")
    for count, name in enumerate(names, 1):
        np.save(tmp_path / "frames" / f"{name}.npy", frames_of(count))
    given = ["youcook2", "--root", str(tmp_path), "--frames", str(tmp_path / "frames")]
    prepare_door.main([*given, "--out", str(tmp_path / "out")])
    prepared = Prepared.open(tmp_path / "out")
    table, train = prepared.features(), prepared.comments("official", "train")
    assert train.video == ["x", "x"]  # of one video, for error bars
    assert clip_names(train) == ["x_0-5", "x_90-95.5"] and set(table.row) == set(names)
    assert table.count_g[table.rows(clip_names(train))].tolist() == [1, 2]
    assert doctor_door.main(["--data", str(tmp_path / "out")]) == 0
    (tmp_path / "frames" / "x_0-5.npy").unlink()
    with pytest.raises(UserError, match=r"x_0-5.npy: missing"):
        prepare_door.main([*given, "--out", str(tmp_path / "again")])


def test_train_questions_of_clevrer_without_options_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    asked = [("Which?\n(A) a\n(B) b\n(C) c\n(D) d", "Answer: (D) d"), ("Which?", "red")]
    pairs = [{"i": "", "q": question, "a": answer} for question, answer in asked]
    write_json(tmp_path / "train.json", [{"video": "v.mp4", "QA": pairs}])
    row = {"video": "w.mp4", "question": "Which?", "candidates": ["x", "y", "z"], "answer": "y"}
    for name in mvbench.TASKS.values():
        write_json(tmp_path / f"{name}.json", [row])
    found = read_asked("clevrer_mc", {"root": tmp_path, "train": tmp_path / "train.json"})
    assert found.dropped == 1 and found.names == ("A", "B", "C", "D")
    both = found.sets["official"]
    assert [one.label for one in both.split("train")] == [3] and len(both.split("test")) == 4
    assert both.report == {"train": 1, "test": 4, "without_options": 1}
    write_json(tmp_path / "train.json", [{"video": "v.mp4", "QA": pairs[1:]}])
    with pytest.raises(UserError, match=r"train.json: no question has options that can be read"):
        read_asked("clevrer_mc", {"root": tmp_path, "train": tmp_path / "train.json"})


@pytest.mark.real_data
def test_mustard_gives_every_split_with_and_without_names(mustard_path: Path) -> None:
    found = read_asked("mustard", {"root": mustard_path, "seed": 0})
    folds = [f"{name}_{fold}" for name in mustard.FOLDED for fold in range(5)]
    assert list(found.sets) == [*folds, "mustard_star", "speaker_independent"]
    assert (found.task, found.names) == ("sarcasm", ("not sarcastic", "sarcastic"))
    assert {len(one) for one in found.sets.values()} == {690}
    assert found.anonymous is not None
    assert {who for one in found.anonymous.questions for who, _ in one.context} <= {
        f"Speaker {number}" for number in range(1, 9)
    }
