"""MTransLLAMA against PyTorch: Q-Former, training step, generation, at equal weights.

    python -m benchmarks.bench_mtransllama_step --frames 4                (Q-Former and its step)
    python -m benchmarks.bench_mtransllama_step --llm small --parts generate
    python -m benchmarks.bench_mtransllama_step --dtype bfloat16 --llm 7b --batch 4 --frames 8
    python -m benchmarks.bench_mtransllama_step --tiny                    (what the tests run)

Parts: "forward" of the Q-Former over cached patches; "step": forward, backward and AdamW on what
the paper trains, by `training/step.py`, of the likelihood of an answer, or with `--llm none` of the
square distance of the visual tokens from fixed ones; "generate": prefill and 16 greedy tokens
behind fixed visual tokens. PyTorch's side is `peer_mtransllama.py`, eager and under torch.compile.
Before anything is timed, outputs and the first ten losses must agree. Each side lives in a process
of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import harness, mtransllama_case
from benchmarks.mtransllama_case import NEW_TOKENS, VOCAB, Case, qformer_module
from jaxvsa.core import memory, trees
from jaxvsa.core.config import build
from jaxvsa.core.flops import count_flops
from jaxvsa.core.mesh import MeshOptions, make_mesh
from jaxvsa.layers.decoder import Decoder
from jaxvsa.layers.generate import greedy
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import State, start
from jaxvsa.training.step import JittedStep, train_step

PARTS = ("forward", "step", "generate")
SIDES = ("ours", "compile", "eager")
LOSSES = 10


class Ours:
    """Our side of one part."""

    def __init__(self, case: Case) -> None:
        """Nothing is compiled yet."""
        self.case, self.system = case, case.system
        self.params = jax.tree.map(jnp.asarray, case.params())
        self.batch = {name: array[None] for name, array in case.batch.items()}
        options = build(OptimOptions, case.config["optim"], "config.optim")
        learn, _ = trees.split(self.params, self.system.trainable)
        self.tx, _ = make_optimizer(options, 10**6, self.system.parts, learn)
        self.abstract = jax.eval_shape(
            functools.partial(start, self.system, self.tx), self.params, jax.random.key(1)
        )
        self.state: State | None = None

    def forward(self) -> jax.Array:
        """Visual tokens."""
        batch = {name: jnp.asarray(array) for name, array in self.case.batch.items()}
        return self.tokens(self.params["qformer"], batch)

    @functools.cached_property
    def tokens(self) -> Callable[..., jax.Array]:
        """The Q-Former."""
        model = qformer_module(self.case.options)
        return jax.jit(functools.partial(mtransllama_case.tokens, model))

    @functools.cached_property
    def update(self) -> JittedStep:
        """The training step."""
        mesh = make_mesh(MeshOptions(1, 1, 1, "jit"), jax.devices()[:1])
        whole = NamedSharding(mesh, PartitionSpec())
        return JittedStep(self.system, self.tx, mesh, jax.tree.map(lambda _: whole, self.abstract))

    def step(self) -> Any:
        """One update; the loss before it."""
        if self.state is None:
            self.state = start(self.system, self.tx, self.params, jax.random.key(1))
            del self.params
        self.state, terms = self.update(self.state, {}, self.batch)
        return jax.block_until_ready((terms["loss"], self.state))[0].compute()

    def generate(self) -> jax.Array:
        """Greedy tokens behind fixed visual tokens and the prompt."""
        return self.writer(self.params["decoder"], self.visual, self.case.batch["prompt_bn"])

    @functools.cached_property
    def visual(self) -> jax.Array:
        """What generation is given."""
        return jnp.asarray(mtransllama_case.visual_tokens(self.case))

    @functools.cached_property
    def writer(self) -> Callable[..., jax.Array]:
        """Prefill and the tokens after it."""
        options = self.case.options
        fields = {k: getattr(options.decoder, k) for k in vars(options.decoder)}
        decoder = Decoder(vocab_size=self.case.vocab_size, precision=options.frozen, **fields)

        def write(params: Any, visual_bqd: jax.Array, prompt_bn: jax.Array) -> jax.Array:
            run = functools.partial(decoder.apply, {"params": params})

            def last(x_bzd: jax.Array, cache: Any) -> Any:
                out_bzd, cache = run(x_bzd, jnp.ones(x_bzd.shape[:2], bool), cache)
                return run(out_bzd[:, -1:], method=decoder.logits)[:, 0], cache

            def step(token_b: jax.Array, cache: Any) -> Any:
                return last(run(token_b[:, None], method=decoder.embed), cache)

            word_bnd = run(prompt_bn, method=decoder.embed)
            x_bzd = jnp.concatenate([visual_bqd, word_bnd], axis=1)
            room = x_bzd.shape[1] + NEW_TOKENS
            cache = run(len(prompt_bn), room, method=decoder.new_cache)
            first_bv, cache = last(x_bzd, cache)
            return greedy(step, first_bv, cache, num_tokens=NEW_TOKENS, eos_id=-1, pad_id=0)

        return jax.jit(write)

    def flops(self, part: str) -> int | None:
        """Operations of one run; None for generation, whose loop has no fixed length."""
        if part == "step":
            pure = functools.partial(train_step, self.system, self.tx)
            return count_flops(pure, self.abstract, {}, self.batch)
        if part == "forward":
            return count_flops(self.tokens, self.params["qformer"], self.case.batch)
        return None

    def learnable(self) -> int:
        """Values that learn."""
        return trees.num_values(self.abstract.learn)

    def peak_gib(self) -> float | None:
        """What JAX's allocator held at most on the device."""
        stats = jax.devices()[0].memory_stats() or {}
        return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def serve(args: argparse.Namespace) -> None:
    """One side of one part in this process, for `harness.Side`."""
    part, facts = args.parts[0], {}
    if args.serve == "ours":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # three sides, one device
        memory.keep_freed()  # as every door does
        memory.one_step_at_a_time()
        precision = "tensorfloat32" if args.tf32 else "highest"
        jax.config.update("jax_default_matmul_precision", precision)
        side: Any = Ours(Case(args))
        facts |= {"machine": harness.machine(), "gflop": (side.flops(part) or 0) / 1e9 or None,
                  "llm_visual_tokens": side.case.options.num_visual}  # fmt: skip
    else:
        import torch

        from benchmarks import peer_mtransllama

        if args.device != "cuda":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
        side = peer_mtransllama.Theirs(Case(args), args.device, args.serve == "compile")
        facts["torch"] = torch.__version__
    run = getattr(side, part)

    def once() -> Any:
        return jax.block_until_ready(run()) if args.serve == "ours" else run()

    seconds, found = [], []
    for _ in range(LOSSES if part == "step" else 2):
        begin = time.perf_counter()
        found.append(np.asarray(once()))
        seconds.append(time.perf_counter() - begin)
    np.save(Path(args.folder) / f"{args.serve}.npy", np.stack(found))
    facts |= {"compile_seconds": seconds[0] - seconds[-1], "learnable": side.learnable(),
              "resident_peak_gib": harness.peak_resident_gib(),
              "device_peak_gib": side.peak_gib()}  # fmt: skip
    if args.serve == "ours":
        facts["matmul_ceiling_gflop_per_second"] = harness.matmul_ceiling(args.dtype) / 1e9
    harness.serve(facts, once)


