"""Flags of `python -m jaxvsa.prepare`, source by source, and what each of them does."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.data.features import DTYPES
from jaxvsa.workflows.prepare import feature_source, prepare, read_source, tables
from jaxvsa.workflows.prepare_questions import (
    prepare_questions,
    question_table,
    read_asked,
    read_frames,
)

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


def add_comments(sources: Any, door: str) -> None:
    """Subcommands of comments under videos."""
    csmv = _comments(sources, "csmv", "The CSMV release as published.", f"{door} csmv {CSMV}")
    csmv.add_argument("--root", required=True, help="folder of the annotation files")
    summary = "Own comments, as JSON lines or CSV."
    table = _comments(sources, "table", summary, f"{door} table {TABLE}")
    table.add_argument("--input", help="one .jsonl or .csv file; a column split is optional")
    for split in ("train", "dev", "test"):
        table.add_argument(f"--{split}", help=f"the {split} split as a file of its own")
    table.add_argument("--labels", required=True, help="label columns, separated by commas")


def add_questions(sources: Any, door: str) -> None:
    """Subcommands of questions about clips."""
    for name, (summary, root) in QUESTIONS.items():
        example = f"{door} {name} --root {root} --frames frames/ --out data/{name}"
        asked = _add(sources, name, summary, example)
        asked.set_defaults(run=run_questions, source=name)
        asked.add_argument("--root", required=True, help="folder of the published annotations")
        if name == "clevrer_mc":
            asked.add_argument("--train", required=True, help="VideoChat2-IT rows (.json)")
        asked.add_argument("--out", required=True, type=Path, help="the folder to write; new")
        asked.add_argument(
            "--frames", required=True,
            help="folder of a .npy file for each clip, uint8 (frames, side, side, 3), or none; the "
            "file of a segment is VIDEO_START-END.npy, in seconds",
        )  # fmt: skip
        asked.add_argument("--seed", type=_seed, default=0, help="of splits that are drawn (0)")


def add_patches(sources: Any, door: str) -> None:
    """The subcommand that runs the frozen vision transformer."""
    summary = "Run the frozen vision transformer once on prepared frames (MTransLLAMA)."
    parser = _add(sources, "patches", summary, f"{door} patches {PATCHES}")
    parser.set_defaults(run=run_patches)
    add = parser.add_argument
    add("--data", required=True, help="folder prepared with --frames DIR")
    add("--weights", required=True, help="the image model: a Hugging Face folder, or a run")
    add("--out", required=True, type=Path, help="the folder to write; new")
    add("--num-frames", type=_count, default=8, help="model.num_frames of the training (8)")
    add("--param", default="bfloat16", choices=DTYPE_NAMES, help="model.frozen.param (bfloat16)")
    add("--compute", default="bfloat16", choices=DTYPE_NAMES, help="likewise (bfloat16)")


def run_comments(args: dict[str, Any], console: Console) -> int:
    """Validates and writes comments; the exit code."""
    features = feature_source(args)
    prepared = prepare(read_source(args, features), args["out"], features, args["seed"])
    for table in tables(prepared):
        console.print(table)
    return _done(args["out"])


def run_questions(args: dict[str, Any], console: Console) -> int:
    """Validates and writes questions; the exit code."""
    found = read_asked(args["source"], args)
    frames = None
    if args["frames"] != "none":
        asked = next(iter(found.sets.values())).questions
        frames = read_frames(args["frames"], sorted({one.clip for one in asked}))
    prepared = prepare_questions(
        found.sets, args["out"], found.task, found.names, frames, anonymous=found.anonymous
    )
    console.print(question_table(prepared))
    if found.dropped:
        console.print(f"left out: {found.dropped:,} train questions without options to read")
    return _done(args["out"])


def run_patches(args: dict[str, Any], console: Console) -> int:
    """Writes what the vision transformer makes of frames; the exit code."""
    from jaxvsa.core.precision import Precision  # with JAX, for which --help does not wait
    from jaxvsa.workflows.patches import make_patches

    precision = Precision(args["param"], args["compute"])
    make_patches(args["data"], args["weights"], args["out"], args["num_frames"], precision, console)
    return _done(args["out"])


def _done(out: Path) -> int:
    print(f"prepared: train with --config.data.root={out}")
    return 0


def _add(sources: Any, name: str, summary: str, example: str, **how: Any) -> ArgumentParser:
    """A subcommand."""
    return sources.add_parser(
        name, help=summary, description=summary, epilog=f"example:\n  {example}",
        formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False, **how,
    )  # fmt: skip


def _comments(sources: Any, name: str, summary: str, example: str) -> ArgumentParser:
    """A subcommand with the options of all comments; one that is not given is absent."""
    parser = _add(sources, name, summary, example, argument_default=SUPPRESS)
    parser.set_defaults(run=run_comments)
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


def _count(text: str) -> int:
    """A positive number."""
    if not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError("expected a positive number")
    return int(text)


def _limit(text: str) -> int | None:
    """A positive number of rows; none for all of them."""
    if text != "none" and not (text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError("expected a positive number of rows, or none")
    return None if text == "none" else int(text)
