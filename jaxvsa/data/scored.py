"""Scored videos and votes on pairs: the records that every reader of reward data returns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.release import Row, parse_json

ALIGNED = ("text_alignment", "overall")
"""Dimensions whose question holds the prompt."""
QUESTIONS = {
    "dynamism": "dynamism: how much the subjects and the scene move",
    "motion_continuity": "motion continuity: how smooth and steady motion is between frames",
    "visual_aesthetics": "visual aesthetics: how clear and pleasing the picture is",
    "character_continuity": "character continuity: whether subjects keep their identity",
    "text_alignment": "text-video alignment: {prompt}",
    "physical_realism": "physical realism: whether objects obey physics and common sense",
    "overall": "overall quality: {prompt}",
}
"""Dimension -> what is asked about two videos. Source: CleveReward section 3; A4 of our notes."""
DIMENSIONS = tuple(QUESTIONS)
ALIGNED_NUMBERS = tuple(DIMENSIONS.index(name) for name in ALIGNED)
"""Dimensions whose question holds the prompt, by number: only these can be contrasted."""
ANSWERS = {"A": 1, "B": -1, "tie": 0}
"""Answer -> sign of the difference between A and B."""

# Source: A5, step 5; names of T2VQA-DB, VideoFeedback, VideoAlign, GenAI-Bench and VBench.
_ALIASES = {
    "visual quality": "visual_aesthetics", "vq": "visual_aesthetics",
    "aesthetic": "visual_aesthetics", "aesthetics": "visual_aesthetics",
    "temporal consistency": "motion_continuity", "motion quality": "motion_continuity",
    "mq": "motion_continuity", "motion smoothness": "motion_continuity",
    "dynamic degree": "dynamism", "text-to-video alignment": "text_alignment",
    "text to video alignment": "text_alignment", "ta": "text_alignment",
    "factual consistency": "physical_realism", "subject consistency": "character_continuity",
    "mos": "overall", "vote": "overall",
    **{name.replace("_", " "): name for name in DIMENSIONS},
}  # fmt: skip


def dimension_of(name: str, where: str) -> str:
    """The dimension that a data set's own name stands for; case, "_" and " " are the same.

    Args:
        name: such as "temporal consistency" or "MQ".
        where: file and line, which begin the error text.

    Raises:
        UserError: unknown; the known names are listed.
    """
    plain = " ".join(name.replace("_", " ").casefold().split())
    if plain not in _ALIASES:
        raise UserError(
            f"{where}: unknown dimension '{name}'{nearest(plain, _ALIASES)}; known: "
            f"{', '.join(sorted(_ALIASES))}; rename it, or drop such scores with "
            "--unknown-dimensions drop"
        )
    return _ALIASES[plain]


def is_dimension(name: str) -> bool:
    """Whether `dimension_of` knows a name."""
    return " ".join(name.replace("_", " ").casefold().split()) in _ALIASES


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredVideo:
    """One video with what raters gave it; field by field a row of `scored.jsonl`.

    Attributes:
        video_id: unique over all sources.
        source: data set; scores are only compared within one.
        prompt: text that the video was made from, not blank.
        scores: dimension (a key of `QUESTIONS`) -> score; empty for videos that only votes name.
        score_range: dimension -> (lowest, highest) possible score.
        prompt_id: the data set's own id of the prompt.
        path: of the video file.
        feature_key: name of its features; None = `video_id`.
        model: generator.
        n_raters: raters behind each score.
        split: "train", "dev", "test" if the data set says so.
        hash: SHA-256 of the file; videos of equal hash are one video.
    """

    video_id: str
    source: str
    prompt: str
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    score_range: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    prompt_id: str | None = None
    path: str | None = None
    feature_key: str | None = None
    model: str | None = None
    n_raters: int | None = None
    split: str | None = None
    hash: str | None = None

    def to_row(self) -> dict[str, Any]:
        """JSON values under the names of the fields."""
        ranges = {name: list(ends) for name, ends in self.score_range.items()}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "scores": dict(self.scores), "score_range": ranges}


@dataclasses.dataclass(frozen=True, slots=True)
class Vote:
    """A comparison of two videos that raters made themselves.

    Attributes:
        source: data set.
        dimension: a key of `QUESTIONS`.
        video_a: `ScoredVideo.video_id`.
        video_b: likewise.
        prompt_a: prompt of video A; the one that the question holds.
        prompt_b: prompt of video B.
        answer: 1 if A is better, -1 if B is, 0 for a tie.
        where: file and line, for error texts.
        question: None = the template of the dimension.
        gap: difference in standard deviations of the source, None if unknown.
        weight: of the loss.
        split: "train", "dev", "test" if the data set says so.
    """

    source: str
    dimension: str
    video_a: str
    video_b: str
    prompt_a: str
    prompt_b: str
    answer: int
    where: str
    question: str | None = None
    gap: float | None = None
    weight: float = 1.0
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class RewardRows:
    """What a reader returns.

    Attributes:
        videos: of the scores and of the votes, ids unique.
        votes: on pairs of these videos.
        benchmark: its prompts are for test alone: rows of other sources near them are dropped.
        report: reason -> number of rows or values that were left out.
    """

    videos: tuple[ScoredVideo, ...]
    votes: tuple[Vote, ...] = ()
    benchmark: bool = False
    report: Mapping[str, int] = dataclasses.field(default_factory=dict)


class RewardRow(Row):
    """A row of scores: besides `Row`, signed numbers, choices, and fields that may be null."""

    def real(self, field: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from `low` to `high`; a numeric text counts.

        Raises:
            UserError: missing, no number, not finite, or outside.
        """
        found = self.values.get(field)
        try:
            value = math.nan if isinstance(found, bool) else float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise self._wrong(field, f"is {found!r}, not a finite number")
        if not low <= value <= high:
            raise self._wrong(field, f"is {value:g}, outside {low:g} to {high:g}")
        return value

    def choice(self, field: str, known: Mapping[str, Any]) -> Any:
        """The value that a known name stands for.

        Raises:
            UserError: missing or unknown; the known ones are listed.
        """
        found = self.values.get(field)
        if not isinstance(found, str) or found not in known:
            raise self._wrong(
                field, f"is {found!r}{nearest(str(found), known)}; known: {', '.join(known)}"
            )
        return known[found]

    def maybe(self, field: str) -> str | None:
        """A text as in `text`; None if it is missing or null."""
        return self.text(field) if field in self else None

    def split(self) -> str | None:
        """The field "split"; None if it is missing or null; "val" and "validation" are dev."""
        known = {**{name: name for name in SPLITS}, "val": "dev", "validation": "dev"}
        return self.choice("split", known) if "split" in self else None

    def _wrong(self, field: str, what: str) -> UserError:
        return UserError(f"{self.where}, field '{field}' {what}; correct it or remove the row")


