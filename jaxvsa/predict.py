"""Door: `python -m jaxvsa.predict` labels comments with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxvsa.core import distributed, memory
from jaxvsa.core.cli import door_parser, run_door

NAME = "python -m jaxvsa.predict"
EXAMPLE = f"{NAME} --run runs/paper-1 --input rows.jsonl --features I3D/ --out predictions.jsonl"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and predicts."""
    parser = door_parser(
        "predict", "Label the comments of a file with a trained model; nothing is trained.", EXAMPLE
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory")
    add(
        "--input",
        type=Path,
        required=True,
        dest="source",
        metavar="FILE",
        help=".jsonl or .csv with a column comment and, if the model sees video, video",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the .jsonl file to write")
    add("--features", type=Path, metavar="DIR", help="folder of the videos' .npy features")
    add("--suffix", default=".npy", help="end of the feature files' names (.npy)")
    add("--step", default="best", metavar="best|newest|N", help="which checkpoint (best)")
    args = parser.parse_args(argv)
    distributed.refuse_several(NAME)
    # Imported here, so that --help does not wait for JAX.
    from jaxvsa.workflows.predict import predict_file

    memory.one_step_at_a_time()
    count = predict_file(**vars(args))
    print(f"predicted {count:,} comments: {args.out}")


if __name__ == "__main__":
    run_door(main)
