"""One command, several runs: the folds of a data set, and variants that stand in the same table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core.config import load_config
from jaxvsa.core.files import write_json
from jaxvsa.data.prepared import Prepared
from jaxvsa.evaluation.tables import Row
from jaxvsa.workflows.assemble import kind
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.fit import fit

RESULTS = "results.json"


def fit_all(spec: str, overrides: Sequence[str], run: Path, console: Console) -> list[Row]:
    """Trains what a command line asks for, or resumes it; then one table.

    Args:
        spec: as in `load_config`.
        overrides: likewise; they hold for the variants of `config.beside`, too.
        run: the run directory. Folds lie in RUN/<fold>, other variants in RUN/<variant>.
        console: where progress and tables go.

    Returns:
        the rows of the table; for several folds their mean, and its standard error.

    Raises:
        UserError: as `fit`.
    """
    config = load_config(spec, overrides)
    name = spec.partition(":")[0]
    others = {  # all are read first: a misspelt name is no news after hours of training
        variant: load_config(f"{name}:{variant}", overrides) for variant in config.get("beside", ())
    }
    rows = fit_folds(config, run, console, alone=not others)
    if not others:
        return rows
    for place, (variant, other) in enumerate(others.items(), 1):
        _share(other, config, run)
        console.print(f"beside it, {variant}:", markup=False)
        first, *_ = fit_folds(other, run / variant, console, alone=False)
        rows.insert(place, dataclasses.replace(first, name=variant))
    _show(rows, config.system, run, console, "table.json")
    if config.data.root == DEMO:
        console.print(f"These are figures of synthetic {kind(config.system).NOUN}.", markup=False)
    return rows


def fit_folds(config: ConfigDict, run: Path, console: Console, alone: bool) -> list[Row]:
    """`fit`, or one for each fold if `data.protocol` names a family of folds.

    Args:
        config: from `load_config`.
        run: the run directory.
        console: where progress goes.
        alone: the table is printed.
    """
    folds = find_folds(config)
    if not folds:
        return fit(config, run, console, tables=alone)
    found = []
    for fold in folds:
        console.print(f"{fold}:", markup=False)
        one = config.copy_and_resolve_references()
        one.data.protocol = fold
        found.append(fit(one, run / fold, console, tables=False))
    # By name: a fold that an older version finished may lack a row.
    named = [{_plain_name(row): row for row in rows} for rows in found]
    rows = [
        mean_row([rows[name] for rows in named])
        for name in named[-1] if all(name in rows for rows in named)
    ]  # fmt: skip
    if alone:
        _show(rows, config.system, run, console, RESULTS)
    return rows


def find_folds(config: ConfigDict) -> list[str]:
    """The protocols `<name>_0`, `<name>_1`, ... of `data.protocol`; [] if it is one itself."""
    root, name = config.data.root, config.data.get("protocol", "")
    if not name or not root or not (Path(root) / "data.json").is_file():
        return []
    known = Prepared.open(root).protocols
    if name in known:
        return []
    return [other for other in known if re.fullmatch(rf"{re.escape(name)}_\d+", other)]


def first_fold(config: ConfigDict) -> ConfigDict:
    """The configuration of the first fold, which costs what the others do; of all if no folds."""
    folds, one = find_folds(config), config.copy_and_resolve_references()
    if folds:
        one.data.protocol = folds[0]
    return one


def mean_row(rows: Sequence[Row]) -> Row:
    """The mean over folds of figures that all have, each fold counting the same.

    Errors are standard errors of that mean: deviation between folds over the root of their number.
    """
    shared = [name for name in rows[0].values if all(name in row.values for row in rows)]
    values = {name: np.array([row.values[name] for row in rows]) for name in shared}
    spread = {
        name: float(np.std(found, ddof=1) / math.sqrt(len(rows))) for name, found in values.items()
    }
    return Row(
        f"{_plain_name(rows[0])} ({len(rows)} folds)",
        {name: float(np.mean(found)) for name, found in values.items()},
        spread,
    )


def _plain_name(row: Row) -> str:
    """Without the step of a model, which differs between folds."""
    return re.sub(r" \(step \d+\)$", "", row.name)


def _share(other: ConfigDict, config: ConfigDict, run: Path) -> None:
    """A variant beside the demo is trained on the same clips and the same image model."""
    if config.data.root == DEMO == other.data.root:
        other.data.root = str(run / "data" / "prepared")
        if "base" in other.weights and other.weights.base == DEMO:
            other.weights.base = str(run / "base")


def _show(rows: Sequence[Row], system: str, run: Path, console: Console, name: str) -> None:
    """Prints the table and writes it as RUN/`name`."""
    if not distributed.is_first():
        return
    write_json(run / name, [dataclasses.asdict(row) for row in rows])
    measured = {metric.partition("/")[0] for metric in rows[0].values}
    splits = [split for split in ("dev", "test") if split in measured]
    kind(system).render(rows, splits, console)
    console.print(f"Files: {run}", markup=False)
