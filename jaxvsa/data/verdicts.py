"""What a model says about voted pairs: its scores of videos, or its votes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.prompts import prompt_key
from jaxvsa.data.scored import DIMENSIONS, RewardRow, dimension_of, is_dimension
from jaxvsa.data.votes import BOTH_BAD, BOTH_GOOD, LEFT, RIGHT, PersonVote, PersonVotes, read_rows

SCORE, VOTE = ("score", "reward"), ("vote", "model_vote")
VIDEO = ("video", "video_id", "path")
SIDES = (
    ("left", "right"), ("left_video", "right_video"), ("video_a", "video_b"), ("path_A", "path_B"),
)  # fmt: skip
MISSING = -1
MISSING_RULES = ("error", "wrong", "drop")
_TIE = 4  # of three classes: neither good nor bad
_SHOWN = 5
# Case, blanks and [[ ]] do not matter. Source: GenAI-Bench's inference.py writes A>B and so on.
_VOTES = {
    "leftvote": LEFT, "left": LEFT, "a": LEFT, "a>b": LEFT, "a>>b": LEFT,
    "rightvote": RIGHT, "right": RIGHT, "b": RIGHT, "b>a": RIGHT, "b>>a": RIGHT,
    "tievote": BOTH_GOOD, "a=b=good": BOTH_GOOD, "bothbad_vote": BOTH_BAD, "a=b=bad": BOTH_BAD,
    "tie": _TIE, "a=b": _TIE, "same": _TIE,
}  # fmt: skip

_Key = tuple[str, str, str]  # video, dimension, key of the prompt; "" where the file has no column


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """A model's scores of the two videos of each pair.

    Attributes:
        score_bv: float64 (b, 2), nan where there is none.
        absent_b: bool, no score of A or of B.
        unused: rows of videos that no vote names.
    """

    score_bv: np.ndarray
    absent_b: np.ndarray
    unused: int


@dataclasses.dataclass(frozen=True, eq=False)
class Votes:
    """A model's votes.

    Attributes:
        vote_b: as people's, `MISSING` for none; a tie of three classes is `BOTH_GOOD`.
        absent_b: bool, the file has no row for the pair.
        unread: votes that are null or blank, and with the rule "wrong" unknown ones.
        four_classes: no tie is of three classes.
        unused: rows of pairs that no person voted on.
    """

    vote_b: np.ndarray
    absent_b: np.ndarray
    unread: int
    four_classes: bool
    unused: int


def read_verdicts(path: str | Path, votes: PersonVotes, missing: str = "error") -> Scores | Votes:
    """Reads a model's outputs on the voted pairs, CSV or JSON lines; columns tell which.

    Scores: `score` (or `reward`, as `predict` writes it), `video`, and if they depend on it
    `dimension` and `prompt`. Votes: `vote` (or `model_vote`), and of which pair: `pair_id`; or
    `idx`, the row of the votes from 0; or `left` and `right`, in any order, if need be with
    `dimension` and `prompt`; without any of these the rows are those of the votes, in order.

    Args:
        path: the file.
        votes: people's.
        missing: for a pair without score or vote, and for an unknown vote: "error"; "wrong"; "drop"
            (the caller leaves such pairs out; unknown votes are errors).

    Raises:
        UserError: a column missing; a score that is no finite number; an unknown vote or dimension;
            a video, pair or name twice; with "error", what is missing: the first five, how many.
    """
    path = Path(path)
    rows = read_rows(path)
    first = next(rows)
    rows = itertools.chain([first], rows)
    score, vote = _one_of(first, SCORE), _one_of(first, VOTE)
    if (score is None) == (vote is None):
        known = (*VIDEO, *SCORE, *VOTE)
        odd = [name for name in first.values if name not in known]
        hint = next(filter(None, (nearest(name, (*SCORE, *VOTE)) for name in odd)), "")
        what = "no column 'score' or 'vote'" if score is None else "both 'score' and 'vote'"
        raise UserError(f"{first.where}: {what}{hint}; found {', '.join(first.values)}")
    if score is not None:
        return _read_scores(path, rows, first, score, votes, missing)
    assert vote is not None
    return _read_votes(path, list(rows), vote, votes, missing)


def _read_scores(
    path: Path,
    rows: Iterator[RewardRow],
    first: RewardRow,
    score: str,
    votes: PersonVotes,
    missing: str,
) -> Scores:
    column = _one_of(first, VIDEO)
    if column is None:
        hint = next(filter(None, (nearest(name, VIDEO) for name in first.values)), "")
        raise UserError(f"{first.where}: no column 'video'{hint}; found {', '.join(first.values)}")
    if not votes.names:
        raise UserError(f"{votes.path}: names no videos, so only votes can be compared with it")
    with_dimension, with_prompt = "dimension" in first.values, "prompt" in first.values
    found: dict[_Key, tuple[float, str]] = {}
    unused = 0
    for row in rows:
        name, value = row.text(column).strip(), row.real(score)
        dimension = _dimension(row) if with_dimension else ""
        prompt = prompt_key(row.text("prompt")) if with_prompt else ""
        video = _video(row, name, votes)
        unused += video is None
        key = (video or f"?{name}", dimension, prompt)
        if key in found:
            raise UserError(
                f"{row.where}: '{name}' was already scored at {found[key][1]}; "
                "keep one score for each video, dimension and prompt"
            )
        found[key] = value, row.where
    score_bv = np.full((len(votes.rows), 2), np.nan)
    lost: dict[str, None] = {}
    for number, one in enumerate(votes.rows):
        for side, key in enumerate(_score_keys(one, with_dimension, with_prompt, path)):
            if key in found:
                score_bv[number, side] = found[key][0]
            else:
                lost[" ".join(filter(None, key))] = None
    if lost and missing == "error":
        names = sorted({key[0].removeprefix("?") for key in found})
        hint = nearest(next(iter(lost)), names) if len(lost) == 1 or unused else ""
        raise _lost(path, list(lost), "videos of the votes have no score", hint)
    return Scores(score_bv, np.isnan(score_bv).any(axis=1), unused)


def _score_keys(
    vote: PersonVote, with_dimension: bool, with_prompt: bool, path: Path
) -> Iterator[_Key]:
    """Keys of the scores of A and B that answer the question of a vote."""
    dimension = vote.dimension if with_dimension else ""
    for video, own in ((vote.video_a, vote.prompt_a), (vote.video_b, vote.prompt_b)):
        asked = prompt_key(vote.asked if vote.asked is not None else own)
        if not with_prompt and asked != prompt_key(own):
            raise UserError(
                f"{vote.where}: asks about another prompt than that of '{video}'; "
                f"{path} needs a column 'prompt'"
            )
        yield video, dimension, asked if with_prompt else ""


def _read_votes(
    path: Path, rows: Sequence[RewardRow], column: str, votes: PersonVotes, missing: str
) -> Votes:
    place = _places(path, rows, votes)
    said_b = np.full(len(votes.rows), MISSING)
    absent_b = np.ones(len(votes.rows), bool)
    unread = unused = 0
    for row, targets in zip(rows, place, strict=True):
        said = _said(row, column, missing)
        unread += said == MISSING
        unused += not targets
        for number, turned in targets:
            swapped = {LEFT: RIGHT, RIGHT: LEFT} if turned else {}
            said_b[number], absent_b[number] = swapped.get(said, said), False
    if absent_b.any() and missing == "error":
        lost = [votes.rows[number].where for number in np.flatnonzero(absent_b).tolist()]
        raise _lost(path, lost, "pairs of the votes have no vote", "")
    four = not np.any(said_b == _TIE)
    return Votes(np.where(said_b == _TIE, BOTH_GOOD, said_b), absent_b, unread, four, unused)


def _said(row: RewardRow, column: str, missing: str) -> int:
    """A vote; `MISSING` for null and blank."""
    value = row.values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return MISSING
    plain = "".join(str(value).casefold().split()).removeprefix("[[").removesuffix("]]")
    if plain in _VOTES:
        return _VOTES[plain]
    if missing == "wrong":
        return MISSING
    raise UserError(
        f"{row.where}: unknown vote '{value}'{nearest(plain, _VOTES)}; known: leftvote, rightvote, "
        "tievote, bothbad_vote, A, B, tie; leave it blank, or count such votes with --missing wrong"
    )


def _places(
    path: Path, rows: Sequence[RewardRow], votes: PersonVotes
) -> list[list[tuple[int, bool]]]:
    """For each row the pairs that it is about, and whether with sides exchanged."""
    first = rows[0].values
    sides = next((pair for pair in SIDES if pair[0] in first and pair[1] in first), None)
    if "pair_id" in first:
        number = {row.key: n for n, row in enumerate(votes.rows) if row.key is not None}
        if not number:
            raise UserError(f"{votes.path}: has no pair_id, by which {path} names its pairs")
        names = [row.text("pair_id") for row in rows]
        return _once(rows, names, [[(number[n], False)] if n in number else [] for n in names])
    if "idx" in first:
        numbers = [row.real("idx", low=0) for row in rows]
        placed = [[(int(n), False)] if n == int(n) and n < len(votes.rows) else [] for n in numbers]
        placed = _once(rows, [f"{n:g}" for n in numbers], placed)
    elif sides is not None and votes.names:
        keyed = _by_sides(rows, sides, votes)
        if keyed is not None:
            return keyed
        placed = [[(n, False)] for n in range(len(rows))]
    elif len(rows) != len(votes.rows):
        raise UserError(
            f"{path}: {len(rows):,} rows, but {len(votes.rows):,} votes in {votes.path}; name the "
            "pair of each row with columns pair_id, idx, or left and right"
        )
    else:
        placed = [[(n, False)] for n in range(len(rows))]
    _check_prompts(rows, placed, votes)
    return placed


def _by_sides(
    rows: Sequence[RewardRow], sides: tuple[str, str], votes: PersonVotes
) -> list[list[tuple[int, bool]]] | None:
    """Places by the names of the videos; None if the rows are the votes themselves, in order."""
    first = rows[0].values
    with_dimension, with_prompt = "dimension" in first, "prompt" in first
    wanted: dict[tuple[str, ...], list[tuple[int, bool]]] = {}
    for number, vote in enumerate(votes.rows):
        rest = (
            vote.dimension if with_dimension else "",
            prompt_key(vote.asked or vote.prompt_a) if with_prompt else "",
        )
        wanted.setdefault((vote.video_a, vote.video_b, *rest), []).append((number, False))
        wanted.setdefault((vote.video_b, vote.video_a, *rest), []).append((number, True))
    keys = []
    for row in rows:
        names = [_video(row, row.text(side).strip(), votes) or row.text(side) for side in sides]
        dimension = _dimension(row) if with_dimension else ""
        keys.append((*names, dimension, prompt_key(row.text("prompt")) if with_prompt else ""))
    placed = [wanted.get(key, []) for key in keys]
    if len(rows) == len(votes.rows) and all(
        (number, False) in targets for number, targets in enumerate(placed)
    ):
        return None
    return _once(rows, [" ".join(sorted(key[:2]) + list(key[2:])) for key in keys], placed)


def _once(
    rows: Sequence[RewardRow], names: Sequence[str], placed: list[list[tuple[int, bool]]]
) -> list[list[tuple[int, bool]]]:
    """`placed`, after a look for pairs that are named twice."""
    seen: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        if seen.setdefault(name, row.where) != row.where:
            raise UserError(
                f"{row.where}: the pair '{name.strip()}' was already at {seen[name]}; keep one vote"
            )
    return placed


def _check_prompts(
    rows: Sequence[RewardRow], placed: Sequence[Sequence[tuple[int, bool]]], votes: PersonVotes
) -> None:
    """Rows that go by their place must be about the prompt that is there."""
    for row, targets in zip(rows, placed, strict=True):
        for number, _ in targets:
            vote = votes.rows[number]
            if "prompt" in row and prompt_key(row.text("prompt")) != prompt_key(
                vote.asked or vote.prompt_a
            ):
                raise UserError(
                    f"{row.where}: is about another prompt than {vote.where}, at whose place it "
                    "stands; give the votes in the same order, or name left and right"
                )


def _video(row: RewardRow, name: str, votes: PersonVotes) -> str | None:
    """The id of a video; None if no vote names it."""
    found = votes.names.get(name, [])
    if len(found) > 1:
        raise UserError(
            f"{row.where}: '{name}' may be {' or '.join(found[:2])}; write one of these"
        )
    return found[0] if found else None


def _dimension(row: RewardRow) -> str:
    name = row.text("dimension")
    if not is_dimension(name):
        raise UserError(
            f"{row.where}: unknown dimension '{name}'{nearest(name, DIMENSIONS)}; "
            f"known: {', '.join(DIMENSIONS)}"
        )
    return dimension_of(name, row.where)


def _one_of(row: RewardRow, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row.values), None)


def _lost(path: Path, lost: Sequence[str], what: str, hint: str) -> UserError:
    shown = ", ".join(lost[:_SHOWN]) + (", ..." if len(lost) > _SHOWN else "")
    return UserError(
        f"{path}: {len(lost):,} {what}: {shown}{hint}; add them, or give --missing drop or wrong"
    )
