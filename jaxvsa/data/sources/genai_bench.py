"""GenAI-Bench, video generation: votes of the arena on two videos of a prompt, for test alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import RewardRow, RewardRows, ScoredVideo, Vote, read_objects

VOTES = {"leftvote": 0, "rightvote": 1, "tievote": 2, "bothbad_vote": 3}
"""Name -> index, as `metrics.pairwise` counts votes: A, B, both good, both bad."""
_ANSWER = (1, -1, 0, 0)


def read_release(path: str | Path) -> RewardRows:
    """Reads rows of the split test_v1, as a JSON list or JSON lines; left is A.

    Both kinds of ties become a tie; `read_votes` keeps them apart.

    Source: GenAI-Bench card: `prompt`, `left_model`, `left_video`, `right_model`, `right_video`,
    `vote_type`.

    Args:
        path: the file.

    Raises:
        UserError: file or field missing; an unknown vote.
    """
    videos: dict[str, ScoredVideo] = {}
    votes = []
    for row in read_objects(path):
        prompt = row.text("prompt").strip()
        a, b = (_video(row, side, prompt) for side in ("left", "right"))
        for video in (a, b):
            videos.setdefault(video.video_id, video)
        answer = _ANSWER[row.choice("vote_type", VOTES)]
        names = (a.video_id, b.video_id, prompt, prompt)
        votes.append(Vote("genai", "overall", *names, answer, row.where, split="test"))
    return RewardRows(tuple(videos.values()), tuple(votes), benchmark=True)


def read_votes(path: str | Path) -> dict[str, list[Any]]:
    """The votes as columns, in the order of the file.

    Returns:
        "prompt", "left_model", "right_model", "left_video", "right_video": texts; "vote": indices
        as in `VOTES`.

    Raises:
        UserError: as `read_release`.
    """
    texts = ("prompt", "left_model", "right_model")
    files = ("left_video", "right_video")
    columns: dict[str, list[Any]] = {name: [] for name in (*texts, *files, "vote")}
    for row in read_objects(path):
        for name in texts:
            columns[name].append(row.text(name).strip())
        for name in files:
            columns[name].append(_file(row, name))
        columns["vote"].append(row.choice("vote_type", VOTES))
    return columns


def _video(row: RewardRow, side: str, prompt: str) -> ScoredVideo:
    """One side; the model is part of the id, since models may share names of files."""
    file, model = _file(row, f"{side}_video"), row.text(f"{side}_model")
    name = f"genai/{model}/{file}"
    return ScoredVideo(name, "genai", prompt, path=file, model=model, split="test")


def _file(row: RewardRow, field: str) -> str:
    """A file name, plain or as {"path": name}."""
    value = row.values.get(field)
    if isinstance(value, dict):
        row, field = RewardRow(value, f"{row.where}, field '{field}'"), "path"
    if field not in row:
        raise UserError(f"{row.where}, field '{field}' is missing; export it with the votes")
    return row.text(field)
