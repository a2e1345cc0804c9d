"""Questions about clips as rows of a prepared folder, written and read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS, Comments, Corpus
from jaxvsa.data.features import FeatureTable, file_name, load_npy
from jaxvsa.data.prepared import Prepared, write_prepared
from jaxvsa.data.questions import LETTERS, QuestionSet, VideoQuestion
from jaxvsa.data.sources import mustard, mvbench, qaego4d, ur_funny, youcook2

RECORD = "record"
"""Extra column of prepared questions: the whole `VideoQuestion` as JSON."""
ANONYMOUS = "record_anonymous"
"""Likewise, without the names of speakers."""
PIXELS = "frames"
"""Encoder in the manifest of clips that are stored as pixels."""


def prepare_questions(
    sets: Mapping[str, QuestionSet],
    out: str | Path,
    task: str,
    names: Sequence[str],
    frames: FeatureTable | None = None,
    encoder: str = PIXELS,
    anonymous: QuestionSet | None = None,
) -> Prepared:
    """Writes the folder that training opens.

    Args:
        sets: protocol -> the same questions, each split in its way.
        out: a new folder.
        task: name of the task whose answers are ranked; "" if they are open.
        names: short names of these answers.
        frames: of every clip that a question is about; None for text alone.
        encoder: what made them.
        anonymous: the same questions without the names of speakers.

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    hidden = {one.id: write_question(one) for one in anonymous.questions} if anonymous else {}
    corpora = {name: to_corpus(found, task, names, hidden) for name, found in sets.items()}
    manifest = None if frames is None else frames.describe(encoder)
    return write_prepared(out, corpora, frames, manifest)


def to_corpus(
    found: QuestionSet, task: str, names: Sequence[str], hidden: Mapping[str, str]
) -> Corpus:
    """The questions as rows of a corpus, the whole record in an extra column.

    `hidden`: id -> record without the names of speakers; {} if there are none.
    """
    parts = {
        split: _rows([one for one in found.questions if one.split == split], task, hidden)
        for split in SPLITS
    }
    label_names = {task: tuple(names)} if task else {}
    return Corpus(parts, label_names, {"questions": found.report})


def _rows(asked: Sequence[VideoQuestion], task: str, hidden: Mapping[str, str]) -> Comments:
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
            **({ANONYMOUS: [hidden[one.id] for one in asked]} if hidden else {}),
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


def clip_names(comments: Comments) -> list[str]:
    """The clip that each prepared question is about."""
    return [read_question(record).clip for record in comments.extra[RECORD]]


def read_questions(comments: Comments, speakers: str) -> list[VideoQuestion]:
    """The questions of prepared rows, speakers "named" or "anonymous".

    Raises:
        UserError: the rows are no questions, or there are none without names.
    """
    column = ANONYMOUS if speakers == "anonymous" else RECORD
    if column not in comments.extra:
        raise UserError(
            "config.data.speakers is 'anonymous', but the data has names alone; prepare MUStARD, "
            "or set 'named'"
        )
    return [read_question(record) for record in comments.extra[column]]


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """What a source of questions gives.

    Attributes:
        sets: protocol -> the questions, split that way.
        task: whose answers are ranked; "" if they are open.
        names: short names of these answers.
        anonymous: the same questions without the names of speakers; None if there are none.
        dropped: questions that were left out.
    """

    sets: dict[str, QuestionSet]
    task: str = ""
    names: tuple[str, ...] = ()
    anonymous: QuestionSet | None = None
    dropped: int = 0


def read_asked(source: str, options: Mapping[str, Any]) -> Asked:
    """The questions of a published data set.

    Args:
        source: a key of `SOURCES`.
        options: "root", and what else the source reads.

    Raises:
        UserError: a file or field is missing or wrong.
    """
    return SOURCES[source](options)


def _mustard(options: Mapping[str, Any]) -> Asked:
    root, seed = options["root"], options["seed"]
    sets: dict[str, QuestionSet] = {}
    for split in mustard.SPLITS:
        folds: Sequence[int | None] = (
            range(mustard.NUM_FOLDS) if split in mustard.FOLDED else [None]
        )
        for fold in folds:
            name = split if fold is None else f"{split}_{fold}"
            sets[name] = mustard.read_release(root, split, fold=fold, seed=seed)
    hidden = mustard.read_release(root, "mustard_star", seed=seed, anonymize_speakers=True)
    return Asked(sets, "sarcasm", ("not sarcastic", "sarcastic"), hidden)


def _ur_funny(options: Mapping[str, Any]) -> Asked:
    found = ur_funny.read_release(options["root"])
    return Asked({"official": found}, "humor", ("not humorous", "humorous"))


def _clevrer_mc(options: Mapping[str, Any]) -> Asked:
    """Train from VideoChat2-IT, test from MVBench; both have their own ids."""
    read = mvbench.read_train(options["train"]).questions
    train = [one for one in read if one.label is not None]
    if not train:
        raise UserError(f"{options['train']}: no question has options that can be read")
    test = mvbench.read_test(options["root"]).questions
    most, dropped = max(len(one.options) for one in (*train, *test)), len(read) - len(train)
    report = {"train": len(train), "test": len(test), "without_options": dropped}
    both = QuestionSet((*train, *test), report)
    return Asked({"official": both}, "option", tuple(LETTERS[:most]), dropped=dropped)


def _qaego4d(options: Mapping[str, Any]) -> Asked:
    return Asked({"official": qaego4d.read_release(options["root"])})


def _youcook2(options: Mapping[str, Any]) -> Asked:
    return Asked({"official": youcook2.read_release(options["root"])})


SOURCES: dict[str, Callable[[Mapping[str, Any]], Asked]] = {
    "mustard": _mustard,
    "ur_funny": _ur_funny,
    "clevrer_mc": _clevrer_mc,
    "qaego4d": _qaego4d,
    "youcook2": _youcook2,
}


def question_table(prepared: Prepared) -> Table:
    """Questions of every split under every protocol, for the terminal."""
    table = Table(title=f"Questions in {prepared.root}")
    table.add_column("protocol")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for protocol, counts in prepared.protocols.items():
        table.add_row(protocol, *(f"{counts.get(split, 0):,}" for split in SPLITS))
    return table


def read_frames(folder: str | Path, videos: Sequence[str], suffix: str = ".npy") -> FeatureTable:
    """Frames of clips, one file each: uint8 (t, rows, columns, 3), square, all of one size.

    Args:
        folder: of the files.
        videos: as the data set names them; a media extension is replaced by `suffix`.
        suffix: end of the files' names.

    Raises:
        UserError: a file is missing, damaged, or holds something else.
    """
    rows, counts, shape = [], [], None
    for video in videos:
        path = Path(folder) / file_name(video, suffix)
        if not path.is_file():
            raise UserError(f"{path}: missing; extract the frames of every clip")
        frames = load_npy(path)
        found = frames.shape[1:]
        if frames.dtype != np.uint8 or frames.ndim != 4 or found[0] != found[1] or found[2] != 3:
            raise UserError(
                f"{path} holds {frames.dtype} {frames.shape}; expected uint8 (frames, side, side, "
                "3)"
            )
        if not len(frames) or (shape is not None and found != shape):
            raise UserError(
                f"{path} holds {len(frames)} frames of {found}, the others {shape}; resize all to "
                "one size"
            )
        shape = found
        rows.append(frames.reshape(len(frames), -1))
        counts.append(len(frames))
    return FeatureTable.from_counts(np.concatenate(rows), np.array(counts), list(videos))
