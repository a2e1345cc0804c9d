"""Questions about clips as padded batches: prompts, answers, words for the Q-Former, frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable, even_rows
from jaxvsa.data.packing import pack_tokens
from jaxvsa.data.sizes import Axis
from jaxvsa.data.text import Tokens

TEXT_UNIT = 16
"""Padded prompts and dialogues have a multiple of so many tokens."""

PACKED_UNIT = 8
"""Packed words are a multiple of so many, unless their rows fill a rectangle."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clips:
    """The clips of some questions.

    Attributes:
        row_b: int, the clip of each question in `features`.
        features: of all clips: a row per frame, or a row per patch, frame by frame.
        num_frames: frames t that are read; a shorter clip repeats its last one.
        num_patches: rows p of a frame; 0: a frame is one row, and axis p is absent.
        resident: the step gets `features.values_nf` as an argument.
    """

    row_b: np.ndarray
    features: FeatureTable
    num_frames: int
    num_patches: int
    resident: bool

    def frames(self) -> np.ndarray:
        """Frames of every clip of the table, int64 (g,).

        Raises:
            UserError: a clip's rows are no whole number of frames.
        """
        per_frame = max(self.num_patches, 1)
        odd_g = self.features.count_g % per_frame > 0
        if odd_g.any():
            at = int(np.argmax(odd_g))
            raise UserError(
                f"clip '{list(self.features.row)[at]}' has {self.features.count_g[at]} rows, no "
                f"multiple of the {per_frame} patches of a frame; prepare it with this model's "
                "weights"
            )
        return self.features.count_g.astype(np.int64) // per_frame

    def chosen(self) -> np.ndarray:
        """Which frames of each clip are read, int64 (g,t), as `even_rows` chooses."""
        return even_rows(self.frames(), self.num_frames)


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """Answers that each question offers.

    Attributes:
        tokens: of all answers, question by question, the end token included.
        first_b: int64, where the answers of a question begin among them.
        count_b: int32, how many it offers; 0 if the answer is open.
        most: places of a batch for them; questions of another split may need more than these.
    """

    tokens: Tokens
    first_b: np.ndarray
    count_b: np.ndarray
    most: int


