"""A trained reward model at hand: videos and questions in, rewards out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.mesh import all_devices, local_shards, put_whole
from jaxvsa.data.features import FeatureTable, read_npy_folder
from jaxvsa.data.pair_batches import PairExamples, mean_table
from jaxvsa.data.pairs import Pairs
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.scored import ALIGNED, DIMENSIONS, QUESTIONS, ScoredVideo, dimension_of
from jaxvsa.data.videocross import VideoCross
from jaxvsa.evaluation.evaluator import run as run_tasks
from jaxvsa.evaluation.pairs import answer_shares, difference
from jaxvsa.workflows.question_features import Kept, QuestionEncoder, encode_questions
from jaxvsa.workflows.ranked import TASK
from jaxvsa.workflows.runs import Trained
from jaxvsa.workflows.score import batch_size
from jaxvsa.workflows.videocross_features import most_rows

_ENCODER = re.compile(r".*, (mean|each) of (\d+) tokens at most")


class Model:
    """A trained model, ready to judge; all of it comes from one checkpoint.

    Attributes:
        config: the resolved configuration of its run.
        step: updates it was trained for.
    """

    def __init__(self, trained: Trained) -> None:
        """Copies the parameters to all devices."""
        self.config, self.step = trained.config, trained.step
        self._trained, self._mesh = trained, all_devices()
        self._params = put_whole(trained.params, self._mesh)

    def reward(
        self,
        rows: Sequence[Mapping[str, Any]],
        features: str | Path,
        text_encoder: str | Path,
        suffix: str = ".npy",
    ) -> list[dict[str, Any]]:
        """One reward for each row with a `video`, two for each with `video_a` and `video_b`.

        Args:
            rows: beside the videos either `question`, or `dimension` and, where its question holds
                the prompt, `prompt`; `key` is optional.
            features: folder of the videos' features, made as those of training.
            text_encoder: Hugging Face folder of the encoder of the questions of training.
            suffix: end of the names of the videos' files.

        Returns:
            For each row in turn {"key", "question", "video", "reward"}, or {"key", "question",
            "video_a", "video_b", "reward_a", "reward_b", "p_a"} with P(A better), and with a model
            of ties also "p_b" and "p_tie".

        Raises:
            UserError: a row lacks a column; features are missing, or of another kind.
        """
        named = ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return self.reward_records(named, features, text_encoder, suffix)

    def reward_records(
        self,
        records: Iterable[tuple[str, Mapping[str, Any]]],
        features: str | Path | None,
        text_encoder: str | Path | None,
        suffix: str,
    ) -> list[dict[str, Any]]:
        """`reward` for rows that come with their place in a file, for messages."""
        head = self.config["model"]["head"]
        asked = [_read(where, row, at, head) for at, (where, row) in enumerate(records, 1)]
        if not asked:
            return []
        cross = _cross(asked)
        videos = self._videos([video.video_id for video in cross.videos], features, suffix)
        questions = self._questions(cross.questions, text_encoder)
        data = self.config["data"]
        examples = PairExamples(
            cross, np.arange(len(asked)), videos, questions, num_frames=data["num_frames"],
            num_words=data["num_words"], resident=False,
        )  # fmt: skip
        size = batch_size(len(asked), self.config["train"]["eval_batch_size"], self._mesh)
        shards = local_shards(self._mesh)
        plan = BatchPlan(
            examples.axes(), size, order=examples.in_order(), shapes=data["shapes"],
            groups=shards[1],
        )  # fmt: skip
        stream = iterate(batches(plan, examples, shards=shards))
        found, _ = run_tasks(self._trained.system, [TASK], self._params, {}, stream, self._mesh)
        shares = answer_shares(difference(found["reward"]), found.get("log_k"))
        return [
            _answer(one, reward_v, {name: share_b[at] for name, share_b in shares.items()})
            for at, (one, reward_v) in enumerate(zip(asked, found["reward"].tolist(), strict=True))
        ]

    def _videos(self, names: Sequence[str], folder: str | Path | None, suffix: str) -> FeatureTable:
        """The features of these videos, as the model reads them."""
        manifest = self._trained.manifest
        assert manifest is not None  # a model of pairs always sees video
        kind = f"features of '{manifest.encoder}', {manifest.width} wide"
        if folder is None:
            raise UserError(f"the model was trained on {kind}; name their folder with --features")
        table, _ = read_npy_folder(
            folder, names, suffix, most_rows(manifest.encoder), dtype=manifest.dtype,
            width=manifest.width, even=True,
        )  # fmt: skip
        return mean_table(table) if self.config["model"]["pool_video"] == "mean" else table

    def _questions(self, texts: Sequence[str], folder: str | Path | None) -> FeatureTable:
        """The features of these questions, by the encoder of training."""
        manifest = self._trained.codec.manifest
        made = _ENCODER.fullmatch(manifest["encoder"])
        if made is None:
            raise UserError(
                f"the questions of training are '{manifest['encoder']}', which no encoder makes; "
                "train on data prepared with --text-encoder"
            )
        if folder is None:
            raise UserError(
                f"the model reads questions by '{manifest['encoder']}'; name the folder of that "
                "encoder with --text-encoder"
            )
        encoder = QuestionEncoder.open(folder, int(made[2]))
        kept: Kept = "mean" if made[1] == "mean" else "token"
        if encoder.name(kept) != manifest["encoder"]:
            raise UserError(
                f"--text-encoder {folder} is '{encoder.name(kept)}', the model was trained on "
                f"'{manifest['encoder']}'; name the folder that the data was prepared with"
            )
        quiet = Console(quiet=True)
        table, _, _ = encode_questions(encoder, texts, kept, manifest["dtype"], quiet)
        return mean_table(table) if self.config["model"]["pool_text"] == "mean" else table


def _read(where: str, row: Mapping[str, Any], number: int, head: str) -> dict[str, Any]:
    """A row of a user's file: key, videos, question, dimension."""
    one = bool(row.get("video"))
    names = ("video",) if one else ("video_a", "video_b")
    for name in names:
        if row.get(name) and not isinstance(row[name], str):
            raise UserError(f"{where}: '{name}' is {row[name]!r}, no text; write it as a name")
        if not row.get(name):
            raise UserError(
                f"{where}: no column '{name}'{nearest(name, row)}; give video, or video_a and "
                "video_b"
            )
    dimension = DIMENSIONS[0]
    if row.get("dimension"):
        dimension = dimension_of(str(row["dimension"]), where)
    elif head == "regression" or not row.get("question"):
        raise UserError(
            f"{where}: no column 'dimension'{nearest('dimension', row)}; give one of "
            f"{', '.join(DIMENSIONS)}" + ("" if head == "regression" else ", or question")
        )
    text = row.get("question")
    if not text:
        prompt = str(row.get("prompt") or "").strip()
        if dimension in ALIGNED and not prompt:
            raise UserError(f"{where}: no column 'prompt'; {dimension} asks about it")
        text = QUESTIONS[dimension].format(prompt=prompt)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: 'question' is empty; write what is asked about the video")
    found = {name: row[name] for name in names}
    key = str(row.get("key") or f"row-{number}")
    return {"key": key, "question": text, "dimension": dimension, **found}


