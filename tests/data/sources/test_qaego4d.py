"""QaEgo4D: small files of the release's format, and every way to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.sources.qaego4d import read_release

pytestmark = pytest.mark.smoke


def row(sample: str, **changed: Any) -> dict[str, Any]:
    """One question; None removes a field."""
    found = {
        "video_id": "clip",
        "sample_id": sample,
        "question": "Where is the cup?",
        "answer": "on the table",
        "moment_start_frame": 45.0,
        "moment_end_frame": 90,
        **changed,
    }
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes the three files; `changed` changes the second validation row."""

    def write(**changed: Any) -> Path:
        rows = {"train": ["a", "b"], "val": ["c", "d"], "test": ["e"]}
        for split, names in rows.items():
            content = [row(name, **(changed if name == "d" else {})) for name in names]
            (tmp_path / f"annotations.{split}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_a_question_by_hand(release):
    found = read_release(release())
    assert found.splits() == ("train", "dev", "test")
    assert found.report == {"questions": {"train": 2, "dev": 2, "test": 1}}
    question = found.split("dev")[0]
    assert (question.id, question.video) == ("c", "clip.mp4")
    assert (question.question, question.answer) == ("Where is the cup?", "on the table")
    assert (question.start_s, question.end_s, question.label) == (None, None, None)


def test_moments_are_seconds(release):
    question = read_release(release(), moments=True).questions[0]
    assert (question.start_s, question.end_s) == (1.5, 3.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": ""}, "annotations.val.json: row 1, field 'answer' has an empty text"),
        ({"question": None}, "row 1, field 'question' is missing or no text"),
        ({"sample_id": 4}, "row 1, field 'sample_id' is missing or no text"),
        ({"video_id": None}, "row 1, field 'video_id' is missing or no text"),
        ({"moment_start_frame": "1"}, "field 'moment_start_frame' is missing or no number"),
        ({"moment_end_frame": 3}, "row 1: 'moment_start_frame' is behind 'moment_end_frame'"),
        ({"sample_id": "a"}, "row 1: sample 'a' occurs twice, first in 'train'; keep one"),
    ],
)
def test_a_broken_file_is_refused_by_row(release, changed, message):
    with pytest.raises(UserError, match=message):
        read_release(release(**changed))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_file_is_named(release, split):
    root = release()
    (root / f"annotations.{split}.json").unlink()
    with pytest.raises(UserError, match=rf"annotations.{split}.json: cannot read it .*; --root"):
        read_release(root)
