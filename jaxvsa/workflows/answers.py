"""What a model wrote: texts of answers, and how many of them are right."""

from __future__ import annotations

import re
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
    mvbench_compat,
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

    With ranked answers: the figures of `answer_measures` as "written_accuracy" and so on, and
    "invalid_rate", an answer that cannot be read being wrong; of two classes the second is the
    positive one; "written_mvbench" where answers are letters, as that benchmark's own evaluation
    counts. With open ones: "exact_match", "ROUGE-L" and METEOR under the task "answer".
    """
    asked = [read_question(record) for record in comments.extra[RECORD]]
    values, errors = {}, {}
    for task, names in label_names.items():
        read_b = np.array(
            [read_answer(text, one, names) for text, one in zip(texts, asked, strict=True)]
        )
        label_b = comments.labels[task]
        most = max(len(names), *(len(one.options) for one in asked))
        found = answer_measures(
            count_answers(label_b, read_b, most), positive=1 if len(names) == 2 else None
        )
        values[f"{split}/{task}/invalid_rate"] = found.pop("invalid_rate")
        values |= {f"{split}/{task}/written_{name}": value for name, value in found.items()}
        if all(opens_letter(one) for one in asked):
            values[f"{split}/{task}/written_mvbench"] = float(np.mean([
                mvbench_compat(f"({text.removeprefix('(')}", one.answer)
                for text, one in zip(texts, asked, strict=True)
            ]))  # fmt: skip
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
    options, opened = [option.lower() for option in question.options], opens_letter(question)
    no_or_yes = len(options) == 2 and all(map(re.match, (r"\W*no\b", r"\W*yes\b"), options))
    if no_or_yes and not opened:
        return parse_yes_no(text, (names[1],), (names[0],))
    return parse_option(f"({text.removeprefix('(')}" if opened else text, question.options)


def opens_letter(question: VideoQuestion) -> bool:
    """Whether the answer begins with a letter in parentheses, of which the first is given."""
    return question.answer_prefix.endswith("(")


def add_texts(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Puts what was written into the rows of predictions."""
    for row, text in zip(rows, texts, strict=True):
        row["written"] = text
