"""Door: `python -m jaxvsa.evaluate` measures a run on a split, beside rows that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxvsa.core import distributed, memory
from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.data.corpus import SPLITS

EXAMPLE = "python -m jaxvsa.evaluate --run runs/paper-1 --split test"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates."""
    parser = door_parser("evaluate", "Measure a trained model on a split.", EXAMPLE)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory")
    add("--split", choices=SPLITS, default="test", help="what to measure on (test)")
    add("--data", type=Path, metavar="ROOT", help="another prepared folder than the run's own")
    add("--step", default="best", metavar="best|newest|N", help="which checkpoint (best)")
    add("--protocol", help="another split protocol than the run's own: official or by_video")
    add("--out", type=Path, metavar="DIR", help="where predictions go (below RUN/predictions)")
    distributed.add_process_flags(parser)
    args = vars(parser.parse_args(argv))
    processes = [args.pop(name) for name in ("coordinator", "num_processes", "process_id")]
    distributed.join(*processes)
    # Imported here, so that --help does not wait for JAX.
    from rich.console import Console

    from jaxvsa.workflows.evaluate import evaluate

    memory.one_step_at_a_time()
    evaluate(**args, console=Console(highlight=False, quiet=not distributed.is_first()))


if __name__ == "__main__":
    run_door(main)
