"""`prepare videocross`: many scored data sets to one folder of pairs, and the search for leaks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.scored import RewardRows
from jaxvsa.data.scored_pairs import Settings
from jaxvsa.data.sources import genai_bench, scored_jsonl, t2vqa, videoalign, videofeedback
from jaxvsa.data.videocross import build
from jaxvsa.data.videocross_files import count_leaks, write_videocross
from jaxvsa.workflows.videocross_features import Given, add_features, feature_notes

SUMMARY = "Pairs of videos from scored data sets (CleveReward), or --check of such a folder."
EXAMPLE = (
    "--source t2vqa=T2VQA/database_standard_16.6_50.txt --source videofeedback=VF/train.jsonl "
    "--source genai=GenAI/votes.json --features clip/ --encoder clip-vit-l-14 "
    "--text-encoder all-MiniLM-L6-v2 --out data/videocross"
)
SOURCES = """sources (--source NAME=FILE, again for each file):
  t2vqa          T2VQA-DB, lines filename|prompt|mos
  videofeedback  VideoFeedback, JSON or JSON lines of its rows
  videoalign     VideoAlign's CSV of preferences, for training
  rewardbench    VideoGen-RewardBench, the same CSV, for test alone
  genai          GenAI-Bench votes, JSON or JSON lines, for test alone
  scored         own videos, a JSON line each: video_id, source, prompt, scores, score_range
  pairs          own pairs, a JSON line each: dimension, source, prompt_a, prompt_b, video_a,
                 video_b, answer (A, B or tie)

