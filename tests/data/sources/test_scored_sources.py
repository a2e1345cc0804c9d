"""Readers of scores and votes: small files of each format, and every way to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import DIMENSIONS, QUESTIONS, dimension_of
from jaxvsa.data.sources import genai_bench, scored_jsonl, t2vqa, videoalign, videofeedback

pytestmark = pytest.mark.smoke

FEEDBACK = {
    "id": "v1", "images": [], "text prompt": "a cat ", "video link": "http://x/v1.mp4",
    "visual quality": 3, "temporal consistency": 1, "dynamic degree": 4,
    "text-to-video alignment": 2, "factual consistency": 1,
}  # fmt: skip
VOTE = {
    "prompt": "a cat", "left_model": "m", "left_video": "l.mp4", "right_model": "n",
    "right_video": {"path": "r.mp4"}, "vote_type": "rightvote",
}  # fmt: skip
SCORED = {
    "video_id": "v", "source": "own", "prompt": "a cat", "scores": {"MQ": -1.5, "overall": None},
    "score_range": {"MQ": [-2, 2]}, "n_raters": 3, "split": "val", "hash": "00",
}  # fmt: skip
PAIR = {
    "dimension": "TA", "source": "own", "prompt_a": "a cat", "prompt_b": "a dog",
    "video_a": "v", "video_b": "w", "answer": "tie",
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes rows as JSON lines, or text as it is; None removes a field."""

    def write(content: Any, **changed: Any) -> Path:
        path = tmp_path / "file"
        if isinstance(content, dict):
            rows = [content, {**content, **changed}] if changed else [content]
            rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
            content = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_dimensions_have_questions_and_every_name_of_the_map():
    assert len(DIMENSIONS) == 7 and len(set(QUESTIONS.values())) == 7
    assert dimension_of("Subject_Consistency", "f:1") == "character_continuity"
    assert [dimension_of(n, "") for n in ("VQ", "MQ", "TA", "Overall", "vote")] == [
        "visual_aesthetics", "motion_continuity", "text_alignment", "overall", "overall",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"f:1: unknown dimension 'dynamc degree'; did you mean 'd"):
        dimension_of("dynamc degree", "f:1")


def test_t2vqa_splits_at_the_first_and_the_last_bar(write):
    (video,) = t2vqa.read_release(write("0001.mp4|a cat | a dog|61.5\n\n")).videos
    assert (video.video_id, video.prompt) == ("t2vqa/0001.mp4", "a cat | a dog")
    assert video.scores == {"overall": 61.5} and sum(video.score_range["overall"]) / 2 == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.mp4|no score", r"file:2: expected filename\|prompt\|mos"),
        ("b.mp4|cat|nan", r"file:2, field 'mos' is 'nan', not a finite number; correct it"),
        ("b.mp4|cat|high", "file:2, field 'mos' is 'high'"),
        ("b.mp4|cat|500", "is 500, outside -49.6 to 149.6"),
        ("b.mp4||50", "field 'prompt' has an empty text"),
        ("|cat|50", "field 'filename' has an empty text"),
        ("a.mp4|cat|50", "video 't2vqa/a.mp4' was already at .*file:1"),
    ],
)
def test_t2vqa_refuses(write, line, message):
    with pytest.raises(UserError, match=message):
        t2vqa.read_release(write(f"a.mp4|cat|50\n{line}\n"))