def read_objects(path: str | Path) -> Iterator[RewardRow]:
    """The rows of a JSON list or of JSON lines, each with its place for error texts.

    Raises:
        UserError: the file is missing, empty, or a row is no JSON object.
    """
    path = Path(path)
    raw = read_lines(path)
    if raw[0].lstrip().startswith("["):
        rows = parse_json("\n".join(raw).encode(), path)
        if not rows:
            raise UserError(f"{path} is empty; give a file with rows")
        for number, row in enumerate(rows):
            yield _object(row, f"{path}: row {number}")
        return
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error}); correct it") from error
        yield _object(row, f"{path}:{number}")


def _object(row: Any, where: str) -> RewardRow:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}; correct it")
    return RewardRow(row, where)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file in UTF-8, without their ends.

    Raises:
        UserError: it is missing, empty, or no UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 at byte {error.start}; convert the file") from error
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with rows")
    return text.replace("\r\n", "\n").split("\n")


def once(videos: Iterator[tuple[ScoredVideo, str]]) -> Iterator[ScoredVideo]:
    """The videos of one file, of (video, place in the file).

    Raises:
        UserError: an id comes twice; both places are named.
    """
    seen: dict[str, str] = {}
    for video, where in videos:
        if video.video_id in seen:
            raise UserError(
                f"{where}: video '{video.video_id}' was already at {seen[video.video_id]}; "
                "keep one row for each video"
            )
        seen[video.video_id] = where
        yield video
