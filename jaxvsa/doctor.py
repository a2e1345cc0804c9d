"""Door: `python -m jaxvsa.doctor` says what keeps a run from working, and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxvsa.core.cli import door_parser, run_door, split_config_flags
from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.errors import UserError

EXAMPLE = (
    "python -m jaxvsa.doctor --config vccsa:paper --data data/csmv-i3d --weights roberta-base/"
)


def main(argv: Sequence[str]) -> int:
    """Parses the command line and examines; 1 if there is a problem."""
    rest, spec, overrides = split_config_flags(argv)
    parser = door_parser("doctor", "Say what keeps a run from working, and the cure.", EXAMPLE)
    add = parser.add_argument
    add("--run", type=Path, help="a run directory: checkpoints, data, disk and memory")
    add("--data", type=Path, metavar="ROOT", help="a folder written by jaxvsa.prepare")
    add("--weights", type=Path, metavar="DIR", help="a Hugging Face folder of a text encoder")
    add("--config", metavar="FILE[:VARIANT]", help="a run to start: does it fit this machine?")
    args = parser.parse_args(rest)
    if overrides and spec is None:
        raise UserError(f"{overrides[0]} needs --config; example: {EXAMPLE}")
    loaded = None
    if spec is not None:
        named = {"data.root": args.data, "weights.text": args.weights}
        given = [f"--config.{key}={path}" for key, path in named.items() if path is not None]
        loaded = load_config(spec, [*overrides, *given])
    # Imported here, so that --help and a misspelt key do not wait for JAX.
    from jaxvsa.workflows.compare import first_fold
    from jaxvsa.workflows.doctor import examine

    config = None if loaded is None else to_plain(first_fold(loaded))
    problems = 0
    for finding in examine(args.run, args.data, args.weights, config):
        problems += not finding.ok
        verdict = "ok" if finding.ok else "problem"
        print(f"{verdict:8} {finding.name}: {' '.join(finding.text.split())}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    run_door(main)
