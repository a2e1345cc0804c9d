"""What a finished run says: its files of predictions, its table, and where everything is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from jaxvsa.core import distributed, trees
from jaxvsa.core import mesh as meshes
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, write_json
from jaxvsa.evaluation.tables import Row
from jaxvsa.systems.base import Params, System
from jaxvsa.workflows.assemble import kind
from jaxvsa.workflows.runs import RunFolder, choose_step
from jaxvsa.workflows.setup import Setup


def report(setup: Setup, checkpoints: Checkpoints, held: Params) -> list[Row]:
    """Scores dev and test with the selected checkpoint, writes all files, returns the table.

    Args:
        setup: of the run, whose programs are compiled already.
        checkpoints: of the run.
        held: the frozen parameters, which are on the devices already.
    """
    folder, data, system, mesh = setup.folder, setup.data, setup.system, setup.mesh
    step = choose_step(checkpoints, "best", folder.path)
    params = trees.join(checkpoints.restore_raw(step)["learn"], held)
    splits = [split for split in ("dev", "test") if split in data.splits]
    limit = setup.options.eval_batch_size
    rows = measure(system, params, step, data, splits, mesh, limit, folder.predictions)
    if distributed.is_first():
        write_json(folder.results, [dataclasses.asdict(row) for row in rows])
    return rows


def measure(
    system: System,
    params: Params,
    step: int,
    data: Any,
    splits: Sequence[str],
    mesh: Mesh,
    limit: int,
    files: Path,
) -> list[Row]:
    """A model on some splits of data of its kind, then the rows that need no model.

    Args:
        system: the model.
        params: the whole tree, numpy; arrays of a device stay where they are.
        step: updates done.
        data: see `assemble.Data`.
        splits: "train", "dev", "test".
        mesh: where it runs; `params` are placed as in training.
        limit: about the most examples of a batch.
        files: folder of predictions.
    """
    tables = meshes.put_whole(data.tables(system), mesh)
    params = meshes.put_params(params, system.partition, mesh)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for split, scored in data.measure(system, params, tables, splits, mesh, limit).items():
        if distributed.is_first():
            data.write(files, scored, split)
        values |= scored.values
        errors |= scored.errors
    row = Row(f"{system.name} (step {step})", values, errors)
    return [row, *data.baselines(splits)]


def read_rows(path: Path) -> list[Row]:
    """The rows of results.json.

    Raises:
        UserError: it is not what was written.
    """
    try:
        rows = [Row(**row) for row in read_json(path, "results")]
    except (TypeError, UserError):
        rows = []
    if not rows:
        raise UserError(f"{path} is damaged; delete it and run the same command to make it again")
    return rows


def show(rows: list[Row], folder: RunFolder, data: Any, console: Console) -> None:
    """Prints the table, and where the files are."""
    splits = [
        split for split in ("dev", "test") if any(k.startswith(split) for k in rows[0].values)
    ]
    kind(data.config["system"]).render(rows, splits, console)
    for line in (*data.notes(data.config, True), f"Files: {folder.path}"):
        console.print(line, markup=False, soft_wrap=True)
