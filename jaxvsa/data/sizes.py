"""Padded sizes of batches: few of them, since each is a compilation, and as tight as few can be."""

import dataclasses

import numpy as np

_MOST = 192  # different shapes that are merged one by one; more are rounded up together first
_REACH, _MOST_SWEEPS = 6, 20  # how far a single size is moved at once, and how often all are tried


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """What one axis of a batch has to hold.

    Attributes:
        need_b: int, what each example needs.
        packed: True: the examples of a group lie one after another, so that the axis holds the sum
            of their needs; False: the axis holds the longest.
        weight: share of a step's work that grows with this axis, relative to the others'.
        unit: sizes are multiples of this, plus `offset`.
        offset: see `unit`.
        limit: no size is larger; 0 for none. No need is, either.
        within: name of the axis of the longest: a packed axis is never larger than its rectangle,
            the examples of a group times that axis; without a name, times the largest need.
        owner_b: int; examples of a group with the same owner share what they need: counted once.
    """

    need_b: np.ndarray
    packed: bool
    weight: float
    unit: int = 1
    offset: int = 0
    limit: int = 0
    within: str = ""
    owner_b: np.ndarray | None = None

    def sizes(self, index_sgr: np.ndarray) -> np.ndarray:
        """Size that each batch needs, int64 (s,), of examples (batches s, groups g, rows r)."""
        need_sgr = self.need_b[index_sgr].astype(np.int64)
        if not self.packed:
            return self.round(need_sgr.max(axis=(1, 2)))
        if self.owner_b is not None:
            owner_sgr = self.owner_b[index_sgr]
            order_sgr = np.argsort(owner_sgr, axis=-1, kind="stable")
            owner_sgr = np.take_along_axis(owner_sgr, order_sgr, axis=-1)
            need_sgr = np.take_along_axis(need_sgr, order_sgr, axis=-1)
            need_sgr[..., 1:][owner_sgr[..., 1:] == owner_sgr[..., :-1]] = 0
        return self.round(need_sgr.sum(axis=-1).max(axis=1))

    def largest(self, num_rows: int, repeats: bool = False) -> int:
        """Size that no group of `num_rows` examples can exceed; `repeats`: one may come again."""
        if not self.packed:
            return int(self.round(self.need_b.max(keepdims=True))[0])
        if repeats:
            return int(self.round(num_rows * self.need_b.max(keepdims=True).astype(np.int64))[0])
        total = np.sort(self.need_b)[-num_rows:].sum(dtype=np.int64)
        missing = max(0, num_rows - len(self.need_b)) * int(self.need_b.max())
        return int(self.round(total[None] + missing)[0])

    def round(self, size: np.ndarray) -> np.ndarray:
        """The next admissible size."""
        up = self.offset + self.unit * -(-(size - self.offset) // self.unit)
        up = np.maximum(up, self.unit + self.offset if self.offset else self.unit)
        return np.minimum(up, self.limit) if self.limit else up


def choose_shapes(need_sa: np.ndarray, weight_a: np.ndarray, most: int) -> np.ndarray:
    """At most `most` shapes that cover all batches, with little padding.

    Starts from the shapes that the batches need and merges, again and again, the two whose common
    cover costs the least; then moves single sizes of those that are left, as long as it pays. The
    cost of a size is its weight, divided by the axis's mean size.

    Args:
        need_sa: int (batches, axes).
        weight_a: relative weights of the axes.
        most: at least 1.

    Returns:
        int64 (shapes, axes), cheapest first.
    """
    cost_a = np.asarray(weight_a, float) / need_sa.mean(axis=0)
    shape_ka, count_k = np.unique(_coarsen(need_sa), axis=0, return_counts=True)
    shape_ka, count_k = shape_ka.astype(np.int64), count_k.astype(float)
    price_kk = np.stack([_prices(shape_ka, count_k, k, cost_a) for k in range(len(shape_ka))])
    alive_k = np.ones(len(shape_ka), bool)
    np.fill_diagonal(price_kk, np.inf)
    while alive_k.sum() > most:
        i, j = divmod(int(np.argmin(price_kk)), len(shape_ka))
        shape_ka[i] = np.maximum(shape_ka[i], shape_ka[j])
        count_k[i] += count_k[j]
        alive_k[j] = False
        price_kk[j], price_kk[:, j] = np.inf, np.inf
        price_k = np.where(alive_k, _prices(shape_ka, count_k, i, cost_a), np.inf)
        price_k[i] = np.inf
        price_kk[i], price_kk[:, i] = price_k, price_k
    kept_ka = _refine(shape_ka[alive_k], need_sa, cost_a)
    return kept_ka[np.argsort(kept_ka @ cost_a, kind="stable")]


def _refine(shape_ka: np.ndarray, need_sa: np.ndarray, cost_a: np.ndarray) -> np.ndarray:
    """Moves single sizes to others that are needed, while the sum of all batches' costs falls."""
    need_ua, count_u = np.unique(need_sa, axis=0, return_counts=True)

    def total(shape_ka: np.ndarray) -> float:
        fits_uk = np.all(shape_ka[None] >= need_ua[:, None], axis=-1)
        return float(np.where(fits_uk, shape_ka @ cost_a, np.inf).min(axis=1) @ count_u)

    sizes_a = [np.unique(need_u) for need_u in need_ua.T]
    least = total(shape_ka)
    for _ in range(_MOST_SWEEPS):
        before = least
        for k, a in np.ndindex(*shape_ka.shape):
            at = int(np.searchsorted(sizes_a[a], shape_ka[k, a]))
            for size in sizes_a[a][max(0, at - _REACH) : at + _REACH + 1]:
                moved_ka = shape_ka.copy()
                moved_ka[k, a] = size
                if (found := total(moved_ka)) < least * (1 - 1e-9):
                    least, shape_ka = found, moved_ka
        if least == before:
            break
    return np.unique(shape_ka, axis=0)


def cover(need_sa: np.ndarray, shape_ka: np.ndarray) -> np.ndarray:
    """The first of `shape_ka` that is large enough for each batch: int64 (batches, axes).

    Raises:
        ValueError: none is.
    """
    fits_sk = np.all(shape_ka[None] >= need_sa[:, None], axis=-1)
    if not fits_sk.any(axis=1).all():
        raise ValueError(f"no shape of {shape_ka.tolist()} is large enough for every batch")
    return shape_ka[np.argmax(fits_sk, axis=1)]


def _coarsen(need_sa: np.ndarray) -> np.ndarray:
    """Rounds up every axis to fewer and fewer quantiles until few different rows are left."""
    levels, coarse_sa = 64, need_sa
    while len(np.unique(coarse_sa, axis=0)) > _MOST and levels > 1:
        levels //= 2
        columns = []
        for need_s in need_sa.T:
            rungs = np.quantile(need_s, np.arange(1, levels + 1) / levels, method="higher")
            columns.append(rungs[np.searchsorted(rungs, need_s)])
        coarse_sa = np.stack(columns, axis=1)
    return coarse_sa


def _prices(shape_ka: np.ndarray, count_k: np.ndarray, i: int, cost_a: np.ndarray) -> np.ndarray:
    """What padding it adds to merge shape i with each other one."""
    joint_ka = np.maximum(shape_ka, shape_ka[i])
    mine_k = (joint_ka - shape_ka[i]) @ cost_a * count_k[i]
    theirs_k = (joint_ka - shape_ka) @ cost_a * count_k
    return mine_k + theirs_k
