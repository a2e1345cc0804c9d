"""Comments under videos as packed batches: token ids, frame numbers and labels, without loops.

A batch consists of groups of consecutive rows, one or more for each device. Within a group all
token sequences lie one after another on one axis, and so do the frames of all videos; `word_bl`
and `shot_bt` say where the sequence of each row lies. Comments of a group on the same video can
share its frames.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.packing import pack_tokens, places, starts
from jaxvsa.data.sizes import Axis
from jaxvsa.data.text import Tokens

TEXT_UNIT = 32
"""Packed text has a multiple of so many tokens, unless its rows fill a rectangle."""


@dataclasses.dataclass(frozen=True, eq=False)
class Videos:
    """The video side of some comments.

    Attributes:
        row_b: int, the video of each comment in `features`.
        features: of all videos.
        limit: most frames of a video that are read.
        margin: rows kept behind the frames of a video, up to `limit` in all: what the model's
            convolutions make of the padding there.
        resident: the step gets `features.values_nf` as an argument, `frame_gm` is enough.
        share: comments of a group on the same video share its frames.
    """

    row_b: np.ndarray
    features: FeatureTable
    limit: int
    margin: int
    resident: bool
    share: bool


class CommentExamples:
    """Loads any comments as one packed batch; what `pipeline.batches` reads.

    Fields of a batch, for rows b in groups g:

        index_b int32           number of the example
        valid_b bool            False for rows that fill up a batch
        label_<task>_b int32
        ids_gn int32            tokens of all rows of the group, `pad_id` between and behind them
        word_bl int32           where in n the words of a row lie, its padding tokens included;
                                -1 behind them
        length_b int32          real tokens
        frame_gm int32          row of the feature table; -1 for padding
        shot_bt int32           where in m the frames of a row's video lie, `margin` included; -1
                                behind them
        count_b int32           real frames
        video_gmf               unless `resident`: the rows `frame_gm`, zero where there is none

    A row shorter than the text limit keeps one padding token, which the max-pool over words sees:
    all padding tokens of a row are equal, so one stands for all. `pad_all` keeps every one.

    Packed videos begin at even rows, as `convolve_towers` needs it.

    Kept: a video with more frames than the limit is cut to its first ones, as in the published
    code.
    """

    def __init__(
        self,
        tokens: Tokens | None,
        labels: Mapping[str, np.ndarray],
        videos: Videos | None,
        *,
        pad_id: int,
        text_len: int,
        pad_all: bool = False,
    ):
        """Keeps references to the arrays and copies none.

        Args:
            tokens: of all comments, at most `text_len` for each; None for video alone.
            labels: per task, int (comments,).
            videos: None for text alone.
            pad_id: token behind the text.
            text_len: length of the model's text axis.
            pad_all: every row takes `text_len` tokens.

        Raises:
            ValueError: the arguments do not speak of the same comments, or a text is too long.
        """
        self._tokens, self._labels, self._videos = tokens, dict(labels), videos
        self._pad_id, self._text_len = pad_id, text_len
        counts = {k: len(v) for k, v in self._labels.items()}
        if tokens is not None:
            counts["tokens"] = len(tokens)
            if len(tokens) and (longest := int(tokens.length_b.max())) > text_len:
                raise ValueError(
                    f"a comment has {longest} tokens; encode them with max_len={text_len}"
                )
            self._span_b = np.minimum(tokens.length_b + (text_len if pad_all else 1), text_len)
        if videos is not None:
            counts["videos"] = len(videos.row_b)
            self._count_b = np.minimum(videos.features.count_g[videos.row_b], videos.limit)
            self._tower_b = np.minimum(self._count_b + videos.margin, videos.limit)
            self._room_b = self._tower_b + self._tower_b % 2  # the next tower begins at an even row
        if len(set(counts.values())) != 1:
            raise ValueError(f"these speak of different numbers of comments: {counts}")
        self._num = next(iter(counts.values()))

    def __len__(self) -> int:
        """Number of comments."""
        return self._num

    def axes(self) -> dict[str, Axis]:
        """What the axes of a batch have to hold: n and l of the text, m and t of the video.

        The weights are the rough shares of a training step of RoBERTa-base and the published video
        path at 17 tokens and 90 frames.
        """
        axes: dict[str, Axis] = {}
        if self._tokens is not None:
            axes["n"] = Axis(self._span_b, True, 0.6, TEXT_UNIT, within="l")
            axes["l"] = Axis(self._span_b, False, 0.05, TEXT_UNIT, 1, self._text_len)
        if self._videos is not None:
            owner_b = self._videos.row_b if self._videos.share else None
            limit = self._videos.limit
            axes["m"] = Axis(self._room_b, True, 0.3, TEXT_UNIT, within="t", owner_b=owner_b)
            axes["t"] = Axis(self._tower_b, False, 0.05, 2 + limit // 16 * 2, 0, limit)
        return axes

    def sort_key(self, by: str) -> np.ndarray:
        """What `BatchPlan` may sort a window by: "length" of the text, or "video".

        Raises:
            UserError: the examples have none of it.
        """
        if by == "length" and self._tokens is not None:
            return self._tokens.length_b
        if by == "video" and self._videos is not None:
            return self._videos.row_b
        raise UserError(f"config.data.group is '{by}', which this model does not read; set 'none'")

    def in_order(self) -> np.ndarray:
        """The examples sorted by length, those on one video together: tight and shared batches."""
        keys: list[np.ndarray] = []
        if self._tokens is not None:
            keys.append(self._span_b)
        if self._videos is not None:
            keys += [self._videos.row_b, self._tower_b]
        return np.lexsort(keys)

    def batch(
        self, index_b: np.ndarray, valid_b: np.ndarray, sizes: Mapping[str, int], groups: int
    ) -> dict[str, np.ndarray]:
        """The comments `index_b` in `groups` parts, padded to `sizes`."""
        batch = {"index_b": index_b.astype(np.int32), "valid_b": valid_b}
        for task, label_b in self._labels.items():
            batch[f"label_{task}_b"] = label_b[index_b].astype(np.int32)
        if self._tokens is not None:
            batch |= self._words(index_b, sizes["n"], sizes["l"], groups)
        if self._videos is not None:
            batch |= self._frames(index_b, sizes["m"], sizes["t"], groups)
        return batch

    def _words(
        self, index_b: np.ndarray, packed: int, longest: int, groups: int
    ) -> dict[str, np.ndarray]:
        assert self._tokens is not None
        ids_gn, word_bl = pack_tokens(
            self._tokens, index_b, self._span_b[index_b], packed, longest, groups, self._pad_id
        )
        length_b = self._tokens.length_b[index_b].astype(np.int32)
        return {"ids_gn": ids_gn, "word_bl": word_bl, "length_b": length_b}

    def _frames(
        self, index_b: np.ndarray, packed: int, longest: int, groups: int
    ) -> dict[str, np.ndarray]:
        videos = self._videos
        assert videos is not None
        video_b = videos.row_b[index_b]
        span_b, count_b = self._tower_b[index_b], self._count_b[index_b]
        owner_gr = video_b.reshape(groups, -1) if videos.share else None
        room_gr = self._room_b[index_b].reshape(groups, -1)
        start_b = starts(room_gr, owner_gr, packed, longest)
        frame_gm = np.full((groups, packed), -1, np.int32)
        row_b, place = np.nonzero(np.arange(count_b.max()) < count_b[:, None])
        group_b = np.repeat(np.arange(groups), len(index_b) // groups)
        source = videos.features.start_g[video_b][row_b] + place
        frame_gm[group_b[row_b], start_b[row_b] + place] = source
        frames = {
            "frame_gm": frame_gm,
            "shot_bt": places(start_b, span_b, np.arange(longest)),
            "count_b": count_b.astype(np.int32),
        }
        if not videos.resident:
            frames["video_gmf"] = videos.features.values_nf.take(frame_gm, axis=0, mode="clip")
            frames["video_gmf"][frame_gm < 0] = 0
        return frames
