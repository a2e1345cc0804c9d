"""A trained model at hand: rows of comments in, rows of predictions out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.mesh import all_devices, local_shards, put_whole
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable, read_npy_folder
from jaxvsa.data.pipeline import iterate
from jaxvsa.data.sources.table import read_records, read_row
from jaxvsa.evaluation.evaluator import run as run_tasks
from jaxvsa.evaluation.predictions import prediction_rows, write_predictions
from jaxvsa.workflows import predict_answers, predict_rewards
from jaxvsa.workflows.assemble import KINDS
from jaxvsa.workflows.comments import Batching
from jaxvsa.workflows.predict_answers import answer_one, answer_records
from jaxvsa.workflows.runs import Trained, read_trained
from jaxvsa.workflows.score import TASK, LabelNames, batch_size


class Model:
    """A trained model, ready to predict; all of it comes from one checkpoint.

    Attributes:
        labels: task -> class names in index order.
        step: updates it was trained for.
        config: the resolved configuration of its run.
    """

    def __init__(self, trained: Trained) -> None:
        """Copies the parameters to all devices."""
        self.labels: dict[str, tuple[str, ...]] = dict(trained.facts.label_names)
        self.step = trained.step
        self.config = trained.config
        self._trained = trained
        self._mesh = all_devices()
        self._params = put_whole(trained.params, self._mesh)

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        features: str | Path | None = None,
        suffix: str = ".npy",
    ) -> list[dict[str, Any]]:
        """One prediction per row, in their order.

        A prediction does not depend on the rows beside it (1e-5).

        Args:
            rows: each with `comment` and, if the model sees video, `video`; `key` and labels under
                the names of the tasks are optional, other columns are not looked at.
            features: folder of the videos' features, one (rows, width) `.npy` file per video, made
                as those of training; for a model that sees video.
            suffix: end of the names of these files.

        Returns:
            `evaluation.predictions.prediction_rows`: as predictions.jsonl.

        Raises:
            UserError: a row lacks a column or has an unknown label; features are missing or of
                another kind than those of training.
        """
        records = ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return self.predict_records(records, features, suffix)

    def predict_records(
        self,
        records: Iterable[tuple[str, Mapping[str, Any]]],
        features: str | Path | None = None,
        suffix: str = ".npy",
    ) -> list[dict[str, Any]]:
        """`predict` for rows that come with their place in a file, for messages."""
        batching = dataclasses.replace(Batching.of(self.config), resident="no")
        comments = to_comments(records, self.labels, need_video=batching.variant != "text")
        if not len(comments):
            return []
        table = self._features(comments.video, batching.frames_limit, features, suffix)
        trained = self._trained
        row_b = None if table is None else table.rows(comments.video)
        examples = batching.examples(comments, trained.codec, row_b, table, share=True)
        size = batch_size(len(comments), self.config["train"]["eval_batch_size"], self._mesh)
        stream = iterate(batching.in_order(examples, size, local_shards(self._mesh)))
        probs, _ = run_tasks(trained.system, [TASK], self._params, {}, stream, self._mesh)
        return prediction_rows(comments, probs, self.labels)

    def _features(
        self, videos: Sequence[str], limit: int, folder: str | Path | None, suffix: str
    ) -> FeatureTable | None:
        """The features of these videos; None for a model of text alone."""
        manifest = self._trained.manifest
        if manifest is None:
            if folder is not None:
                raise UserError(f"--features {folder}: the model reads no video; leave it out")
            return None
        kind = f"features of '{manifest.encoder}', {manifest.width} wide"
        if folder is None:
            raise UserError(f"the model was trained on {kind}; name their folder with --features")
        table, _ = read_npy_folder(folder, videos, suffix, limit, dtype=manifest.dtype)
        if table.width != manifest.width:
            raise UserError(
                f"{folder}: rows are {table.width} wide, but the model was trained on {kind}; "
                "extract them with that encoder"
            )
        return table


MODELS = {"comments": Model, "questions": predict_answers.Model, "pairs": predict_rewards.Model}
"""What a model reads (`assemble.KINDS`) -> its class."""


def load(
    run: str | Path, step: str | int = "best"
) -> Model | predict_answers.Model | predict_rewards.Model:
    """The model of a run: of comments, of questions, or of pairs of videos.

    Args:
        run: its folder; the data it was trained on is not needed.
        step: "best", "newest" or a number of updates.

    Raises:
        UserError: see `workflows.runs.read_trained`.
    """
    trained = read_trained(run, step)
    return MODELS[KINDS[trained.system.name]](trained)  # type: ignore[return-value]


def predict_file(
    run: str | Path,
    source: str | Path,
    out: str | Path,
    features: str | Path | None = None,
    suffix: str = ".npy",
    step: str | int = "best",
    text_encoder: str | Path | None = None,
) -> int:
    """Predicts the rows of a `.jsonl` or `.csv` file and writes them as JSON lines.

    Returns:
        how many there were; none is no error.

    Raises:
        UserError: see `load`, `Model.predict` and `data.sources.table.read_records`; then `out` is
            as it was.
    """
    if Path(out).resolve() == Path(source).resolve():
        raise UserError(f"--out {out} is the input itself; choose another file")
    records = list(read_records(source, allow_empty=True))
    model = load(run, step)
    if isinstance(model, predict_rewards.Model):
        rows = model.reward_records(records, features, text_encoder, suffix)
    elif text_encoder is not None:
        raise UserError(f"--text-encoder {text_encoder}: {run} is no reward model; leave it out")
    elif isinstance(model, Model):
        rows = model.predict_records(records, features, suffix)
    else:
        rows = answer_records(model, records, features, suffix)
    write_predictions(out, rows)
    return len(rows)


def predict_one(
    run: str | Path, question: str, clip: str | Path | None, step: str | int = "best"
) -> str:
    """The answer to one question.

    Raises:
        UserError: see `load`; the run labels comments.
    """
    model = load(run, step)
    if not isinstance(model, predict_answers.Model):
        raise UserError(f"{run} is no model that answers questions; use --input FILE")
    return answer_one(model, question, clip)


def to_comments(
    records: Iterable[tuple[str, Mapping[str, Any]]], labels: LabelNames, need_video: bool
) -> Comments:
    """Rows as comments; whatever has no label gets -1.

    Args:
        records: where each row stands, for messages, and its columns.
        labels: task -> class names.
        need_video: a row must name its video; otherwise its key stands for it.

    Raises:
        UserError: a column is missing or of another type, or a label is none of the classes.
    """
    rows: list[dict[str, Any]] = []
    for number, (where, record) in enumerate(records, 1):
        columns = {name: value for name, value in record.items() if name != "split"}
        row = read_row(columns, where, [task for task in labels if task in columns], False)
        if need_video and row["video"] is None:
            raise UserError(
                f"{where}: no column 'video'{nearest('video', columns)}; the model looks up the "
                "features of a comment by it"
            )
        row["key"] = row["key"] or f"row-{number}"
        row["video"] = row["video"] or row["key"]
        rows.append(row)
    return Comments(
        key=[row["key"] for row in rows],
        video=[row["video"] for row in rows],
        text=[row["text"] for row in rows],
        labels={
            task: np.array([_index(row, task, names) for row in rows], np.int32)
            for task, names in labels.items()
        },
    )


def _index(row: Mapping[str, Any], task: str, names: Sequence[str]) -> int:
    """Class index of a row's label, -1 without one."""
    label = row["labels"].get(task)
    if label is not None and label not in names:
        raise UserError(
            f"{row['where']}: unknown {task} '{label}'{nearest(label, names)}; the model knows "
            f"{', '.join(names)}"
        )
    return -1 if label is None else list(names).index(label)
