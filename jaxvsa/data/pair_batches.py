"""Pairs of videos as batches: numbers of rows in the tables of features, answers, scores.

A batch consists of groups of consecutive rows, one or more for each device. Rows of a group that
ask the same question share it: most ask one of a few that hold no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.features import FeatureTable, even_rows
from jaxvsa.data.pairs import KINDS
from jaxvsa.data.scored import ALIGNED_NUMBERS, DIMENSIONS
from jaxvsa.data.sizes import Axis
from jaxvsa.data.videocross import VideoCross

BLOCK_ROWS = 1 << 16
SHARED_UNIT = 128
"""The axes of questions and of anchors are multiples of it, or as long as a group."""
Stats = tuple[tuple[float, ...], ...]


class PairExamples:
    """Loads any pairs as one batch; what `pipeline.batches` reads.

    Fields of a batch, for pairs b in groups g and their videos v (0 is A, 1 is B):

        index_b int32               number of the example
        valid_b bool                False for rows that fill up a batch
        answer_b int32              1 if A is better, -1 if B is, 0 for a tie
        weight_b float32
        gap_b float32               of the scores, in deviations of the source; 0 if unknown
        source_b int32              number in `sources`
        dimension_b int32           number in `DIMENSIONS`
        group_b int32               number of the group of prompts that the question belongs to
        score_bv float32            on the source's own scale; nan if there is none
        asked_b int32               place of the question in k
        question_gk int32           numbers of the group's questions in `VideoCross.questions`, each
                                    once; -1 behind the last
        anchor_gm int32             if `contrasts`: rows of the group, counted from its first, that
                                    the contrastive term may take: decided, about a prompt, the
                                    first of their prompts' group; -1 behind the last
        video_bvt int32             rows of the table of videos; -1 is padding
        text_gkl int32              rows of the table of questions; -1 is padding
        frames_bvtf, words_gkle     these rows, zeros for padding; unless `resident`

    What has no table has no rows either.

    A score is given where it answers the pair's question: its video belongs to the pair's source
    and, if the question holds a prompt, was made from it or one of its group. So the other video of
    a mismatch has none, and neither have pairs across sources.

    Attributes:
        row_n: place of each example in `VideoCross.pairs` and `VideoCross.ids`.
        source_n: int32 number of each example's source, what `BatchPlan` reads as strata.
        video_nv: int32 place of both videos in `VideoCross.videos`.
    """

    def __init__(
        self,
        cross: VideoCross,
        row_n: np.ndarray,
        videos: FeatureTable | None,
        questions: FeatureTable | None,
        *,
        num_frames: int,
        num_words: int,
        resident: bool,
        contrasts: bool = False,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Gathers the columns; keeps references to the tables.

        Args:
            cross: all pairs.
            row_n: places of those to load, such as `split_rows` returns.
            videos: features by id of the video; `mean_table` of it, if the model averages.
            questions: features by text of the question, likewise.
            num_frames: most rows of a video, evenly chosen.
            num_words: most rows of a question, likewise.
            resident: the step gets the tables' values as arguments.
            contrasts: batches name their anchors.
            sources: names in the order of their numbers; None = `cross.sources`.

        Raises:
            UserError: a video or question of these pairs is not in its table; a source that
                `sources` lacks; a limit below 1.
        """
        for flag, limit in (("num_frames", num_frames), ("num_words", num_words)):
            if limit < 1:
                raise UserError(f"config.data.{flag} is {limit}; it must be at least 1")
        pairs = cross.pairs.take(np.asarray(row_n))
        self.row_n = np.asarray(row_n)
        self.source_n = _numbers(cross.sources, sources)[pairs.source_n]
        if np.any(self.source_n < 0):
            absent = sorted({cross.sources[s] for s in set(pairs.source_n[self.source_n < 0])})
            raise UserError(f"no source '{absent[0]}' among {list(sources or ())}")
        self.video_nv = np.stack([pairs.video_a_n, pairs.video_b_n], axis=1)
        group_p = np.unique(np.array(cross.groups), return_inverse=True)[1].astype(np.int32)
        self._columns = {
            "answer_b": pairs.answer_n.astype(np.int32),
            "weight_b": pairs.weight_n,
            "gap_b": np.nan_to_num(pairs.gap_n),
            "source_b": self.source_n,
            "dimension_b": pairs.dimension_n.astype(np.int32),
            "group_b": group_p[pairs.asked_n],
            "score_bv": _scores(cross, row_n, group_p),
        }
        self._question_n, self._resident = pairs.question_n, resident
        self._anchor_n = None
        if contrasts:
            may_n = np.isin(pairs.dimension_n, ALIGNED_NUMBERS) & (pairs.answer_n != 0)
            self._anchor_n = np.where(may_n, self._columns["group_b"], -1).astype(np.int32)
        self._videos = self._questions = None
        if videos is not None:
            names = [video.video_id for video in cross.videos]
            self._videos = _Rows(videos, names, self.video_nv, num_frames, "videos")
        if questions is not None:
            texts, asked_n1 = cross.questions, pairs.question_n[:, None]
            self._questions = _Rows(questions, texts, asked_n1, num_words, "questions")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.row_n)

    @property
    def score_nv(self) -> np.ndarray:
        """Scores of both videos of every example, nan where there is none: float32 (n, 2)."""
        return self._columns["score_bv"]

    def axes(self) -> dict[str, Axis]:
        """What the axes of a batch have to hold.

        t rows of a video and l of a question, k questions and, if it contrasts, m anchors.
        """
        axes = {
            "t": _axis(self._videos, len(self), 0.6, 4),
            "l": _axis(self._questions, len(self), 0.1, 8),
            "k": _shared(np.ones(len(self), bool), self._question_n, 0.1),
        }
        if self._anchor_n is not None:
            axes["m"] = _shared(self._anchor_n >= 0, self._anchor_n, 0.2)
        return axes

    def in_order(self) -> np.ndarray:
        """The pairs sorted by length: tight batches."""
        axes = self.axes()
        return np.lexsort([axes["l"].need_b, axes["t"].need_b])

    def batch(
        self, index_b: np.ndarray, valid_b: np.ndarray, sizes: Mapping[str, int], groups: int
    ) -> dict[str, np.ndarray]:
        """The pairs `index_b` in `groups` parts, padded to `sizes`."""
        batch = {"index_b": index_b.astype(np.int32), "valid_b": valid_b}
        batch |= {name: column_n[index_b] for name, column_n in self._columns.items()}
        first_gk, asked_gr = _distinct(self._question_n[index_b].reshape(groups, -1), sizes["k"])
        index_gk = np.take_along_axis(index_b.reshape(groups, -1), np.maximum(first_gk, 0), axis=1)
        batch["asked_b"] = asked_gr.reshape(-1)
        batch["question_gk"] = np.where(first_gk >= 0, self._question_n[index_gk], -1)
        if self._anchor_n is not None:
            anchor_b = np.where(valid_b, self._anchor_n[index_b], -1)
            batch["anchor_gm"] = _firsts(anchor_b.reshape(groups, -1), sizes["m"])
        if self._videos is not None:
            batch["video_bvt"] = self._videos.rows(index_b, sizes["t"])
            if not self._resident:
                batch["frames_bvtf"] = self._videos.values(batch["video_bvt"])
        if self._questions is not None:
            text_gkl = self._questions.rows(index_gk, sizes["l"])[:, :, 0]
            batch["text_gkl"] = np.where((first_gk >= 0)[..., None], text_gkl, -1)
            if not self._resident:
                batch["words_gkle"] = self._questions.values(batch["text_gkl"])
        return batch


