"""Attention over space and time apart, against both at once; visual tokens for a language model.

    python -m benchmarks.bench_mtransllama_attention
    python -m benchmarks.bench_mtransllama_attention --limit 5         (less time for a point)
    python -m benchmarks.bench_mtransllama_attention --tiny            (what the tests run)

The paper says s^2 + f^2 instead of (s f)^2 for s tokens in each of f frames. Counted are pairs
s f (s + f), and the projections are computed twice, so that few tokens and frames are slower apart:
operations break even where s f - s - f is twice the width. First table: one attention block, batch
of 1, forward: "joint" over all s f tokens, "divided" over space and then time by the same kernels,
"spatial" alone. Second table: what a language model of Vicuna-7B's shape pays for 32 visual tokens
whatever f, or for 32 f of them.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from jaxvsa.core import memory, trees
from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.flops import count_flops
from jaxvsa.core.precision import Precision
from jaxvsa.layers.bert_blocks import AttentionBlock
from jaxvsa.layers.decoder import Decoder, RopeScaling
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.tokens import Tokens

SPACE, FRAMES = (32, 64, 257), (1, 2, 4, 8, 16, 32, 64, 128)
VARIANTS = ("joint", "divided", "spatial")
LEAST = 3  # timings of a point, however long they take
PROMPT = 64  # tokens behind the visual ones


def block(width: int, heads: int, dtype: str) -> AttentionBlock:
    """The Q-Former's own, without low-rank changes."""
    precision = Precision(dtype, dtype)
    return AttentionBlock(
        heads, ("space", "time"), LoraOptions(0, 1.0, ()), "hadamard", 1e-12, precision
    )


def attend(model: AttentionBlock, variant: str, params: Any, x_fsd: jax.Array) -> jax.Array:
    """(f,s,d) -> (f,s,d)."""

    def run(x_nzd: jax.Array, use: str) -> jax.Array:
        keep_nz = jnp.ones(x_nzd.shape[:2], bool)
        every = Tokens(x_nzd)
        return model.apply({"params": params}, every, every, keep_nz, use).row_bqd

    if variant == "joint":
        return run(x_fsd.reshape(1, -1, x_fsd.shape[-1]), "space").reshape(x_fsd.shape)
    x_fsd = run(x_fsd, "space")
    if variant == "spatial":
        return x_fsd
    return jnp.swapaxes(run(jnp.swapaxes(x_fsd, 0, 1), "time"), 0, 1)


def expected_flops(variant: str, space: int, frames: int, width: int) -> int:
    """Two for each multiply-add: projections of N tokens, then scores and sums over pairs."""
    tokens = space * frames
    seen = {"joint": tokens, "divided": space + frames, "spatial": space}[variant]
    twice = 2 if variant == "divided" else 1
    return 8 * twice * tokens * width**2 + 4 * tokens * seen * width


def measure(
    args: argparse.Namespace, model: AttentionBlock, variant: str, space: int, frames: int
) -> dict[str, Any]:
    """One point: counted always, timed if it fits into memory."""
    shape = jax.ShapeDtypeStruct((frames, space, args.width), jnp.dtype(args.dtype))
    example = Tokens(jnp.zeros((1, 1, args.width), shape.dtype))
    keep = jnp.ones((1, 1), bool)
    params = model.init(jax.random.key(0), example, example, keep, "space")["params"]
    run = jax.jit(functools.partial(attend, model, variant))
    compiled = run.lower(params, shape).compile()
    needs = compiled.memory_analysis()
    record: dict[str, Any] = {
        "variant": variant, "s": space, "f": frames,
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
        "gflop_by_formula": expected_flops(variant, space, frames, args.width) / 1e9,
        "temp_bytes": needs.temp_size_in_bytes,
    }  # fmt: skip
    if needs.temp_size_in_bytes > args.memory * 2**30:
        return {**record, "skipped": f"needs more than {args.memory:.1f} GiB"}
    x_fsd = jax.random.normal(jax.random.key(1), shape.shape, shape.dtype)
    warm: list[float] = []
    seconds: list[float] = []
    while len(seconds) < args.repeats:
        begin = time.perf_counter()
        compiled(params, x_fsd).block_until_ready()
        cold = not warm or (len(warm) < args.warm and sum(warm) < args.limit / LEAST)
        (warm if cold else seconds).append(time.perf_counter() - begin)
        if len(seconds) >= LEAST and sum(seconds) > args.limit:
            break
    return {**record, **harness.summary(seconds)}


