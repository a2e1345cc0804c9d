"""Questions about clips as batches: texts cut and tokenised, frames chosen, shapes planned."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import grain
import numpy as np

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.language import Codecs, cut_left, ragged
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.question_batches import Clips, QuestionExamples, choices_of
from jaxvsa.data.questions import answer_texts, llm_text, qformer_text
from jaxvsa.systems.mtransllama.model import ModelOptions
from jaxvsa.workflows.comments import RESIDENT_SHARE, device_bytes
from jaxvsa.workflows.prepare_questions import read_questions


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Section `data` of a configuration.

    Attributes:
        root: folder written by `python -m jaxvsa.prepare`; "demo" and "demo_frames" are the
            synthetic clips.
        protocol: which split; the name of a family of folds ("released5") stands for all of them.
        llm_text: what the language model reads: the "question", or the dialogue, too ("full").
        speakers: "named" as in the data, or "anonymous": "Speaker 1", "Speaker 2", ...
        shapes: most padded shapes of the batches of a split; each is one compilation.
        resident: the clips lie on the device as one array, "yes" or "no"; "auto" if they take no
            more than `RESIDENT_SHARE` of its memory.
        vocab_size: ids of the tokenizers trained on the train questions without `weights.base`.
    """

    root: str
    protocol: str
    llm_text: Literal["question", "full"]
    speakers: Literal["named", "anonymous"]
    shapes: int
    resident: Literal["auto", "yes", "no"]
    vocab_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Batching:
    """How questions become batches: what of a configuration the pipeline needs.

    Attributes:
        data: see `DataOptions`.
        model: see `ModelOptions`.
        num_choices: answers that a question offers at most; 0 if answers are open.
    """

    data: DataOptions
    model: ModelOptions
    num_choices: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], num_choices: int = 0) -> Batching:
        """Read from a resolved configuration."""
        data = build(DataOptions, config["data"], "config.data")
        if data.shapes < 1:
            raise UserError(f"config.data.shapes is {data.shapes}; 1 is the least")
        return cls(data, ModelOptions.of(config["model"], 1), num_choices)

    def is_resident(self, features: FeatureTable | None) -> bool:
        """Whether the clips lie on the device as one array; see `DataOptions`."""
        if features is None or self.data.resident == "no":
            return False
        fits = features.values_nf.nbytes <= device_bytes() * RESIDENT_SHARE
        return fits or self.data.resident == "yes"

    def examples(
        self,
        comments: Comments,
        codec: Codecs,
        row_b: np.ndarray | None,
        features: FeatureTable | None,
        share: bool = False,
        resident: bool | None = None,
    ) -> QuestionExamples:
        """All questions, tokenised once; `resident` None: as the options say."""
        del share  # every question has a clip of its own
        model, asked = self.model, read_questions(comments, self.data.speakers)
        language = codec.language
        prompts = language.prompts([llm_text(one, self.data.llm_text) for one in asked])
        answers = language.answers([one.answer for one in asked])
        offered = language.answers([text for one in asked for text in answer_texts(one)])
        cut = dict.fromkeys(CUT, 0)
        prompts, cut["prompts"] = self._cut("prompts", prompts, model.max_prompt, comments.key)
        cut["answers"] = sum(len(row) > model.max_answer for row in (*answers, *offered))
        words = None
        if model.reads_words:
            texts = [qformer_text(one) for one in asked]
            tokens = codec.words.encode(texts, 1 << 30)
            ends = (tokens.start_b + tokens.length_b).tolist()
            rows = [
                tokens.ids_n[first:last].tolist()
                for first, last in zip(tokens.start_b.tolist(), ends, strict=True)
            ]
            rows, cut["words"] = self._cut("words", rows, model.max_words, comments.key)
            words = ragged(rows)
        clips = None
        if model.variant == "both" and row_b is not None and features is not None:
            here = self.is_resident(features) if resident is None else resident
            clips = self._clips(row_b, features, here)
        return QuestionExamples(
            ragged(prompts),
            ragged(_short(answers, model.max_answer)),
            words,
            comments.labels,
            choices_of(
                ragged(_short(offered, model.max_answer)),
                [len(answer_texts(one)) for one in asked],
                self.num_choices,
            ),
            clips,
            language.pad_id,
            cut,
        )

    def _cut(
        self, name: str, rows: list[list[int]], limit: int, keys: Sequence[str]
    ) -> tuple[list[list[int]], int]:
        """Rows of at most `limit` ids and how many were cut, or an error, as the options say."""
        if self.model.long == "error":
            for key, row in zip(keys, rows, strict=True):
                if len(row) > limit:
                    raise UserError(
                        f"question '{key}': its text for {_READERS[name]} has {len(row)} tokens, "
                        f"config.model.{_LIMITS[name]} is {limit}; raise it, or set "
                        "config.model.long=left to drop what was said first"
                    )
        return cut_left(rows, limit)

    def _clips(self, row_b: np.ndarray, features: FeatureTable, resident: bool) -> Clips:
        model = self.model
        patches = 0 if features.dtype == "uint8" else model.vision.num_tokens
        clips = Clips(row_b, features, model.num_frames, patches, resident)
        if model.short == "error":
            frames_g = clips.frames()
            few = [name for name, g in features.row.items() if frames_g[g] < model.num_frames]
            if few:
                raise UserError(
                    f"clip '{few[0]}' has {frames_g[features.row[few[0]]]} frames, "
                    f"config.model.num_frames is {model.num_frames} ({len(few)} such clips); set "
                    "config.model.short=repeat to repeat the last frame"
                )
        return clips

    def plan(self, examples: QuestionExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of all examples; `how` as in `BatchPlan`."""
        return BatchPlan(examples.axes(), batch_size, shapes=self.data.shapes, **how)

    def shuffled(self, examples: QuestionExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training."""
        return self.plan(examples, batch_size, **how)

    def in_order(
        self, examples: QuestionExamples, batch_size: int, shards: tuple[Sequence[int], int]
    ) -> grain.MapDataset:
        """Every example once, for evaluation; shuffles nothing. `shards` as in `batches`."""
        plan = self.plan(examples, batch_size, order=examples.in_order(), groups=shards[1])
        return batches(plan, examples, shards=shards)


_READERS = {"prompts": "the language model", "words": "the Q-Former"}
_LIMITS = {"prompts": "max_prompt", "words": "max_words"}
CUT = {
    **{
        name: f"too long for {reader} and lost what was said first"
        for name, reader in _READERS.items()
    },
    "answers": "longer than config.model.max_answer and lost their end",
}
"""What happened to texts that were cut, for people."""


def say_cut(cut: Mapping[str, int], of: str = "") -> None:
    """Prints counts of `QuestionExamples.cut` that are not 0."""
    for name, count in cut.items():
        if count:
            print(f"WARNING: {count:,} texts{of} were {CUT[name]}", file=sys.stderr)


def _short(rows: list[list[int]], limit: int) -> list[list[int]]:
    """Answers lose their end beyond `limit`, but keep their end token."""
    return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
