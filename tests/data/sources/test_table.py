"""Own data: the same rows as JSON lines and as CSV, label order, and every refusal."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import UNSPLIT
from jaxvsa.data.sources.table import read_records, read_table

pytestmark = pytest.mark.smoke

ROWS = [
    {"comment": "great, really", "video": "v1", "split": "train", "mood": "up", "stars": "10"},
    {"comment": 'the "end"\nof it', "video": "v2", "split": "train", "mood": "down", "stars": "2"},
    {"comment": "", "video": "v1", "split": "val", "mood": "flat", "stars": "1"},
    {"comment": "hm 🤔", "video": "v3", "split": "test", "mood": "up", "stars": "2"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as the file's extension says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_both_formats_give_the_same_corpus(tmp_path, name):
    corpus = read_table(write(tmp_path / name, ROWS), ["mood", "stars"])
    assert list(corpus.splits) == ["train", "dev", "test"]
    assert corpus.label_names == {"mood": ("down", "flat", "up"), "stars": ("1", "2", "10")}
    train = corpus.splits["train"]
    assert train.key == ["row-1", "row-2"]
    assert train.video == ["v1", "v2"]
    assert train.text == ["great, really", 'the "end"\nof it']
    np.testing.assert_array_equal(train.labels["mood"], np.array([2, 0], np.int32))
    np.testing.assert_array_equal(train.labels["stars"], [2, 1])
    assert corpus.splits["dev"].text == [""]
    assert corpus.report == {
        "rows": 4,
        "unused": 0,
        "listed": {"train": 2, "dev": 1, "test": 1},
        "null": 0,
        "empty": 1,
        "duplicates": 0,
        "ignored": [],
    }


def test_label_order_does_not_depend_on_the_order_of_the_rows(tmp_path):
    names = [
        read_table(write(tmp_path / "rows.jsonl", rows), ["mood", "stars"]).label_names
        for rows in (ROWS, ROWS[::-1])
    ]
    assert names[0] == names[1]


def test_one_file_per_split_makes_the_splits(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "split"} for row in ROWS]
    files = {
        "train": write(tmp_path / "a.jsonl", rows[:3]),
        "test": write(tmp_path / "b.csv", rows[3:]),
    }
    corpus = read_table(files, ["mood"])
    assert {split: part.key for split, part in corpus.splits.items()} == {
        "train": ["train-1", "train-2", "train-3"],
        "test": ["test-1"],
    }
    assert corpus.report["ignored"] == ["stars"]


def test_rows_without_split_and_video_are_unsplit_and_their_own_videos(tmp_path):
    rows = [{"comment": row["comment"], "mood": row["mood"], "key": f"k{i}"}
            for i, row in enumerate(ROWS)]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    corpus = read_table(path, ["mood"], need_video=False)
    assert list(corpus.splits) == [UNSPLIT]
    assert corpus.splits[UNSPLIT].video == corpus.splits[UNSPLIT].key == ["k0", "k1", "k2", "k3"]
    with pytest.raises(UserError, match=r"line 1: no column 'video'; with --features none it may"):
        read_table(path, ["mood"])


@pytest.mark.parametrize(("name", "nothing"), [("rows.jsonl", None), ("rows.csv", " ")])
def test_a_missing_label_drops_the_row_or_stops(tmp_path, name, nothing):
    path = write(tmp_path / name, [*ROWS, {**ROWS[0], "mood": nothing}])
    corpus = read_table(path, ["mood"])
    assert (corpus.report["rows"], corpus.report["null"], len(corpus)) == (5, 1, 4)
    assert corpus.report["listed"]["train"] == 3
    with pytest.raises(UserError, match=r"a label is missing, as in 1 records; label them"):
        read_table(path, ["mood"], strict=True)


def test_integer_labels_are_names_like_any_other(tmp_path):
    rows = [{"comment": "x", "video": "v", "stars": n} for n in (10, 9, -1)]
    corpus = read_table(write(tmp_path / "rows.jsonl", rows), ["stars"])
    assert corpus.label_names == {"stars": ("-1", "9", "10")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comment": 3}, "rows.jsonl line 5: comment 3 is no text"),
        ({"mood": 0.5}, "line 5: mood 0.5 is neither text nor an integer"),
        ({"mood": "up\ndown"}, "line 5: mood .* has a line break"),
        ({"video": ""}, "line 5: video is empty; fill it, or remove the column"),
        ({"split": "tset"}, "line 5: unknown split 'tset'; did you mean 'test'"),
        ({"split": None}, "line 5: split is empty"),
    ],
)
def test_a_bad_value_is_named_by_line_and_column(tmp_path, change, message):
    path = write(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], **change}])
    with pytest.raises(UserError, match=message):
        read_table(path, ["mood"])


def test_repeated_keys_are_refused_across_files(tmp_path):
    rows = [{"comment": "x", "video": "v", "mood": m, "key": m} for m in ("a", "b")]
    files = {s: write(tmp_path / f"{s}.jsonl", rows) for s in ("train", "dev")}
    with pytest.raises(
        UserError, match=r"dev.jsonl line 1: key 'a' was used in .*train.jsonl line 1"
    ):
        read_table(files, ["mood"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["moods"], "no column 'moods'; did you mean 'mood'"),
        (["my mood"], "'my mood' cannot name a task"),
        (["split"], "'split' cannot name a task"),
        (["mood", "mood"], "each once"),
        ([], "name at least one label column"),
    ],
)
def test_bad_label_columns_are_refused(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path / "rows.jsonl", ROWS), labels)


def test_a_task_with_one_class_and_data_without_train_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"column 'mood': found the labels \['up'\]; .* two"):
        read_table(write(tmp_path / "one.jsonl", ROWS[:1]), ["mood"])
    with pytest.raises(UserError, match=r"no record belongs to the split train"):
        read_table(write(tmp_path / "late.jsonl", ROWS[2:]), ["mood"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", '{"comment": "a"}\n{"comment', "rows.jsonl line 2: not valid JSON"),
        pytest.param("rows.jsonl", "[" * 100_000, "line 1: not valid JSON", id="deep"),
        ("rows.jsonl", "[1]\n", "rows.jsonl line 1: expected one JSON object per line"),
        ("rows.jsonl", "\n\n", "rows.jsonl: holds no records"),
        ("rows.csv", "comment,video\na,b,c\n", "rows.csv line 2: expected 2 fields, as in line 1"),
        ("rows.csv", "comment,video\na\n", "rows.csv line 2: expected 2 fields, as in line 1"),
        ("rows.csv", "comment,comment\na,b\n", "rows.csv: a column is named twice"),
        ("rows.csv", 'comment,video\n"a,b\n', "rows.csv: malformed"),
        ("rows.csv", "", "rows.csv: holds no records"),
        ("rows.txt", "a", "rows.txt: expected a .jsonl or .csv file"),
    ],
)
def test_a_malformed_file_is_named_by_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_records(tmp_path / name))


def test_a_missing_file_and_another_encoding_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none.csv: cannot read it .*; check the path"):
        list(read_records(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("comment\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.csv: malformed .*UTF-8"):
        list(read_records(tmp_path / "latin.csv"))


def test_records_know_their_line_behind_quoted_breaks_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffcomment,video\n"a\nb",v\nc,w\n', encoding="utf-8")
    assert list(read_records(path)) == [
        (f"{path} line 3", {"comment": "a\nb", "video": "v"}),
        (f"{path} line 4", {"comment": "c", "video": "w"}),
    ]
