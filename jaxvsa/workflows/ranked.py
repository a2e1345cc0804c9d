"""Data of pairs: rewards measured, written, shown."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jax.sharding import Mesh

from jaxvsa.core.errors import UserError
from jaxvsa.data.pair_batches import PairExamples
from jaxvsa.data.pairs import KINDS
from jaxvsa.data.pipeline import iterate
from jaxvsa.data.scored import DIMENSIONS
from jaxvsa.data.videocross_files import OpenVideoCross
from jaxvsa.evaluation.evaluator import run as evaluate
from jaxvsa.evaluation.pair_baselines import pair_baselines
from jaxvsa.evaluation.pair_tables import render_pairs, write_reliability
from jaxvsa.evaluation.pairs import (
    DevFit,
    JudgedPairs,
    difference,
    fit_on_dev,
    measure_pairs,
    reward_rows,
)
from jaxvsa.evaluation.predictions import write_predictions
from jaxvsa.evaluation.tables import Row
from jaxvsa.systems.base import Params, System
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.rewards_demo import rewards_facts
from jaxvsa.workflows.score import make_folder

TASK = "rank"


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """One split, measured.

    Attributes:
        values: full metric name -> value.
        errors: full metric name -> standard error, over groups of prompts.
        pairs: as people judged them.
        reward_bv: of A and B.
        log_k_b: of a model of ties.
        dev: what was chosen on dev.
    """

    values: dict[str, float]
    errors: dict[str, float]
    pairs: JudgedPairs
    reward_bv: np.ndarray
    log_k_b: np.ndarray | None
    dev: DevFit


class Ranked(abc.ABC):
    """What data of pairs says of a model's rewards.

    Attributes:
        cross: the pairs.
        noun: of an example, in the plural.
        task: what is measured on dev during training.
    """

    cross: OpenVideoCross
    noun: str
    task = TASK

    @property
    def root(self) -> Path:
        """The folder of the data."""
        return self.cross.root

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Splits that have pairs."""

    @abc.abstractmethod
    def examples(self, split: str) -> PairExamples:
        """The pairs of a split."""

    @abc.abstractmethod
    def in_order(self, split: str, limit: int, mesh: Mesh) -> grain.MapDataset:
        """Every pair of a split once."""

    def dev_values(self, states: Mapping[str, Any]) -> dict[str, float]:
        """Accuracies of dev by full name."""
        found = states["pairs"].compute()
        return {f"dev/pairs/{name}": value for name, value in found.items() if value is not None}

    def judged(self, split: str) -> JudgedPairs:
        """The pairs of a split as people judged them, in the order of `examples`."""
        cross, examples = self.cross, self.examples(split)
        pairs = cross.pairs.take(examples.row_n)
        ids = [video.video_id for video in cross.videos]
        models = [video.model for video in cross.videos]
        videos = pairs.video_a_n.tolist(), pairs.video_b_n.tolist()
        return JudgedPairs(
            pair_id=[cross.ids[n] for n in examples.row_n.tolist()],
            question=[cross.questions[q] for q in pairs.question_n.tolist()],
            video_a=[ids[g] for g in videos[0]],
            video_b=[ids[g] for g in videos[1]],
            source=[cross.sources[s] for s in pairs.source_n.tolist()],
            dimension=[DIMENSIONS[d] for d in pairs.dimension_n.tolist()],
            kind=[KINDS[k] for k in pairs.kind_n.tolist()],
            group=[cross.groups[k] for k in pairs.asked_n.tolist()],
            answer_b=pairs.answer_n.astype(np.int64),
            gap_b=pairs.gap_n,
            score_bv=examples.score_nv,
            model_a=[models[g] for g in videos[0]],
            model_b=[models[g] for g in videos[1]],
        )

    def measure(
        self,
        system: System,
        params: Params,
        tables: Mapping[str, Any],
        splits: Sequence[str],
        mesh: Mesh,
        limit: int,
    ) -> dict[str, Judged]:
        """Each split by name; thresholds and temperature are those of dev, if there is one."""
        for split in splits:
            if split not in self.splits:
                known = ", ".join(self.splits)
                raise UserError(f"{self.root}: the split '{split}' has no pairs; known: {known}")
        found, dev = {}, DevFit()
        needed = {"dev", *splits} if "dev" in self.splits else set(splits)
        for split in sorted(needed, key=("dev", "train", "test").index):
            stream = iterate(self.in_order(split, limit, mesh))
            outputs, _ = evaluate(system, [TASK], params, tables, stream, mesh)
            reward_bv, log_k_b = outputs["reward"], outputs.get("log_k")
            pairs = self.judged(split)
            if split == "dev":
                dev = fit_on_dev(pairs.answer_b, difference(reward_bv), log_k_b)
            values, errors = measure_pairs(pairs, reward_bv, split, dev, log_k_b)
            found[split] = Judged(values, errors, pairs, reward_bv, log_k_b, dev)
        return {split: found[split] for split in splits}

    def write(self, folder: Path, scored: Judged, split: str) -> None:
        """Predictions of one split, and how well its probabilities are calibrated, as files."""
        make_folder(folder)
        given = scored.pairs, scored.reward_bv
        rows = reward_rows(*given, scored.dev, scored.log_k_b)
        write_predictions(folder / f"{split}.jsonl", rows)
        stem = folder / f"{split}-reliability"
        write_reliability(
            stem.with_suffix(".csv"), stem.with_suffix(".png"), *given, split, scored.dev,
            scored.log_k_b,
        )  # fmt: skip

    def baselines(self, splits: Sequence[str]) -> list[Row]:
        """Rows that need no model."""
        known = [split for split in self.splits if split in {"train", "dev", *splits}]
        rows = pair_baselines({split: self.judged(split) for split in known}, splits)
        facts = rewards_facts(self.root)
        if facts is None:
            return rows
        values = {
            f"{split}/source {source}/without_ties": value
            for split in splits
            for source, value in facts["bayes"].get(split, {}).items()
        }
        return [*rows, Row("the truth itself", values)]

    def notes(self, trained: Mapping[str, Any], own: bool) -> Iterator[str]:
        """What to know when reading a table; arguments as in `assemble.Data`."""
        yield (
            "± is one standard error over groups of prompts. The threshold of ties and the "
            "temperature are chosen on dev."
        )
        if own and trained["data"]["root"] == DEMO:
            yield f"These are figures of synthetic {self.noun}."


def render(rows: Sequence[Row], splits: Sequence[str], console: Any) -> None:
    """The tables of some rows."""
    render_pairs(rows, splits, console)
