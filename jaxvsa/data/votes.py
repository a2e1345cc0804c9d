"""People's votes on pairs of videos, from any of the formats that benchmarks are published in."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.prompts import prompt_key
from jaxvsa.data.scored import ALIGNED, QUESTIONS, RewardRow, Vote, read_lines, read_objects
from jaxvsa.data.sources import genai_bench, scored_jsonl, videoalign

LEFT, RIGHT, BOTH_GOOD, BOTH_BAD = genai_bench.VOTES.values()
ANSWERS = (1, -1, 0, 0)
"""Vote -> answer: 1 A is better, -1 B is, 0 a tie."""
_VOTE = {1: LEFT, -1: RIGHT, 0: BOTH_GOOD}
_FORMATS = {
    "vote_type": "GenAI-Bench",
    "human_vote": "results of GenAI-Bench",
    "answer": "pairs.jsonl",
    "path_A": "VideoAlign",
}


@dataclasses.dataclass(frozen=True, slots=True)
class PersonVote:
    """One vote of people.

    Attributes:
        where: file and line.
        key: `pair_id` of pairs.jsonl, else None.
        video_a: id, "" if the file names no videos.
        video_b: likewise.
        prompt_a: prompt that A was made from.
        prompt_b: likewise.
        asked: prompt in the question, None if the dimension's question has none.
        source: data set.
        dimension: key of `QUESTIONS`.
        kind: of the pair, "native" if the file does not say.
        cluster: prompt, or group of prompts.
        vote: `LEFT`, `RIGHT`, `BOTH_GOOD`, `BOTH_BAD`; a tie of three classes is `BOTH_GOOD`.
    """

    where: str
    key: str | None
    video_a: str
    video_b: str
    prompt_a: str
    prompt_b: str
    asked: str | None
    source: str
    dimension: str
    kind: str
    cluster: str
    vote: int


@dataclasses.dataclass(frozen=True, eq=False)
class PersonVotes:
    """The votes of one file.

    Attributes:
        path: the file.
        rows: in the order of the file.
        four_classes: both good and both bad are told apart.
        names: every name that a video may be called by -> its ids; more than one is ambiguous.
    """

    path: Path
    rows: tuple[PersonVote, ...]
    four_classes: bool
    names: dict[str, list[str]]

    @property
    def vote_b(self) -> np.ndarray:
        """The votes as int64 (b,)."""
        return np.array([row.vote for row in self.rows])

    @property
    def answer_b(self) -> np.ndarray:
        """The votes as 1, -1 or 0."""
        return np.array(ANSWERS)[self.vote_b]

    def column(self, name: str) -> list[str]:
        """One attribute of all rows."""
        return [getattr(row, name) for row in self.rows]


def read_person_votes(path: str | Path, split: str = "test") -> PersonVotes:
    """Reads votes; the format is told by the columns.

    A `.csv` file is VideoAlign's table. In JSON lines or a JSON list, rows with `vote_type` are
    GenAI-Bench, with `human_vote` its published results of a model (which name no videos), with
    `answer` our pairs.jsonl. Of the latter, rows of another split are left out.

    Args:
        path: the file.
        split: for rows that have one.

    Raises:
        UserError: no such format; whatever its reader refuses; a pair id twice; no vote left.
    """
    path = Path(path)
    first = next(read_rows(path))
    found = [field for field in _FORMATS if field in first.values]
    if not found or (found == ["path_A"]) != (path.suffix == ".csv"):
        hint = next(filter(None, (nearest(name, _FORMATS) for name in first.values)), "")
        raise UserError(
            f"{first.where}: no votes: of the columns {', '.join(_FORMATS)} one is needed{hint}; "
            f"found {', '.join(first.values)}"
        )
    readers: dict[str, Callable[[Path], list[tuple[str, PersonVote]]]] = {
        "vote_type": _genai,
        "human_vote": _genai_results,
        "answer": _pairs,
        "path_A": _videoalign,
    }
    rows = readers[found[0]](path)
    kept = tuple(vote for one, vote in rows if one in ("", split))
    if not kept:
        counts = ", ".join(
            f"{name} {count:,}" for name, count in Counter(s for s, _ in rows).items()
        )
        what = f"has no vote of the split {split}, but of: {counts}; give --split"
        raise UserError(f"{path} {what if counts else 'has no vote with an answer'}")
    return PersonVotes(path, kept, found[0] in ("vote_type", "human_vote"), _names(kept))


def read_rows(path: str | Path) -> Iterator[RewardRow]:
    """Rows of CSV (`.csv`), JSON lines or a JSON list, each with its file and line.

    Raises:
        UserError: another extension; the file is missing, empty, malformed, or has no row; a
            column is named twice; a row of CSV has too many or too few fields.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl", ".json"):
        raise UserError(f"{path}: expected a .csv, .jsonl or .json file; rename it")
    rows = _csv_rows(path) if path.suffix == ".csv" else read_objects(path)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{path} is empty; give a file with rows")


