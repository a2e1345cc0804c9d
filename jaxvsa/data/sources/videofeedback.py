"""VideoFeedback: five scores from 1 to 4 for each generated video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import (
    RewardRow,
    RewardRows,
    ScoredVideo,
    dimension_of,
    once,
    read_objects,
)

COLUMNS = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)
RANGE = (1.0, 4.0)


def read_release(path: str | Path) -> RewardRows:
    """Reads rows of the configurations "annotated" or "real", as a JSON list or JSON lines.

    Source: VideoFeedback card: columns `id`, `text prompt`, `video link` and the five scores. A row
    without the score columns is read from the lines `visual quality: 3` of `conversations`.

    Args:
        path: an export of the release's parquet files.

    Raises:
        UserError: file or field missing; a score that is no whole number from 1 to 4; an id twice.
    """
    return RewardRows(tuple(once((_video(row), row.where) for row in read_objects(path))))


def _video(row: RewardRow) -> ScoredVideo:
    if not any(column in row for column in COLUMNS) and "conversations" in row:
        row = RewardRow({**row.values, **dict(_spoken(row))}, row.where)
    scores = {dimension_of(column, row.where): _score(row, column) for column in COLUMNS}
    return ScoredVideo(
        video_id=f"videofeedback/{row.text('id')}",
        source="videofeedback",
        prompt=row.text("text prompt").strip(),
        scores=scores,
        score_range=dict.fromkeys(scores, RANGE),
        path=row.maybe("video link"),
        feature_key=row.text("id"),
        split=row.split(),
    )


def _score(row: RewardRow, column: str) -> float:
    value = row.real(column, *RANGE)
    if value != int(value):
        raise UserError(
            f"{row.where}, field '{column}' is {value:g}, not one of the levels 1 to 4; correct it"
        )
    return value


def _spoken(row: RewardRow) -> Iterator[tuple[str, str]]:
    """Columns and values in the last message of a conversation."""
    messages = row.items("conversations")
    last = messages[-1].get("value", "") if messages and isinstance(messages[-1], dict) else ""
    for column in COLUMNS:
        found = re.search(rf"^\s*{re.escape(column)}\s*:\s*(\S+)", str(last), re.MULTILINE)
        if found:
            yield column, found[1]
