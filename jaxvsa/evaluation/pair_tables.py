"""What the user sees of pairs: tables, and files of predicted against observed shares."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from jaxvsa.core.files import write_atomic
from jaxvsa.evaluation.pairs import TASK, DevFit, JudgedPairs, difference, model_logit
from jaxvsa.evaluation.tables import Row, print_figures
from jaxvsa.metrics.calibration import reliability

_ACCURACIES = {
    "without_ties": "without ties",
    "with_ties": "with ties",
    "with_ties_oracle": "with ties\nbest eps",
}
_PLAIN = {
    "log_loss": ("log-loss\nT of dev", 4),
    "log_loss_raw": ("log-loss\nT = 1", 4),
    "log_loss_ties": ("log-loss\nties too", 4),
}


def render_pairs(rows: Sequence[Row], splits: Sequence[str], console: Console) -> None:
    """Prints, for every split, models and baselines, then the parts of the first row.

    Accuracies are in % with standard errors over prompt groups, log-losses in nats; "-" is a figure
    that a row does not have.

    Args:
        rows: values as `measure_pairs` names them.
        splits: in the order of printing.
        console: where to print.
    """
    for split in splits:
        prefix = f"{split}/{TASK}"
        known = {name for row in rows for name in row.values}
        sources = _names(rows[0].values, split, "source")
        groups = [
            {f"{prefix}/{name}": heading for name, heading in _ACCURACIES.items()},
            {f"{prefix}/{name}": heading for name, (heading, _) in _PLAIN.items()}
            | {f"{prefix}/ece": "ECE"},
            {f"{split}/source {name}/without_ties": name for name in sources if len(sources) > 1},
        ]
        groups = [{name: group[name] for name in group if name in known} for group in groups]
        plain = {f"{prefix}/{name}": decimals for name, (_, decimals) in _PLAIN.items()}
        title = f"{split}: pairs (%; log-loss in nats; sources without ties)"
        print_figures(title, rows, groups, console, plain)
        _print_parts(rows[0], split, console)


def write_reliability(
    path_csv: str | Path,
    path_png: str | Path,
    pairs: JudgedPairs,
    reward_bv: np.ndarray,
    title: str,
    dev: DevFit | None = None,
    log_k_b: np.ndarray | None = None,
) -> bool:
    """Writes predicted against observed share of A, in 15 bins of equal mass, and its picture.

    The temperature is dev's, 1 if there is none.

    Returns:
        False where nothing was written: no decided pair, or a reward that is not finite.
    """
    temperature = 1.0 if dev is None or dev.temperature is None else dev.temperature
    logit_b = model_logit(difference(reward_bv), log_k_b)
    try:
        rows = reliability(pairs.answer_b, logit_b, temperature)
    except ValueError:
        return False
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path_csv, text.getvalue())
    write_atomic(path_png, _reliability_picture(rows, title))
    return True


def _print_parts(row: Row, split: str, console: Console) -> None:
    """Kinds, dimensions and bins of gaps of one row."""
    columns = {"num_decided": "decided", **_ACCURACIES}
    parts = [
        Row(
            f"{part} {name}",
            {figure: row.values[f"{start}/{figure}"] for figure in columns
             if f"{start}/{figure}" in row.values},
            {figure: row.errors[f"{start}/{figure}"] for figure in columns
             if f"{start}/{figure}" in row.errors},
        )
        for part in ("kind", "dimension", "gap")
        for name in _names(row.values, split, part)
        for start in [f"{split}/{part} {name}"]
    ]  # fmt: skip
    title = f"{split}: parts of {row.name} (%; gap in deviations of the scores)"
    print_figures(title, parts, [columns], console, {"num_decided": 0})


def _names(values: Mapping[str, float], split: str, part: str) -> list[str]:
    """Parts of one sort that have figures, in their order."""
    start, end = f"{split}/{part} ", "/num_pairs"
    return [
        name.removeprefix(start).removesuffix(end)
        for name in values
        if name.startswith(start) and name.endswith(end)
    ]


def _reliability_picture(rows: Sequence[Mapping[str, float]], title: str) -> bytes:
    """PNG: observed over predicted share of A; on the diagonal is calibrated."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"text.parse_math": False}):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        predicted = [row["predicted"] for row in rows]
        observed = np.array([row["observed"] for row in rows])
        error = np.sqrt(observed * (1 - observed) / [row["pairs"] for row in rows])
        axes.errorbar(predicted, observed, error, fmt="o-", markersize=4, linewidth=1, capsize=2)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted share of A", title=title)
        axes.set(ylabel="observed share of A", aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
        data = io.BytesIO()
        figure.savefig(data, format="png")
    return data.getvalue()