def test_videofeedback_by_hand_and_from_conversations(write):
    (video,) = videofeedback.read_release(write(FEEDBACK)).videos
    assert video.video_id == "videofeedback/v1" and video.prompt == "a cat"
    assert video.scores == {
        "visual_aesthetics": 3, "motion_continuity": 1, "dynamism": 4, "text_alignment": 2,
        "physical_realism": 1,
    }  # fmt: skip
    spoken = "\n".join(f"{name}: {FEEDBACK[name]}" for name in videofeedback.COLUMNS)
    row = {k: v for k, v in FEEDBACK.items() if k not in videofeedback.COLUMNS}
    row["conversations"] = [{"from": "human", "value": "?"}, {"from": "gpt", "value": spoken}]
    assert videofeedback.read_release(write(json.dumps([row]))).videos == (video,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"visual quality": 5}, "file:2, field 'visual quality' is 5, outside 1 to 4"),
        ({"visual quality": 2.5}, "is 2.5, not one of the levels 1 to 4"),
        ({"dynamic degree": "x"}, "field 'dynamic degree' is 'x', not a finite number"),
        ({"dynamic degree": True}, "is True, not a finite number"),
        ({"factual consistency": None}, "field 'factual consistency' is None"),
        ({"text prompt": " "}, "field 'text prompt' has an empty text"),
        ({"id": None}, "field 'id' is missing"),
        ({"text prompt": "b"}, "video 'videofeedback/v1' was already at .*file:1"),
        ({"id": "v2", "split": "all"}, "field 'split' is 'all'.*known: train, dev, test"),
    ],
)
def test_videofeedback_refuses(write, changed, message):
    with pytest.raises(UserError, match=message):
        videofeedback.read_release(write(FEEDBACK, **changed))


TABLE = "path_A,path_B,prompt,VQ,MQ,TA,Overall,invalid,fps_A\n"


def test_videoalign_by_hand(write):
    text = TABLE + 'a.mp4,b.mp4,"a cat, wet",A,same,B,,0,8\nc.mp4,d.mp4,dog,A,A,A,A,1,8\n'
    found = videoalign.read_release(write(text))
    assert [(vote.dimension, vote.answer) for vote in found.votes] == [
        ("visual_aesthetics", 1), ("motion_continuity", 0), ("text_alignment", -1),
    ]  # fmt: skip
    assert {vote.prompt_a for vote in found.votes} == {"a cat, wet"} and not found.benchmark
    wrapped = videoalign.read_release(write(TABLE + 'a,b,"a\ncat",A,A,A,A,0,8\n'))
    assert wrapped.votes[0].prompt_a == "a\ncat"
    assert found.report == {"invalid": 1, "no_answer": 1} and len(found.videos) == 2
    assert videoalign.read_release(write(text), benchmark=True).benchmark


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE + "a,b,cat,C,A,A,A,0,8\n", "file:2, field 'VQ' is 'C'.*known: A, B, same"),
        (TABLE + "a,b,cat,A\n", "file:2: expected 9 fields"),
        (TABLE + 'a,b,"cat,A\n', r"file:\d: no CSV \(unexpected end of data\); correct it"),
        (TABLE + "a,b, ,A,A,A,A,0,8\n", "file:2, field 'prompt' has an empty text"),
        ("path_A,prompt,VQ\na,cat,A\n", "file:1: no column path_B"),
        ("path_A,path_B,prompt\na,b,cat\n", "file:1: no column one of VQ"),
    ],
)
def test_videoalign_refuses(write, text, message):
    with pytest.raises(UserError, match=message):
        videoalign.read_release(write(text))


def test_genai_bench_is_a_benchmark_with_ties_of_two_kinds(write):
    path = write(VOTE, vote_type="bothbad_vote")
    found = genai_bench.read_release(path)
    assert found.benchmark and [vote.answer for vote in found.votes] == [-1, 0]
    assert [video.video_id for video in found.videos] == ["genai/m/l.mp4", "genai/n/r.mp4"]
    votes = genai_bench.read_votes(path)
    assert votes["vote"] == [1, 3] and votes["right_video"] == ["r.mp4"] * 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vote_type": "left"}, "file:2, field 'vote_type' is 'left'; did you mean 'leftvote'"),
        ({"left_video": None}, "file:2, field 'left_video' is missing; export"),
        ({"prompt": ""}, "field 'prompt' has an empty text"),
    ],
)
def test_genai_bench_refuses(write, changed, message):
    for reader in (genai_bench.read_release, genai_bench.read_votes):
        with pytest.raises(UserError, match=message):
            reader(write(VOTE, **changed))