def slopes(points: list[dict[str, Any]], space: int, variant: str) -> dict[str, Any]:
    """Exponents of f: a line through the logarithms of the last half of the points."""
    own = [p for p in points if (p["s"], p["variant"]) == (space, variant)]
    found = {}
    for name in ("gflop", "temp_bytes", "seconds_median"):
        pairs = [(math.log(p["f"]), math.log(p[name])) for p in own if p.get(name)]
        pairs = pairs[-max(len(FRAMES) // 2, 2) :]
        line = np.polyfit(*np.array(pairs).T, 1) if len(pairs) > 1 else None
        slope = None if line is None else float(line[0])
        found[name] = {"slope": slope, "points": len(pairs)}
    return {"s": space, "variant": variant, **found}


def crossings(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divided over joint, where both were measured."""
    by = {(p["s"], p["f"], p["variant"]): p for p in points}
    found = []
    for (space, frames, variant), joint in by.items():
        apart = by.get((space, frames, "divided"))
        if variant != "joint" or apart is None:
            continue
        row = {"s": space, "f": frames, "flops": apart["gflop"] / joint["gflop"],
               "temp_bytes": apart["temp_bytes"] / max(joint["temp_bytes"], 1)}  # fmt: skip
        if "seconds_median" in joint and "seconds_median" in apart:
            row["seconds"] = apart["seconds_median"] / joint["seconds_median"]
        found.append(row)
    return found


def tokens_table(queries: int, frames: tuple[int, ...]) -> list[dict[str, Any]]:
    """Prefill and cache of the published language model, from shapes alone."""
    fields = to_plain(load_config("mtransllama:mustard", []))["model"]["decoder"]
    scaling = RopeScaling(**fields.pop("rope_scaling"))
    bfloat16 = Precision("bfloat16", "bfloat16")
    decoder = Decoder(vocab_size=32_001, rope_scaling=scaling, precision=bfloat16, **fields)
    words = jax.ShapeDtypeStruct((1, 1, decoder.width), jnp.bfloat16)
    keep = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    params = jax.eval_shape(decoder.init, jax.random.key(0), words, keep)["params"]

    def prefill(params: Any, x_bzd: jax.Array) -> Any:
        run = functools.partial(decoder.apply, {"params": params})
        cache = run(1, x_bzd.shape[1], method=decoder.new_cache)
        out_bzd, cache = run(x_bzd, jnp.ones(x_bzd.shape[:2], bool), cache)
        return run(out_bzd[:, -1:], method=decoder.logits), cache

    def cost(visual: int) -> dict[str, Any]:
        shape = (1, visual + PROMPT, decoder.width)
        x_bzd = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        _, cache = jax.eval_shape(prefill, params, x_bzd)
        kept = trees.num_bytes((cache.key_nbzhe, cache.value_nbzhe))
        return {"tokens": visual, "prefill_gflop": count_flops(prefill, params, x_bzd) / 1e9,
                "cache_mib": kept / 2**20}  # fmt: skip

    rows = []
    for f in frames:
        mean, every = cost(queries), cost(queries * f)
        rows.append({"f": f, "mean": mean, "concat": every,
                     "prefill_ratio": every["prefill_gflop"] / mean["prefill_gflop"],
                     "cache_mib_saved": every["cache_mib"] - mean["cache_mib"]})  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--space", nargs="+", type=int, default=SPACE, help="tokens of a frame")
    parser.add_argument("--frames", nargs="+", type=int, default=FRAMES)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=20, help="timings of each point")
    parser.add_argument("--warm", type=int, default=2, help="runs of each point before that")
    parser.add_argument(
        "--limit", type=float, default=8.0,
        help=f"seconds after which a point is not timed again; {LEAST} timings at least",
    )  # fmt: skip
    parser.add_argument("--memory", type=float, help="GiB of temporary arrays that a point may use")
    parser.add_argument("--dtype", default="float32", help="compute type")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    memory.one_step_at_a_time()
    if args.tiny:
        args.space, args.frames, args.width, args.heads = (3, 5), (1, 2, 4), 16, 2
    args.memory = args.memory or room_gib()
    model = block(args.width, args.heads, args.dtype)
    points = []
    for space in args.space:
        for frames in args.frames:
            for variant in VARIANTS:
                points.append(measure(args, model, variant, space, frames))
                print(points[-1], flush=True)
    record: dict[str, Any] = {
        "benchmark": "mtransllama_attention", "machine": harness.machine(), "dtype": args.dtype,
        "width": args.width, "heads": args.heads, "batch": 1, "repeats": args.repeats,
        "repeats_rule": f"a point stops after {args.limit} s, but not before {LEAST} timings; "
        "slow ones are run once before",
        "memory_limit_gib": args.memory, "points": points,
        "fitted_over_f": [slopes(points, s, v) for s in args.space for v in VARIANTS],
        "divided_over_joint": crossings(points),
        "fewest_timings": min((p["repeats"] for p in points if "repeats" in p), default=0),
        "median_of_gflop_over_formula": statistics.median(
            p["gflop"] / p["gflop_by_formula"] for p in points
        ),
        "llm_tokens": tokens_table(32, tuple(args.frames)),
    }  # fmt: skip
    harness.write(f"mtransllama_attention_{record['machine']['platform']}", record, args.out)
    return record


def room_gib() -> float:
    """Half of the memory that is free: the host's, or the device's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats["bytes_in_use"]) / 2**31
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**31


if __name__ == "__main__":
    main()
