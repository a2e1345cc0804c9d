"""Door: `python -m jaxvsa.train` trains, resumes and reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxvsa.core import distributed, memory
from jaxvsa.core.cli import door_parser, run_door, split_config_flags
from jaxvsa.core.config import load_config
from jaxvsa.core.errors import UserError

NAME = "python -m jaxvsa.train"
EXAMPLE = (
    f"{NAME} --config configs/vccsa.py:paper --config.data.root=data/csmv-i3d "
    "--config.weights.text=roberta-base/ --run runs/paper-1"
)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    rest, spec, overrides = split_config_flags(argv)
    parser = door_parser(
        "train", "Train a system, or resume its run; the same command again continues.", EXAMPLE
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="configuration, e.g. configs/vccsa.py:paper or vccsa; a key is changed with "
        "--config.section.key=value",
    )
    parser.add_argument("--run", type=Path, help="run directory (runs/<system>-<variant>)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print sizes, FLOPs and time per epoch, then stop"
    )
    distributed.add_process_flags(parser)
    args = parser.parse_args(rest)
    if spec is None:
        raise UserError(f"--config is missing; example: {EXAMPLE}")
    config = load_config(spec, overrides)
    name, _, variant = spec.partition(":")
    run = args.run or Path("runs") / f"{Path(name).stem}-{variant or 'demo'}"
    distributed.join(args.coordinator, args.num_processes, args.process_id)
    # Imported here, so that --help and a misspelt key do not wait for JAX.
    from jaxvsa.workflows.compare import first_fold, fit_all
    from jaxvsa.workflows.dry_run import dry_run

    memory.one_step_at_a_time()
    console = Console(highlight=False, quiet=not distributed.is_first())
    if args.dry_run:
        dry_run(first_fold(config), run, console)
    else:
        fit_all(spec, overrides, run, console)


if __name__ == "__main__":
    run_door(main)
