"""QaEgo4D: open questions about long egocentric videos."""

from __future__ import annotations

from pathlib import Path

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import QuestionSet, VideoQuestion
from jaxvsa.data.release import Row, read_rows

FILES = {
    "train": "annotations.train.json",
    "dev": "annotations.val.json",
    "test": "annotations.test.json",
}
FPS = 30  # of Ego4D's canonical clips, in which the moments are counted


def read_release(root: str | Path, *, moments: bool = False) -> QuestionSet:
    """Reads the annotations under `root`; answers are open.

    Source: QaEgo4D release (Baermann and Waibel, 2022); MTransLLAMA specification, section 4:
    10746, 1913 and 1854 questions.
    Chosen: the question is asked as published; the paper shows no prompt for this data set.

    Args:
        root: folder with `annotations.{train,val,test}.json`.
        moments: the clip is the moment that holds the answer, which no model can know; otherwise
            it is the whole video.

    Returns:
        train, dev and test. The report counts "questions" per split.

    Raises:
        UserError: a file or field is missing or wrong, or a sample occurs twice.
    """
    questions: dict[str, VideoQuestion] = {}
    for split, name in FILES.items():
        for row in read_rows(Path(root) / name):
            question = _question(row, split, moments)
            if question.id in questions:
                raise UserError(
                    f"{row.where}: sample '{question.id}' occurs twice, first in "
                    f"'{questions[question.id].split}'; keep one"
                )
            questions[question.id] = question
    found = tuple(questions.values())
    counts = {split: sum(question.split == split for question in found) for split in FILES}
    return QuestionSet(found, {"questions": counts})


def _question(row: Row, split: str, moments: bool) -> VideoQuestion:
    start, end = row.number("moment_start_frame"), row.number("moment_end_frame")
    if start > end:
        raise UserError(
            f"{row.where}: 'moment_start_frame' is behind 'moment_end_frame'; download it again"
        )
    return VideoQuestion(
        id=row.text("sample_id"),
        video=f"{row.text('video_id')}.mp4",
        question=row.text("question"),
        answer=row.text("answer"),
        start_s=start / FPS if moments else None,
        end_s=end / FPS if moments else None,
        split=split,
    )
