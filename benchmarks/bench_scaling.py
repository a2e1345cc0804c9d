"""How a training step grows with the batch, the length of the text and the number of frames.

    python -m benchmarks.bench_scaling                     (MiniLM-size encoder)
    python -m benchmarks.bench_scaling --tiny

One curve for each; along a curve everything else stays the same, and all comments (videos) have the
same length, so that nothing is padded. Whether a curve is linear is told by its exponent: the slope
of time over size, both as logarithms, between its last two points.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks import harness
from benchmarks.bench_eval import MINILM
from benchmarks.bench_train_step import Ours, configure, plan_batches
from benchmarks.harness import VOCAB
from jaxvsa.core import memory

CURVES = {
    "batch": (8, 16, 32, 64, 128),
    "text_length": (8, 16, 32, 64, 128, 256),
    "frames": (15, 30, 60, 120, 171),
}
TINY = {"batch": (2, 4), "text_length": (4, 8), "frames": (2, 4)}


def measure(config: dict[str, Any], width: int, repeats: int, **sizes: int) -> dict[str, Any]:
    """Seconds and operations of a step at some sizes."""
    batch = sizes["batch"]
    corpus = harness.make_corpus(
        batch, batch, width, VOCAB, length=sizes["text_length"], frames=sizes["frames"]
    )
    ours = Ours(config, corpus, plan_batches(config, corpus, batch, 1))
    seconds = harness.alternate({"step": ours.run}, repeats, warm=2)["step"]
    return {**sizes, **harness.summary(seconds), "gflop": ours.flops() / 1e9}


def exponent(points: list[dict[str, Any]], axis: str, value: str) -> float:
    """Slope between the last two points, both axes as logarithms: 1 is linear."""
    before, last = points[-2:]
    return math.log(last[value] / before[value]) / math.log(last[axis] / before[axis])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny model: does it run at all?")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each point")
    parser.add_argument("--dtype", default="float32", help="compute type")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    memory.keep_freed()  # as every door does
    memory.one_step_at_a_time()
    config, corpus = configure(args.tiny, args.dtype, num_comments=64)
    curves = TINY if args.tiny else CURVES
    if not args.tiny:
        config["model"]["text"] |= MINILM
    base = {"batch": 2, "text_length": 4, "frames": 4} if args.tiny else {
        "batch": 16, "text_length": 16, "frames": 90
    }  # fmt: skip
    record: dict[str, Any] = {
        "benchmark": "scaling", "machine": harness.machine(), "dtype": args.dtype, "curves": {},
    }  # fmt: skip
    measured: dict[tuple[int, ...], dict[str, Any]] = {}  # the curves meet in one point
    for axis, values in curves.items():
        points = []
        for value in values:
            sizes = base | {axis: value}
            key = tuple(sizes.values())
            if key not in measured:
                measured[key] = measure(config, corpus.features.width, args.repeats, **sizes)
            points.append(measured[key])
        record["curves"][axis] = {
            "points": points,
            "exponent_of_seconds": exponent(points, axis, "seconds_median"),
            "exponent_of_flops": exponent(points, axis, "gflop"),
        }
    harness.write(f"scaling_{record['machine']['platform']}_{args.dtype}", record, args.out)
    return record


if __name__ == "__main__":
    main()