class QuestionExamples:
    """Loads any questions as one padded batch; what `pipeline.batches` reads.

    Fields of a batch, for rows b in groups g:

        index_b int32                number of the example
        valid_b bool                 False for rows that fill up a batch
        prompt_bn int32              padding, then the prompt
        prompt_length_b int32        real tokens of it
        answer_ba int32              the answer, its end token, then padding
        answer_length_b int32        real tokens of it
        label_<task>_b int32         with choices: the right one
        choice_bcy int32             with choices: tokens y of each answer, then padding
        choice_length_bc int32       real tokens of it; 0 for an answer that is not offered
        ids_gw int32                 what the Q-Former reads, row after row; if it reads text
        word_bl int32                where in w the words of a row lie; -1 behind them
        frame_bt int32               row of the table of frames, or
        patch_btp int32              rows of the table of patches; if there are clips
        pixel_bti, frames_btpf       these rows, unless `resident`
    """

    def __init__(
        self,
        prompts: Tokens,
        answers: Tokens,
        words: Tokens | None,
        labels: Mapping[str, np.ndarray],
        choices: Choices | None,
        clips: Clips | None,
        pad_id: int,
        cut: Mapping[str, int] | None = None,
    ) -> None:
        """Keeps references to the arrays and copies none; `cut` counts texts that were cut.

        Raises:
            ValueError: the arguments do not speak of the same questions.
        """
        self._prompts, self._answers, self._words = prompts, answers, words
        self._labels, self._choices = dict(labels), choices
        self._clips, self._pad_id = clips, pad_id
        self.cut = dict(cut or {})
        self._chosen_gt = None if clips is None else clips.chosen()
        counts = {"prompts": len(prompts), "answers": len(answers)}
        counts |= {task: len(label_b) for task, label_b in self._labels.items()}
        counts |= {} if choices is None else {"choices": len(choices.count_b)}
        counts |= {} if words is None else {"words": len(words)}
        counts |= {} if clips is None else {"clips": len(clips.row_b)}
        if len(set(counts.values())) != 1:
            raise ValueError(f"these speak of different numbers of questions: {counts}")

    def __len__(self) -> int:
        """Number of questions."""
        return len(self._prompts)

    def axes(self) -> dict[str, Axis]:
        """What the axes of a batch have to hold: n and a of the language model, w and l of words.

        The Q-Former's work on words grows with w, but for their attention, which grows with l.
        """
        axes = {
            "n": Axis(self._prompts.length_b, False, 0.6, TEXT_UNIT),
            "a": Axis(self._answers.length_b, False, 0.1, 4),
        }
        if self._words is not None:
            length_b = self._words.length_b
            axes["w"] = Axis(length_b, True, 0.25, PACKED_UNIT, within="l")
            axes["l"] = Axis(length_b, False, 0.05, TEXT_UNIT)
        return axes

    def in_order(self) -> np.ndarray:
        """The questions sorted by length: tight batches."""
        keys = [self._prompts.length_b]
        if self._words is not None:
            keys.append(self._words.length_b)
        return np.lexsort(keys)

    def batch(
        self, index_b: np.ndarray, valid_b: np.ndarray, sizes: Mapping[str, int], groups: int
    ) -> dict[str, np.ndarray]:
        """The questions `index_b`, padded to `sizes`; words are packed in `groups` parts."""
        batch = {"index_b": index_b.astype(np.int32), "valid_b": valid_b}
        for task, label_b in self._labels.items():
            batch[f"label_{task}_b"] = label_b[index_b].astype(np.int32)
        pad_id = self._pad_id
        batch["prompt_bn"] = padded(self._prompts, index_b, sizes["n"], pad_id, left=True)
        batch["prompt_length_b"] = self._prompts.length_b[index_b]
        batch["answer_ba"] = padded(self._answers, index_b, sizes["a"], pad_id)
        batch["answer_length_b"] = self._answers.length_b[index_b]
        if self._words is not None:
            span_b = self._words.length_b[index_b]
            batch["ids_gw"], batch["word_bl"] = pack_tokens(
                self._words, index_b, span_b, sizes["w"], sizes["l"], groups, 0
            )
        return batch | self._offered(index_b) | self._frames(index_b)

    def _offered(self, index_b: np.ndarray) -> dict[str, np.ndarray]:
        choices = self._choices
        if choices is None:
            return {}
        most, longest = choices.most, int(choices.tokens.length_b.max())
        count_b1 = choices.count_b[index_b][:, None]
        place_bc = np.minimum(np.arange(most)[None], count_b1 - 1)
        at_y = (choices.first_b[index_b][:, None] + place_bc).reshape(-1)
        token_bcy = padded(choices.tokens, at_y, longest, self._pad_id)
        length_bc = choices.tokens.length_b[at_y].reshape(place_bc.shape)
        return {
            "choice_bcy": token_bcy.reshape(*place_bc.shape, longest),
            "choice_length_bc": np.where(np.arange(most)[None] < count_b1, length_bc, 0).astype(
                np.int32
            ),
        }

    def _frames(self, index_b: np.ndarray) -> dict[str, np.ndarray]:
        clips = self._clips
        if clips is None or self._chosen_gt is None:
            return {}
        row_b = clips.row_b[index_b]
        frame_bt = clips.features.start_g[row_b][:, None]
        frame_bt = frame_bt + self._chosen_gt[row_b] * max(clips.num_patches, 1)
        rows, name, seen = frame_bt, "frame_bt", "pixel_bti"
        if clips.num_patches:
            rows = frame_bt[..., None] + np.arange(clips.num_patches)
            name, seen = "patch_btp", "frames_btpf"
        found = {name: rows.astype(np.int32)}
        if not clips.resident:
            found[seen] = clips.features.values_nf[rows]
        return found


def padded(
    tokens: Tokens, index_b: np.ndarray, size: int, pad_id: int, left: bool = False
) -> np.ndarray:
    """Rows `index_b` of a table of tokens, int32 (b, `size`), padding behind or before them."""
    length_b1 = tokens.length_b[index_b][:, None]
    place_bn = np.arange(size)[None] - (size - length_b1 if left else 0)
    real_bn = (place_bn >= 0) & (place_bn < length_b1)
    at_bn = np.where(real_bn, tokens.start_b[index_b][:, None] + place_bn, 0)
    return np.where(real_bn, tokens.ids_n[at_bn], pad_id).astype(np.int32)


def choices_of(tokens: Tokens, counts: Sequence[int], most: int = 0) -> Choices | None:
    """The answers offered, `most` at least in a batch; None if every answer is open."""
    count_b = np.asarray(counts, np.int32)
    if not len(tokens):
        return None
    first_b = np.cumsum(count_b, dtype=np.int64) - count_b
    return Choices(tokens, first_b, count_b, max(most, int(count_b.max())))