def _cross(asked: Sequence[Mapping[str, Any]]) -> VideoCross:
    """The rows as pairs that nobody has judged; a single video stands on both sides."""
    sides = [
        (row["video"],) * 2 if "video" in row else (row["video_a"], row["video_b"]) for row in asked
    ]
    names = dict.fromkeys(name for pair in sides for name in pair)
    videos = {name: at for at, name in enumerate(names)}
    texts = dict.fromkeys(row["question"] for row in asked)
    questions = {text: at for at, text in enumerate(texts)}
    video_nv = np.array([[videos[name] for name in pair] for pair in sides])
    pairs = Pairs.of(
        len(asked), question_n=np.array([questions[row["question"]] for row in asked]),
        dimension_n=np.array([DIMENSIONS.index(row["dimension"]) for row in asked]),
        source_n=0, kind_n=0, split_n=0, video_a_n=video_nv[:, 0], video_b_n=video_nv[:, 1],
        prompt_a_n=0, prompt_b_n=0, asked_n=0, answer_n=0, gap_n=np.nan, weight_n=1.0,
    )  # fmt: skip
    records = tuple(ScoredVideo(name, "own", "") for name in videos)
    ids = tuple(row["key"] for row in asked)
    return VideoCross(records, ("own",), tuple(questions), ("",), ("",), pairs, ids, {})


def _answer(
    asked: Mapping[str, Any], reward_v: Sequence[float], shares: Mapping[str, float]
) -> dict[str, Any]:
    """A row of what is returned."""
    found = {"key": asked["key"], "question": asked["question"]}
    if "video" in asked:
        return {**found, "video": asked["video"], "reward": reward_v[0]}
    names = {name: asked[name] for name in ("video_a", "video_b")}
    rewards = {"reward_a": reward_v[0], "reward_b": reward_v[1]}
    return {**found, **names, **rewards, **{name: float(share) for name, share in shares.items()}}
