"""What a model wrote: texts of answers, and how many of them are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvsa.data.corpus import Comments
from jaxvsa.data.questions import VideoQuestion
from jaxvsa.evaluation.intervals import bootstrap
from jaxvsa.metrics.answers import (
    INVALID,
    answer_measures,
    count_answers,
    parse_option,
    parse_yes_no,
)
from jaxvsa.metrics.text_overlap import TextOverlap
from jaxvsa.workflows.prepare_questions import RECORD, read_question

Written = tuple[dict[str, float], dict[str, float], list[str]]


def measure_written(
    texts: Sequence[str],
    comments: Comments,
    label_names: Mapping[str, Sequence[str]],
    split: str,
) -> Written:
    """Figures of written answers by full metric name, their standard errors, and the texts.

    With ranked answers: "written_accuracy" and "invalid_rate", an answer that cannot be read being
    wrong. With open ones: "exact_match", "ROUGE-L" and METEOR under the task "answer".
    """
    asked = [read_question(record) for record in comments.extra[RECORD]]
    values, errors = {}, {}
    for task, names in label_names.items():
        read_b = np.array(
            [read_answer(text, one, names) for text, one in zip(texts, asked, strict=True)]
        )
        label_b = comments.labels[task]
        most = max(len(names), *(len(one.options) for one in asked))
        found = answer_measures(count_answers(label_b, read_b, most))
        values[f"{split}/{task}/written_accuracy"] = found["accuracy"]
        values[f"{split}/{task}/invalid_rate"] = found["invalid_rate"]
        column_b = np.where(read_b == INVALID, most, read_b)
        error = bootstrap(label_b, column_b, comments.video, most + 1)["accuracy"].error
        if np.isfinite(error):
            errors[f"{split}/{task}/written_accuracy"] = float(error)
    if not label_names:
        right = [(one.answer,) for one in asked]
        state = TextOverlap.from_batch(texts, right)
        values |= {f"{split}/answer/{name}": value for name, value in state.compute().items()}
    return values, errors, list(texts)


def read_answer(text: str, question: VideoQuestion, names: Sequence[str]) -> int:
    """Index of the answer that a text gives, or `INVALID`."""
    first_words = [option.lower()[:2] for option in question.options]
    if first_words == ["no", "ye"]:
        return parse_yes_no(text, (names[1],), (names[0],))
    opened = question.answer_prefix.endswith("(")
    return parse_option(f"({text.removeprefix('(')}" if opened else text, question.options)


def add_texts(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Puts what was written into the rows of predictions."""
    for row, text in zip(rows, texts, strict=True):
        row["written"] = text