def split_rows(cross: VideoCross, split: str, mismatches: bool = True) -> np.ndarray:
    """Places in `cross.pairs` of the pairs of a split, int64 (n,), in their order.

    Args:
        cross: all pairs.
        split: of `SPLITS`.
        mismatches: False leaves out those that were made from two prompts for their difference.
    """
    keep_n = cross.pairs.split_n == SPLITS.index(split)
    if not mismatches:
        keep_n &= cross.pairs.kind_n != KINDS.index("mismatch")
    return np.flatnonzero(keep_n)


def mean_table(table: FeatureTable) -> FeatureTable:
    """One row for each entry, the mean of its rows: float32."""
    num, end_g = len(table.count_g), table.start_g + table.count_g
    values_gf = np.empty((num, table.width), np.float32)
    first = 0
    while first < num:
        start = table.start_g[first]
        last = max(first + 1, int(np.searchsorted(end_g, start + BLOCK_ROWS, "right")))
        rows_nf = table.values_nf[start : end_g[last - 1]].astype(np.float32)
        values_gf[first:last] = np.add.reduceat(rows_nf, table.start_g[first:last] - start)
        first = last
    values_gf /= table.count_g[:, None]
    return FeatureTable.from_counts(values_gf, np.ones(num, np.int32), list(table.row))


