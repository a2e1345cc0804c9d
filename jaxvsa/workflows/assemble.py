"""From a configuration to everything a run reads, whatever its system."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import Manifest
from jaxvsa.data.plan import BatchPlan
from jaxvsa.evaluation.tables import Row
from jaxvsa.interop.names import Place
from jaxvsa.systems import module
from jaxvsa.systems.base import Params, System

KINDS = {"vccsa": "comments", "mtransllama": "questions", "clevereward": "pairs"}
"""System -> the module beside this one that knows what it reads."""


class Data(Protocol):
    """What a run reads, and how its results are measured, written and shown.

    Attributes:
        config: resolved: sizes are those of the weights.
        codec: what makes text into numbers; kept in every checkpoint.
        facts: the system's `Facts`.
        noun: what an example is, in the plural.
        fresh: pattern of the parameters that `given` need not hold.
        task: of `System.tasks`: what is measured on dev during training, if the system has it.
    """

    config: dict[str, Any]
    codec: Any
    facts: Any
    noun: str
    fresh: str
    task: str

    @property
    def root(self) -> Path:
        """The folder of the data."""

    @property
    def protocol(self) -> str:
        """Which split; "" if there is one only."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have examples."""

    @property
    def manifest(self) -> Manifest | None:
        """Of the video features, if the model sees video."""

    def examples(self, split: str) -> Any:
        """See `pipeline.Examples`."""

    def shuffled(self, examples: Any, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training; `how` as in `BatchPlan`."""

    def in_order(self, split: str, limit: int, mesh: Mesh) -> Any:
        """Every example of a split once, in batches of about `limit` at most."""

    def sizes(self, batch_size: int = 1) -> dict[str, int]:
        """Sizes of a batch whose rows are all as long as they can be."""

    def tables(self, system: System) -> dict[str, np.ndarray]:
        """Large arrays that enter the step as arguments; see `System.tables`."""

    def given(self, place: Place | None) -> tuple[dict[str, Any], str]:
        """Parameters by path that come from files, and from which; {} if none do.

        `place` says where each goes; None: to the host.
        """

    def about(self) -> list[str]:
        """What to know before training, a line each."""

    def dev_values(self, states: Mapping[str, Any]) -> dict[str, float]:
        """Figures of dev by full name, from the states of `task`."""

    def measure(
        self,
        system: System,
        params: Params,
        tables: Mapping[str, Any],
        splits: Sequence[str],
        mesh: Mesh,
        limit: int,
    ) -> dict[str, Any]:
        """Split -> record with `values` and `errors` by full metric name, for `write`."""

    def write(self, folder: Path, scored: Any, split: str) -> None:
        """Files of one split."""

    def baselines(self, splits: Sequence[str]) -> list[Row]:
        """Rows that need no model."""

    def notes(self, trained: Mapping[str, Any], own: bool) -> Iterator[str]:
        """What to know when reading the table of a run with the configuration `trained`."""

    def record(self) -> dict[str, Any]:
        """What data.json of a run says; "root", "digest" and "features" at least."""


def kind(system: str) -> ModuleType:
    """The module that reads the data of a system.

    Each has `assemble` (configuration -> `Data`), `reopen` (trained model -> `Data`), `find_root`,
    `read_codec`, `read_params` and `render` (rows -> tables).

    Raises:
        UserError: no such system.
    """
    module(system)  # says what is wrong with the name
    return importlib.import_module(f"jaxvsa.workflows.{KINDS[system]}")


def assemble(config: Mapping[str, Any], run: Path) -> Data:
    """Opens the data, tokenizer and weights of a configuration.

    Args:
        config: plain values, as the configuration file and the command line give them.
        run: where a demo corpus goes.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    if not isinstance(config.get("system"), str):
        raise UserError("config.system is missing; it names the system, as in configs/vccsa.py")
    found: Data = kind(config["system"]).assemble(config, run)
    return found
