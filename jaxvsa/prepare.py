"""Door: `python -m jaxvsa.prepare SOURCE` writes the folder that training opens."""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.data.features import DTYPES
from jaxvsa.workflows.prepare import feature_source, prepare, read_source, tables
from jaxvsa.workflows.prepare_questions import (
    prepare_questions,
    question_table,
    read_asked,
    read_frames,
)
from jaxvsa.workflows.videocross import add_videocross, run_videocross

DOOR = "python -m jaxvsa.prepare"
CSMV = "--root CSMV/ --features CSMV/visual_feature/I3D --encoder i3d --out data/csmv-i3d"
PATCHES = "--data data/mustard --weights instructblip-vicuna-7b --out data/mustard-patches"
TABLE = "--input rows.jsonl --labels mood,topic --features none --out data/own"
DTYPE_NAMES = ("bfloat16", "float32")
QUESTIONS = {
    "mustard": ("MUStARD: sarcasm in dialogues (MTransLLAMA).", "MUStARD/data"),
    "ur_funny": ("UR-FUNNY v2: humour in talks (MTransLLAMA).", "UR-FUNNY/"),
    "clevrer_mc": ("CLEVRER with options, from MVBench (MTransLLAMA).", "MVBench/json"),
    "qaego4d": ("QaEgo4D: questions on egocentric videos (MTransLLAMA).", "QaEgo4D/"),
    "youcook2": ("YouCook2: what happened in a clip (MTransLLAMA).", "YouCook2/"),
}


def main(argv: Sequence[str]) -> int:
    """Parses the command line, prepares, prints what was found; the exit code."""
    args = vars(_parser().parse_args(argv))
    if "videocross" in args:
        return run_videocross(args, Console())
    if "patches" in args:
        from jaxvsa.core.precision import Precision  # with JAX, for which --help does not wait
        from jaxvsa.workflows.patches import make_patches

        precision = Precision(args["param"], args["compute"])
        count = args["num_frames"]
        make_patches(args["patches"], args["weights"], args["out"], count, precision, Console())
        print(f"prepared: train with --config.data.root={args['out']}")
        return 0
    if "source" in args:
        _questions(args)
        return 0
    features = feature_source(args)
    prepared = prepare(read_source(args, features), args["out"], features, args["seed"])
    for table in tables(prepared):
        Console().print(table)
    print(f"prepared: train with --config.data.root={args['out']}")
    return 0


def _parser() -> ArgumentParser:
    """One subcommand per source; an option that is not given is absent from the namespace."""
    parser = door_parser("prepare", "Validate data, write it for training.", f"{DOOR} csmv {CSMV}")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    csmv = _add(sources, "csmv", "The CSMV release as published.", CSMV)
    csmv.add_argument("--root", required=True, help="folder of the annotation files")
    table = _add(sources, "table", "Own comments, as JSON lines or CSV.", TABLE)
    table.add_argument("--input", help="one .jsonl or .csv file; a column split is optional")
    for split in ("train", "dev", "test"):
        table.add_argument(f"--{split}", help=f"the {split} split as a file of its own")
    table.add_argument("--labels", required=True, help="label columns, separated by commas")
    _add_patches(sources)
    add_videocross(sources, DOOR)
    for name, (summary, root) in QUESTIONS.items():
        asked = sources.add_parser(
            name, help=summary, description=summary, allow_abbrev=False,
            epilog=f"example:\n  {DOOR} {name} --root {root} --frames frames/ --out data/{name}",
            formatter_class=RawDescriptionHelpFormatter,
        )  # fmt: skip
        asked.set_defaults(source=name)
        asked.add_argument("--root", required=True, help="folder of the published annotations")
        if name == "clevrer_mc":
            asked.add_argument(
                "--train", required=True, help="VideoChat2-IT rows of CLEVRER (.json)"
            )
        asked.add_argument("--out", required=True, type=Path, help="the folder to write; new")
        asked.add_argument(
            "--frames", required=True,
            help="folder of a .npy file for each clip, uint8 (frames, side, side, 3), or none",
        )  # fmt: skip
        asked.add_argument("--seed", type=_seed, default=0, help="of splits that are drawn (0)")
    return parser


def _add_patches(sources: Any) -> None:
    """The cache of the frozen vision transformer."""
    summary = "Run the frozen vision transformer once on prepared frames (MTransLLAMA)."
    parser = sources.add_parser(
        "patches", help=summary, description=summary, allow_abbrev=False,
        epilog=f"example:\n  {DOOR} patches {PATCHES}", formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", required=True, dest="patches", help="folder prepared with --frames DIR")
    add("--weights", required=True, help="the image model: a Hugging Face folder, or a run")
    add("--out", required=True, type=Path, help="the folder to write; new")
    add("--num-frames", type=int, default=8, help="model.num_frames of the training (8)")
    add("--param", default="bfloat16", choices=DTYPE_NAMES, help="model.frozen.param (bfloat16)")
    add(
        "--compute", default="bfloat16", choices=DTYPE_NAMES, help="model.frozen.compute (bfloat16)"
    )


def _questions(args: dict[str, Any]) -> None:
    """Questions about clips."""
    found = read_asked(args["source"], args)
    frames = None
    if args["frames"] != "none":
        asked = next(iter(found.sets.values())).questions
        frames = read_frames(args["frames"], sorted({one.video for one in asked}))
    prepared = prepare_questions(
        found.sets, args["out"], found.task, found.names, frames, anonymous=found.anonymous
    )
    Console().print(question_table(prepared))
    print(f"prepared: train with --config.data.root={args['out']}")


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
