"""Own data in our two formats: `scored.jsonl`, a video a line, and `pairs.jsonl`, a pair a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import (
    ANSWERS,
    RewardRow,
    RewardRows,
    ScoredVideo,
    Vote,
    dimension_of,
    is_dimension,
    once,
    read_objects,
)


def read_scored(path: str | Path, unknown: str = "error") -> RewardRows:
    """Reads one scored video a line; fields as in `ScoredVideo`.

    Needed are `video_id`, `source`, `prompt`, `scores` and a `score_range` for each score that is
    not null. Dimensions may have the names of `dimension_of`.

    Args:
        path: the file.
        unknown: "drop" leaves out scores of unknown dimensions and counts them, "error" stops.

    Raises:
        UserError: file or field missing; a score that is no number or outside its range; an unknown
            dimension, or two names of one; a video twice; an unknown split.
    """
    report = {"unknown_dimension": 0}
    videos = once((_video(row, unknown, report), row.where) for row in read_objects(path))
    return RewardRows(tuple(videos), report=report)


def read_pairs(path: str | Path) -> RewardRows:
    """Reads one pair a line: what raters compared themselves.

    Needed are `dimension`, `source`, `prompt_a`, `prompt_b`, `video_a`, `video_b` and `answer`;
    `question`, `gap`, `weight` and `split` may be absent or null. Ids are made again.

    Args:
        path: the file.

    Raises:
        UserError: file or field missing; an unknown dimension, answer or split; a number that is
            none, or a negative weight.
    """
    videos: dict[str, ScoredVideo] = {}
    votes = []
    for row in read_objects(path):
        source = row.text("source")
        for side in "ab":
            name = row.text(f"video_{side}")
            videos.setdefault(name, ScoredVideo(name, source, row.text(f"prompt_{side}").strip()))
        votes.append(
            Vote(
                source=source,
                dimension=dimension_of(row.text("dimension"), row.where),
                video_a=row.text("video_a"),
                video_b=row.text("video_b"),
                prompt_a=row.text("prompt_a").strip(),
                prompt_b=row.text("prompt_b").strip(),
                answer=row.choice("answer", ANSWERS),
                where=row.where,
                question=row.maybe("question"),
                gap=row.real("gap") if "gap" in row else None,
                weight=row.real("weight", low=0.0) if "weight" in row else 1.0,
                split=row.split(),
            )
        )
    return RewardRows(tuple(videos.values()), tuple(votes))


def _video(row: RewardRow, unknown: str, report: dict[str, int]) -> ScoredVideo:
    scores: dict[str, float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    given = _mapping(row, "scores")
    known = _mapping(row, "score_range") if given else {}
    for name, score in given.items():
        if score is None:
            continue
        if unknown == "drop" and not is_dimension(name):
            report["unknown_dimension"] += 1
            continue
        dimension = dimension_of(name, row.where)
        if dimension in scores:
            raise UserError(f"{row.where}: two scores are {dimension} ('{name}'); keep one")
        ranges[dimension] = _range(row, name, known.get(name))
        scored = RewardRow({f"scores.{name}": score}, row.where)
        scores[dimension] = scored.real(f"scores.{name}", *ranges[dimension])
    raters = int(row.real("n_raters", low=1)) if "n_raters" in row else None
    texts = ("prompt_id", "path", "feature_key", "model", "hash")
    optional: dict[str, Any] = {name: row.maybe(name) for name in texts}
    return ScoredVideo(
        video_id=row.text("video_id"),
        source=row.text("source"),
        prompt=row.text("prompt").strip(),
        scores=scores,
        score_range=ranges,
        n_raters=raters,
        split=row.split(),
        **optional,
    )


def _mapping(row: RewardRow, field: str) -> dict[str, Any]:
    value = row.values.get(field)
    if not isinstance(value, dict):
        raise UserError(
            f"{row.where}, field '{field}' is missing or no object; "
            'write {"overall": 3} and {"overall": [1, 5]}'
        )
    return value


def _range(row: RewardRow, name: str, ends: Any) -> tuple[float, float]:
    if not isinstance(ends, list) or len(ends) != 2:
        raise UserError(f"{row.where}, field 'score_range': no [lowest, highest] for '{name}'")
    pair = RewardRow({"lowest": ends[0], "highest": ends[1]}, f"{row.where}, score_range '{name}'")
    low, high = pair.real("lowest"), pair.real("highest")
    if not low < high:
        raise UserError(f"{pair.where}: {low:g} is not below {high:g}; swap them")
    return low, high
