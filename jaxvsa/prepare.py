"""Door: `python -m jaxvsa.prepare csmv|table` writes the folder that training opens."""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.data.features import DTYPES
from jaxvsa.workflows.prepare import feature_source, prepare, read_source, tables

DOOR = "python -m jaxvsa.prepare"
CSMV = "--root CSMV/ --features CSMV/visual_feature/I3D --encoder i3d --out data/csmv-i3d"
TABLE = "--input rows.jsonl --labels mood,topic --features none --out data/own"


def main(argv: Sequence[str]) -> None:
    """Parses the command line, prepares, prints what was found."""
    args = vars(_parser().parse_args(argv))
    features = feature_source(args)
    prepared = prepare(read_source(args, features), args["out"], features, args["seed"])
    for table in tables(prepared):
        Console().print(table)
    print(f"prepared: train with --config.data.root={args['out']}")


def _parser() -> ArgumentParser:
    """One subcommand per source; an option that is not given is absent from the namespace."""
    parser = door_parser("prepare", "Validate data, write it for training.", f"{DOOR} csmv {CSMV}")
    sources = parser.add_subparsers(required=True, metavar="csmv|table")
    csmv = _add(sources, "csmv", "The CSMV release as published.", CSMV)
    csmv.add_argument("--root", required=True, help="folder of the annotation files")
    table = _add(sources, "table", "Own comments, as JSON lines or CSV.", TABLE)
    table.add_argument("--input", help="one .jsonl or .csv file; a column split is optional")
    for split in ("train", "dev", "test"):
        table.add_argument(f"--{split}", help=f"the {split} split as a file of its own")
    table.add_argument("--labels", required=True, help="label columns, separated by commas")
    return parser


def _add(sources: Any, name: str, summary: str, example: str) -> ArgumentParser:
    """A subcommand with the options that all sources share."""
    parser = sources.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {DOOR} {name} {example}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=SUPPRESS,
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, help="the folder to write; new or empty")
    add("--features", required=True, type=Path, dest="folder", help="folder of .npy files, or none")
    add(
        "--encoder", help="network of the features; i3d, r2plus1d, videomaev2 set what is published"
    )
    add("--suffix", help="end of the feature files' names (.npy)")
    add("--limit", type=_limit, metavar="ROWS", help="rows kept per video, or none")
    add("--missing", choices=("error", "drop"), help="on videos without a feature file (error)")
    add("--dtype", choices=tuple(DTYPES), help="type in which features are stored (float16)")
    add("--rows-per-second", type=float, dest="rows_per_s", metavar="ROWS", help="for the manifest")
    add("--window", type=int, metavar="FRAMES", help="frames per row, for the manifest")
    add("--stride", type=int, metavar="FRAMES", help="frames between rows, for the manifest")
    add("--seed", type=_seed, default=0, help="of the split by video (0)")
    add("--strict", action="store_true", default=False, help="a null label is an error")
    return parser


def _seed(text: str) -> int:
    """A seed of NumPy: no sign."""
    if not text.isdecimal():
        raise ArgumentTypeError("expected a whole number of at least 0")
    return int(text)


def _limit(text: str) -> int | None:
    """A positive number of rows; none for all of them."""
    if text != "none" and not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError("expected a positive number of rows, or none")
    return None if text == "none" else int(text)


if __name__ == "__main__":
    run_door(main)
