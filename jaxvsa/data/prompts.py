"""Prompts as keys, their near-duplicates, and the split that keeps near-duplicates together."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE = 5
NEAR = 0.8
"""Jaccard similarity from which two prompts are near-duplicates."""
NUM_PERM, NUM_BANDS = 128, 32
SHARES = {"train": 0.9, "dev": 0.05, "test": 0.05}
_UNLIKE = 0.5  # an estimate below it: with 128 hashes, 1e-13 of the pairs at .8
_BLOCK = 1 << 16


def prompt_key(prompt: str) -> str:
    """What equal prompts have in common: NFKC, no case, single spaces, no final punctuation.

    A prompt of nothing but punctuation keeps it.

    Source: A5, step 1.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold())
    whole = " ".join(text.split())
    end = len(whole)
    while end and (whole[end - 1] == " " or unicodedata.category(whole[end - 1])[0] == "P"):
        end -= 1
    return whole[:end] or whole


def shingles(key: str) -> set[str]:
    """Runs of 5 characters; a shorter key is its own only one."""
    return {key[at : at + SHINGLE] for at in range(max(len(key) - SHINGLE + 1, 1))}


def jaccard(one: str, other: str) -> float:
    """Shared part of the shingles of two keys, 0 to 1."""
    left, right = shingles(one), shingles(other)
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def near_duplicates(keys: Sequence[str]) -> np.ndarray:
    """Pairs of keys with Jaccard similarity of at least `NEAR`: int64 (n, 2), first < second.

    MinHash (128 permutations, 32 bands of 4) only proposes; each proposal is checked exactly. A
    pair at .8 is proposed by no band with probability 4.7e-8.

    Source: A5, step 1 and CA2, 13; Broder (1997); datasketch computes the signatures.

    Args:
        keys: of `prompt_key`, each once.
    """
    num = len(keys)
    found = [np.empty(0, np.int64)]
    for first_n, second_n, signature_nk in _proposals(keys):
        like_n = np.mean(signature_nk[first_n] == signature_nk[second_n], axis=1) >= _UNLIKE
        low_n = np.minimum(first_n[like_n], second_n[like_n])
        high_n = np.maximum(first_n[like_n], second_n[like_n])
        found.append(low_n * num + high_n)
    pairs = np.unique(np.concatenate(found))
    near = [code for code in pairs.tolist() if jaccard(keys[code // num], keys[code % num]) >= NEAR]
    return np.stack(np.divmod(np.array(near, np.int64), max(num, 1)), axis=1)


def _proposals(keys: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that agree in a band, with all signatures."""
    if len(keys) < 2:
        return
    from datasketch import MinHash  # with scipy, for which --help does not wait

    sets = ([part.encode() for part in shingles(key)] for key in keys)
    found = MinHash.generator(sets, num_perm=NUM_PERM, seed=1)
    signature_nk = np.stack([one.hashvalues for one in found])
    for band_nk in np.split(signature_nk, NUM_BANDS, axis=1):
        label_n = np.unique(band_nk, axis=0, return_inverse=True)[1].ravel()
        for first_n, second_n in pairs_within(label_n):
            yield first_n, second_n, signature_nk


def pairs_within(label_n: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with the same label, in blocks: n(n-1)/2 of a label that n have.

    The order is that of the labels' sizes, then of the labels, then of the positions.
    """
    order_n = np.argsort(label_n, kind="stable")
    start_g = np.flatnonzero(np.diff(label_n[order_n], prepend=label_n.min(initial=0) - 1))
    size_g = np.diff(start_g, append=len(label_n))
    for size in np.unique(size_g[size_g > 1]).tolist():
        member_gk = order_n[start_g[size_g == size][:, None] + np.arange(size)]
        for first, second in _triangle(size):
            step = max(_BLOCK // len(first), 1)
            for at in range(0, len(member_gk), step):
                part_gk = member_gk[at : at + step]
                yield part_gk[:, first].ravel(), part_gk[:, second].ravel()


def _triangle(size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places among `size`, in blocks of rows."""
    rows = max(_BLOCK // size, 1)
    for at in range(0, size - 1, rows):
        row, column = np.meshgrid(
            np.arange(at, min(at + rows, size)), np.arange(at, size), indexing="ij"
        )
        upper = column > row
        yield row[upper], column[upper]


def components(num: int, edges: np.ndarray) -> np.ndarray:
    """Connected parts of a graph: int64 (num,), numbered in the order of their first member.

    Args:
        num: of nodes.
        edges: int (n, 2) of nodes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), (num, num))
    label_n = connected_components(links, directed=False)[1]
    _, first_g, group_n = np.unique(label_n, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_g))[group_n].astype(np.int64)


def group_names(keys: Sequence[str], group_n: np.ndarray) -> list[str]:
    """A name for each group that depends on its members alone: a hash of the smallest key."""
    smallest: dict[int, str] = {}
    for key, group in zip(keys, group_n.tolist(), strict=True):
        smallest[group] = min(key, smallest.get(group, key))
    return [
        hashlib.sha1(smallest[group].encode()).hexdigest()[:16] for group in range(len(smallest))
    ]


def split_of(name: str, seed: int) -> int:
    """Index of the split of a group, drawn by a hash of its name: 90 % train, 5 % dev and test."""
    digest = hashlib.sha1(f"{seed}\x1f{name}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return int(place >= SHARES["train"]) + int(place >= SHARES["train"] + SHARES["dev"])
