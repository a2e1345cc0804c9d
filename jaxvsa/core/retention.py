"""Which checkpoints of a run stay: the newest, and for each of them the best up to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy


def ranked(scores: Mapping[int, float | None]) -> list[int]:
    """Steps that have a score, the highest first, of equal scores the earlier step first."""
    known = [(-score, step) for step, score in scores.items() if score is not None]
    return [step for _, step in sorted(known)]


class Retention(PreservationPolicy):
    """Keeps the newest and the best; Orbax asks when a new checkpoint is on its way.

    The best up to each of the newest stays, not only the best of all: should the last checkpoint
    be damaged, the run goes on from the one before it, and its best must still be there. With two
    newest and one best these are three at most.

    Orbax's own `BestN` forgets the scores when a run is resumed, so the caller sets them.

    Attributes:
        num_newest: how many of the newest stay, at least 1.
        num_best: how many of the best stay besides.
        scores: score of every complete step and of the one on its way; None is never the best.
    """

    def __init__(self, num_newest: int, num_best: int) -> None:
        """Starts without scores.

        Raises:
            ValueError: a number that is too small.
        """
        if num_newest < 1 or num_best < 0:
            raise ValueError(f"keep_newest={num_newest} is below 1 or keep_best={num_best} below 0")
        self.num_newest, self.num_best = num_newest, num_best
        self.scores: Mapping[int, float | None] = {}

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """One answer per checkpoint; a step whose score nobody set is not ours to remove."""
        kept = set(sorted(self.scores)[-self.num_newest :])
        for newest in sorted(kept):
            until = {step: score for step, score in self.scores.items() if step <= newest}
            kept.update(ranked(until)[: self.num_best])
        return [item.step in kept or item.step not in self.scores for item in checkpoints]
