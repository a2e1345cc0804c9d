"""Comments under videos as padded batches: token ids, frame numbers and labels, without loops."""

from collections.abc import Mapping

import numpy as np

from jaxvsa.data.features import FeatureTable
from jaxvsa.data.text import Tokens


class CommentExamples:
    """Loads any comments as one padded batch; what `pipeline.batches` reads.

    Fields of a batch: `ids_bl` int32, `pad_id` behind the text; `length_b` int32, tokens of the
    text; `label_<task>_b` int32; `valid_b` bool. With features also `frame_bt` int32, the row of
    the feature table, -1 where the video has no frame; and, unless the table is `resident` on the
    device, `video_btf`, those rows in the table's own dtype, zero where there is no frame.

    Kept: a video with more frames than the limit is cut to its first ones, as in the published
    code.

    Attributes:
        limits: per axis, the largest padded length: the model's own.
    """

    def __init__(
        self,
        tokens: Tokens,
        labels: Mapping[str, np.ndarray],
        video_row_b: np.ndarray | None = None,
        features: FeatureTable | None = None,
        *,
        pad_id: int,
        text_len: int,
        frames_limit: int = 0,
        resident: bool = True,
    ):
        """Keeps references to the arrays and copies none.

        Args:
            tokens: of all comments, at most `text_len` for each.
            labels: per task, int (comments,).
            video_row_b: the video of each comment in `features`; None for text alone.
            features: of all videos; None for text alone.
            pad_id: token behind the text.
            text_len: length of the model's text axis.
            frames_limit: most frames of a video that are read; 0 for text alone.
            resident: the step gets `features.values_nf` as an argument, `frame_bt` is enough.

        Raises:
            ValueError: the arguments do not speak of the same comments, or a text is too long.
        """
        self._tokens, self._labels, self._pad_id = tokens, dict(labels), pad_id
        self._features, self._resident = features, resident
        self.limits = {"l": text_len}
        counts = {"tokens": len(tokens.length_b), **{k: len(v) for k, v in self._labels.items()}}
        if features is not None and video_row_b is not None:
            self.limits["t"] = frames_limit
            self._first_b = features.start_g[video_row_b]
            self._count_b = np.minimum(features.count_g[video_row_b], frames_limit)
            counts["video_row_b"] = len(video_row_b)
        elif features is not None or video_row_b is not None or frames_limit:
            raise ValueError("video_row_b, features and frames_limit go together")
        if len(set(counts.values())) > 1:
            raise ValueError(f"these speak of different numbers of comments: {counts}")
        if len(self) and (longest := int(tokens.length_b.max())) > text_len:
            raise ValueError(f"a comment has {longest} tokens; encode them with max_len={text_len}")

    def __len__(self) -> int:
        """Number of comments."""
        return len(self._tokens.length_b)

    def needs(self) -> dict[str, np.ndarray]:
        """Smallest padded length of each comment, per axis: what `BatchPlan` pads to.

        A text shorter than `text_len` keeps at least one pad, because the max-pool over words sees
        pads: all pads of a row are equal, so one stands for all, but none is another function.
        """
        text_len = self.limits["l"]
        needs = {"l": np.minimum(self._tokens.length_b + 1, text_len)}
        if self._features is not None:
            needs["t"] = self._count_b
        return needs

    def batch(
        self, index_b: np.ndarray, valid_b: np.ndarray, sizes: Mapping[str, int]
    ) -> dict[str, np.ndarray]:
        """The comments `index_b`, padded to `sizes`, which must cover their `needs`."""
        length_b = self._tokens.length_b[index_b].astype(np.int32)
        position_l = np.arange(sizes["l"])
        token_bl = self._tokens.start_b[index_b][:, None] + position_l
        ids_bl = self._tokens.ids_n.take(token_bl, mode="clip")  # what is cut here is padding
        ids_bl = np.where(position_l < length_b[:, None], ids_bl, self._pad_id).astype(np.int32)
        batch = {"ids_bl": ids_bl, "length_b": length_b, "valid_b": valid_b}
        for task, label_b in self._labels.items():
            batch[f"label_{task}_b"] = label_b[index_b].astype(np.int32)
        if self._features is not None:
            batch |= self._frames(index_b, sizes["t"])
        return batch

    def _frames(self, index_b: np.ndarray, num_frames: int) -> dict[str, np.ndarray]:
        assert self._features is not None
        position_t = np.arange(num_frames)
        keep_bt = position_t < self._count_b[index_b][:, None]
        frame_bt = np.where(keep_bt, self._first_b[index_b][:, None] + position_t, -1)
        frames = {"frame_bt": frame_bt.astype(np.int32)}
        if not self._resident:
            values_nf = self._features.values_nf
            video_btf = np.zeros((*frame_bt.shape, values_nf.shape[1]), values_nf.dtype)
            video_btf[keep_bt] = values_nf[frame_bt[keep_bt]]
            frames["video_btf"] = video_btf
        return frames
