"""VideoAlign's preference table: two videos of a prompt, answers A, B or same per dimension."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import (
    RewardRow,
    RewardRows,
    ScoredVideo,
    Vote,
    dimension_of,
    read_lines,
)

SOURCE = "videoalign"
ANSWERS = {"A": 1, "B": -1, "same": 0}
COLUMNS = ("VQ", "MQ", "TA", "Overall")
NEEDED = ("path_A", "path_B", "prompt")


def read_release(path: str | Path, benchmark: bool = False) -> RewardRows:
    """Reads the CSV: `path_A`, `path_B`, `prompt`, and any of `VQ`, `MQ`, `TA`, `Overall`.

    Source: VideoAlign, training table and VideoGen-RewardBench. Rows with a true `invalid` are left
    out and counted, empty answers likewise; other columns are not read.

    Args:
        path: the CSV file.
        benchmark: for VideoGen-RewardBench: its prompts are kept out of training.

    Raises:
        UserError: file or column missing; a quote that does not end; a row with too many or too few
            fields; an unknown answer.
    """
    videos: dict[str, ScoredVideo] = {}
    votes: list[Vote] = []
    report = {"invalid": 0, "no_answer": 0}
    for row in _rows(Path(path)):
        if str(row.values.get("invalid") or "").strip().lower() in ("1", "1.0", "true"):
            report["invalid"] += 1
            continue
        prompt = row.text("prompt").strip()
        a, b = (_video(row, f"path_{side}", prompt) for side in "AB")
        for video in (a, b):
            videos.setdefault(video.video_id, video)
        for column in COLUMNS:
            if not row.values.get(column):
                report["no_answer"] += column in row.values
                continue
            dimension, answer = dimension_of(column, row.where), row.choice(column, ANSWERS)
            votes.append(
                Vote(SOURCE, dimension, a.video_id, b.video_id, prompt, prompt, answer, row.where)
            )
    return RewardRows(tuple(videos.values()), tuple(votes), benchmark, report)


def _video(row: RewardRow, field: str, prompt: str) -> ScoredVideo:
    file = row.text(field)
    return ScoredVideo(f"{SOURCE}/{file}", SOURCE, prompt, path=file)


def _rows(path: Path) -> Iterator[RewardRow]:
    reader = csv.DictReader((f"{line}\n" for line in read_lines(path)), strict=True)
    try:
        yield from _records(reader, path)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: no CSV ({error}); correct it") from error


def _records(reader: csv.DictReader[str], path: Path) -> Iterator[RewardRow]:
    columns = reader.fieldnames or []
    absent = [name for name in NEEDED if name not in columns]
    if absent or not set(COLUMNS) & set(columns):
        wanted = absent or [f"one of {', '.join(COLUMNS)}"]
        raise UserError(f"{path}:1: no column {wanted[0]} in {columns}; give the published table")
    for record in reader:
        where = f"{path}:{reader.line_num}"
        if None in record or None in record.values():
            raise UserError(f"{where}: expected {len(columns)} fields, as in line 1; mend the row")
        yield RewardRow(record, where)
