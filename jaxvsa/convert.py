"""Door: `python -m jaxvsa.convert` brings weights in and out under their published names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvsa.core.cli import door_parser, run_door, split_config_flags
from jaxvsa.core.config import load_config
from jaxvsa.core.errors import UserError

NAME = "python -m jaxvsa.convert"
TO = "--run runs/paper-1 --out vccsa.safetensors"
FROM = (
    "--input vccsa.pkl --config vccsa:paper --config.weights.text=roberta-base/ "
    "--data data/csmv-i3d --out runs/published"
)
ADAPTERS = "--run runs/mustard --out adapters/"
TEXT = "--input roberta-base/ --out text.safetensors"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and converts."""
    rest, spec, overrides = split_config_flags(argv)
    args = _parser().parse_args(rest)
    if (spec is None) == (args.task == "from-published") or (overrides and spec is None):
        raise UserError(
            f"--config belongs to from-published, which needs it: {NAME} from-published {FROM}"
        )
    config = None if spec is None else load_config(spec, overrides)
    # Imported here, so that --help and a misspelt key do not wait for JAX.
    from jaxvsa.workflows import export

    if args.task == "to-published":
        count = export.to_published(args.run, args.out, args.step)
        print(f"wrote {count:,} tensors: {args.out}")
    elif args.task == "adapters":
        for folder in export.to_adapters(args.run, args.out, args.step):
            print(f"wrote an adapter: {folder}")
    elif args.task == "text":
        count = export.text_to_published(args.input, args.out)
        print(f"wrote {count:,} tensors: {args.out}")
    else:
        assert config is not None
        count = export.from_published(args.input, config, args.data, args.out)
        print(f"read {count:,} parameters; next: python -m jaxvsa.evaluate --run {args.out}")


def _parser() -> argparse.ArgumentParser:
    """One subcommand per direction."""
    parser = door_parser("convert", "Convert weights.", f"{NAME} to-published {TO}")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    add = _add(tasks, "to-published", "A run as safetensors with the published names.", TO)
    add("--run", type=Path, required=True, help="run directory")
    add("--step", default="best", metavar="best|newest|N", help="which checkpoint (best)")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add = _add(tasks, "from-published", "A published state dict as a run at step 0.", FROM)
    add("--input", type=Path, required=True, help="state dict: .safetensors, .pt, .pth, .pkl, .bin")
    add("--config", metavar="FILE[:VARIANT]", help="its configuration; weights.text = tokenizer")
    add(
        "--data", type=Path, required=True, metavar="ROOT", help="prepared folder: labels, features"
    )
    add("--out", type=Path, required=True, metavar="RUN", help="the run directory to make")
    add = _add(tasks, "adapters", "The low-rank changes of a run as adapters of PEFT.", ADAPTERS)
    add("--run", type=Path, required=True, help="run directory of MTransLLAMA")
    add("--step", default="best", metavar="best|newest|N", help="which checkpoint (best)")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add = _add(tasks, "text", "A Hugging Face RoBERTa or BERT with the published names.", TEXT)
    add("--input", type=Path, required=True, metavar="DIR", help="Hugging Face folder")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    return parser


def _add(tasks: Any, name: str, summary: str, example: str) -> Any:
    """A subcommand; returns its `add_argument`."""
    return tasks.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {NAME} {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    ).add_argument


if __name__ == "__main__":
    run_door(main)