def _names(rows: Sequence[PersonVote]) -> dict[str, list[str]]:
    """genai/MODEL/FILE is also MODEL/FILE and FILE; videoalign/PATH is also PATH."""
    videos = sorted({name for row in rows for name in (row.video_a, row.video_b) if name})
    names = {video: [video] for video in videos}
    for video in videos:
        parts = video.split("/")
        if parts[0] in ("genai", videoalign.SOURCE):
            for at in range(1, len(parts)):
                short = "/".join(parts[at:])
                if names.get(short) != [short]:
                    names.setdefault(short, []).append(video)
    return names


def _csv_rows(path: Path) -> Iterator[RewardRow]:
    reader = csv.DictReader((f"{line}\n" for line in read_lines(path)), strict=True)
    try:
        columns = reader.fieldnames or []
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice:
            raise UserError(f"{path}:1: the column '{twice[0]}' is there twice; rename one")
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise UserError(f"{where}: expected {len(columns)} fields, as in line 1; mend it")
            yield RewardRow(record, where)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: no CSV ({error}); correct it") from error


def _genai(path: Path) -> list[tuple[str, PersonVote]]:
    columns = genai_bench.read_votes(path)
    votes = genai_bench.read_release(path).votes
    return [
        ("", _of(vote, cluster=vote.prompt_a, four=four))
        for vote, four in zip(votes, columns["vote"], strict=True)
    ]


def _genai_results(path: Path) -> list[tuple[str, PersonVote]]:
    """People's votes in the published file of a model's votes."""
    rows = []
    for row in read_objects(path):
        prompt = row.text("prompt").strip()
        four = row.choice("human_vote", genai_bench.VOTES)
        answer = ANSWERS[four]
        vote = Vote("genai", "overall", "", "", prompt, prompt, answer, row.where)
        rows.append(("", _of(vote, cluster=prompt, four=four)))
    return rows


def _videoalign(path: Path) -> list[tuple[str, PersonVote]]:
    votes = videoalign.read_release(path).votes
    return [("", _of(vote, cluster=vote.prompt_a)) for vote in votes]


def _pairs(path: Path) -> list[tuple[str, PersonVote]]:
    rows: list[tuple[str, PersonVote]] = []
    seen: dict[str, str] = {}
    read = scored_jsonl.read_pairs(path).votes
    for vote, row in zip(read, read_objects(path), strict=True):
        key, asked = row.maybe("pair_id"), _asked(vote)
        if key is not None and seen.setdefault(key, row.where) != row.where:
            raise UserError(
                f"{row.where}: pair '{key}' was already at {seen[key]}; keep one row for each pair"
            )
        cluster = row.maybe("prompt_group") or prompt_key(asked or vote.prompt_a)
        kind = row.maybe("kind") or "native"
        rows.append((vote.split or "", _of(vote, cluster, key=key, kind=kind)))
    return rows


def _asked(vote: Vote) -> str | None:
    """The prompt in the question."""
    if vote.dimension not in ALIGNED:
        return None
    before = QUESTIONS[vote.dimension].partition("{prompt}")[0]
    if vote.question is not None and vote.question.startswith(before):
        return vote.question.removeprefix(before).strip()
    return vote.prompt_a


def _of(
    vote: Vote, cluster: str, four: int | None = None, key: str | None = None, kind: str = "native"
) -> PersonVote:
    return PersonVote(
        where=vote.where,
        key=key,
        video_a=vote.video_a,
        video_b=vote.video_b,
        prompt_a=vote.prompt_a,
        prompt_b=vote.prompt_b,
        asked=_asked(vote),
        source=vote.source,
        dimension=vote.dimension,
        kind=kind,
        cluster=cluster,
        vote=_VOTE[vote.answer] if four is None else four,
    )