def score_stats(cross: VideoCross) -> tuple[Stats, Stats, Stats, Stats]:
    """Mean, population deviation, lowest and highest possible score: each (sources, dimensions).

    Of the scored videos in pairs of train, each once, by `ScoredVideo.source`; of several ranges
    the widest. Where there is no score: 0, 1, 0 and 1; where all are equal, the deviation is 1.

    Chosen: videos are counted, not the pairs they are in, which a cap or a budget selects.
    """
    train = cross.pairs.take(split_rows(cross, "train"))
    score_gd = _score_table(cross)
    source_g = _numbers([video.source for video in cross.videos], cross.sources)
    in_train_g = np.zeros(len(cross.videos), bool)
    in_train_g[train.video_a_n] = in_train_g[train.video_b_n] = True
    shape = (len(cross.sources), len(DIMENSIONS))
    mean_sd, std_sd, low_sd, high_sd = (np.full(shape, fill) for fill in (0.0, 1.0, 0.0, 1.0))
    for s, d in np.ndindex(*shape):
        of_g = in_train_g & (source_g == s) & ~np.isnan(score_gd[:, d])
        if not of_g.any():
            continue
        mean_sd[s, d] = score_gd[of_g, d].mean()
        std_sd[s, d] = score_gd[of_g, d].std() or 1.0
        name = DIMENSIONS[d]
        ends = [cross.videos[g].score_range[name] for g in np.flatnonzero(of_g).tolist()]
        low_sd[s, d], high_sd[s, d] = min(e[0] for e in ends), max(e[1] for e in ends)
    mean, std, low, high = (
        tuple(map(tuple, x.tolist())) for x in (mean_sd, std_sd, low_sd, high_sd)
    )
    return mean, std, low, high


class _Rows:
    """Which rows of a table each example reads."""

    def __init__(
        self,
        table: FeatureTable,
        names: Sequence[str],
        entry_nv: np.ndarray,
        limit: int,
        noun: str,
    ) -> None:
        """`entry_nv` are places in `names`; at most `limit` rows of each are read."""
        used, place = np.unique(entry_nv, return_inverse=True)
        row_u = table.rows([names[u] for u in used.tolist()], noun)
        self.values_nf = table.values_nf
        count_u = table.count_g[row_u]
        most = min(limit, int(count_u.max(initial=1)))
        self.count_u = np.minimum(count_u, most).astype(np.int32)
        row_ut = table.start_g[row_u][:, None] + even_rows(count_u, most)
        self._row_ut = np.where(np.arange(most) < self.count_u[:, None], row_ut, -1).astype(
            np.int32
        )
        self.place_nv = place.reshape(entry_nv.shape).astype(np.int32)

    def rows(self, index_b: np.ndarray, size: int) -> np.ndarray:
        """Rows of the examples `index_b`, of any shape: int32 (b,v,size), -1 behind the last."""
        return self._row_ut[:, :size][self.place_nv[index_b]]

    def values(self, row_bt: np.ndarray) -> np.ndarray:
        """What these rows hold, zeros for -1: (..., f)."""
        found = self.values_nf.take(np.maximum(row_bt, 0), axis=0)
        if row_bt.size and row_bt.min() < 0:
            found[row_bt < 0] = 0
        return found


