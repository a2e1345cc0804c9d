"""Own data: JSON lines or CSV with columns comment, video and labels of any name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS, UNSPLIT, Comments, Corpus, count_oddities

_SPLIT_NAMES = {**{s: s for s in SPLITS}, "val": "dev", "valid": "dev", "validation": "dev"}


def read_table(
    source: str | Path | Mapping[str, str | Path],
    labels: Sequence[str],
    strict: bool = False,
    need_video: bool = True,
) -> Corpus:
    """Reads labelled comments from one file, or from one file per split.

    Columns: `comment`; `video` (without it each comment is its own video, named by its key);
    `key` (default: the record's number, `row-1` or `train-1`); `split` (train, dev or val, test;
    only in a single file; without it the data is `UNSPLIT`); and the columns named in `labels`.
    Other columns are ignored and named in the report. A record whose label is null or blank is
    dropped and counted.

    Chosen: the classes of a task are its labels over all files, sorted: as numbers where all are
    integers, else by code point; so the order of the rows does not decide the index of a class.

    Args:
        source: a `.jsonl` or `.csv` file (UTF-8), or {"train": file, ...}.
        labels: label columns; each becomes a task of this name.
        strict: a missing label is an error.
        need_video: a file without the column `video` is an error.

    Returns:
        The corpus. Its report counts "rows", "listed" per split, "null", "empty", "duplicates",
        and names "ignored" columns.

    Raises:
        UserError: missing or malformed file; missing column; value of the wrong type; unknown
            split; repeated key; a task with fewer than two classes; no train comments.
    """
    _check_tasks(labels)
    rows, ignored = _read_rows(source, labels, need_video)
    _check_keys(rows)
    full = [row for row in rows if None not in row["labels"].values()]
    if strict and len(full) < len(rows):
        row = next(row for row in rows if None in row["labels"].values())
        raise UserError(
            f"{row['where']}: a label is missing, as in {len(rows) - len(full)} records; "
            "label them, or leave out --strict to drop them"
        )
    names = {task: _class_names(task, full) for task in labels}
    listed = _group(rows)
    splits = {split: _comments(part, names) for split, part in _group(full).items()}
    report = {
        "rows": len(rows),
        "unused": 0,
        "listed": {split: len(part) for split, part in listed.items()},
        "null": len(rows) - len(full),
        **count_oddities(Comments.join(list(splits.values()))),
        "ignored": sorted(ignored),
    }
    return Corpus(splits, names, report)


def read_records(
    path: str | Path, allow_empty: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a `.jsonl` or `.csv` file: where each stands (for messages), and its columns.

    Blank lines of JSON lines are skipped. CSV: the first line names the columns, a quoted field may
    hold line breaks, values are text.

    Raises:
        UserError: no such file, another extension, not UTF-8, malformed, or no record at all (but
            for `allow_empty`).
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a .jsonl or .csv file")
    empty = True
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, record in readers[path.suffix](file):
                empty = False
                yield f"{path} line {number}", record
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); check the path") from error
    except UserError:
        raise
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(
            f"{path}: malformed ({error}); expected {path.suffix[1:]}, UTF-8"
        ) from error
    if empty and not allow_empty:
        raise UserError(f"{path}: holds no records")


def _read_jsonl(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file.name} line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{file.name} line {number}: expected one JSON object per line")
        yield number, record


def _read_csv(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Last line number and columns of every record."""
    reader = csv.DictReader(file, strict=True)
    columns = reader.fieldnames or []
    if len(set(columns)) < len(columns):
        raise UserError(f"{file.name}: a column is named twice in {columns}")
    for record in reader:
        if None in record or None in record.values():
            raise UserError(
                f"{file.name} line {reader.line_num}: expected {len(columns)} fields, as in line 1"
            )
        yield reader.line_num, record


def _check_tasks(labels: Sequence[str]) -> None:
    """Label columns name batch fields and metrics, so they must be plain words."""
    for task in labels:
        if not task.isidentifier() or task in ("comment", "video", "key", "split"):
            raise UserError(f"--labels: '{task}' cannot name a task; use letters, digits and _")
    if not labels or len(set(labels)) < len(labels):
        raise UserError("--labels: name at least one label column, each once")


