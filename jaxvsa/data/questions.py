"""Questions about videos: the one record that every source returns, and the texts made of it."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.features import stem

LETTERS = string.ascii_uppercase
LLM_TEXTS = ("question", "full")


@dataclasses.dataclass(frozen=True)
class VideoQuestion:
    """One question about one video, with its answer.

    Source: MTransLLAMA specification, section 4, "Common record".

    Attributes:
        id: unique in the data set.
        video: file of the video, as the release names it.
        question: what is asked, complete with options and wording of the task.
        answer: the text to learn; for evaluation, the right answer.
        context: (speaker, text) of what was said before, oldest first.
        options: texts to choose from; empty if the answer is open.
        label: right class, an index into `options`; None if the answer is open.
        start_s: where the clip begins, in seconds; None = the whole video.
        end_s: where it ends.
        answer_prefix: how an answer begins that is generated; only evaluation uses it.
        split: "train", "dev" or "test".
        fold: number of the fold; None without cross-validation.
        extra: further fields that no model reads, such as the speaker.
    """

    id: str
    video: str
    question: str
    answer: str
    context: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    label: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    answer_prefix: str = ""
    split: str = "train"
    fold: int | None = None
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"{self.id}: unknown split '{self.split}'; known: {list(SPLITS)}")
        if self.label is not None and not 0 <= self.label < len(self.options):
            raise ValueError(f"{self.id}: label {self.label} of {len(self.options)} options")
        if (self.start_s is None) != (self.end_s is None):
            raise ValueError(f"{self.id}: a clip has a start and an end, or neither")

    @property
    def clip(self) -> str:
        """Name of what is seen: the video, or a segment of it as `VIDEO_START-END`, in seconds."""
        if self.start_s is None:
            return self.video
        return f"{stem(self.video)}_{self.start_s:g}-{self.end_s:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionSet:
    """A data set under one split.

    Attributes:
        questions: of all splits, in the order of the files.
        report: what the source counted while reading: JSON values.
    """

    questions: tuple[VideoQuestion, ...]
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have questions: train, dev, test, in this order."""
        present = {question.split for question in self.questions}
        return tuple(split for split in SPLITS if split in present)

    def split(self, name: str) -> tuple[VideoQuestion, ...]:
        """The questions of one split.

        Raises:
            UserError: the data set has no such split.
        """
        if name not in self.splits():
            raise UserError(
                f"no split '{name}'{nearest(name, self.splits())}; known: {list(self.splits())}"
            )
        return tuple(question for question in self.questions if question.split == name)


def spoken_line(speaker: str, text: str) -> str:
    """`Speaker: text` on one line: white space inside becomes single spaces."""
    return f"{speaker}: {' '.join(text.split())}"


def dialogue_text(question: VideoQuestion) -> str:
    """What was said before, one line each, oldest first; empty without context.

    Source: MTransLLAMA Fig. 5.
    """
    return "\n".join(spoken_line(speaker, text) for speaker, text in question.context)


def lettered_options(options: Sequence[str]) -> tuple[str, ...]:
    """`(A) text`, `(B) text`, ...

    Raises:
        ValueError: more options than letters.
    """
    return tuple(
        f"({letter}) {text}" for letter, text in zip(LETTERS[: len(options)], options, strict=True)
    )


def answer_texts(question: VideoQuestion) -> tuple[str, ...]:
    """The answers that are compared by likelihood; none if the answer is open."""
    if question.answer in question.options:
        return question.options
    lettered = lettered_options(question.options)
    opened = question.answer_prefix.endswith("(")
    return tuple(text[1:] for text in lettered) if opened else lettered


def qformer_text(question: VideoQuestion, fused: bool = True) -> str:
    """Text that is fused with the video: the dialogue, a line break, the question.

    Source: MTransLLAMA Sec. IV-E; specification, row 17 of section 1.2.

    Args:
        question: the record.
        fused: False is the ablation "w/o Fusion" of Table VII: no text at all.
    """
    return _full_text(question) if fused else ""


def llm_text(question: VideoQuestion, mode: str = "question") -> str:
    """Text that the language model reads behind the visual tokens.

    Ends with a line break and `answer_prefix` where there is one.

    Source: MTransLLAMA Sec. IV-E: the question alone; "full" puts the dialogue before it, for the
    ablation "w/o Fusion" of Table VII.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in LLM_TEXTS:
        raise ValueError(f"unknown llm_text '{mode}'; known: {list(LLM_TEXTS)}")
    text = question.question if mode == "question" else _full_text(question)
    return "\n".join(part for part in (text, question.answer_prefix) if part)


def _full_text(question: VideoQuestion) -> str:
    return "\n".join(part for part in (dialogue_text(question), question.question) if part)
