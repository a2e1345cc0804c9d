"""Which examples form a batch, and how long its padded axes are: pure in (seed, step)."""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvsa.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """One batch before it is loaded.

    Attributes:
        index_b: int64 example numbers; 0 where `valid_b` is False.
        valid_b: bool, False for the rows that fill up the last batch of an epoch.
        sizes: padded length of each axis, one of its rungs.
    """

    index_b: np.ndarray
    valid_b: np.ndarray
    sizes: dict[str, int]


class BatchPlan:
    """All batches of a run by number: `plan[step]` depends on the arguments and on nothing else.

    The examples are drawn first, uniformly without replacement within an epoch, and only then is
    every axis padded to its next rung, so that the ladder of sizes cannot change the sampling.
    Every epoch shows every example once; its last batch is filled up with invalid rows.

    The order of an epoch sorts the raw words of a Philox generator keyed by (seed, epoch). Raw
    words, unlike `Generator.permutation`, are the same in every version of numpy.

    Attributes:
        batch_size: rows of every batch, invalid ones included.
        steps_per_epoch: batches that show every example once.
    """

    def __init__(
        self,
        needs: Mapping[str, np.ndarray],
        rungs: Mapping[str, Sequence[int]],
        batch_size: int,
        *,
        limits: Mapping[str, int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        num_steps: int | None = None,
    ):
        """Checks the ladders against the examples.

        Args:
            needs: per axis, the smallest padded length each example admits, int (examples,).
            rungs: per axis, the admissible padded lengths, strictly increasing.
            batch_size: examples of a batch.
            limits: per axis, what its last rung must be (where a length is part of the model).
            seed: of the order, at least 0; unused without `shuffle`.
            shuffle: a new order every epoch; False keeps the order of the examples (evaluation).
            num_steps: length of the plan; None is one epoch.

        Raises:
            UserError: no examples, a batch size below 1, a negative seed, or a ladder that does
                not increase, does not reach the longest example or misses its limit.
        """
        self._needs = {axis: np.asarray(need) for axis, need in needs.items()}
        self._num_examples = _count_examples(self._needs)
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}; it must be at least 1")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must be at least 0")
        self._rungs = _check_ladders(self._needs, rungs, limits or {})
        self.batch_size = batch_size
        self.steps_per_epoch = -(-self._num_examples // batch_size)
        self._num_steps = self.steps_per_epoch if num_steps is None else num_steps
        self._seed, self._shuffle = seed, shuffle
        # Two: threads that read ahead work on both sides of the border between epochs.
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        """Number of batches of the whole plan."""
        return self._num_steps

    def __getitem__(self, step: int) -> Planned:
        """The batch of one step, 0 <= step < len(plan)."""
        if not 0 <= step < self._num_steps:
            raise IndexError(f"step {step} is outside of the plan of {self._num_steps} steps")
        epoch, batch = divmod(int(step), self.steps_per_epoch)
        index_nb, sizes = self._epoch(epoch)
        first = batch * self.batch_size
        return Planned(
            index_b=index_nb[batch].copy(),
            valid_b=np.arange(first, first + self.batch_size) < self._num_examples,
            sizes={axis: int(size[batch]) for axis, size in sizes.items()},
        )

    def shapes(self) -> dict[tuple[int, ...], int]:
        """Sizes that occur in the plan, in the order of `needs`, with the steps that have them.

        Each is one compilation of a jitted step: `len(plan.shapes())` says how many there are.
        """
        counts: collections.Counter[tuple[int, ...]] = collections.Counter()
        for first in range(0, self._num_steps, self.steps_per_epoch):
            _, sizes = self._epoch(first // self.steps_per_epoch)
            last = min(self._num_steps - first, self.steps_per_epoch)
            counts.update(zip(*(size[:last].tolist() for size in sizes.values()), strict=True))
        return dict(sorted(counts.items()))

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Examples int64 (batches, b) of one epoch and, per axis, the padded length (batches,)."""
        index_nb = np.zeros((self.steps_per_epoch, self.batch_size), np.int64)
        order = np.arange(self._num_examples)
        if self._shuffle:
            words = np.random.Philox(key=(self._seed, epoch)).random_raw(self._num_examples)
            order = np.argsort(words, kind="stable")
        index_nb.reshape(-1)[: self._num_examples] = order
        sizes = {
            axis: ladder[np.searchsorted(ladder, self._needs[axis][index_nb].max(axis=1))]
            for axis, ladder in self._rungs.items()
        }
        return index_nb, sizes


def _count_examples(needs: Mapping[str, np.ndarray]) -> int:
    counts = {axis: len(need) for axis, need in needs.items()}
    if not counts or min(counts.values()) == 0:
        raise UserError("there are no examples to make batches of")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the axes speak of different numbers of examples: {counts}")
    return next(iter(counts.values()))


def _check_ladders(
    needs: Mapping[str, np.ndarray], rungs: Mapping[str, Sequence[int]], limits: Mapping[str, int]
) -> dict[str, np.ndarray]:
    if set(rungs) != set(needs):
        raise UserError(f"rungs are given for axes {sorted(rungs)}, the data has {sorted(needs)}")
    ladders = {axis: np.asarray(rungs[axis], np.int64) for axis in needs}
    for axis, ladder in ladders.items():
        text = f"rungs of axis '{axis}' are {tuple(ladder.tolist())}"
        if ladder.size == 0 or ladder[0] < 1 or np.any(np.diff(ladder) <= 0):
            raise UserError(f"{text}; they must be positive and strictly increasing")
        if ladder[-1] != limits.get(axis, ladder[-1]):
            raise UserError(f"{text}; the last one must be the limit of the axis, {limits[axis]}")
        if ladder[-1] < (longest := needs[axis].max()):
            raise UserError(f"{text}; the longest example needs {longest}")
    return ladders