def _read_rows(
    source: str | Path | Mapping[str, str | Path], labels: Sequence[str], need_video: bool
) -> tuple[list[dict[str, Any]], set[str]]:
    """Rows of all files with key, video and split filled in; names of the columns left unread."""
    files = source.items() if isinstance(source, Mapping) else [("", source)]
    rows: list[dict[str, Any]] = []
    ignored: set[str] = set()
    for split, path in files:
        for number, (where, record) in enumerate(read_records(path), 1):
            row = read_row(record, where, labels, need_video)
            row["key"] = row["key"] or f"{split or 'row'}-{number}"
            row["video"] = row["video"] or row["key"]
            row["split"] = split or row["split"]
            rows.append(row)
            ignored |= set(record) - {"comment", "video", "key", "split", *labels}
    return rows, ignored


def read_row(
    record: Mapping[str, Any], where: str, labels: Sequence[str], need_video: bool
) -> dict[str, Any]:
    """One record checked: key, video and split are None where their column is absent.

    Returns:
        "where", "text", "key", "video", "split", and "labels": {task: label, None if blank}.

    Raises:
        UserError: a column is missing or of the wrong type; an unknown split.
    """
    needed = ("comment", *(("video",) if need_video else ()), *labels)
    for column in needed:
        if column not in record:
            cure = "; with --features none it may be absent" if column == "video" else ""
            raise UserError(
                f"{where}: no column '{column}'{nearest(column, record) or cure}; "
                f"columns: {sorted(record)}"
            )
    if not isinstance(record["comment"], str):
        raise UserError(f"{where}: comment {record['comment']!r} is no text")
    row: dict[str, Any] = {"where": where, "text": record["comment"]}
    for column in ("key", "video", "split"):
        row[column] = _word(record[column], where, column) if column in record else None
        if column in record and row[column] is None:
            raise UserError(f"{where}: {column} is empty; fill it, or remove the column")
    if row["split"] is not None:
        if row["split"] not in _SPLIT_NAMES:
            known = f"{nearest(row['split'], _SPLIT_NAMES)}; known: train, dev, test"
            raise UserError(f"{where}: unknown split '{row['split']}'{known}")
        row["split"] = _SPLIT_NAMES[row["split"]]
    row["labels"] = {task: _word(record[task], where, task) for task in labels}
    return row


def _word(value: Any, where: str, column: str) -> str | None:
    """A label, key, video or split as text; None for null and blank."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: {column} {value!r} is neither text nor an integer")
    word = str(value).strip()
    if len(word.splitlines()) > 1:
        raise UserError(f"{where}: {column} {word!r} has a line break")
    return word or None


def _check_keys(rows: Sequence[Mapping[str, Any]]) -> None:
    """Keys are unique over all files."""
    seen: dict[str, str] = {}
    for row in rows:
        if row["key"] in seen:
            raise UserError(
                f"{row['where']}: key '{row['key']}' was used in {seen[row['key']]}; "
                "keys must be unique"
            )
        seen[row["key"]] = row["where"]


def _class_names(task: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Distinct labels of one task in class order."""
    names = sorted({row["labels"][task] for row in rows})
    if len(names) < 2:
        raise UserError(f"column '{task}': found the labels {names}; a task needs at least two")
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        names.sort(key=int)
    return tuple(names)


def _group(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by split in the order of `SPLITS`, or all of them under `UNSPLIT`."""
    named = {row["split"] for row in rows}
    if named == {None}:
        return {UNSPLIT: list(rows)}
    if None in named:
        where = next(row["where"] for row in rows if row["split"] is None)
        raise UserError(f"{where}: no split, but other records have one; give all or none")
    if "train" not in named:
        raise UserError("no record belongs to the split train; one is needed to learn from")
    return {s: [row for row in rows if row["split"] == s] for s in SPLITS if s in named}


def _comments(rows: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, ...]]) -> Comments:
    """Columns of labelled rows."""
    index = {task: {name: i for i, name in enumerate(known)} for task, known in names.items()}
    return Comments(
        key=[row["key"] for row in rows],
        video=[row["video"] for row in rows],
        text=[row["text"] for row in rows],
        labels={
            task: np.array([known[row["labels"][task]] for row in rows], np.int32)
            for task, known in index.items()
        },
    )
