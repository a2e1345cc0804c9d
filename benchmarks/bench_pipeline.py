"""How fast batches are made, without a model: resident and streamed features, full CSMV shape.

python -m benchmarks.bench_pipeline
python -m benchmarks.bench_pipeline --tiny
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from jaxvsa.data.pipeline import batches, iterate
from jaxvsa.data.plan import BatchPlan


def measure(
    corpus: harness.Corpus, batch_size: int, resident: bool, num_batches: int, repeats: int
) -> dict[str, Any]:
    """Comments and feature bytes a second, through plan, packing and the reading thread."""
    examples = corpus.examples(180, 9, resident=resident)
    begin = time.perf_counter()
    plan = BatchPlan(examples.axes(), batch_size, num_steps=(repeats + 1) * num_batches)
    planned = time.perf_counter() - begin
    stream = iterate(batches(plan, examples, 1))
    seconds, filled, moved = [], 0, 0
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        for _ in range(num_batches):
            batch = next(stream)
            filled += int((batch["frame_gm"] >= 0).sum())
            moved += batch["frame_gm"].size
        seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds[1:]))
    found = {
        "batch": batch_size, "batches": num_batches, "plan_seconds": planned,
        **harness.summary(seconds[1:]),
        "comments_per_second": num_batches * batch_size / median,
    }  # fmt: skip
    if not resident:
        row = corpus.features.width * corpus.features.values_nf.itemsize
        rows = filled / (repeats + 1)
        found["feature_gb_per_second"] = rows * row / median / 1e9
        found["share_of_rows_that_are_padding"] = 1 - filled / moved
        source_nf = corpus.features.values_nf
        index_n = np.random.default_rng(0).permutation(len(source_nf) // 90)[:500] * 90
        begin = time.perf_counter()
        for first in index_n:
            source_nf[first : first + 90].copy()
        copied = len(index_n) * 90 * row
        found["random_copy_gb_per_second"] = copied / (time.perf_counter() - begin) / 1e9
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="few comments: does it run at all?")
    parser.add_argument("--batch", type=int, default=512, help="comments of a batch")
    parser.add_argument("--repeats", type=int, default=5, help="timings")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    sizes = (200, 20, 8) if args.tiny else (75_086, 8_190, 1024)
    corpus = harness.make_corpus(*sizes, 50_265)
    batch = min(args.batch, 32) if args.tiny else args.batch
    count = 3 if args.tiny else 60
    record = {
        "benchmark": "pipeline", "machine": harness.machine(),
        "comments": sizes[0], "videos": sizes[1], "feature_width": sizes[2],
        "feature_bytes": corpus.features.values_nf.nbytes,
        "resident": measure(corpus, batch, True, count, args.repeats),
        "streamed": measure(corpus, batch, False, max(count // 6, 2), args.repeats),
    }  # fmt: skip
    harness.write(f"pipeline_{jax.default_backend()}_{batch}", record, args.out)
    return record


if __name__ == "__main__":
    main()
