"""CLEVRER questions with options: four tasks of MVBench for test, VideoChat2-IT for training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.questions import LETTERS, QuestionSet, VideoQuestion, lettered_options
from jaxvsa.data.release import Row, read_rows

# Source: MTransLLAMA Table II; MVBench's names of the files.
TASKS = {
    "OE": "object_existence",
    "MD": "moving_direction",
    "MC": "moving_count",
    "MA": "moving_attribute",
}
TEST_VIDEOS = "clevrer/video_validation"

# Source: MVBench's published evaluation, as MTransLLAMA specification, section 4, gives it.
QUESTION = "Question: {question}\nOptions:\n{options}\nOnly give the best option."
ANSWER_PREFIX = "Best option:("


def read_test(root: str | Path, tasks: Sequence[str] = tuple(TASKS)) -> QuestionSet:
    """Reads the test questions of MVBench on CLEVRER.

    The number of options differs between questions, so chance is `option_chance` of the file.

    Source: MVBench release, `json/<task>.json`; MTransLLAMA specification, section 4: four tasks
    with 200 questions each.

    Args:
        root: folder with `object_existence.json`, `moving_direction.json`, `moving_count.json`
            and `moving_attribute.json`.
        tasks: keys of `TASKS`.

    Returns:
        Questions of the split "test"; `extra["task"]` is the key of the task. The report counts
        "questions" per task.

    Raises:
        UserError: unknown task; a file or field is missing or wrong; an answer that is not
            exactly one of its candidates.
    """
    questions: list[VideoQuestion] = []
    report = {}
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"unknown task '{task}'{nearest(task, TASKS)}; known: {list(TASKS)}")
        rows = read_rows(Path(root) / f"{TASKS[task]}.json")
        report[task] = len(rows)
        questions += [_test_question(row, task, number) for number, row in enumerate(rows)]
    return QuestionSet(tuple(questions), {"questions": report})


def _test_question(row: Row, task: str, number: int) -> VideoQuestion:
    options, answer = row.texts("candidates"), row.text("answer")
    if not 2 <= len(options) <= len(LETTERS) or options.count(answer) != 1:
        raise UserError(
            f"{row.where}: the answer is not exactly one of 2 to {len(LETTERS)} 'candidates'; "
            "download the file again"
        )
    label, lettered = options.index(answer), lettered_options(options)
    clip = _clip(row) if "start" in row or "end" in row else (None, None)
    return VideoQuestion(
        id=f"{TASKS[task]}/{number}",
        video=f"{TEST_VIDEOS}/{row.text('video')}",
        question=QUESTION.format(question=row.text("question"), options="\n".join(lettered)),
        answer=lettered[label],
        options=options,
        label=label,
        start_s=clip[0],
        end_s=clip[1],
        answer_prefix=ANSWER_PREFIX,
        split="test",
        extra={"task": task},
    )


def _clip(row: Row) -> tuple[float, float]:
    start_s, end_s = row.number("start"), row.number("end")
    if not start_s < end_s:
        raise UserError(f"{row.where}: 'start' is not before 'end'; download the file again")
    return start_s, end_s


def read_train(path: str | Path) -> QuestionSet:
    """Reads training rows of VideoChat2-IT, such as those of CLEVRER-MC.

    Source: VideoChat2-IT, `video/reasoning/clevrer_mc/train.json`: rows with `video` and `QA`, a
    list of an instruction `i`, a question `q` that holds its options, and an answer `a`.
    Chosen: instruction and question are joined by a space, as users' code does.

    Args:
        path: the file.

    Returns:
        Questions of the split "train"; options and label are read from the lines `(A) text` of
        the question and from the letter in the answer. The report counts "questions" and
        "without_options", whose options or label could not be read: they have none.

    Raises:
        UserError: the file or a field is missing or wrong.
    """
    questions: list[VideoQuestion] = []
    for number, row in enumerate(read_rows(Path(path))):
        video = row.text("video")
        for at, pair in enumerate(row.items("QA")):
            qa = Row.of(pair, f"{row.where}, field 'QA', entry {at}")
            questions.append(_train_question(qa, f"{number}/{at}", video))
    report = {
        "questions": len(questions),
        "without_options": sum(question.label is None for question in questions),
    }
    return QuestionSet(tuple(questions), report)


def _train_question(row: Row, name: str, video: str) -> VideoQuestion:
    text, answer = row.text("q"), row.text("a")
    found = re.findall(r"^\s*\(([A-Z])\)[ \t]*(\S.*?)\s*$", text, re.MULTILINE)
    options = tuple(option for _, option in found)
    letter = re.search(r"\(([A-Z])\)", answer)
    label = LETTERS.index(letter[1]) if letter else len(options)
    known = label < len(options) and "".join(letter for letter, _ in found) == LETTERS[: len(found)]
    instruction = row.text("i") if row.values.get("i") != "" else ""
    return VideoQuestion(
        id=name,
        video=video,
        question=f"{instruction} {text}".strip(),
        answer=answer,
        options=options if known else (),
        label=label if known else None,
        split="train",
    )
