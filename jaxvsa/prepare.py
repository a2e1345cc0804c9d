"""Door: `python -m jaxvsa.prepare SOURCE` writes the folder that training opens."""

from collections.abc import Sequence

from rich.console import Console

from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.workflows.prepare_flags import CSMV, add_comments, add_patches, add_questions
from jaxvsa.workflows.videocross import add_videocross

DOOR = "python -m jaxvsa.prepare"


def main(argv: Sequence[str]) -> int:
    """Parses the command line, prepares, prints what was found; the exit code."""
    parser = door_parser("prepare", "Validate data, write it for training.", f"{DOOR} csmv {CSMV}")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    for add in (add_comments, add_questions, add_patches, add_videocross):
        add(sources, DOOR)
    args = vars(parser.parse_args(argv))
    return args.pop("run")(args, Console())


if __name__ == "__main__":
    run_door(main)
