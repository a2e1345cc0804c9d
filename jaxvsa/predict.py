"""Door: `python -m jaxvsa.predict` labels comments, answers questions, or rewards videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxvsa.core import distributed, memory
from jaxvsa.core.cli import door_parser, run_door
from jaxvsa.core.errors import UserError

NAME = "python -m jaxvsa.predict"
EXAMPLE = f"{NAME} --run runs/paper-1 --input rows.jsonl --features I3D/ --out predictions.jsonl"


def main(argv: Sequence[str]) -> None:
    """Parses the command line and predicts."""
    parser = door_parser(
        "predict",
        "Label comments, answer questions or judge videos with a trained model.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory")
    add(
        "--input",
        type=Path,
        dest="source",
        metavar="FILE",
        help=".jsonl or .csv with a column comment (or question) and, if the model sees video, "
        "video; for rewards video (or video_a and video_b) and question (or dimension and prompt)",
    )
    add("--out", type=Path, metavar="FILE", help="the .jsonl file to write")
    add("--question", metavar="TEXT", help="one question, whose answer is printed")
    add("--video-features", type=Path, metavar="FILE", help="the .npy file of its clip")
    add("--features", type=Path, metavar="DIR", help="folder of the videos' .npy features")
    add("--suffix", default=".npy", help="end of the feature files' names (.npy)")
    add(
        "--text-encoder",
        type=Path,
        metavar="DIR",
        help="encoder of the questions of a reward model",
    )
    add("--step", default="best", metavar="best|newest|N", help="which checkpoint (best)")
    args = parser.parse_args(argv)
    distributed.refuse_several(NAME)
    one = args.question is not None
    if one == (args.source is not None) or (args.source is None) != (args.out is None):
        raise UserError(
            f"give --input FILE with --out FILE, or --question TEXT; example: {EXAMPLE}"
        )
    if args.text_encoder and one:
        raise UserError("--text-encoder belongs to --input of a reward model; leave it out")
    if args.video_features and not one:
        raise UserError("--video-features belongs to --question; rows of a file need --features")
    # Imported here, so that --help does not wait for JAX.
    from jaxvsa.workflows.predict import predict_file, predict_one

    memory.one_step_at_a_time()
    if one:
        print(predict_one(args.run, args.question, args.video_features, args.step))
        return
    count = predict_file(
        args.run, args.source, args.out, args.features, args.suffix, args.step, args.text_encoder
    )
    print(f"predicted {count:,} rows: {args.out}")


if __name__ == "__main__":
    run_door(main)
