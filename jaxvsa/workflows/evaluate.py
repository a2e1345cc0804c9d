"""Measures a trained model on a split, beside rows that need no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.core.mesh import all_devices
from jaxvsa.evaluation.tables import Row
from jaxvsa.workflows.assemble import kind
from jaxvsa.workflows.report import measure
from jaxvsa.workflows.runs import RunFolder, Trained, read_trained


def evaluate(
    run: str | Path,
    split: str = "test",
    data: str | Path | None = None,
    step: str | int = "best",
    protocol: str | None = None,
    out: str | Path | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Prints the table of one split; writes its predictions and confusion matrices.

    Args:
        run: folder of the run.
        split: "train", "dev" or "test".
        data: a prepared folder; the run's own by default.
        step: "best", "newest" or a number of updates.
        protocol: how the data is split; as in the run by default.
        out: folder of the files. By default RUN/predictions, and a sub-folder of it for anything
            but the run's own data, protocol and best step.
        console: where to print; None is silent.

    Returns:
        the rows of the table: the model, then the baselines, of the same split and protocol.

    Raises:
        UserError: no such run, step, data or split; data with other labels or features than the
            model was trained on.
    """
    trained = read_trained(run, step)
    config, folder = trained.config, RunFolder(run)
    opened = open_data(trained, folder.path, data, protocol)
    own = data is None and step == "best" and protocol in (None, config["data"].get("protocol"))
    name = "-".join([opened.root.name, *filter(None, [opened.protocol]), f"step{trained.step}"])
    files = Path(out) if out else folder.predictions if own else folder.predictions / name
    limit = config["train"]["eval_batch_size"]
    model = trained.system, trained.params, trained.step
    rows = measure(*model, opened, [split], all_devices(), limit, files)
    console = console or Console(quiet=True)
    kind(config["system"]).render(rows, [split], console)
    for line in (*opened.notes(config, own), f"Files: {files}"):
        console.print(line, markup=False, soft_wrap=True)
    return rows


def open_data(
    trained: Trained, run: Path, data: str | Path | None = None, protocol: str | None = None
) -> Any:
    """The prepared folder `data`, or the one a run was trained on, for a model; see `evaluate`."""
    found, config = kind(trained.system.name), trained.config
    root = find_root(config, run, data)
    return found.reopen(trained, root, protocol)


def find_root(config: Mapping[str, Any], run: Path, data: str | Path | None = None) -> Path:
    """The prepared folder `data`, or the one a run was trained on."""
    root = str(data or config["data"]["root"])
    return kind(config["system"]).find_root(run, root, config["seed"])
