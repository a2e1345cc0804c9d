"""A trained model of questions at hand: clips and questions in, answers out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.mesh import all_devices, local_shards, put_whole
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import STORED, FeatureTable, file_name, load_npy
from jaxvsa.data.pipeline import iterate
from jaxvsa.data.questions import VideoQuestion
from jaxvsa.evaluation.evaluator import run as run_tasks
from jaxvsa.workflows.patches import see_frames
from jaxvsa.workflows.prepare_questions import ANONYMOUS, RECORD, write_question
from jaxvsa.workflows.question_batching import Batching, say_cut
from jaxvsa.workflows.runs import Trained
from jaxvsa.workflows.score import WRITE, batch_size

COLUMNS = ("key", "question", "video", "context")


class Model:
    """A trained model, ready to answer; all of it comes from one checkpoint.

    Attributes:
        config: the resolved configuration of its run.
        step: updates it was trained for.
    """

    def __init__(self, trained: Trained) -> None:
        """Copies the parameters to all devices."""
        self.config, self.step = trained.config, trained.step
        self._trained, self._mesh = trained, all_devices()
        self._params = put_whole(trained.params, self._mesh)

    def answer(
        self, questions: Sequence[VideoQuestion], clips: Mapping[str, np.ndarray] | None = None
    ) -> list[str]:
        """The answer to every question, in their order.

        Args:
            questions: `video` names the clip.
            clips: by that name: uint8 (frames, side, side, 3) or, for a model trained on patches,
                what the vision transformer makes of them, (frames, patches, width).

        Raises:
            UserError: a clip is missing or of another kind than the model reads.
        """
        if not questions:
            return []
        trained, batching = self._trained, Batching.of(self.config)
        table = self._table(questions, clips)
        comments = Comments(
            key=[one.id for one in questions],
            video=[one.video for one in questions],
            text=[one.question for one in questions],
            labels={},
            extra=_extra(questions),
        )
        row_b = None if table is None else table.rows(comments.video)
        examples = batching.examples(comments, trained.codec, row_b, table, resident=False)
        say_cut(examples.cut)
        size = batch_size(len(questions), self.config["train"]["eval_batch_size"], self._mesh)
        stream = iterate(batching.in_order(examples, size, local_shards(self._mesh)))
        found, _ = run_tasks(trained.system, [WRITE], self._params, {}, stream, self._mesh)
        return [trained.codec.language.decode(ids) for ids in found["answer"]]

    def _table(
        self, questions: Sequence[VideoQuestion], clips: Mapping[str, np.ndarray] | None
    ) -> FeatureTable | None:
        facts = self._trained.facts
        if not facts.video:
            if clips:
                raise UserError("the model reads no video; leave the clips out")
            return None
        names = list(dict.fromkeys(one.video for one in questions))
        for name in names:
            if name not in (clips or {}):
                raise UserError(f"clip '{name}' is missing; the model reads {facts.video}")
        given = self._seen({name: np.asarray((clips or {})[name]) for name in names})
        pixels, dtype = facts.video == "pixels", STORED[facts.feature_dtype]
        vision = Batching.of(self.config).model.vision
        side = vision.image_size
        shape = (side, side, 3) if pixels else (vision.num_tokens, vision.width)
        rows, counts = [], []
        for name, clip in given.items():
            fits = clip.shape[1:] == shape and (clip.dtype == np.uint8 or not pixels)
            if not fits or not clip.size:
                raise UserError(
                    f"clip '{name}' is {clip.dtype} {clip.shape}; the model reads {facts.video}, "
                    f"{facts.feature_dtype} (frames, {', '.join(map(str, shape))})"
                )
            rows.append(clip.reshape(-1, facts.feature_width).astype(dtype))
            counts.append(len(rows[-1]))
            if not pixels and not np.isfinite(rows[-1].astype(np.float32)).all():
                raise UserError(f"clip '{name}' holds values that are not finite; make it again")
        return FeatureTable.from_counts(np.concatenate(rows), np.array(counts), names)

    def _seen(self, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Frames as patches, if the model reads those; all else as it is."""
        facts, manifest = self._trained.facts, self._trained.manifest
        frames = {
            name: clip for name, clip in clips.items() if clip.dtype == np.uint8 and clip.ndim == 4
        }
        if facts.video != "patches" or manifest is None or not frames:
            return clips
        base, model = self.config["weights"]["base"], self.config["model"]
        return {**clips, **see_frames(frames, manifest.encoder, base, model)}


def answer_one(model: Model, question: str, clip: str | Path | None) -> str:
    """The answer to one question about the clip in a .npy file."""
    clips = None if clip is None else {"clip": load_npy(clip)}
    return model.answer([VideoQuestion("1", "clip", question, "")], clips)[0]


def answer_records(
    model: Model,
    records: Sequence[tuple[str, Mapping[str, Any]]],
    folder: str | Path | None,
    suffix: str,
) -> list[dict[str, Any]]:
    """Rows with an answer each: key, video, question, answer.

    Args:
        model: that answers.
        records: where each row stands, for messages, and its columns: `question`; `video`, if the
            model sees video; `key` and `context`, a list of [speaker, text], are optional.
        folder: of the clips' .npy files.
        suffix: end of their names.

    Raises:
        UserError: a column or file is missing or of another kind.
    """
    asked = [_question(where, row, at) for at, (where, row) in enumerate(records, 1)]
    clips = None
    if folder is not None:
        names = {one.video for one in asked}
        clips = {name: load_npy(Path(folder) / file_name(name, suffix)) for name in sorted(names)}
    texts = model.answer(asked, clips)
    return [
        {"key": one.id, "video": one.video, "question": one.question, "answer": text}
        for one, text in zip(asked, texts, strict=True)
    ]


def _extra(questions: Sequence[VideoQuestion]) -> dict[str, list[str]]:
    """Records of the questions, and the same without the names of those who speak."""
    hidden = []
    for one in questions:
        order = {who: f"Speaker {n}" for n, who in enumerate(dict(one.context), 1)}
        said = tuple((order[who], text) for who, text in one.context)
        hidden.append(write_question(dataclasses.replace(one, context=said)))
    return {RECORD: [write_question(one) for one in questions], ANONYMOUS: hidden}


def _question(where: str, row: Mapping[str, Any], number: int) -> VideoQuestion:
    """A row of a user's file."""
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: no column 'question'{nearest('question', row)}; it is the text")
    context = row.get("context") or []
    pairs = isinstance(context, list) and all(
        isinstance(line, list) and len(line) == 2 and all(isinstance(x, str) for x in line)
        for line in context
    )
    if not pairs:
        raise UserError(f"{where}: 'context' must be a list of [speaker, text]")
    name = str(row.get("key") or f"row-{number}")
    said = tuple((line[0], line[1]) for line in context)
    return VideoQuestion(name, str(row.get("video") or name), text, "", context=said)
