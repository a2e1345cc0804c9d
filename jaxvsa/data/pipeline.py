"""From a batch plan to a stream of numpy batches, read ahead by threads (Grain)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jaxvsa.data.plan import BatchPlan, Planned

Batch = dict[str, np.ndarray]


class Examples(Protocol):
    """What a pipeline reads: examples that come as whole padded batches."""

    def batch(
        self, index_b: np.ndarray, valid_b: np.ndarray, sizes: Mapping[str, int], groups: int
    ) -> Batch:
        """Loads the examples `index_b` in `groups` parts; leaves start with axis b or g."""


def batches(
    plan: BatchPlan,
    examples: Examples,
    accumulate: int = 0,
    shards: tuple[Sequence[int], int] = ((0,), 1),
) -> grain.MapDataset:
    """The batches of a plan as a random-access data set.

    A batch is cut into micro-batches, and each of these into shards, consecutive rows together.

    Args:
        plan: which examples, and how far they are padded; its groups must be micro-batches times
            shards.
        examples: where they come from.
        accumulate: 0: leaves are (b, ...); otherwise the number of micro-batches of a step, and
            leaves are (accumulate, b / accumulate, ...).
        shards: which shards are loaded here, and how many there are.

    Raises:
        ValueError: the plan has other groups.
    """
    mine, count = shards
    parts = max(accumulate, 1)
    if plan.groups != parts * count:
        raise ValueError(f"{plan.groups} groups, but {parts} micro-batches of {count} shards")

    def load(planned: Planned) -> Batch:
        rows = np.arange(plan.batch_size).reshape(parts, count, -1)[:, list(mine)].reshape(-1)
        index_b, valid_b = planned.index_b[rows], planned.valid_b[rows]
        batch = examples.batch(index_b, valid_b, planned.sizes, parts * len(mine))
        if not accumulate:
            return batch
        return {name: leaf.reshape(accumulate, -1, *leaf.shape[1:]) for name, leaf in batch.items()}

    return grain.MapDataset.source(plan).map(load)


def iterate(
    dataset: grain.MapDataset,
    state: dict[str, Any] | None = None,
    *,
    num_threads: int = 1,
    read_ahead: int = 4,
) -> grain.DatasetIterator:
    """Iterator over `batches`, in order, continued from `state` if one is given.

    `get_state()` is a JSON-able dictionary that holds the number of the next batch: what was read
    ahead but not taken is not part of it. Threads, because the work is numpy's: there is nothing
    to start, to pickle or to close.

    Args:
        dataset: from `batches`.
        state: of another iterator over the same plan.
        num_threads: that load batches, 0 for the caller's own; more than one compete for Python's
            lock and were slower wherever it was measured.
        read_ahead: batches held ready at most.
    """
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=read_ahead if num_threads else 0
    )
    iterator = iter(dataset.to_iter_dataset(options))
    if state is not None:
        iterator.set_state(state)
    return iterator
