"""Data with labels or answers, comments and questions alike: measured, written, shown."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxvsa.core.errors import UserError
from jaxvsa.core.mesh import local_shards
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.prepared import Prepared
from jaxvsa.evaluation.evaluator import flat_metrics
from jaxvsa.evaluation.tables import Row
from jaxvsa.evaluation.tables import render as render_labels
from jaxvsa.systems.base import Params, System
from jaxvsa.workflows import score as scoring
from jaxvsa.workflows.demo import DEMO, demo_facts
from jaxvsa.workflows.score import LabelNames, Scored


class Labelled(abc.ABC):
    """What `comments.Assembled` and `questions.Assembled` share.

    Attributes:
        config: resolved.
        prepared: the data set.
        codec: the tokenizer, or both.
        facts: the system's `Facts`.
    """

    config: dict[str, Any]
    prepared: Prepared
    codec: Any
    facts: Any
    noun: str
    task = scoring.TASK
    """What is measured on dev during training, if the system has it."""

    @property
    @abc.abstractmethod
    def batching(self) -> Any:
        """How examples become batches."""

    @property
    @abc.abstractmethod
    def features(self) -> FeatureTable | None:
        """The features, if the model sees video."""

    @property
    @abc.abstractmethod
    def manifest(self) -> Manifest | None:
        """Of the features, if the model sees video."""

    @abc.abstractmethod
    def examples(self, split: str) -> Any:
        """The examples of a split, tokenised."""

    @property
    def root(self) -> Path:
        """The folder of the data."""
        return self.prepared.root

    @property
    def protocol(self) -> str:
        """The split protocol."""
        return self.config["data"]["protocol"]

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the protocol that have examples."""
        counts = self.prepared.protocols[self.protocol]
        return tuple(split for split, count in counts.items() if count)

    def comments(self, split: str) -> Comments:
        """The comments, or questions, of a split."""
        return self.prepared.comments(self.protocol, split)

    def shuffled(self, examples: Any, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training; `how` as in `BatchPlan`."""
        plan: BatchPlan = self.batching.shuffled(examples, batch_size, **how)
        return plan

    def in_order(self, split: str, limit: int, mesh: Mesh) -> grain.MapDataset:
        """Every example of a split once, in batches of about `limit` at most."""
        examples = self.examples(split)
        size = scoring.batch_size(len(examples), limit, mesh)
        return self.batching.in_order(examples, size, local_shards(mesh))

    def tables(self, system: System) -> dict[str, np.ndarray]:
        """Large arrays that enter the step as arguments."""
        features = self.features
        if not system.tables or features is None or not self.batching.is_resident(features):
            return {}
        return {"video": features.values_nf}

    def dev_values(self, states: Mapping[str, Any]) -> dict[str, float]:
        """Figures of dev by full name; what selects a checkpoint is among them."""
        names = self.facts.label_names
        values = flat_metrics(states, "dev", names)
        return {**values, "dev/all/micro_f1_sum": scoring.sum_of_micro_f1(values, "dev", names)}

    def measure(
        self,
        system: System,
        params: Params,
        tables: Mapping[str, Any],
        splits: Sequence[str],
        mesh: Mesh,
        limit: int,
    ) -> dict[str, Scored]:
        """Each split by name, evaluated in batches of about `limit` at most."""
        found = {}
        for split in splits:
            comments = self.comments(split)
            if not len(comments):
                raise UserError(
                    f"{self.root}: the split '{split}' of '{self.protocol}' has no {self.noun}"
                )
            found[split] = scoring.score(
                system, params, tables, self.in_order(split, limit, mesh), comments,
                self.facts.label_names, mesh, split, self.codec,
            )  # fmt: skip
        return found

    def baselines(self, splits: Sequence[str]) -> list[Row]:
        """Rows that need no model."""
        return scoring.baselines(self.prepared, self.protocol, splits)

    def write(self, folder: Path, scored: Scored, split: str) -> None:
        """Files of one split."""
        scoring.write_scored(folder, scored, split, self.facts.label_names)

    def record(self) -> dict[str, Any]:
        """What data.json of a run says: where the data is, and what it was."""
        prepared = self.prepared
        return {
            "root": str(prepared.root),
            "digest": prepared.digest,
            "protocol": self.protocol,
            "labels": {task: list(names) for task, names in prepared.labels.items()},
            "features": None if self.manifest is None else self.manifest.to_dict(),
            "report": prepared.report,
        }

    def check(self, trained: Any) -> None:
        """Refuses data that is not of the kind a model was trained on.

        Raises:
            UserError: other labels or features; both are named.
        """
        check_labels(trained.facts.label_names, self.prepared.labels)
        given = self.prepared.manifest
        check_features(trained.manifest, None if given is None else Manifest.from_dict(given))

    def notes(self, trained: Mapping[str, Any], own: bool) -> Iterator[str]:
        """What to know when reading a table.

        Args:
            trained: configuration of the run.
            own: the table is of the run's own data, split and step.
        """
        if self.protocol != trained["data"]["protocol"]:
            yield (
                f"The model was trained with the protocol {trained['data']['protocol']}: it may "
                f"have seen these {self.noun}."
            )
        if own and trained["data"]["root"].startswith(DEMO):
            yield f"These are figures of synthetic {self.noun}."
        yield "± is one standard error over videos."
        facts = demo_facts(self.root)
        if facts is None or not own:
            return
        for task, found in facts.closed_form.items():
            values = ", ".join(f"{mode} {100 * value:.2f} %" for mode, value in found.items())
            yield f"expected accuracy of the best rule, {task}: {values}"
        yield (
            "This was the demo on a synthetic corpus. Real data: python -m jaxvsa.prepare csmv "
            "--help, then --config configs/vccsa.py:paper --config.data.root=DIR"
        )


def render(rows: Sequence[Row], splits: Sequence[str], console: Console) -> None:
    """The tables of some rows; tasks and classes are those of the first."""
    names: dict[str, list[str]] = {}
    for metric in rows[0].values:
        split, task, *rest = metric.split("/", 3)
        if task == "all" or split not in splits:
            continue
        found = names.setdefault(task, [])
        if rest[0] == "f1" and len(rest) == 2 and rest[1] not in found:
            found.append(rest[1])
    render_labels(rows, names, splits, console)


def check_labels(trained: LabelNames, given: LabelNames) -> None:
    """Refuses data whose classes are not those of a model, in this order.

    Raises:
        UserError: both are named.
    """
    if _plain(trained) != _plain(given):
        raise UserError(
            f"the model was trained on the labels {_plain(trained)}, the data has {_plain(given)}; "
            "prepare it with the same label columns and classes"
        )


def check_features(trained: Manifest | None, given: Manifest | None) -> None:
    """Refuses features of another kind than those a model was trained on.

    Raises:
        UserError: encoder, width, rate, window or stride differ; both are named.
    """
    if trained is None:
        return
    if given is None:
        raise UserError(
            f"the model was trained on video features of '{trained.encoder}', the data has none"
        )
    for name in ("encoder", "width", "rows_per_s", "window", "stride"):
        mine, theirs = getattr(trained, name), getattr(given, name)
        if mine != theirs:
            raise UserError(
                f"the model was trained on features of '{trained.encoder}' ({name} {mine}), the "
                f"data has '{given.encoder}' ({name} {theirs}); prepare the data with the former"
            )


def _plain(labels: LabelNames) -> dict[str, list[str]]:
    return {task: list(labels[task]) for task in sorted(labels)}