def _axis(rows: _Rows | None, num: int, weight: float, unit: int) -> Axis:
    need_b = np.ones(num, np.int32)
    if rows is not None:
        need_b = rows.count_u[rows.place_nv].max(axis=1)
    return Axis(need_b, False, weight, unit, limit=int(need_b.max(initial=1)))


def _shared(needs_b: np.ndarray, owner_b: np.ndarray, weight: float) -> Axis:
    """An axis that holds one element for each owner in a group."""
    return Axis(needs_b.astype(np.int32), True, weight, SHARED_UNIT, owner_b=owner_b)


def _distinct(value_gr: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The different values of each group, in ascending order.

    Returns:
        int32 (g,size), the first row of each, -1 behind the last; int32 (g,r), the place of each
        row's value among them.
    """
    first_gk = np.full((len(value_gr), size), -1, np.int32)
    place_gr = np.empty(value_gr.shape, np.int32)
    for g, value_r in enumerate(value_gr):
        _, first, place_gr[g] = np.unique(value_r, return_index=True, return_inverse=True)
        first_gk[g, : len(first)] = first
    return first_gk, place_gr


def _firsts(value_gr: np.ndarray, size: int) -> np.ndarray:
    """Rows of each group whose value is not negative and stands in none before: int32 (g,size).

    Ascending, -1 behind the last.
    """
    found_gm = np.full((len(value_gr), size), -1, np.int32)
    for g, value_r in enumerate(value_gr):
        row = np.flatnonzero(value_r >= 0)
        row = np.sort(row[np.unique(value_r[row], return_index=True)[1]])
        found_gm[g, : len(row)] = row
    return found_gm


def _scores(cross: VideoCross, row_n: np.ndarray, group_p: np.ndarray) -> np.ndarray:
    """Scores that answer the pairs' questions, nan elsewhere: float32 (n, 2)."""
    pairs = cross.pairs.take(row_n)
    score_gd = _score_table(cross)
    source_g = _numbers([video.source for video in cross.videos], cross.sources)
    aligned_n = np.isin(pairs.dimension_n, ALIGNED_NUMBERS)
    sides = []
    for video_n, prompt_n in (
        (pairs.video_a_n, pairs.prompt_a_n),
        (pairs.video_b_n, pairs.prompt_b_n),
    ):
        own_n = source_g[video_n] == pairs.source_n
        own_n &= ~aligned_n | (group_p[prompt_n] == group_p[pairs.asked_n])
        sides.append(np.where(own_n, score_gd[video_n, pairs.dimension_n], np.nan))
    return np.stack(sides, axis=1).astype(np.float32)


def _score_table(cross: VideoCross) -> np.ndarray:
    """Scores of all videos, float64 (videos, dimensions), nan where there is none."""
    score_gd = np.full((len(cross.videos), len(DIMENSIONS)), np.nan)
    for g, video in enumerate(cross.videos):
        for name, score in video.scores.items():
            score_gd[g, DIMENSIONS.index(name)] = score
    return score_gd


def _numbers(names: Sequence[str], known: Sequence[str] | None) -> np.ndarray:
    """Place of each name among the known ones, -1 if it is not: int32."""
    place = {name: number for number, name in enumerate(names if known is None else known)}
    return np.fromiter((place.get(name, -1) for name in names), np.int32, len(names))
