"""The CSMV release: a small one of the same format, every way to break it, and the real counts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.sources.csmv import DICTIONARY, read_release
from jaxvsa.data.splits import leak_report

pytestmark = pytest.mark.smoke

OPINION = {"positive": 0, "neutral": 1, "negative": 2}
EMOTION = {"fear": 1, "joy": 0}


def row(video: str, comment: str, opinion: str | None, emotion: str | None) -> dict[str, Any]:
    """One entry of the dictionary."""
    return {
        "video_file_id": f"{video}.mp4",
        "comment": comment,
        "opinion_label": opinion,
        "emotion_label": emotion,
        "hashtag": "nyc",
    }


ROWS = {
    "a": row("1", "nice 👍", "positive", "joy"),
    "b": row("1", "nice 👍", "neutral", "fear"),
    "c": row("2", "", "negative", "joy"),
    "d": row("1", "so so\nreally", "neutral", "joy"),
    "e": row("3", "hm", None, "joy"),
    "f": row("2", "no", "negative", "fear"),
    "unused": row("9", "anything", "whatever", None),
}
SPLITS = {"train": ["b", "a", "c"], "dev": ["d", "e"], "test": ["f"]}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a release; keyword arguments replace whole files by their content."""

    def write(**replaced: Any) -> Path:
        files = {
            "lable_data_dict": ROWS,
            "opinion_label_map": OPINION,
            "emotion_label_map": EMOTION,
            **{f"{split}_set": keys for split, keys in SPLITS.items()},
            **replaced,
        }
        for name, content in files.items():
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / f"{name}.json").write_text(text)
        return tmp_path

    return write


def test_release_is_read_in_the_order_of_the_split_files(release):
    corpus = read_release(release())
    assert corpus.label_names == {
        "opinion": ("positive", "neutral", "negative"),
        "emotion": ("joy", "fear"),
    }
    train = corpus.splits["train"]
    assert train.key == ["b", "a", "c"]
    assert train.video == ["1.mp4", "1.mp4", "2.mp4"]
    assert train.text == ["nice 👍", "nice 👍", ""]
    assert train.extra == {"hashtag": ["nyc"] * 3}
    np.testing.assert_array_equal(train.labels["opinion"], [1, 0, 2])
    np.testing.assert_array_equal(train.labels["emotion"], [1, 0, 0])
    assert train.labels["emotion"].dtype == np.int32


def test_report_counts_what_was_found(release):
    corpus = read_release(release())
    assert corpus.report == {
        "rows": 7,
        "unused": 1,
        "listed": {"train": 3, "dev": 2, "test": 1},
        "null": 1,
        "empty": 1,
        "duplicates": 1,
    }
    assert corpus.splits["dev"].key == ["d"]


def test_the_zip_is_read_like_the_plain_dictionary(release):
    root = release(lable_data_dict=None)
    with zipfile.ZipFile(root / f"{DICTIONARY}.zip", "w") as archive:
        archive.writestr(DICTIONARY, json.dumps(ROWS))
    assert read_release(root).splits["train"].key == ["b", "a", "c"]


def test_strict_refuses_null_labels(release):
    with pytest.raises(UserError, match=r"1 listed comments have a null label, first: \['e'\]"):
        read_release(release(), strict=True)


@pytest.mark.parametrize(
    "name", ["lable_data_dict", "dev_set", "emotion_label_map", "opinion_label_map"]
)
def test_a_missing_file_is_named(release, name):
    with pytest.raises(UserError, match=rf"{name}.json: cannot read it .*; --root must hold"):
        read_release(release(**{name: None}))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"test_set": ["f", "g"]}, r"test_set.json.*: key 'g' is not in the dictionary"),
        ({"test_set": ["f", "f"]}, r"test_set.json: 1 keys are listed twice, first: \['f'\]"),
        ({"test_set": ["f", "a"]}, "key 'a' is in train_set.json and in test_set.json"),
        ({"test_set": {}}, "test_set.json: expected a list of comment keys"),
        ({"test_set": "[1, 2"}, "test_set.json: not valid JSON .*download it again"),
        ({"opinion_label_map": {"positive": 0, "neutral": 2}}, "opinion_label_map.json: expected"),
        ({"opinion_label_map": {"positive": 0, "neutral": 0}}, "opinion_label_map.json: expected"),
        ({"opinion_label_map": ["positive"]}, "opinion_label_map.json: expected label names"),
        ({"lable_data_dict": []}, "lable_data_dict.json: expected an object"),
        (
            {"lable_data_dict": {**ROWS, "f": row("2", "no", "negativ", "fear")}},
            "key 'f', opinion_label: unknown label 'negativ'; did you mean 'negative'.*; known:",
        ),
        (
            {"lable_data_dict": {**ROWS, "f": {**ROWS["f"], "comment": None}}},
            "key 'f', field 'comment' is missing or no text",
        ),
        (
            {"lable_data_dict": {**ROWS, "f": {"comment": "no"}}},
            "key 'f', field 'video_file_id' is missing or no text",
        ),
        (
            {"lable_data_dict": {**ROWS, "f": {**ROWS["f"], "video_file_id": ""}}},
            "key 'f', field 'video_file_id' is empty",
        ),
        (
            {"lable_data_dict": json.dumps(ROWS)[:-1] + ', "a": {}}'},
            "lable_data_dict.json: key 'a' appears 2 times; keep one",
        ),
        (
            {"opinion_label_map": '{"positive": 0, "positive": 1}'},
            "opinion_label_map.json: key 'positive' appears 2 times",
        ),
    ],
)
def test_a_broken_release_is_refused_by_file_and_key(release, replaced, message):
    with pytest.raises(UserError, match=message):
        read_release(release(**replaced))


def test_a_broken_zip_is_named(release):
    root = release(lable_data_dict=None)
    (root / f"{DICTIONARY}.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match=r"json.zip: cannot read .*download it again"):
        read_release(root)
    with zipfile.ZipFile(root / f"{DICTIONARY}.zip", "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(UserError, match=r"json.zip: cannot read .*download it again"):
        read_release(root)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; --root is the folder with"):
        read_release(tmp_path / "nowhere")


@pytest.mark.real_data
def test_csmv_counts_are_those_of_its_readme(csmv_path):
    corpus = read_release(csmv_path)
    assert (corpus.report["rows"], corpus.report["unused"]) == (95603, 9790)
    assert corpus.report["listed"] == {"train": 75086, "dev": 5363, "test": 5364}
    assert corpus.report["null"] == 5
    assert len(corpus) == 75086 + 5363 + 5364 - 5
    leaks = leak_report(corpus)
    assert [leaks[split]["videos"] for split in ("train", "dev", "test")] == [8190, 3896, 3858]
    assert leaks["dev"]["videos_in_train"] == 3888
    assert leaks["test"]["videos_in_train"] == 3851
    assert corpus.label_names["opinion"] == ("positive", "neutral", "negative")
    assert corpus.label_names["emotion"][3:5] == ("sadness", "trust")