def test_own_scores_by_hand(write):
    (video,) = scored_jsonl.read_scored(write(SCORED)).videos
    assert video.scores == {"motion_continuity": -1.5} and video.split == "dev"
    assert video.score_range == {"motion_continuity": (-2, 2)} and video.n_raters == 3
    again = scored_jsonl.read_scored(write(json.dumps(video.to_row())))
    assert again.videos == (video,)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": {"MQ": 3}}, r"file:2, field 'scores.MQ' is 3, outside -2 to 2"),
        ({"scores": {"MQ": float("nan")}}, r"file:2, field 'scores.MQ' is nan"),
        ({"scores": {"MQ": "good"}}, r"field 'scores.MQ' is 'good', not a finite number"),
        ({"scores": {"fun": 1}}, "file:2: unknown dimension 'fun'.*--unknown-dimensions drop"),
        ({"scores": {"MQ": 1, "motion quality": 1}}, "two scores are motion_continuity"),
        ({"scores": 3}, "field 'scores' is missing or no object"),
        ({"score_range": {}}, "field 'score_range': no .lowest, highest. for 'MQ'"),
        ({"score_range": {"MQ": [2, -2]}}, "2 is not below -2; swap them"),
        ({"n_raters": 0}, "field 'n_raters' is 0, outside 1"),
        ({"split": "held out"}, "field 'split' is 'held out'"),
        ({"prompt": ""}, "field 'prompt' has an empty text"),
        ({"prompt": "b"}, "video 'v' was already at .*file:1"),
    ],
)
def test_own_scores_refuse(write, changed, message):
    with pytest.raises(UserError, match=message):
        scored_jsonl.read_scored(write(SCORED, **changed))


def test_unknown_dimensions_are_dropped_on_demand(write):
    row = {**SCORED, "scores": {"fun": 1, "MQ": 1}}
    found = scored_jsonl.read_scored(write(row), unknown="drop")
    assert found.report == {"unknown_dimension": 1} and len(found.videos[0].scores) == 1


def test_own_pairs_by_hand(write):
    found = scored_jsonl.read_pairs(write({**PAIR, "weight": 0.5, "gap": None, "split": "test"}))
    (vote,) = found.votes
    assert (vote.dimension, vote.answer, vote.weight) == ("text_alignment", 0, 0.5)
    assert (vote.gap, vote.split, vote.question) == (None, "test", None)
    assert [(video.video_id, video.prompt) for video in found.videos] == [
        ("v", "a cat"), ("w", "a dog"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "a"}, "file:2, field 'answer' is 'a'.*known: A, B, tie"),
        ({"dimension": "fun"}, "file:2: unknown dimension 'fun'"),
        ({"weight": -1}, "field 'weight' is -1, outside 0 to inf"),
        ({"gap": "big"}, "field 'gap' is 'big'"),
        ({"question": " "}, "field 'question' has an empty text"),
        ({"prompt_b": None}, "field 'prompt_b' is missing"),
    ],
)
def test_own_pairs_refuse(write, changed, message):
    with pytest.raises(UserError, match=message):
        scored_jsonl.read_pairs(write(PAIR, **changed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file is empty; give a file with rows"),
        ("[]", "file is empty; give a file with rows"),
        ('\n{"a": \n', "file:2: not valid JSON"),
        ("[1]", "row 0: expected an object, found int"),
        ("3\n", "file:1: expected an object, found int"),
        ("[{]", "not valid JSON"),
    ],
)
def test_files_that_hold_no_rows(write, content, message):
    with pytest.raises(UserError, match=message):
        scored_jsonl.read_scored(write(content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="none: cannot read it"):
        t2vqa.read_release(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"a|\xe9|50\n")
    with pytest.raises(UserError, match="no UTF-8 at byte 2"):
        t2vqa.read_release(tmp_path / "latin")