feature files below --features, without the extension of a video:
  t2vqa/FILE.npy, genai/MODEL/FILE.npy, videoalign/PATH.npy; of videofeedback ID.npy; of own
  videos FEATURE_KEY.npy, or VIDEO_ID.npy without one"""

# name -> reader of (file, what to do with unknown dimensions)
READERS: dict[str, Callable[[str, str], RewardRows]] = {
    "t2vqa": lambda path, unknown: t2vqa.read_release(path),
    "videofeedback": lambda path, unknown: videofeedback.read_release(path),
    "videoalign": lambda path, unknown: videoalign.read_release(path),
    "rewardbench": lambda path, unknown: videoalign.read_release(path, benchmark=True),
    "genai": lambda path, unknown: genai_bench.read_release(path),
    "scored": scored_jsonl.read_scored,
    "pairs": lambda path, unknown: scored_jsonl.read_pairs(path),
}


def add_videocross(sources: Any, door: str) -> None:
    """The subcommand of the door."""
    parser = sources.add_parser(
        "videocross", help=SUMMARY, description=SUMMARY, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{SOURCES}\n\nexample:\n  {door} videocross {EXAMPLE}",
    )  # fmt: skip
    parser.set_defaults(run=run_videocross)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the folder to write; new or empty")
    where.add_argument(
        "--check", type=Path, metavar="DIR", help="count leaks between splits; exit code 1 if any"
    )
    add("--source", action="append", dest="videocross", default=[], metavar="NAME=FILE",
        help="what to read, see below")  # fmt: skip
    known = Settings()
    add("--seed", type=_whole, default=known.seed, help="of splits, draws and order (0)")
    add("--budget", type=_whole, default=known.budget, help="most pairs, all splits (300000)")
    add("--cap", type=_whole, default=known.cap, metavar="PAIRS",
        help="cross-prompt pairs of a video in each dimension (8)")  # fmt: skip
    add("--mismatches", type=_whole, default=known.mismatches, metavar="PAIRS",
        help="pairs of a well aligned video against one of another prompt (1)")  # fmt: skip
    for flag, text in (
        ("--delta", "gap above which a pair is decided, in the source's units"),
        ("--tie-eps", "gap up to which a pair is a tie"),
        ("--rater-sd", "deviation of one rater; weights become the reliability of the label"),
    ):
        add(flag, action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--cross-source-mismatch", action="store_true", help="mismatches across sources, too")
    add("--unknown-dimensions", choices=("error", "drop"), default="error",
        help="on scores of unknown dimensions in own data (error)")  # fmt: skip
    add_features(parser)


def run_videocross(args: Mapping[str, Any], console: Console) -> int:
    """What the command line asks for; the exit code.

    Args:
        args: of `add_videocross`, by name.
        console: for tables.

    Raises:
        UserError: everything that the readers and `build` refuse; `--out` is in use.
    """
    if args["check"] is not None:
        others = {
            "videocross": "--source",
            "features": "--features",
            "text_encoder": "--text-encoder",
        }
        for name, flag in others.items():
            if args[name]:
                raise UserError(f"{flag} goes with --out; --check reads the folder alone")
        return check(args["check"], console)
    out = args["out"]
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):  # before minutes of work
        raise UserError(f"{out} already exists: choose another --out or delete it")
    features = Given.of(args)
    parts = read_sources(args["videocross"], args["unknown_dimensions"])
    parts, videos = features.of_videos(parts)
    encoder = features.open_encoder()
    given = {field.name: args[field.name] for field in dataclasses.fields(Settings)}
    for name in ("delta", "tie_eps", "rater_sd"):
        given[name] = _values(given[name], f"--{name.replace('_', '-')}")
    cross = build(parts, Settings(**given))
    cross, questions = features.of_questions(encoder, cross, console)
    write_videocross(out, cross, videos, questions)
    notes = feature_notes(cross, videos, questions)
    for table in card_tables(cross.card, out, notes):
        console.print(table)
    console.print(f"prepared: train with --config.data.root={out}", highlight=False, soft_wrap=True)
    return 0


def read_sources(sources: Sequence[str], unknown: str = "error") -> list[RewardRows]:
    """The rows of files given as NAME=FILE.

    Raises:
        UserError: none given, an unknown name, or what a reader refuses.
    """
    if not sources:
        raise UserError(f"--out needs --source NAME=FILE; names: {', '.join(READERS)}")
    parts = []
    for source in sources:
        name, equals, path = source.partition("=")
        if name not in READERS or not path:
            raise UserError(
                f"--source {source}: expected NAME=FILE{nearest(name, READERS) if equals else ''}; "
                f"names: {', '.join(READERS)}"
            )
        parts.append(READERS[name](path, unknown))
    return parts


def check(root: Path, console: Console) -> int:
    """Prints what the splits of a folder share; 1 if anything, else 0.

    Raises:
        UserError: no such folder, or not one of ours.
    """
    if not (root / "pairs.jsonl").is_file():
        raise UserError(f"{root} is no VideoCross: --check is a folder that --out wrote")
    leaks = count_leaks(root)
    table = Table(title=f"Shared by splits of {root}")
    table.add_column("kind")
    table.add_column("leaks", justify="right")
    for kind, count in leaks.items():
        table.add_row(kind, f"{count:,}")
    console.print(table)
    return int(any(leaks.values()))


def card_tables(
    card: Mapping[str, Any], root: Path, notes: Sequence[tuple[str, str]] = ()
) -> list[Table]:
    """What was made and what was left out, for the terminal; `notes` are more rows."""
    made = Table(title=f"Pairs in {root}")
    for name in ("source", "dimension", "kind"):
        made.add_column(name)
    for name in SPLITS:
        made.add_column(name, justify="right")
    cells: dict[tuple[str, ...], dict[str, int]] = {}
    for cell in card["counts"]:
        row = cells.setdefault((cell["source"], cell["dimension"], cell["kind"]), {})
        row[cell["split"]] = cell["pairs"]
    for names, counts in cells.items():
        made.add_row(*names, *(f"{counts.get(split, 0):,}" for split in SPLITS))
    total = [sum(cell["pairs"] for cell in card["counts"] if cell["split"] == s) for s in SPLITS]
    made.add_row("all", "", "", *(f"{count:,}" for count in total))
    found = Table(title="Found", show_header=False)
    found.add_column()
    found.add_column(justify="right")
    for name in ("videos", "prompts", "prompt_groups", "pairs"):
        found.add_row(name, f"{card[name]:,}")
    limit = 100 * card["a_share_limit"]
    found.add_row("answer A, of decided", f"{100 * card['a_share']:.2f} % (50 ± {limit:.2f})")
    found.add_row("ties", f"{100 * card['tie_share']:.2f} %")
    for reason, count in card["dropped"].items():
        found.add_row(f"left out: {reason}", f"{count:,}")
    for note in notes:
        found.add_row(*note)
    return [made, found]


def _values(given: Sequence[str], flag: str) -> dict[str, float]:
    """NAME=VALUE as numbers by name."""
    values = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            values[name] = float(value)
        except ValueError as error:
            raise UserError(f"{flag} {one}: expected NAME=VALUE, a number") from error
    return values


def _whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("expected a whole number of at least 0")
    return int(text)
