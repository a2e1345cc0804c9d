"""T2VQA-DB: mean opinion scores of 10,000 generated videos, one text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import RewardRow, RewardRows, ScoredVideo, once, read_lines

STD = 16.6
"""Deviation to which the published scores are scaled, around 50."""
RANGE = (-49.6, 149.6)
RATERS = 27


def read_release(path: str | Path) -> RewardRows:
    """Reads lines `filename|prompt|mos`; a prompt may hold "|".

    Source: T2VQA-DB release, `database_standard_16.6_50.txt`: scores with mean 50 and deviation
    16.6, each of 27 raters. They are the dimension "overall".
    Chosen: the scale is nominally 0 to 100, but a scaled mean may leave it, so up to six
    deviations from 50 are accepted; the middle of the range is 50 either way.
    Deviation: the release's own split is by video, with most prompts on both sides; it is not
    used, see `data.videocross`.

    Args:
        path: the text file.

    Raises:
        UserError: file missing; a line with fewer than three fields, an empty name or prompt, or a
            score that is no number or too far away; a video listed twice.
    """
    return RewardRows(tuple(once(_videos(Path(path)))))


def _videos(path: Path) -> Iterator[tuple[ScoredVideo, str]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, _, rest = line.partition("|")
        prompt, bar, mos = rest.rpartition("|")
        if not bar:
            raise UserError(f"{where}: expected filename|prompt|mos, found {line[:60]!r}; mend it")
        row = RewardRow({"filename": name.strip(), "prompt": prompt.strip(), "mos": mos}, where)
        video = ScoredVideo(
            video_id=f"t2vqa/{row.text('filename')}",
            source="t2vqa",
            prompt=row.text("prompt"),
            scores={"overall": row.real("mos", *RANGE)},
            score_range={"overall": RANGE},
            path=row.text("filename"),
            n_raters=RATERS,
        )
        yield video, where
