"""MVBench and VideoChat2-IT: small files of the same format, and every way to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import llm_text
from jaxvsa.data.sources.mvbench import TASKS, read_test, read_train
from jaxvsa.metrics.baselines import option_chance

pytestmark = pytest.mark.smoke


def row(**changed: Any) -> dict[str, Any]:
    """One test question; None removes a field."""
    found = {
        "video": "video_10009.mp4",
        "question": "Are there any moving green objects?",
        "candidates": ["not sure", "yes", "no"],
        "answer": "no",
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes the four test files; `changed` changes the second row of one."""

    def write(**changed: Any) -> Path:
        for name in TASKS.values():
            rows = [row(candidates=["yes", "no"]), row()]
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        if changed:
            rows = [row(), row(**changed)]
            (tmp_path / "moving_count.json").write_text(json.dumps(rows))
        return tmp_path

    return write


def test_a_question_by_hand(release):
    found = read_test(release())
    assert found.report == {"questions": {"OE": 2, "MD": 2, "MC": 2, "MA": 2}}
    question = found.split("test")[1]
    assert (question.id, question.extra) == ("object_existence/1", {"task": "OE"})
    assert question.video == "clevrer/video_validation/video_10009.mp4"
    assert (question.label, question.answer) == (2, "(C) no")
    assert question.options == ("not sure", "yes", "no")
    assert llm_text(question) == (
        "Question: Are there any moving green objects?\n"
        "Options:\n(A) not sure\n(B) yes\n(C) no\n"
        "Only give the best option.\n"
        "Best option:("
    )


def test_chance_is_that_of_the_file(release):
    found = read_test(release(), ["OE"])
    assert option_chance([len(question.options) for question in found.questions]) == (
        pytest.approx((1 / 2 + 1 / 3) / 2)
    )


def test_tasks_can_be_chosen(release):
    found = read_test(release(start=1.5, end=3), tasks=("MC",))
    assert [question.id for question in found.questions] == ["moving_count/0", "moving_count/1"]
    assert [question.start_s for question in found.questions] == [None, 1.5]
    assert found.questions[1].end_s == 3.0
    with pytest.raises(UserError, match=r"unknown task 'MX'.*; known: \['OE', 'MD', 'MC', 'MA'\]"):
        read_test(release(), tasks=("MX",))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "maybe"}, "moving_count.json: row 1: the answer is not exactly one of 2 to 26"),
        ({"candidates": ["no", "no"]}, "the answer is not exactly one"),
        ({"candidates": ["no"]}, "the answer is not exactly one"),
        ({"candidates": ["no", ""]}, "row 1, field 'candidates' has an empty text"),
        ({"candidates": None}, "row 1, field 'candidates' is missing or no list"),
        ({"answer": 2}, "field 'answer' is missing or no text"),
        ({"question": " "}, "field 'question' has an empty text"),
        ({"video": None}, "field 'video' is missing or no text"),
        ({"start": 1.0}, "field 'end' is missing or no number"),
        ({"start": 2, "end": 2}, "row 1: 'start' is not before 'end'"),
    ],
)
def test_a_broken_test_file_is_refused_by_row(release, changed, message):
    with pytest.raises(UserError, match=message):
        read_test(release(**changed))


def test_missing_and_empty_test_files_are_named(release):
    root = release()
    (root / "moving_attribute.json").unlink()
    with pytest.raises(UserError, match=r"moving_attribute.json: cannot read it .*; --root must"):
        read_test(root)
    (root / "moving_attribute.json").write_text("[]")
    with pytest.raises(UserError, match=r"moving_attribute.json: expected a list of objects"):
        read_test(root)


QA = {
    "i": "Watch the video and answer.",
    "q": "Question: What moves?\nOptions:\n(A) The cube (red)\n (B) Nothing \n",
    "a": "Answer: (B) Nothing",
}


def train_file(path: Path, *pairs: Any, video: Any = "video_00001.mp4") -> Path:
    path.write_text(json.dumps([{"video": video, "QA": list(pairs)}]))
    return path


def test_training_rows_by_hand(tmp_path):
    found = read_train(train_file(tmp_path / "train.json", QA, {**QA, "i": "", "a": "(A)"}))
    first, second = found.split("train")
    assert (first.id, first.video) == ("0/0", "video_00001.mp4")
    assert first.options == ("The cube (red)", "Nothing")
    assert (first.label, first.answer) == (1, "Answer: (B) Nothing")
    assert first.question.startswith("Watch the video and answer. Question: What moves?\nOptions:")
    assert llm_text(first) == first.question
    assert (second.id, second.label) == ("0/1", 0)
    assert second.question.startswith("Question:")
    assert found.report == {"questions": 2, "without_options": 0}


@pytest.mark.parametrize(
    "changed",
    [{"a": "Nothing"}, {"a": "(C) None"}, {"q": "What moves?"}, {"q": "(A) one\n(C) two"}],
)
def test_training_rows_without_readable_options_are_kept_and_counted(tmp_path, changed):
    found = read_train(train_file(tmp_path / "train.json", QA, {**QA, **changed}))
    assert found.report == {"questions": 2, "without_options": 1}
    assert (found.questions[1].label, found.questions[1].options) == (None, ())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("text", "train.json: row 0, field 'QA', entry 0: expected an object, found str"),
        ({"i": "", "q": "x"}, "entry 0, field 'a' is missing or no text"),
        ({"i": "", "q": "", "a": "x"}, "entry 0, field 'q' has an empty text"),
        ({"q": "x", "a": "x"}, "entry 0, field 'i' is missing or no text"),
    ],
)
def test_broken_training_rows_are_named(tmp_path, pair, message):
    with pytest.raises(UserError, match=message):
        read_train(train_file(tmp_path / "train.json", pair))
    with pytest.raises(UserError, match="row 0, field 'video' is missing or no text"):
        read_train(train_file(tmp_path / "train.json", QA, video=3))
