"""Scores any model's outputs against people's votes on pairs of videos: no run, no video needed."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import write_atomic, write_json
from jaxvsa.data.verdicts import read_verdicts
from jaxvsa.data.votes import PersonVotes, read_person_votes
from jaxvsa.evaluation.tables import Row, print_figures
from jaxvsa.evaluation.verdicts import (
    FIGURES,
    Thresholds,
    Verdict,
    fit_thresholds,
    judge,
    resamples,
)
from jaxvsa.evaluation.vote_baselines import vote_baselines
from jaxvsa.metrics.clustered import Comparison, compare

PARTS = ("source", "dimension", "kind")
_NAMES = ("leftvote", "rightvote", "tievote", "bothbad_vote")


def score_votes(
    scores: Sequence[str | Path],
    votes: str | Path,
    dev_scores: Sequence[str | Path] = (),
    dev_votes: str | Path | None = None,
    split: str = "test",
    zero: str | None = None,
    missing: str = "error",
    out: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Prints how often models agree with people; writes `out`/report.json and pairs.csv.

    Args:
        scores: a file of scores or votes for each model, as `read_verdicts` reads them.
        votes: people's, as `read_person_votes` reads them.
        dev_scores: none, or one for each of `scores`, from which thresholds of ties are chosen.
        dev_votes: people's on the pairs of `dev_scores`; of pairs with a split those of dev.
        split: of pairs that have one.
        zero: "half" or "wrong": what a zero difference, or a tie vote, counts on a decided pair;
            None = half for scores, wrong for votes.
        missing: "error", "wrong" or "drop": pairs without score or vote.
        out: folder of the files; None writes none.
        console: where to print; None is silent.

    Returns:
        the report, as in report.json.

    Raises:
        UserError: wrong or missing input; dev files that do not belong to the scores.
    """
    _check_dev(scores, dev_scores, dev_votes)
    people = read_person_votes(votes, split)
    dev = None if dev_votes is None else read_person_votes(dev_votes, "dev")
    verdicts = []
    for number, (path, name) in enumerate(zip(scores, _model_names(scores), strict=True)):
        found = read_verdicts(path, people, missing)
        fitted = Thresholds()
        if dev is not None:
            fitted = _fit(found, read_verdicts(dev_scores[number], dev, missing), dev, path)
        one = judge(name, found, *_votes(people), fitted, zero, missing == "drop")
        if not one.counted_b.any():
            raise UserError(f"{path}: no pair of {votes} is left; --missing {missing} dropped all")
        verdicts.append(one)
    cluster = people.column("cluster")
    compared = _compare(verdicts, cluster)
    baselines = vote_baselines(*_votes(people), zero=[one.zero for one in verdicts])
    rows = [Row(one.name, *one.figures(cluster)) for one in verdicts]
    report = _report(people, verdicts, [*rows, *baselines], compared)
    if out is not None:
        write_json(Path(out) / "report.json", report)
        write_atomic(Path(out) / "pairs.csv", _pair_rows(people, verdicts))
    console = console or Console(quiet=True)
    _print(people, verdicts, [*rows, *baselines], compared, console)
    if out is not None:
        console.print(f"Files: {out}", markup=False, soft_wrap=True)
    return report


def _fit(found: Any, on_dev: Any, dev: PersonVotes, path: str | Path) -> Thresholds:
    """Thresholds from the outputs of the same model on dev."""
    if type(found) is not type(on_dev):
        raise UserError(f"{path}: of scores and votes, it has one and its --dev-scores the other")
    if on_dev.absent_b.all():
        raise UserError(f"{dev.path}: no pair of dev has scores; leave --dev-votes out")
    return fit_thresholds(on_dev, *_votes(dev))


def _votes(people: PersonVotes) -> tuple[np.ndarray, bool]:
    return people.vote_b, people.four_classes


def _check_dev(scores: Sequence[Any], dev_scores: Sequence[Any], dev_votes: Any) -> None:
    if not scores:
        raise UserError("--votes needs --scores FILE, the outputs of a model")
    if (dev_votes is None) != (not dev_scores):
        absent = "--dev-votes" if dev_votes is None else "--dev-scores"
        raise UserError(f"thresholds from dev need both --dev-votes and --dev-scores; add {absent}")
    if dev_scores and len(dev_scores) != len(scores):
        raise UserError(
            f"--dev-scores is given {len(dev_scores)} times, --scores {len(scores)} times; "
            "give one for each, in the same order"
        )


def _model_names(paths: Sequence[str | Path]) -> list[str]:
    """Stems of files, or as much of the paths as tells them apart."""
    parts = [[*Path(path).parts[:-1], Path(path).stem] for path in paths]
    for size in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--scores: {paths[-1]} is given twice; name different files")


def _compare(
    verdicts: Sequence[Verdict], cluster: Sequence[str]
) -> list[tuple[str, Verdict, Verdict, Comparison]]:
    """Every two models on each figure that both have."""
    found, num = [], resamples(cluster)
    for first, second in itertools.combinations(verdicts, 2):
        for figure in FIGURES:
            mine, theirs = first.credits.get(figure), second.credits.get(figure)
            if figure == "with_ties_oracle" and first.is_votes != second.is_votes:
                mine = first.credits["with_ties" if first.is_votes else figure]
                theirs = second.credits["with_ties" if second.is_votes else figure]
            if mine is None or theirs is None or np.isnan(mine - theirs).all():
                continue
            found.append((figure, first, second, compare(mine, theirs, cluster, num)))
    return found


