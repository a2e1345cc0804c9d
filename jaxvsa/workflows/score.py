"""From parameters to a table: metrics with error bars, beside rows that need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import Comments
from jaxvsa.data.pipeline import iterate
from jaxvsa.data.prepared import Prepared
from jaxvsa.evaluation.evaluator import flat_metrics, flat_values, run
from jaxvsa.evaluation.intervals import bootstrap
from jaxvsa.evaluation.predictions import prediction_rows, write_predictions
from jaxvsa.evaluation.tables import Row, save_confusion
from jaxvsa.metrics.baselines import majority, option_chance, speaker_prior, video_majority
from jaxvsa.metrics.confusion import Confusion
from jaxvsa.systems.base import Params, System
from jaxvsa.workflows.answers import add_texts, measure_written
from jaxvsa.workflows.demo import demo_facts
from jaxvsa.workflows.prepare_questions import RECORD, read_question

TASK, WRITE = "classify", "generate"
LabelNames = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """One split, measured.

    Attributes:
        values: full metric name -> value.
        errors: full metric name -> standard error, of a bootstrap over videos.
        states: task -> confusion counts.
        rows: one prediction row per comment.
    """

    values: dict[str, float]
    errors: dict[str, float]
    states: dict[str, Confusion]
    rows: list[dict[str, Any]]


def batch_size(num_rows: int, limit: int, mesh: Mesh) -> int:
    """Rows of a batch for `num_rows` >= 1: about `limit` at most, divisible by the devices.

    Few rows get a power of two, so that calls with different numbers share compiled programs.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = min(limit, 1 << (num_rows - 1).bit_length())
    return -(-size // shards) * shards


def sum_of_micro_f1(values: Mapping[str, float], split: str, tasks: Iterable[str]) -> float:
    """What the published code selects on: micro-F1 added over the tasks."""
    return sum(values[f"{split}/{task}/micro_f1"] for task in tasks)


def score(
    system: System,
    params: Params,
    tables: Mapping[str, jax.Array],
    batches: Any,
    comments: Comments,
    label_names: LabelNames,
    mesh: Mesh,
    split: str,
    codec: Any,
) -> Scored:
    """Evaluates one split.

    Args:
        system: with the task "classify", "generate", or both.
        params: the whole tree.
        tables: of `System.tables`.
        batches: of the split, in any order.
        comments: the same examples in order.
        label_names: task -> class names.
        mesh: where the batches go.
        split: the prefix of metric names.
        codec: the tokenizers of the model, for what it writes.
    """
    tasks = [task for task in (TASK, WRITE) if task in system.tasks]
    outputs, states = run(system, tasks, params, tables, iterate(batches), mesh)
    probs = {task: outputs[task] for task in label_names}
    values = flat_metrics(states, split, label_names)
    if label_names:
        values[f"{split}/all/micro_f1_sum"] = sum_of_micro_f1(values, split, label_names)
    errors: dict[str, float] = {}
    for task, names in label_names.items():
        label_b, predicted_b = comments.labels[task], np.argmax(probs[task], axis=-1)
        found = bootstrap(label_b, predicted_b, comments.video, len(names))
        wide = {name: interval.error for name, interval in found.items()}
        flat = flat_values(wide, f"{split}/{task}", names)
        errors |= {name: error for name, error in flat.items() if np.isfinite(error)}
    host = {task: Confusion(np.asarray(state.counts_cc)) for task, state in states.items()}
    rows = prediction_rows(comments, probs, label_names)
    if WRITE in system.tasks:
        texts = [codec.language.decode(ids) for ids in outputs["answer"]]
        more, spread, texts = measure_written(texts, comments, label_names, split)
        values, errors = values | more, errors | spread
        add_texts(rows, texts)
    return Scored(values, errors, host, rows)


def baselines(prepared: Prepared, protocol: str, splits: Sequence[str]) -> list[Row]:
    """Rows that need no model.

    The majority of all, of the video, or of the speaker; a guess among a question's options; for
    the demo, its optimum.
    """
    train = prepared.comments(protocol, "train")
    rows: dict[str, dict[str, float]] = {"global majority": {}, "video majority": {}}
    if any(train.extra.get("speaker", [])):
        rows = {"global majority": {}, "speaker prior": {}}
    for split in splits:
        comments = prepared.comments(protocol, split)
        for task, names in prepared.labels.items():
            for name, values in rows.items():
                guess_b = _guess(name, train, comments, task)
                state = Confusion.from_labels(comments.labels[task], guess_b, len(names))
                values |= flat_values(state.compute(), f"{split}/{task}", names)
    found = [Row(name, values) for name, values in rows.items()]
    if RECORD in train.extra and prepared.labels:
        found.append(Row("chance", chance(prepared, protocol, splits)))
    return found + optimum(prepared, protocol, splits)


def chance(prepared: Prepared, protocol: str, splits: Sequence[str]) -> dict[str, float]:
    """Expected accuracy of a guess among each question's own options, by full metric name."""
    (task,), values = prepared.labels, {}
    for split in splits:
        records = prepared.comments(protocol, split).extra[RECORD]
        values[f"{split}/{task}/accuracy"] = option_chance(
            [len(read_question(record).options) for record in records]
        )
    return values


def _guess(name: str, train: Comments, comments: Comments, task: str) -> np.ndarray:
    """Labels (b,) of a rule that needs no model."""
    label_n = train.labels[task]
    if name == "speaker prior":
        return speaker_prior(train.extra["speaker"], label_n, comments.extra["speaker"])
    if name == "video majority":
        return video_majority(train.video, label_n, comments.video)
    return majority(label_n, len(comments))


def optimum(prepared: Prepared, protocol: str, splits: Sequence[str]) -> list[Row]:
    """What the best rules reach on these very comments of the synthetic corpus.

    The rule with both inputs in full; those of text or video alone by their accuracy, for the
    corpus' own split. No row for any other data.
    """
    facts = demo_facts(prepared.root)
    if facts is None:
        return []
    both: dict[str, float] = {}
    alone: dict[str, dict[str, float]] = {"text": {}, "video": {}}
    for split in splits:
        comments = prepared.comments(protocol, split)
        for task, names in prepared.labels.items():
            index = {label: at for at, label in enumerate(names)}
            guess_b = np.array([index[name] for name in facts.predicted(comments.key, task)])
            state = Confusion.from_labels(comments.labels[task], guess_b, len(names))
            both |= flat_values(state.compute(), f"{split}/{task}", names)
            for mode in alone if protocol == "official" else ():
                accuracy = facts.realised[split][task][mode]
                for metric in ("accuracy", "micro_f1"):
                    alone[mode][f"{split}/{task}/{metric}"] = accuracy
    rows = [Row("Bayes optimum", both)]
    return rows + [Row(f"Bayes {mode} only", found) for mode, found in alone.items() if found]


def write_scored(folder: Path, scored: Scored, split: str, label_names: LabelNames) -> None:
    """Predictions and confusion matrices of one split, as files."""
    make_folder(folder)
    write_predictions(folder / f"{split}.jsonl", scored.rows)
    for task, names in label_names.items():
        stem = folder / f"{split}-{task}-confusion"
        counts_cc = np.asarray(scored.states[task].counts_cc)
        save_confusion(
            stem.with_suffix(".csv"), stem.with_suffix(".png"), counts_cc, names, f"{split}: {task}"
        )


def make_folder(folder: Path) -> None:
    """The folder of predictions.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --out") from error
