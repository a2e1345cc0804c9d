"""What the user sees at the end: tables of results, and confusion matrices as files."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxvsa.core.files import write_atomic

LabelNames = Mapping[str, Sequence[str]]
_METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "macro_f1": "macro-F1"}
# Shown if there are such figures: of answers that were written, not ranked.
_WRITTEN = {
    "written_accuracy": "written",
    "invalid_rate": "unreadable",
    "exact_match": "exact",
    "ROUGE-L": "ROUGE-L",
    "METEOR": "METEOR",
    "METEOR-nosyn": "METEOR-nosyn",
}
_ABSENT = "-"
_MAX_WRITTEN = 20  # classes up to which a cell is large enough for its figures


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of results.

    Attributes:
        name: what was measured: the model, a baseline, a published system.
        values: full metric name ("test/opinion/micro_f1", "test/opinion/f1/positive") -> value in
            0..1; whatever is missing is shown as "-".
        errors: standard errors under the same names, shown where given.
    """

    name: str
    values: Mapping[str, float]
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


def render(
    rows: Sequence[Row], label_names: LabelNames, splits: Sequence[str], console: Console
) -> None:
    """Print, for every split, the figures of all tasks, then the F1 of every class.

    In % with standard errors. Tasks stand side by side where the terminal is wide enough and
    below each other where not; without a terminal the width is whatever the tables need.

    Args:
        rows: in the order of printing; the supports are read from the first.
        label_names: task -> class names in index order.
        splits: in the order of printing.
        console: where to print.
    """
    for split in splits:
        together = _summary(rows, split, list(label_names))
        if _fits(together, console):
            print_table(together, console)
        else:
            for task in label_names:
                print_table(_summary(rows, split, [task]), console)
        if any(label_names.values()):
            print_table(_per_class(rows, split, label_names), console)


def figure_table(
    title: str,
    rows: Sequence[Row],
    columns: Mapping[str, str],
    plain: Mapping[str, int] | None = None,
) -> Table:
    """A table of the rows that have any of the figures, in % with standard errors.

    Args:
        title: above the table.
        rows: in the order of printing.
        columns: full metric name -> heading.
        plain: metric -> decimals, for figures that are no shares and shown as they are.
    """
    plain = plain or {}
    shown = [row for row in rows if any(name in row.values for name in columns)]
    cells = [
        _percents(heading, ((row, name) for row in shown), plain.get(name))
        for name, heading in columns.items()
    ]
    table = _table(title, columns.values())
    for row, *texts in zip(shown, *cells, strict=True):
        table.add_row(Text(row.name), *texts)
    return table


