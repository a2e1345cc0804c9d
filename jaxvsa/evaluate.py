"""Door: `python -m jaxvsa.evaluate` measures a run on a split, or any model's outputs on votes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvsa.core import distributed, memory
from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS

NAME = "python -m jaxvsa.evaluate"
EXAMPLE = f"{NAME} --run runs/paper-1 --split test\n  {NAME} --scores scores.csv --votes votes.json"
MISSING, ZERO = ("error", "wrong", "drop"), ("half", "wrong")
_PROCESS = ("coordinator", "num_processes", "process_id")
_OF_RUN = ("data", "step", "protocol", *_PROCESS)
_OF_SCORES = ("votes", "dev_scores", "dev_votes", "zero", "missing")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates."""
    parser = door_parser("evaluate", "Measure a trained model, or any model's outputs.", EXAMPLE)
    _add_flags(parser)
    args = vars(parser.parse_args(argv))
    given = {name: value for name, value in args.items() if value is not None}
    if ("run" in given) == ("scores" in given):
        raise UserError("give either --run RUN, or --scores FILE with --votes FILE")
    own, wrong = ("--run", _OF_SCORES) if "run" in given else ("--scores", _OF_RUN)
    for name in wrong:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} does not go with {own}; see {NAME} --help")
    # Imported below, so that --help does not wait for JAX.
    if "run" in given:
        _evaluate_run(given)
    elif "votes" not in given:
        raise UserError("--scores needs --votes FILE, people's votes on the pairs")
    else:
        from rich.console import Console

        from jaxvsa.workflows.votes import score_votes

        score_votes(**given, console=Console(highlight=False))


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=SPLITS, help="what to measure on (test)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where files go (of a run: RUN/predictions)"
    )
    add = parser.add_argument_group("a trained model").add_argument
    add("--run", type=Path, help="run directory")
    add("--data", type=Path, metavar="ROOT", help="another prepared folder than the run's own")
    add("--step", metavar="best|newest|N", help="which checkpoint (best)")
    add("--protocol", help="another split protocol than the run's own: official or by_video")
    distributed.add_process_flags(parser)
    add = parser.add_argument_group("outputs of any model on pairs of videos").add_argument
    add(
        "--scores", type=Path, action="append", metavar="FILE",
        help="CSV or JSON lines: video, score (dimension, prompt), or a vote for each pair; "
        "again for another model, to compare",
    )  # fmt: skip
    formats = "people's votes: GenAI-Bench, pairs.jsonl, or VideoAlign's CSV"
    add("--votes", type=Path, metavar="FILE", help=formats)
    more = "one for each --scores: thresholds of ties come from here, not from the votes"
    add("--dev-scores", type=Path, action="append", metavar="FILE", help=more)
    add("--dev-votes", type=Path, metavar="FILE", help="people's votes for --dev-scores")
    rule = "what a tie counts on a decided pair (half for scores, wrong for votes)"
    add("--zero", choices=ZERO, help=rule)
    add("--missing", choices=MISSING, help="pairs without score or vote (error)")


def _evaluate_run(given: dict[str, Any]) -> None:
    from rich.console import Console

    from jaxvsa.workflows.evaluate import evaluate

    distributed.join(*(given.pop(name, None) for name in _PROCESS))
    memory.one_step_at_a_time()
    evaluate(**given, console=Console(highlight=False, quiet=not distributed.is_first()))


if __name__ == "__main__":
    run_door(main)
