"""What a finished run says: its files of predictions, its table, and where everything is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh
from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core import mesh as meshes
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, write_json
from jaxvsa.evaluation.tables import Row, render
from jaxvsa.workflows import score as scoring
from jaxvsa.workflows.comments import Assembled
from jaxvsa.workflows.demo import DEMO, demo_facts
from jaxvsa.workflows.runs import RunFolder, choose_step, read_trained


def report(
    checkpoints: Checkpoints, folder: RunFolder, data: Assembled, mesh: Mesh, eval_batch_size: int
) -> list[Row]:
    """Scores dev and test with the selected checkpoint, writes all files, returns the table."""
    step = choose_step(checkpoints, "best", folder.path)
    trained = read_trained(folder.path, step)
    system = trained.system
    tables = scoring.place_tables(system, data.batching, data.features, mesh)
    params = meshes.put_whole(trained.params, mesh)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    splits = [split for split in ("dev", "test") if split in data.splits]
    for split in splits:
        comments = data.comments(split)
        size = scoring.batch_size(len(comments), eval_batch_size, mesh)
        ordered = data.batching.in_order(data.examples(split), size, meshes.local_shards(mesh))
        scored = scoring.score(
            system, params, tables, ordered, comments, data.facts.label_names, mesh, split,
            data.codec,
        )  # fmt: skip
        if distributed.is_first():
            scoring.write_scored(folder.predictions, scored, split, data.facts.label_names)
        values |= scored.values
        errors |= scored.errors
    name = f"{system.name} (step {step})"
    rows = [Row(name, values, errors), *scoring.baselines(data.prepared, data.protocol, splits)]
    if distributed.is_first():
        write_json(folder.results, [dataclasses.asdict(row) for row in rows])
    return rows


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


def show(rows: list[Row], folder: RunFolder, data: Assembled, console: Console) -> None:
    """Prints the table, and where the files are."""
    splits = [
        split for split in ("dev", "test") if any(k.startswith(split) for k in rows[0].values)
    ]
    render(rows, data.facts.label_names or {"answer": ()}, splits, console)
    console.print(f"± is one standard error over videos. Files: {folder.path}", markup=False)
    if data.noun == "questions" and data.config["data"]["root"].startswith(DEMO):
        console.print("These are figures of synthetic clips.", markup=False)
    facts = demo_facts(data.prepared.root)
    if facts is not None:
        for task, found in facts.closed_form.items():
            values = ", ".join(f"{mode} {100 * value:.2f} %" for mode, value in found.items())
            console.print(
                f"expected accuracy of the best rule, {task}: {values}",
                markup=False,
                soft_wrap=True,
            )
        console.print(
            "This was the demo on a synthetic corpus. Real data: python -m jaxvsa.prepare csmv "
            "--help, then --config configs/vccsa.py:paper --config.data.root=DIR",
            markup=False,
            soft_wrap=True,
        )
