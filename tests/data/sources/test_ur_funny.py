"""UR-FUNNY: three small pickles of the release's format, and every way to break them."""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import qformer_text
from jaxvsa.data.sources.ur_funny import ANSWERS, read_release

pytestmark = pytest.mark.smoke


def talk(punchline: Any = "And it was \n blue.", context: Any = ("So there.", "", "I sat.")) -> Any:
    """One entry of the language file."""
    return {
        "punchline_sentence": punchline,
        "context_sentences": list(context) if isinstance(context, tuple) else context,
        "punchline_embedding_indexes": [3, 4],
        "context_embedding_indexes": [[1], [2]],
        "punchline_intervals": [[0.5, 0.75]],
        "context_intervals": [[[0.0, 0.25]]],
    }


FOLDS = {"train": [11, 7], "dev": [3], "test": [5]}
TALKS = {key: talk() for key in (3, 5, 7, 11, 99)}
LABELS = {3: 0, 5: 1, 7: 1, 11: 0, 99: 0}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes the three pickles; arguments replace them, bytes are written as such."""

    def write(protocol: int = 4, **replaced: Any) -> Path:
        files = {"data_folds": FOLDS, "language_sdk": TALKS, "humor_label_sdk": LABELS} | replaced
        for name, content in files.items():
            raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
            if content is not None:
                (tmp_path / f"{name}.pkl").write_bytes(raw)
        return tmp_path

    return write


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_punchline_by_hand(release, protocol):
    found = read_release(release(protocol))
    assert [question.id for question in found.questions] == ["11", "7", "3", "5"]
    question = found.split("train")[1]
    assert (question.video, question.label, question.options) == ("7.mp4", 1, ANSWERS)
    assert question.answer == "Yes! it is humorous."
    assert found.split("dev")[0].answer == "No! it is not humorous."
    assert qformer_text(question) == (
        "Speaker: So there.\nSpeaker: I sat.\n"
        "Pair with the past dialogue and video, is it humorous when < And it was blue. >?"
    )
    assert found.report == {
        "train": {"questions": 2, "positives": 1},
        "dev": {"questions": 1, "positives": 0},
        "test": {"questions": 1, "positives": 1},
        "unused": 1,
    }


def test_ids_may_be_text_and_context_may_be_empty(release):
    root = release(
        data_folds={"train": ["a"], "dev": [], "test": ["b"]},
        language_sdk={"a": talk(context=()), "b": talk()},
        humor_label_sdk={"a": 1, "b": 0},
    )
    found = read_release(root)
    assert found.splits() == ("train", "test")
    assert found.questions[0].context == ()


@pytest.mark.parametrize(
    "content",
    [np.arange(3), collections.OrderedDict(a=1), collections.Counter("a"), Path("a"), print],
)
@pytest.mark.parametrize("name", ["data_folds", "language_sdk", "humor_label_sdk"])
def test_anything_but_plain_containers_is_refused(release, name, content):
    with pytest.raises(UserError, match=rf"{name}.pkl: the pickle names '.*, which is not read"):
        read_release(release(**{name: content}))


def test_code_is_not_run(release):
    root = release()
    (root / "data_folds.pkl").write_bytes(f"cos\nsystem\n(S'touch {root}/ran'\ntR.".encode())
    with pytest.raises(UserError, match=r"data_folds.pkl: the pickle names 'os.system'"):
        read_release(root)
    assert not (root / "ran").exists()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"data_folds": b"none"}, "data_folds.pkl: no whole pickle .*download it again"),
        ({"data_folds": [1]}, "data_folds.pkl: expected an object, found list"),
        ({"data_folds": {"train": [11]}}, "data_folds.pkl, field 'dev' is missing or no list"),
        ({"data_folds": {**FOLDS, "test": [7]}}, "id 7 is in 'train' and in 'test'; each belongs"),
        ({"data_folds": {**FOLDS, "test": [5, 5]}}, "id 5 is in 'test' and in 'test'"),
        ({"data_folds": {**FOLDS, "test": [(1,)]}}, "field 'test': an id is neither text nor"),
        ({"data_folds": {**FOLDS, "test": [6]}}, "language_sdk.pkl: id 6 of data_folds.pkl is not"),
        ({"humor_label_sdk": {3: 0}}, "humor_label_sdk.pkl: id 11 of data_folds.pkl is not there"),
        ({"humor_label_sdk": {**LABELS, 7: 2}}, "humor_label_sdk.pkl: id 7 has no label 0 or 1"),
        ({"humor_label_sdk": {**LABELS, 7: "1"}}, "id 7 has no label 0 or 1; download it again"),
        ({"humor_label_sdk": {**LABELS, 7: [1]}}, "id 7 has no label"),
        ({"humor_label_sdk": {**LABELS, 7: True}}, "id 7 has no label"),
        ({"language_sdk": {**TALKS, 7: "text"}}, "language_sdk.pkl: id 7: expected an object"),
        (
            {"language_sdk": {**TALKS, 7: talk(" ")}},
            "id 7, field 'punchline_sentence' has an empty",
        ),
        ({"language_sdk": {**TALKS, 7: talk(["x"])}}, "'punchline_sentence' is missing or no text"),
        ({"language_sdk": {**TALKS, 7: talk(context=[1])}}, "'context_sentences' is no list of te"),
        ({"language_sdk": {**TALKS, 7: {}}}, "id 7, field 'punchline_sentence' is missing"),
    ],
)
def test_a_broken_release_is_refused_by_file_and_id(release, replaced, message):
    with pytest.raises(UserError, match=message):
        read_release(release(**replaced))


@pytest.mark.parametrize("name", ["data_folds", "language_sdk", "humor_label_sdk"])
def test_a_missing_file_is_named(release, name):
    (release() / f"{name}.pkl").unlink()
    with pytest.raises(UserError, match=rf"{name}.pkl: cannot read it .*; put the file"):
        read_release(release(**{name: None}))
