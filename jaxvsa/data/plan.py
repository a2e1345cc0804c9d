"""Which examples form a batch, and how long its padded axes are: pure in (seed, step)."""

import collections
import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.sizes import Axis, choose_shapes, cover


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """One batch before it is loaded.

    Attributes:
        index_b: int64 example numbers; 0 where `valid_b` is False.
        valid_b: bool, False for the rows that fill up the last batch of an epoch.
        sizes: padded size of each axis.
    """

    index_b: np.ndarray
    valid_b: np.ndarray
    sizes: dict[str, int]


class BatchPlan:
    """All batches of a run by number: `plan[step]` depends on the arguments and on nothing else.

    The examples are drawn first, uniformly without replacement within an epoch, and only then is
    every batch padded to the next of a few shapes, so that the shapes cannot change the sampling.
    They are chosen for the batches of the first epoch; one that fits whatever a later epoch may
    draw is added. Every epoch shows every example once; its last batch is filled up with invalid
    rows.

    With strata an epoch has as many rows, shared out between the strata in proportion to their size
    to a power. A stratum fills its share with permutations of its examples, one after another, and
    the next epoch goes on where this one ended: two examples of a stratum are shown equally
    often, or one of them once more.

    The order of an epoch sorts the raw words of a Philox generator keyed by (seed, epoch). Raw
    words, unlike `Generator.permutation`, are the same in every version of numpy.

    Attributes:
        axes: what each axis has to hold.
        batch_size: rows of every batch, invalid ones included.
        groups: parts of a batch, consecutive rows, that are packed each for itself (micro-batches
            times shards of the devices).
        steps_per_epoch: batches that show every example once.
    """

    def __init__(
        self,
        axes: Mapping[str, Axis],
        batch_size: int,
        *,
        groups: int = 1,
        shapes: int = 8,
        order: np.ndarray | None = None,
        sort_b: np.ndarray | None = None,
        window: int = 1,
        strata_b: np.ndarray | None = None,
        power: float = 1.0,
        seed: int = 0,
        num_steps: int | None = None,
    ):
        """Draws the first epoch and chooses the shapes.

        Args:
            axes: what each axis has to hold.
            batch_size: examples of a batch.
            groups: see the class; must divide `batch_size`.
            shapes: most different shapes of the batches, each one compilation.
            order: the examples in a fixed order, every epoch (evaluation); None draws a new order
                every epoch.
            sort_b: a number of each example; batches are made of examples that are near in it,
                among those that the next `window` batches draw. This changes the sampling: batches
                are no longer uniform draws.
            window: batches, at least 1; read with `sort_b`.
            strata_b: int, number from 0 of each example's stratum, such as its source; None: all
                are one. Unused with `order`.
            power: 1: draws as without strata; 0: each stratum has the same share of an epoch.
            seed: of the order, at least 0; unused with `order`.
            num_steps: length of the plan; None is one epoch.

        Raises:
            UserError: no examples, no shape, a batch size below 1 or that the groups do not
                divide, a negative seed, or a power below 0.
        """
        self.axes, self._order, self._seed = dict(axes), order, seed
        self._sort_b, self._window = sort_b, window
        self._num_examples = _count_examples(self.axes)
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}; it must be at least 1")
        if batch_size % groups:
            raise UserError(
                f"a batch of {batch_size} cannot be split into {groups} parts (micro-batches x "
                "devices of the mesh); choose a multiple"
            )
        if shapes < 1:
            raise UserError(f"the number of batch shapes is {shapes}; it must be at least 1")
        if window < 1:
            raise UserError(f"the window is {window} batches; it must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0")
        if not 0 <= power < np.inf:
            raise UserError(f"the power of the strata is {power}; it must be at least 0")
        self._strata = None
        if strata_b is not None and power != 1 and order is None:
            self._strata = _Strata(strata_b, power, self._num_examples, seed)
        self.batch_size, self.groups = batch_size, groups
        self.steps_per_epoch = -(-self._num_examples // batch_size)
        self._num_steps = self.steps_per_epoch if num_steps is None else num_steps
        # Two: threads that read ahead work on both sides of the border between epochs.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)
        self._shapes = self._choose(shapes)

    def __len__(self) -> int:
        """Number of batches of the whole plan."""
        return self._num_steps

    def __getitem__(self, step: int) -> Planned:
        """The batch of one step, 0 <= step < len(plan)."""
        if not 0 <= step < self._num_steps:
            raise IndexError(f"step {step} is outside of the plan of {self._num_steps} steps")
        epoch, batch = divmod(int(step), self.steps_per_epoch)
        index_sb, size_sa = self._epoch(epoch)
        first = batch * self.batch_size
        return Planned(
            index_b=index_sb[batch].copy(),
            valid_b=np.arange(first, first + self.batch_size) < self._num_examples,
            sizes=dict(zip(self.axes, size_sa[batch].tolist(), strict=True)),
        )

    def shapes(self) -> dict[tuple[int, ...], int]:
        """Sizes that occur in the plan, in the order of `axes`, with the steps that have them.

        Each is one compilation of a jitted step: `len(plan.shapes())` says how many there are.
        """
        counts: collections.Counter[tuple[int, ...]] = collections.Counter()
        for first in range(0, self._num_steps, self.steps_per_epoch):
            _, size_sa = self._epoch(first // self.steps_per_epoch)
            counts.update(map(tuple, size_sa[: self._num_steps - first].tolist()))
        return dict(sorted(counts.items()))

    def _choose(self, most: int) -> np.ndarray:
        """The shapes of the plan, int64 (k, axes), cheapest first."""
        need_sa = self._needs(self._draw_index(0))
        weights = np.array([axis.weight for axis in self.axes.values()])
        several = self._order is None and self._num_steps > self.steps_per_epoch
        shape_ka = choose_shapes(need_sa, weights, max(1, most - several))
        if several:
            rows = self.batch_size // self.groups
            repeats = self._strata is not None
            top_a = [axis.largest(rows, repeats) for axis in self.axes.values()]
            shape_ka = np.concatenate([shape_ka, [top_a]])[-most:]
        return self._inside_rectangle(shape_ka)

    def _needs(self, index_sb: np.ndarray) -> np.ndarray:
        """Smallest size of each axis for each batch: int64 (batches, axes)."""
        index_sgr = index_sb.reshape(len(index_sb), self.groups, -1)
        sizes = np.stack([axis.sizes(index_sgr) for axis in self.axes.values()], axis=1)
        return self._inside_rectangle(sizes)

    def _inside_rectangle(self, size_sa: np.ndarray) -> np.ndarray:
        """Rounds packed axes, and cuts them to the rows of a group times their longest example."""
        size_sa, names = size_sa.copy(), list(self.axes)
        for a, axis in enumerate(self.axes.values()):
            if axis.packed:
                longest_s = axis.need_b.max(initial=1)
                if axis.within:
                    longest_s = size_sa[:, names.index(axis.within)]
                rectangle_s = longest_s * (self.batch_size // self.groups)
                size_sa[:, a] = np.minimum(axis.round(size_sa[:, a]), rectangle_s)
        return size_sa

    def _draw_index(self, epoch: int) -> np.ndarray:
        """Examples of one epoch, int64 (batches, b)."""
        index_sb = np.zeros((self.steps_per_epoch, self.batch_size), np.int64)
        order = self._order
        if order is None:
            words = np.random.Philox(key=(self._seed, epoch)).random_raw(self._num_examples)
            order = np.argsort(words, kind="stable")
            order = order if self._strata is None else self._strata.draw(epoch, order)
            order = order if self._sort_b is None else self._arrange(order, epoch)
        index_sb.reshape(-1)[: self._num_examples] = order
        return index_sb

    def _arrange(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Sorts the draws of every window, then shuffles its whole batches."""
        assert self._sort_b is not None
        size, whole = self.batch_size, self._num_examples // self.batch_size
        window_b = np.arange(self._num_examples) // (size * self._window)
        order = order[np.lexsort((self._sort_b[order], window_b))]
        words = np.random.Philox(key=(self._seed, epoch + (1 << 32))).random_raw(whole)
        moved = np.lexsort((words, np.arange(whole) // self._window))
        batches = order[: whole * size].reshape(whole, size)[moved]
        return np.concatenate([batches.reshape(-1), order[whole * size :]])

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples int64 (batches, b) of one epoch and the sizes of its batches (batches, axes)."""
        index_sb = self._draw_index(epoch)
        return index_sb, cover(self._needs(index_sb), self._shapes)


class _Strata:
    """Draws that give each stratum its share; pure in (seed, epoch)."""

    def __init__(self, strata_b: np.ndarray, power: float, num: int, seed: int) -> None:
        if len(strata_b) != num or (num and strata_b.min() < 0):
            raise ValueError(f"{len(strata_b)} numbers of strata, from 0, for {num} examples")
        self._seed = seed
        count_s = np.bincount(strata_b)
        self._index_b = np.argsort(strata_b, kind="stable")
        self._end_s = np.cumsum(count_s)
        self._count_s, self._share_s = count_s, _shares(count_s, power)

    def draw(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Examples of an epoch; `order`, a permutation, mixes the strata."""
        drawn = [
            self._slice(s, epoch * share, share) for s, share in enumerate(self._share_s.tolist())
        ]
        return np.concatenate(drawn)[order]

    def _slice(self, s: int, first: int, num: int) -> np.ndarray:
        """Draws `first` to `first + num` of the endless sequence of a stratum."""
        size = int(self._count_s[s])
        if not num:
            return self._index_b[:0]
        rounds = range(first // size, (first + num - 1) // size + 1)
        index = np.concatenate([self._round(s, size, number) for number in rounds])
        return index[first - rounds.start * size :][:num]

    def _round(self, s: int, size: int, number: int) -> np.ndarray:
        """All examples of a stratum once; the key differs from those of epochs and windows."""
        words = np.random.Philox(key=(self._seed, number + (s + 2 << 32))).random_raw(size)
        first = self._end_s[s] - size
        return self._index_b[first : self._end_s[s]][np.argsort(words, kind="stable")]


def _shares(count_s: np.ndarray, power: float) -> np.ndarray:
    """Draws of each stratum in an epoch, int64 (s,); they add up to all examples.

    Rounded down, and what is left goes to the largest remainders.
    """
    weight_s = np.where(count_s > 0, (count_s / count_s.max()) ** power, 0.0)
    exact_s = count_s.sum() * weight_s / weight_s.sum()
    share_s = np.floor(exact_s).astype(np.int64)
    left = int(count_s.sum() - share_s.sum())
    share_s[np.argsort(share_s - exact_s, kind="stable")[:left]] += 1
    return share_s


def _count_examples(axes: Mapping[str, Axis]) -> int:
    counts = {name: len(axis.need_b) for name, axis in axes.items()}
    if not counts or min(counts.values()) == 0:
        raise UserError("there are no examples to make batches of")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the axes speak of different numbers of examples: {counts}")
    return next(iter(counts.values()))
