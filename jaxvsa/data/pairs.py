"""Pairs of videos as columns: order, duplicates, budget."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxvsa.data.scored import DIMENSIONS

KINDS = ("native", "same_prompt", "mismatch", "cross_prompt")
"""What made a pair, in the order in which a budget keeps them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """One row per pair; numbers are places in lists that the owner keeps.

    Attributes:
        question_n: int32, what is asked.
        dimension_n: int8, of `DIMENSIONS`.
        source_n: int16, the data set.
        kind_n: int8, of `KINDS`.
        split_n: int8, of `SPLITS`.
        video_a_n: int32.
        video_b_n: int32.
        prompt_a_n: int32, prompt of video A.
        prompt_b_n: int32, prompt of video B.
        asked_n: int32, the prompt whose group the pair belongs to: the question's, or that of A if
            the question has none.
        answer_n: int8, 1 if A is better, -1 if B is, 0 for a tie.
        gap_n: float32, difference of the scores in deviations of the source, nan if unknown.
        weight_n: float32.
    """

    question_n: np.ndarray
    dimension_n: np.ndarray
    source_n: np.ndarray
    kind_n: np.ndarray
    split_n: np.ndarray
    video_a_n: np.ndarray
    video_b_n: np.ndarray
    prompt_a_n: np.ndarray
    prompt_b_n: np.ndarray
    asked_n: np.ndarray
    answer_n: np.ndarray
    gap_n: np.ndarray
    weight_n: np.ndarray

    def __len__(self) -> int:
        return len(self.question_n)

    @classmethod
    def of(cls, size: int, **columns: np.ndarray | float) -> Pairs:
        """`size` rows; a number fills its column.

        Raises:
            ValueError: a column is missing or has another length.
        """
        made = {}
        for name, dtype in _DTYPES.items():
            made[name] = np.broadcast_to(np.asarray(columns.pop(name), dtype), (size,))
        if columns:
            raise ValueError(f"unknown columns {sorted(columns)}")
        return cls(**made)

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """The rows of all parts, in their order."""
        return cls(
            **{
                name: np.concatenate([np.empty(0, dtype), *(getattr(p, name) for p in parts)])
                for name, dtype in _DTYPES.items()
            }
        )

    def take(self, rows: np.ndarray) -> Pairs:
        """The rows at these places, or where a bool is True."""
        return Pairs(**{name: getattr(self, name)[rows] for name in _DTYPES})

    def swap(self, swap_n: np.ndarray) -> Pairs:
        """A and B exchanged where `swap_n` is True, the answer with them."""
        turned = {"answer_n": np.where(swap_n, -self.answer_n, self.answer_n)}
        for stem in ("video", "prompt"):
            a, b = getattr(self, f"{stem}_a_n"), getattr(self, f"{stem}_b_n")
            turned[f"{stem}_a_n"] = np.where(swap_n, b, a)
            turned[f"{stem}_b_n"] = np.where(swap_n, a, b)
        return dataclasses.replace(self, **turned)


_DTYPES = {
    "question_n": np.int32, "dimension_n": np.int8, "source_n": np.int16, "kind_n": np.int8,
    "split_n": np.int8, "video_a_n": np.int32, "video_b_n": np.int32, "prompt_a_n": np.int32,
    "prompt_b_n": np.int32, "asked_n": np.int32, "answer_n": np.int8, "gap_n": np.float32,
    "weight_n": np.float32,
}  # fmt: skip


def pair_ids(pairs: Pairs, questions: Sequence[str], videos: Sequence[str]) -> list[str]:
    """The id of each pair, which does not depend on which video is A.

    Source: CA2, 14: sha1 of question, dimension, smaller and larger video id, joined by 0x1f.
    """
    asked = np.unique(np.stack([pairs.question_n, pairs.dimension_n]), axis=1).T.tolist()
    begun = {
        (question, dimension): hashlib.sha1(
            f"{questions[question]}\x1f{DIMENSIONS[dimension]}\x1f".encode()
        )
        for question, dimension in asked
    }
    names = [name.encode() for name in videos]
    columns = (pairs.question_n, pairs.dimension_n, pairs.video_a_n, pairs.video_b_n)
    ids = []
    for question, dimension, a, b in zip(*(column.tolist() for column in columns), strict=True):
        digest = begun[question, dimension].copy()
        left, right = names[a], names[b]
        digest.update(b"\x1f".join((left, right) if left < right else (right, left)))
        ids.append(digest.hexdigest())
    return ids


def seeded_order(ids: Sequence[str], seed: int) -> np.ndarray:
    """A random number for each id, from sha1(seed, id) alone: uint64 (n,)."""
    begun = hashlib.sha1(f"{seed}\x1f".encode())
    digests = bytearray()
    for one in ids:
        digest = begun.copy()
        digest.update(one.encode())
        digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), ">u8").astype(np.uint64)


def without_duplicates(pairs: Pairs) -> tuple[Pairs, dict[str, int]]:
    """One row for each question, dimension and two videos; the order of the rows is new.

    Votes on the same pair are counted: the answer is that of the majority, its weight
    |A - B| / (A + B), and rows made from scores give way to them. Rows made from scores that
    contradict each other are all left out.

    Source: A5, step 6.
    Chosen: as many votes for A as for B, or more ties than either, make a tie of weight 1.

    Returns:
        The rows, video A before B; numbers of rows left out as "duplicate" and "contradiction".
    """
    pairs = pairs.swap(pairs.video_a_n > pairs.video_b_n)
    keys = (pairs.video_b_n, pairs.video_a_n, pairs.question_n, pairs.dimension_n)
    order_n = np.lexsort((pairs.kind_n, *keys))
    pairs = pairs.take(order_n)
    key_n = np.stack([column[order_n] for column in keys])
    new_n = np.ones(len(pairs), bool)
    new_n[1:] = np.any(key_n[:, 1:] != key_n[:, :-1], axis=0)
    run_n = np.cumsum(new_n) - 1
    size_g = np.bincount(run_n)
    native_n = pairs.kind_n == 0
    voted_g = np.bincount(run_n, native_n) > 0
    low_g = np.full(len(size_g), 2)
    high_g = -low_g
    np.minimum.at(low_g, run_n, pairs.answer_n)
    np.maximum.at(high_g, run_n, pairs.answer_n)
    torn_g = ~voted_g & (low_g != high_g)
    kept = _count_votes(pairs, run_n, native_n, np.flatnonzero(new_n))
    report = {
        "duplicate": int(np.sum((size_g - 1)[~torn_g])),
        "contradiction": int(np.sum(size_g[torn_g])),
    }
    return kept.take(~torn_g), report


def _count_votes(
    pairs: Pairs, run_n: np.ndarray, native_n: np.ndarray, first_g: np.ndarray
) -> Pairs:
    """The first row of each run, with the answer and weight of all votes in it."""
    for_a, for_b, ties = (
        np.bincount(run_n, native_n & (pairs.answer_n == answer)) for answer in (1, -1, 0)
    )
    several_g = for_a + for_b + ties > 1
    decided_g = (for_a != for_b) & (np.maximum(for_a, for_b) >= ties)
    share_g = np.abs(for_a - for_b) / np.maximum(for_a + for_b, 1)
    first = pairs.take(first_g)
    answer_g = np.where(decided_g, np.sign(for_a - for_b), 0)
    return dataclasses.replace(
        first,
        answer_n=np.where(several_g, answer_g, first.answer_n).astype(np.int8),
        weight_n=np.where(several_g, np.where(decided_g, share_g, 1.0), first.weight_n).astype(
            np.float32
        ),
    )
