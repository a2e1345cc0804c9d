"""YouCook2: a small file of the release's format, and every way to break it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import llm_text
from jaxvsa.data.sources.youcook2 import ANNOTATIONS, read_release

pytestmark = pytest.mark.smoke


def video(subset: str, *parts: Any) -> dict[str, Any]:
    """One video of the database."""
    return {
        "subset": subset,
        "recipe_type": "226",
        "duration": 241.6,
        "video_url": "https://example.org",
        "annotations": list(parts),
    }


def step(**changed: Any) -> dict[str, Any]:
    """One annotated segment; None removes a field."""
    found = {"id": 0, "segment": [41, 54.5], "sentence": "place the bacon", **changed}
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def release(tmp_path: Path) -> Callable[[Any], Path]:
    """Function that writes a database."""

    def write(database: Any) -> Path:
        (tmp_path / ANNOTATIONS).write_text(json.dumps({"database": database}))
        return tmp_path

    return write


def test_segments_by_hand(release):
    root = release(
        {
            "x": video("validation", step()),
            "y": video("training", step(sentence="cut"), step(sentence="stir", segment=[60, 61])),
        }
    )
    found = read_release(root)
    assert found.report == {
        "train": {"questions": 2, "videos": 1},
        "test": {"questions": 1, "videos": 1},
    }
    first, _, last = found.questions
    assert (first.id, first.video, first.split) == ("x/0", "x", "test")
    assert (first.start_s, first.end_s) == (41.0, 54.5)
    assert first.answer == "place the bacon"
    assert llm_text(first) == "Pair with the video, What happened in the last 5 seconds?"
    assert (last.id, last.answer, last.split) == ("y/1", "stir", "train")


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (None, "field 'database': expected an object, found NoneType"),
        ({}, f"{ANNOTATIONS}: no annotated segment; download it again"),
        ({"x": video("training")}, "no annotated segment"),
        ({"x": []}, "video 'x': expected an object, found list"),
        (
            {"x": video("testing", step())},
            "video 'x': unknown subset 'testing'; known: .'training'",
        ),
        ({"x": {**video("training"), "annotations": {}}}, "field 'annotations' is missing or no"),
        ({"x": video("training", 3)}, "video 'x', annotation 0: expected an object, found int"),
        (
            {"x": video("training", step(sentence=""))},
            "annotation 0, field 'sentence' has an empty",
        ),
        ({"x": video("training", step(segment=None))}, "field 'segment' is missing or no list"),
        ({"x": video("training", step(segment=[1]))}, "field 'segment': expected start and end"),
        ({"x": video("training", step(segment=[1, "2"]))}, "'segment', field 'end' is missing or"),
        ({"x": video("training", step(segment=[2, 2]))}, "2.0 s is not before 2.0 s"),
    ],
)
def test_a_broken_database_is_refused_by_video(release, database, message):
    with pytest.raises(UserError, match=message):
        read_release(release(database))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{ANNOTATIONS}: cannot read it .*; --root must hold"):
        read_release(tmp_path)
