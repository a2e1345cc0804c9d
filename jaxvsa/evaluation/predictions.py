"""Predictions as rows, and the file `predictions.jsonl` that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_jsonl, write_atomic
from jaxvsa.metrics.confusion import Confusion

_COLUMNS = ("key", "video", "comment")


class Answered(Protocol):
    """Comments by column, as `jaxvsa.data.corpus.Comments` holds them."""

    @property
    def key(self) -> Sequence[str]:
        """Unique names."""

    @property
    def video(self) -> Sequence[str]:
        """What each answers."""

    @property
    def text(self) -> Sequence[str]:
        """The comments."""

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """Task -> int (b,)."""


def prediction_rows(
    comments: Answered,
    probs: Mapping[str, np.ndarray],
    label_names: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """One row per comment.

    A row is {"key", "video", "comment", task: {"label": name or None, "predicted": name,
    "probabilities": {name: p}}}, the classes in index order. A probability is the shortest decimal
    that reads back as the same float, so nothing is lost. Ties go to the lowest index.

    Args:
        comments: b comments; a task without labels, or with label -1, gets "label": None.
        probs: task -> float (b,c).
        label_names: task -> names of its c classes.

    Raises:
        UserError: a task is named like one of the columns.
        ValueError: a task's array has not the shape (b,c).
    """
    rows: list[dict[str, Any]] = [
        {"key": key, "video": video, "comment": text}
        for key, video, text in zip(comments.key, comments.video, comments.text, strict=True)
    ]
    for task, probs_bc in probs.items():
        names = label_names[task]
        if task in _COLUMNS:
            raise UserError(f"a task cannot be named '{task}'; rename that label column")
        if probs_bc.shape != (len(rows), len(names)):
            raise ValueError(
                f"'{task}': probabilities have shape {probs_bc.shape}, "
                f"expected {(len(rows), len(names))}"
            )
        label_b = comments.labels.get(task, np.full(len(rows), -1))
        for row, label, values_c in zip(rows, label_b, _exact(probs_bc), strict=True):
            row[task] = {
                "label": names[label] if label >= 0 else None,
                "predicted": names[int(np.argmax(values_c))],
                "probabilities": dict(zip(names, values_c, strict=True)),
            }
    return rows


def write_predictions(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one JSON object a line; the file is complete or not there."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def score_predictions(path: str | Path) -> tuple[dict[str, Confusion], dict[str, tuple[str, ...]]]:
    """Read a file of `write_predictions` and count it again.

    Returns:
        {task: Confusion} over the rows with a label, and {task: class names}: both as at writing.

    Raises:
        UserError: the file has no row.
    """
    rows = read_jsonl(path)
    if not rows:
        raise UserError(f"{path} holds no predictions; write it again with jaxvsa.evaluate")
    states, label_names = {}, {}
    for task in [name for name in rows[0] if name not in _COLUMNS]:
        names = tuple(rows[0][task]["probabilities"])
        index = {None: -1} | {name: i for i, name in enumerate(names)}
        label_b = np.array([index[row[task]["label"]] for row in rows])
        predicted_b = np.array([index[row[task]["predicted"]] for row in rows])
        states[task] = Confusion.from_labels(label_b, predicted_b, len(names))
        label_names[task] = names
    return states, label_names


def _exact(values: np.ndarray) -> list[list[float]]:
    """Python floats whose decimals are those of the array's own type: 0.1, not 0.10000000149."""
    if values.dtype == np.float64:
        return values.tolist()
    return [[float(str(value)) for value in row] for row in values.astype(np.float32)]
