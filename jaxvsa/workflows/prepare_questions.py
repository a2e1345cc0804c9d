"""Questions about clips as rows of a prepared folder, written and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS, Comments, Corpus
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.prepared import Prepared, write_prepared
from jaxvsa.data.questions import QuestionSet, VideoQuestion

RECORD = "record"
"""Extra column of prepared questions: the whole `VideoQuestion` as JSON."""
PIXELS = "frames"
"""Encoder in the manifest of clips that are stored as pixels."""


def prepare_questions(
    sets: Mapping[str, QuestionSet],
    out: str | Path,
    task: str,
    names: Sequence[str],
    frames: FeatureTable | None = None,
    encoder: str = PIXELS,
) -> Prepared:
    """Writes the folder that training opens.

    Args:
        sets: protocol -> the same questions, each split in its way.
        out: a new folder.
        task: name of the task whose answers are ranked; "" if they are open.
        names: short names of these answers.
        frames: of every clip that a question is about; None for text alone.
        encoder: what made them.

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    corpora = {name: to_corpus(found, task, names) for name, found in sets.items()}
    manifest = None if frames is None else frames.describe(encoder)
    return write_prepared(out, corpora, frames, manifest)


def to_corpus(found: QuestionSet, task: str, names: Sequence[str]) -> Corpus:
    """The questions as rows of a corpus, the whole record in an extra column."""
    parts = {
        split: _rows([one for one in found.questions if one.split == split], task)
        for split in SPLITS
    }
    label_names = {task: tuple(names)} if task else {}
    return Corpus(parts, label_names, {"questions": found.report})


def _rows(asked: Sequence[VideoQuestion], task: str) -> Comments:
    labels = {}
    if task:
        open_ = [one.id for one in asked if one.label is None]
        if open_:
            raise UserError(f"question '{open_[0]}' has no label; '{task}' needs one for each")
        labels[task] = np.array([one.label for one in asked], np.int32)
    return Comments(
        key=[one.id for one in asked],
        video=[one.video for one in asked],
        text=[one.question for one in asked],
        labels=labels,
        extra={
            RECORD: [write_question(one) for one in asked],
            "speaker": [one.extra.get("speaker", "") for one in asked],
        },
    )


def write_question(question: VideoQuestion) -> str:
    """The record as JSON, without its split, which a protocol decides."""
    values: dict[str, Any] = {**vars(question), "extra": dict(question.extra)}
    fields = [field.name for field in dataclasses.fields(question)]
    kept = {name: values[name] for name in fields if name not in ("split", "fold")}
    return json.dumps(kept, ensure_ascii=False)


def read_question(record: str) -> VideoQuestion:
    """The question of a prepared record."""
    values = json.loads(record)
    values["context"] = tuple((speaker, text) for speaker, text in values["context"])
    values["options"] = tuple(values["options"])
    return VideoQuestion(**values)