def agreement(part: str, dtype: str, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far the sides are from each other; ends the program if they do other work.

    In bfloat16 the choice of a token hangs on the last bit, so there tokens are only counted.
    """
    exact, record = dtype == "float32", {}
    if part == "step":
        record["losses"] = {name: array.tolist() for name, array in found.items()}
    for name in found.keys() - {"ours"}:
        ours, theirs = found["ours"].astype(np.float64), found[name].astype(np.float64)
        if part == "generate":
            gap, most = float(np.mean(ours != theirs)), 0.0 if exact else 1.0
        elif part == "forward":
            gap, most = float(np.abs(ours - theirs).max()), 1e-4 if exact else 0.2
        else:
            gap, most = float(np.abs(ours / theirs - 1).max()), 1e-3 if exact else 1e-2
        if not gap <= most:
            raise SystemExit(f"{part}: the sides differ by {gap}, at most {most} is allowed")
        record[f"difference_{name}"] = gap
    return record


def compare(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """All sides of one part, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        # The flags again, from their values: tests call `main` with a list of its own.
        base = ["--frames", args.frames, "--batch", args.batch,
                "--prompt", args.prompt, "--answer", args.answer, "--dtype", args.dtype,
                "--llm", args.llm, "--parts", part, "--folder", folder,
                "--lengths", *args.lengths]  # fmt: skip
        base += [f"--{name}" for name in ("tiny", "remat", "tf32") if getattr(args, name)]
        command = [sys.executable, "-m", "benchmarks.bench_mtransllama_step", *map(str, base)]
        sides: dict[str, harness.Side] = {}
        for name in args.sides:
            device = ["--device", "cpu"]
            if sides and sides["ours"].facts["machine"]["platform"] == "gpu":
                device = ["--device", "cuda"]
            sides[name] = harness.Side([*command, *device, "--serve", name])
        found = {name: np.load(Path(folder) / f"{name}.npy") for name in args.sides}
        record = agreement(part, args.dtype, found)
        turns = {name: side.turn for name, side in sides.items()}
        seconds = harness.alternate(turns, args.repeats, args.warm)
        for side in sides.values():
            side.close()
    facts = {name: side.facts for name, side in sides.items()}
    return {**record, **report(args, facts, seconds)}


def report(
    args: argparse.Namespace, facts: dict[str, Any], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """What is written of one part."""
    ours = facts["ours"]
    median = {name: statistics.median(found) for name, found in seconds.items()}
    record: dict[str, Any] = {"machine": ours["machine"], "torch": facts[args.sides[-1]]["torch"],
                              "llm_visual_tokens": ours["llm_visual_tokens"],
                              "gflop": ours["gflop"]}  # fmt: skip
    if ours["gflop"]:
        record["gflop_per_second"] = ours["gflop"] / median["ours"]
    record["matmul_ceiling_gflop_per_second"] = ours["matmul_ceiling_gflop_per_second"]
    for name in args.sides[1:]:
        pairs = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        record[f"ratio_{name}"] = statistics.median(pairs)
        record[f"ratio_{name}_range"] = [min(pairs), max(pairs)]
    keys = ("compile_seconds", "resident_peak_gib", "device_peak_gib", "learnable")
    record["sides"] = {
        name: {
            **harness.summary(found),
            "seconds_p90": float(np.percentile(found, 90)),
            "samples_per_second": args.batch / median[name],
            **{key: facts[name][key] for key in keys},
        }
        for name, found in seconds.items()
    }
    return record


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of all parts."""
    record: dict[str, Any] = {
        "benchmark": "mtransllama_step", "machine": None, "dtype": args.dtype, "tf32": args.tf32,
        "llm": args.llm, "batch": args.batch, "frames": args.frames, "words": args.lengths,
        "prompt": args.prompt, "answer": args.answer, "remat": args.remat,
        "llm_visual_tokens": 0, "parts": {},
    }  # fmt: skip
    for part in args.parts:
        found = compare(args, part)
        record["machine"] = found.pop("machine")
        record["parts"][part] = found
        record["llm_visual_tokens"] = found.pop("llm_visual_tokens")
    return record


def flags() -> argparse.ArgumentParser:
    """What can be set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that --llm allows")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="ours first")
    parser.add_argument("--llm", choices=sorted({*VOCAB} - {"tiny"}), default="none")
    parser.add_argument("--frames", type=int, default=4, help="of a clip")
    parser.add_argument("--batch", type=int, default=2, help="examples")
    parser.add_argument("--words", type=int, default=96, help="of the Q-Former, in the longest row")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        help="words of each row; default: --words once, then three quarters",
    )
    parser.add_argument("--prompt", type=int, default=64, help="tokens the LLM reads")
    parser.add_argument("--answer", type=int, default=8, help="tokens that are learned")
    parser.add_argument("--repeats", type=int, default=20, help="timings of each side")
    parser.add_argument("--warm", type=int, default=5, help="runs before that, in turns")
    parser.add_argument("--dtype", default="float32", help="of frozen weights and products")
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TF32, on a GPU")
    parser.add_argument("--remat", action="store_true", help="compute LLM layers again in backward")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    for name in ("serve", "folder", "device"):  # what the processes of the sides are told
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = flags()
    args = parser.parse_args(argv)
    if args.tiny:
        args.words, args.prompt = min(args.words, 24), min(args.prompt, 8)
    if args.lengths and len(args.lengths) != args.batch:
        parser.error(f"--lengths: {len(args.lengths)} rows, but --batch is {args.batch}")
    args.lengths = mtransllama_case.word_lengths(args)
    args.parts = args.parts or (PARTS if args.llm != "none" else PARTS[:2])
    if "generate" in args.parts and args.llm == "none":
        parser.error("--parts generate needs --llm")
    if args.sides[0] != "ours" or len(args.sides) < 2:
        parser.error("--sides: ours first, and at least one other")
    if args.serve:
        serve(args)
        return {}
    record = measure(args)
    platform = record["machine"]["platform"]
    name = f"mtransllama_step_{platform}_{args.dtype}_{args.llm}_t{args.frames}_b{args.batch}"
    harness.write(name, record, args.out)
    return record


if __name__ == "__main__":
    main()
