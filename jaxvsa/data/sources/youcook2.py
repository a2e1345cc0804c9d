"""YouCook2: one sentence for every step of a recipe video."""

from __future__ import annotations

from pathlib import Path

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import QuestionSet, VideoQuestion
from jaxvsa.data.release import Row, parse_json, read_release_file

ANNOTATIONS = "youcookii_annotations_trainval.json"
SUBSETS = {"training": "train", "validation": "test"}
QUESTION = "Pair with the video, What happened in the last 5 seconds?"


def read_release(root: str | Path) -> QuestionSet:
    """Reads the annotations under `root`: one question for each segment, answers are open.

    Source: YouCook2 release (Zhou et al., 2018); MTransLLAMA specification, section 4: prompt,
    10337 and 3492 segments.
    Chosen: "validation" is called test, because results are reported on it and the sentences of
    the release's own test set are not published.

    Args:
        root: folder with `youcookii_annotations_trainval.json`.

    Returns:
        train and test, in the order of the file. `video` has no suffix, since the videos come in
        several formats. The report counts per split "questions" and "videos".

    Raises:
        UserError: the file or a field is missing or wrong, or an unknown subset.
    """
    path = Path(root) / ANNOTATIONS
    content = Row.of(parse_json(read_release_file(path), path), str(path))
    videos = Row.of(content.values.get("database"), f"{path}, field 'database'")
    questions: list[VideoQuestion] = []
    report = {split: {"questions": 0, "videos": 0} for split in SUBSETS.values()}
    for video, value in videos.values.items():
        row = Row.of(value, f"{path}: video '{video}'")
        subset = row.text("subset")
        if subset not in SUBSETS:
            raise UserError(f"{row.where}: unknown subset '{subset}'; known: {list(SUBSETS)}")
        split = SUBSETS[subset]
        found = [
            _question(Row.of(part, f"{row.where}, annotation {at}"), video, split, at)
            for at, part in enumerate(row.items("annotations"))
        ]
        report[split]["questions"] += len(found)
        report[split]["videos"] += 1
        questions += found
    if not questions:
        raise UserError(f"{path}: no annotated segment; download it again")
    return QuestionSet(tuple(questions), dict(report))


def _question(row: Row, video: str, split: str, at: int) -> VideoQuestion:
    ends = row.items("segment")
    if len(ends) != 2:
        raise UserError(f"{row.where}, field 'segment': expected start and end in seconds")
    clip = Row({"start": ends[0], "end": ends[1]}, f"{row.where}, field 'segment'")
    start_s, end_s = clip.number("start"), clip.number("end")
    if not start_s < end_s:
        raise UserError(
            f"{row.where}, field 'segment': {start_s} s is not before {end_s} s; download it again"
        )
    return VideoQuestion(
        id=f"{video}/{at}",
        video=video,
        question=QUESTION,
        answer=row.text("sentence"),
        start_s=start_s,
        end_s=end_s,
        split=split,
    )