def print_figures(
    title: str,
    rows: Sequence[Row],
    groups: Sequence[Mapping[str, str]],
    console: Console,
    plain: Mapping[str, int] | None = None,
) -> None:
    """Print `figure_table` of all groups of columns, or as many tables as the terminal needs.

    Where they do not fit side by side, each group has a table of its own, and one that does not fit
    by itself is halved until it does.

    Args:
        title: above each table.
        rows: in the order of printing.
        groups: columns, as for `figure_table`; empty groups are left out.
        console: where to print.
        plain: as for `figure_table`.
    """
    groups = [group for group in groups if group]
    columns = {name: heading for group in groups for name, heading in group.items()}
    table = figure_table(title, rows, columns, plain)
    if len(columns) <= 1 or _fits(table, console):
        print_table(table, console)
        return
    if len(groups) == 1:
        items = list(columns.items())
        half = -(-len(items) // 2)
        groups = [dict(items[:half]), dict(items[half:])]
    for group in groups:
        print_figures(title, rows, [group], console, plain)


def print_table(table: Table, console: Console) -> None:
    """Print a table; without a terminal the width is whatever it needs."""
    width = console.width
    if not console.is_terminal:
        console.width = max(width, _natural_width(table, console))
    console.print(table)
    console.width = width


def save_confusion(
    path_csv: str | Path,
    path_png: str | Path,
    counts_cc: np.ndarray,
    names: Sequence[str],
    title: str,
) -> None:
    """Write a confusion matrix (c,c; rows true, columns predicted) as CSV and as a picture.

    The CSV has a header and one row per true class; the picture shows counts and row percentages
    (the colour alone for more than 20 classes).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *names])
    for name, counts_c in zip(names, counts_cc.tolist(), strict=True):
        writer.writerow([name, *counts_c])
    write_atomic(path_csv, text.getvalue())
    write_atomic(path_png, _heat_map(counts_cc, names, title))


def _summary(rows: Sequence[Row], split: str, tasks: Sequence[str]) -> Table:
    columns = {
        f"{split}/{task}/{metric}": f"{task}\n{heading}"
        for task in tasks
        for metric, heading in (_METRICS | _WRITTEN).items()
        if any(f"{split}/{task}/{metric}" in row.values for row in rows)
    }
    return figure_table(f"{split}: {', '.join(tasks)} (%)", rows, columns)


def _per_class(rows: Sequence[Row], split: str, label_names: LabelNames) -> Table:
    classes = [(task, name) for task, names in label_names.items() for name in names]
    metrics = [f"{split}/{task}/f1/{name}" for task, name in classes]
    shown = [row for row in rows if any(name in row.values for name in metrics)]
    headings = [row.name.replace(" ", "\n") for row in shown]
    cells = [
        _percents(heading, ((row, name) for name in metrics))
        for heading, row in zip(headings, shown, strict=True)
    ]
    table = _table(f"{split}: F1 of every class (%)", ["support", *headings])
    for (task, name), *texts in zip(classes, *cells, strict=True):
        support = rows[0].values.get(f"{split}/{task}/support/{name}")
        last = name == label_names[task][-1] and (task, name) != classes[-1]
        count = _ABSENT if support is None else f"{support:.0f}"
        table.add_row(Text(f"{task} {name}"), count, *texts, end_section=last)
    return table


def _table(title: str, headings: Iterable[str]) -> Table:
    # `Text` everywhere: rich would read "[joy]" in a plain string as a style.
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table


def _percents(
    heading: str, cells: Iterable[tuple[Row, str]], decimals: int | None = None
) -> list[Text]:
    """One column, its decimal points below each other whether or not an error follows.

    In %, or with `decimals` as it is.
    """
    factor, digits = (100, 2) if decimals is None else (1, decimals)
    values, errors = [], []
    for row, name in cells:
        known, spread = name in row.values, name in row.errors
        values.append(f"{factor * row.values[name]:.{digits}f}" if known else _ABSENT)
        errors.append(f" ±{factor * row.errors[name]:.{digits}f}" if spread else "")
    right = max(map(len, errors), default=0)
    left = max([max(map(len, heading.split("\n"))) - right, *map(len, values)])
    # Justified left by itself: the column's own justification would strip the blanks at the end.
    return [
        Text(value.rjust(left) + error.ljust(right), justify="left")
        for value, error in zip(values, errors, strict=True)
    ]


def _natural_width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _fits(table: Table, console: Console) -> bool:
    return not console.is_terminal or _natural_width(table, console) <= console.width


def _heat_map(counts_cc: np.ndarray, names: Sequence[str], title: str) -> bytes:
    """PNG of the matrix; colour is the share of the row, so that rare classes are seen as well."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total_c = counts_cc.sum(axis=1)
    share_cc = counts_cc / np.maximum(total_c, 1)[:, None]
    side = 2.6 + min(0.95 * len(names), 20.0)  # inches
    figure = Figure(figsize=(side + 1.0, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"text.parse_math": False}):  # a "$" in a name is a dollar
        axes = figure.add_subplot()
        image = axes.imshow(share_cc, cmap="Blues", vmin=0.0, vmax=1.0)
        rows = [f"{name}\n(n = {n:,})" for name, n in zip(names, total_c, strict=True)]
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), rows)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if len(names) <= _MAX_WRITTEN:
            _write_cells(axes, counts_cc, share_cc)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.0%}")
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        data = io.BytesIO()
        figure.savefig(data, format="png")
    return data.getvalue()


def _write_cells(axes: Any, counts_cc: np.ndarray, share_cc: np.ndarray) -> None:
    for (true, predicted), count in np.ndenumerate(counts_cc):
        share = share_cc[true, predicted]
        axes.text(
            predicted,
            true,
            f"{count:,}\n{share:.1%}",
            ha="center",
            va="center",
            color="white" if share > 0.55 else "black",
            fontsize=9,
            fontweight="bold" if true == predicted else "normal",
        )