def _report(
    people: PersonVotes,
    verdicts: Sequence[Verdict],
    rows: Sequence[Row],
    compared: Sequence[tuple[str, Verdict, Verdict, Comparison]],
) -> dict[str, Any]:
    """JSON values; a figure that is not defined is null."""
    cluster = people.column("cluster")
    models = []
    for verdict, row in zip(verdicts, rows, strict=False):
        absent = dict.fromkeys(verdict.credits)
        parts = {}
        for part, name, at_b in _parts(people):
            values, errors = verdict.figures(cluster, at_b)
            parts[f"{part} {name}"] = {"values": {**absent, **values}, "errors": errors}
        measured = {"values": {**absent, **row.values}, "errors": row.errors, "parts": parts}
        models.append(verdict.facts() | measured)
    report = {
        "votes": str(people.path),
        **_counts(people),
        "models": models,
        "baselines": [{"name": row.name, "values": row.values} for row in rows[len(verdicts) :]],
        "comparisons": [
            {
                "figure": figure,
                "first": first.name,
                "second": second.name,
                **vars(found.difference),
                **{name: value for name, value in vars(found).items() if name != "difference"},
            }
            for figure, first, second, found in compared
        ],
    }
    return _without_nan(report)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _counts(people: PersonVotes) -> dict[str, Any]:
    """What people voted."""
    vote_b = people.vote_b
    counts = np.bincount(vote_b, minlength=4).tolist()
    names = ("left", "right", "tie", "both_bad")
    return {
        "pairs": len(vote_b),
        "decided": counts[0] + counts[1],
        "prompts": len(set(people.column("cluster"))),
        "counts": dict(zip(names[: 3 + people.four_classes], counts, strict=False)),
    }


def _parts(people: PersonVotes) -> list[tuple[str, str, np.ndarray]]:
    """Sources, dimensions and kinds, of sorts that have more than one."""
    found = []
    for part in PARTS:
        column_b = np.array(people.column(part))
        names = sorted(set(column_b.tolist()))
        if len(names) > 1:
            found += [(part, name, column_b == name) for name in names]
    return found


def _pair_rows(people: PersonVotes, verdicts: Sequence[Verdict]) -> str:
    """CSV: a row for each vote, what each model said and what it counts."""
    columns: dict[str, Sequence[Any]] = {
        "where": people.column("where"),
        **{name: people.column(name) for name in PARTS},
        "prompt": [row.asked or row.prompt_a for row in people.rows],
        "video_a": people.column("video_a"),
        "video_b": people.column("video_b"),
        "vote": [_NAMES[vote] for vote in people.vote_b.tolist()],
    }
    for verdict in verdicts:
        said = verdict.said_b
        columns[f"{verdict.name} {'vote' if verdict.is_votes else 'difference'}"] = (
            [_NAMES[vote] if vote >= 0 else "" for vote in said.tolist()]
            if verdict.is_votes
            else _cells(said)
        )
        for figure, credit_b in verdict.credits.items():
            columns[f"{verdict.name} {figure}"] = _cells(credit_b)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _cells(values_b: np.ndarray) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.10g}" for value in values_b.tolist()]


def _print(
    people: PersonVotes,
    verdicts: Sequence[Verdict],
    rows: Sequence[Row],
    compared: Sequence[tuple[str, Verdict, Verdict, Comparison]],
    console: Console,
) -> None:
    """Tables and what to know about them."""
    counts = _counts(people)
    said = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in counts["counts"].items()
    )
    head = f"{people.path}: {counts['pairs']:,} votes on {counts['prompts']:,} prompts ({said})"
    console.print(head, markup=False, soft_wrap=True)
    cluster = people.column("cluster")
    known = {name for row in rows for name in row.values}
    columns = {name: heading for name, heading in FIGURES.items() if name in known}
    print_figures("Agreement with people (%)", rows, [columns], console)
    ends = {
        f"{name}/{end}": f"{heading}\n{word}"
        for name, heading in columns.items()
        for end, word in (("low", "from"), ("high", "to"))
        if any(f"{name}/{end}" in row.values for row in rows)
    }
    print_figures("95 % intervals (bootstrap over prompts)", rows, [ends], console)
    parts = [
        Row(f"{verdict.name}: {part} {name}", *verdict.figures(cluster, at_b))
        for verdict in verdicts
        for part, name, at_b in _parts(people)
    ]
    if parts:
        print_figures("Parts (%)", parts, [columns], console)
    for verdict in verdicts:
        for line in verdict.notes():
            console.print(f"{verdict.name}: {line}", markup=False, soft_wrap=True)
    for line in map(_sentence, compared):
        console.print(escape(line), soft_wrap=True)
    console.print(
        "± is one standard error; pairs of one prompt count as dependent.", soft_wrap=True
    )


def _sentence(compared: tuple[str, Verdict, Verdict, Comparison]) -> str:
    figure, first, second, found = compared
    gap = found.difference
    name = FIGURES[figure].replace("\n", ", ")
    return (
        f"{first.name} minus {second.name}, {name}: {100 * gap.value:+.2f} ±{100 * gap.error:.2f} "
        f"(95 % {100 * gap.low:+.2f} to {100 * gap.high:+.2f}), p = {found.cluster_p:.3g}; only "
        f"the first right {found.only_first:,}, only the second {found.only_second:,}, "
        f"McNemar p = {found.mcnemar_p:.3g}"
    )
