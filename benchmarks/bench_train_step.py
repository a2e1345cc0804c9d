"""One training step of VC-CSA against PyTorch: the published setting, and equal text.

    python -m benchmarks.bench_train_step                  (CPU or GPU, whatever JAX finds)
    python -m benchmarks.bench_train_step --tiny           (seconds; what the tests run)

All sides have the same weights and see the same comments; dropout and AdamW are in, compilation is
apart, the sides take turns. First the losses of one batch are compared without dropout. Peaks of
memory are taken in processes of their own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # idle threads must not slow the other side

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, peer_step
from benchmarks.harness import VOCAB
from jaxvsa.core import compiler, memory
from jaxvsa.core.config import build, load_config, to_plain
from jaxvsa.core.flops import count_flops
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.interop.vccsa import to_published
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.systems import module
from jaxvsa.systems.base import System, expand
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import State, start
from jaxvsa.training.step import train_step


class Ours:
    """Our training step over planned batches of a corpus."""

    def __init__(
        self, config: dict[str, Any], corpus: harness.Corpus, batch_size: int, rounds: int
    ) -> None:
        """Compiles the step for every shape of the first `rounds` batches."""
        model = config["model"]
        self.system = build_system(config, corpus)
        examples = corpus.examples(
            model["visual_length"],
            tower_margin(model["num_scales"]),
            text_len=config["data"]["text_len"],
        )
        self.plan = BatchPlan(examples.axes(), batch_size, shapes=config["data"]["shapes"])
        self.batches = [batches(self.plan, examples, 1)[step] for step in range(rounds)]
        self.tables = {"video": jnp.asarray(corpus.features.values_nf)}
        self.params = jax.jit(self.system.init)(jax.random.key(0), self.first(self.batches[0]))
        self.tx, _ = make_optimizer(
            build(OptimOptions, config["optim"], "config.optim"), 10**6, self.system.parts,
            self.params,
        )  # fmt: skip
        self.state: State | None = None
        step = functools.partial(train_step, self.system, self.tx)
        self.step = jax.jit(step, donate_argnums=0, compiler_options=compiler.step_options())
        state = jax.eval_shape(
            functools.partial(start, self.system, self.tx), self.params, jax.random.key(1)
        )
        begin = time.perf_counter()
        self.compiled, self.flops = {}, {}
        for batch in self.batches:
            key = shape_of(batch)
            if key not in self.compiled:
                self.compiled[key] = self.step.lower(state, self.tables, batch).compile()
                self.flops[key] = count_flops(step, state, self.tables, batch)
        self.compile_seconds = time.perf_counter() - begin
        memory.give_back()  # as `make_step` does

    def first(self, batch: Any) -> dict[str, jax.Array]:
        """The only micro-batch, with its features."""
        return expand(self.system, self.tables, {k: jnp.asarray(v[0]) for k, v in batch.items()})

    def loss(self, batch: Any) -> float:
        """Total loss of a batch without dropout."""
        terms = jax.jit(lambda p, b: self.system.loss(p, b, None))(self.params, self.first(batch))
        return terms["loss"].compute()

    def run(self) -> None:
        """One update for every batch."""
        if self.state is None:
            self.state = start(self.system, self.tx, self.params, jax.random.key(1))
            del self.params
        for batch in self.batches:
            compiled = self.compiled[shape_of(batch)]
            if jax.default_backend() == "cpu":  # as `make_step` does
                jax.block_until_ready(self.state.step)
            self.state, terms = compiled(self.state, self.tables, batch)
        jax.block_until_ready((self.state, terms))

    def peak_gib(self) -> float:
        """What the compiled step allocates at most: state, batch and temporary memory.

        Without the table of features, which the other side keeps outside of its allocator.
        """
        tables = sum(table.nbytes for table in self.tables.values())
        found = []
        for compiled in self.compiled.values():
            memory = compiled.memory_analysis()
            found.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes - tables)
        return max(found) / 2**30


def shape_of(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """What decides which compiled step fits."""
    return tuple(leaf.shape for leaf in batch.values())


def build_system(config: dict[str, Any], corpus: harness.Corpus) -> System:
    """The system of a configuration, on the labels of the corpus."""
    vccsa = module("vccsa")
    names = {task: tuple(str(c) for c in range(n)) for task, n in (("opinion", 3), ("emotion", 8))}
    counts = {task: (1,) * len(found) for task, found in names.items()}
    facts = vccsa.Facts(names, counts, VOCAB, 1, corpus.features.width, "float16")
    return vccsa.build(config, facts)


def configure(
    tiny: bool, dtype: str, num_comments: int = 20_000
) -> tuple[dict[str, Any], harness.Corpus]:
    """The published size, or a tiny one, and a corpus that fits it."""
    config = to_plain(load_config("vccsa:" + ("tiny" if tiny else "paper"), []))
    config["model"]["precision"]["compute"] = dtype
    if tiny:
        config["loss"] = to_plain(load_config("vccsa:paper", []))["loss"]
        return config, harness.make_corpus(64, 9, 5, VOCAB, longest=20)
    return config, harness.make_corpus(num_comments, 1 + num_comments // 9, 1024, VOCAB)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Ours, the published setting and equal text, in turns."""
    config, corpus = configure(args.tiny, args.dtype)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    ours = Ours(config, corpus, args.batch, args.rounds)
    published_len = config["data"]["text_len"]
    state = to_published(jax.device_get(ours.params))
    padded = peer_step.Theirs(config, corpus, state, device, False)
    fused = peer_step.Theirs(config, corpus, state, device, True) if device == "cuda" else padded
    indices = [batch["index_b"][0] for batch in ours.batches]
    # Text as long as ours, pads included, in multiples of 8.
    longest = [-(-int(corpus.tokens.length_b[i].max() + 1) // 8) * 8 for i in indices]
    equal = [fused.batch(i, n) for i, n in zip(indices, longest, strict=True)]
    reference = [padded.batch(indices[0][: args.published_batch], published_len)]
    losses = {"ours": ours.loss(ours.batches[0]), "peer": padded.loss(equal[0])}
    check = padded.batch(indices[0], published_len) if args.tiny else equal[0]
    losses["peer_padded"] = padded.loss(check)
    for name in ("peer", "peer_padded"):
        if abs(losses[name] - losses["ours"]) > 1e-4 * (1 if args.dtype == "float32" else 100):
            raise SystemExit(f"the sides do not compute the same loss: {losses}")
    seconds = harness.alternate(
        {
            "ours": ours.run,
            "equal_text": lambda: fused.run(equal),
            "published": lambda: padded.run(reference),
        },
        args.repeats,
    )
    return report(args, ours, seconds, losses, longest)


def report(
    args: argparse.Namespace, ours: Ours, seconds: dict[str, list[float]],
    losses: dict[str, float], longest: list[int],
) -> dict[str, Any]:  # fmt: skip
    """The record that is written."""
    samples = {"ours": args.batch * args.rounds, "equal_text": args.batch * args.rounds,
               "published": args.published_batch}  # fmt: skip
    rate = {name: samples[name] / statistics.median(found) for name, found in seconds.items()}
    flops = sum(ours.flops[shape_of(batch)] for batch in ours.batches)
    ceiling = harness.matmul_ceiling(args.dtype)
    achieved = flops / statistics.median(seconds["ours"])
    pairs = {
        name: [
            samples["ours"] / mine * theirs / samples[name]
            for mine, theirs in zip(seconds["ours"], seconds[name], strict=True)
        ]
        for name in ("published", "equal_text")
    }
    return {
        "benchmark": "train_step", "machine": harness.machine(), "dtype": args.dtype,
        "batch": args.batch, "published_batch": args.published_batch,
        "shapes": [list(ours.plan[s].sizes.values()) for s in range(args.rounds)],
        "equal_text_lengths": longest, "loss_without_dropout": losses,
        "compile_seconds": ours.compile_seconds, "shapes_compiled": len(ours.compiled),
        "seconds_per_step": {
            "ours": harness.summary([s / args.rounds for s in seconds["ours"]]),
            "equal_text": harness.summary([s / args.rounds for s in seconds["equal_text"]]),
            "published": harness.summary(seconds["published"]),
        },
        "samples_per_second": rate,
        "ratio_published": statistics.median(pairs["published"]),
        "ratio_published_range": [min(pairs["published"]), max(pairs["published"])],
        "ratio_equal_text": statistics.median(pairs["equal_text"]),
        "ratio_equal_text_range": [min(pairs["equal_text"]), max(pairs["equal_text"])],
        "gflop_per_step": flops / args.rounds / 1e9,
        "gflop_per_second": achieved / 1e9,
        "matmul_ceiling_gflop_per_second": ceiling / 1e9,
        "model_flop_utilisation": achieved / ceiling,
    }  # fmt: skip


def peaks(args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of one side alone in this process, over updates of a few comments and their videos."""
    config, corpus = configure(args.tiny, args.dtype, num_comments=64)
    imported = harness.peak_resident_gib()
    if args.side == "ours":
        ours = Ours(config, corpus, args.batch, 3)
        allocated = ours.peak_gib()
        compiled_at = harness.peak_resident_gib()
        for _ in range(3):
            ours.run()
        return {"batch": args.batch, "allocator_peak_gib": allocated,
                "resident_peak_gib": harness.peak_resident_gib(),
                "resident_before_gib": imported,
                "resident_peak_while_compiling_gib": compiled_at}  # fmt: skip
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    side = peer_step.Theirs(config, corpus, None, device, False)
    batch = side.batch(np.arange(args.published_batch), config["data"]["text_len"])
    side.run([batch] * 3)
    resident = harness.peak_resident_gib()
    return {"batch": args.published_batch, "allocator_peak_gib": side.peak_gib(batch),
            "resident_peak_gib": resident, "resident_before_gib": imported}  # fmt: skip


def measure_memory(argv: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """`peaks` of both sides, and of ours at the published batch, each in a process of its own."""
    cases = {
        "published": ["--side", "published"],
        "ours": ["--side", "ours"],
        "ours_at_published_batch": ["--side", "ours", "--batch", str(args.published_batch)],
    }
    found = {}
    for name, extra in cases.items():
        command = [sys.executable, "-m", "benchmarks.bench_train_step", *argv, *extra]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(result.stdout.splitlines()[-1])
    return found | {
        f"ratio_{what}{suffix}": found[f"ours{suffix}"][f"{what}_peak_gib"]
        / found["published"][f"{what}_peak_gib"]
        for what in ("allocator", "resident")
        for suffix in ("", "_at_published_batch")
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny model: does it run at all?")
    parser.add_argument("--batch", type=int, default=16, help="examples of our step")
    parser.add_argument("--published-batch", type=int, default=4, help="of the published setting")
    parser.add_argument("--rounds", type=int, default=8, help="different batches per timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each side")
    parser.add_argument("--dtype", default="float32", help="compute type of our side")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    parser.add_argument("--side", default="", help="only the peaks of memory of: ours, published")
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    args = parser.parse_args(argv)
    if args.side != "published":
        memory.keep_freed()  # as every door does; in the comparison the other side gains as well
    if args.side:
        record = peaks(args)
        print(json.dumps(record))
        return record
    record = compare(args)
    if not args.no_memory:
        passed = [a for a in (argv if argv is not None else sys.argv[1:]) if a != "--no-memory"]
        record["memory"] = measure_memory(passed, args)
    platform = jax.default_backend()
    harness.write(f"train_step_{platform}_{args.dtype}_{args.batch}", record, args.out)
    return record


if __name__ == "__main__":
    main()
