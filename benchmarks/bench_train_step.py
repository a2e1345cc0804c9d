"""One training step of VC-CSA against PyTorch: the published setting, and equal text.

    python -m benchmarks.bench_train_step                  (CPU or GPU, whatever JAX finds)
    python -m benchmarks.bench_train_step --tiny           (seconds; what the tests run)

All sides have the same weights and see the same comments; dropout and AdamW are in, compilation is
apart. Each side lives in a process of its own, and they take turns: one works, the others wait.
First the losses of one batch are compared without dropout. Peaks of memory are taken in further
processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import harness, peer_step
from benchmarks.harness import VOCAB
from jaxvsa.core import memory
from jaxvsa.core.config import build, load_config, to_plain
from jaxvsa.core.flops import count_flops
from jaxvsa.core.mesh import MeshOptions, make_mesh
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.interop.vccsa import to_published
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.systems import module
from jaxvsa.systems.base import System, expand
from jaxvsa.training.optim import OptimOptions, make_optimizer
from jaxvsa.training.state import State, start
from jaxvsa.training.step import JittedStep, train_step

AXES = {"n": "ids_gn", "l": "word_bl", "m": "frame_gm", "t": "shot_bt"}


def plan_batches(
    config: dict[str, Any], corpus: harness.Corpus, batch_size: int, rounds: int
) -> list[dict[str, np.ndarray]]:
    """The first batches of a training run."""
    model = config["model"]
    examples = corpus.examples(
        model["visual_length"],
        tower_margin(model["num_scales"]),
        text_len=config["data"]["text_len"],
    )
    plan = BatchPlan(examples.axes(), batch_size, shapes=config["data"]["shapes"])
    dataset = batches(plan, examples, 1)
    return [dataset[step] for step in range(rounds)]


class Ours:
    """Our training step over some batches."""

    def __init__(
        self, config: dict[str, Any], corpus: harness.Corpus, found: list[dict[str, np.ndarray]]
    ) -> None:
        """Random parameters; nothing is compiled yet."""
        self.system, self.batches = build_system(config, corpus), found
        self.tables = {"video": jnp.asarray(corpus.features.values_nf)}
        init = functools.partial(self.system.init)  # as `first_state` does
        self.params = jax.jit(init)(jax.random.key(0), self.first(found[0]))
        self.tx, _ = make_optimizer(
            build(OptimOptions, config["optim"], "config.optim"), 10**6, self.system.parts,
            self.params,
        )  # fmt: skip
        self.abstract = jax.eval_shape(
            functools.partial(start, self.system, self.tx), self.params, jax.random.key(1)
        )
        mesh = make_mesh(MeshOptions(1, 1, 1, "jit"), jax.devices()[:1])
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = jax.tree.map(lambda _: whole, self.abstract)
        self.step = JittedStep(self.system, self.tx, mesh, shardings)
        self.state: State | None = None

    def first(self, batch: Any) -> dict[str, jax.Array]:
        """The only micro-batch, with its features."""
        return expand(self.system, self.tables, {k: jnp.asarray(v[0]) for k, v in batch.items()})

    def loss(self, batch: Any) -> float:
        """Total loss of a batch without dropout, before the first update."""
        terms = jax.jit(lambda p, b: self.system.loss(p, b, None))(self.params, self.first(batch))
        return terms["loss"].compute()

    def run(self) -> None:
        """One update for every batch; the first time, compiles them."""
        if self.state is None:
            self.state = start(self.system, self.tx, self.params, jax.random.key(1))
            del self.params
        for batch in self.batches:
            self.state, terms = self.step(self.state, self.tables, batch)
        jax.block_until_ready((self.state, terms))

    def flops(self) -> int:
        """Operations of one update for every batch."""
        pure = functools.partial(train_step, self.system, self.tx)
        return sum(count_flops(pure, self.abstract, self.tables, batch) for batch in self.batches)

    def peak_gib(self) -> float:
        """What the compiled step allocates at most: state, batch and temporary memory.

        Without the table of features, which the other side keeps outside of its allocator.
        """
        tables = sum(table.nbytes for table in self.tables.values())
        found = [program.memory_analysis() for program in self.step.programs.values()]
        most = max(m.argument_size_in_bytes + m.temp_size_in_bytes for m in found)
        return (most - tables) / 2**30


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


def serve(args: argparse.Namespace) -> None:
    """One side in this process, for `harness.Side`: facts, then a run for every line that comes."""
    config, corpus = configure(args.tiny, args.dtype)
    if args.serve == "ours":
        memory.keep_freed()  # as every door does
        memory.one_step_at_a_time()
    elif args.peer_keeps_freed:
        memory.keep_freed()
    found = plan_batches(config, corpus, args.batch, args.rounds)
    indices = [batch["index_b"][0] for batch in found]
    if args.serve == "ours":
        harness.serve(*our_side(args, Ours(config, corpus, found)))
        return
    # Text as long as ours, pads included, in multiples of 8.
    longest = [-(-int(corpus.tokens.length_b[i].max() + 1) // 8) * 8 for i in indices]
    fused = args.serve == "equal_text" and args.device == "cuda"
    side = peer_step.Theirs(config, corpus, load_safetensors(args.weights), args.device, fused)
    if args.serve == "equal_text":
        prepared = [side.batch(i, n) for i, n in zip(indices, longest, strict=True)]
        facts = {"loss": side.loss(prepared[0]), "lengths": longest}
    else:
        published_len = config["data"]["text_len"]
        prepared = [side.batch(indices[0][: args.published_batch], published_len)]
        check = side.batch(indices[0], published_len if args.tiny else longest[0])
        facts = {"loss": side.loss(check)}
    side.run(prepared)
    harness.serve(facts, lambda: side.run(prepared))


def our_side(args: argparse.Namespace, ours: Ours) -> tuple[dict[str, Any], Any]:
    """What `harness.serve` takes; the weights are written for the others."""
    save_safetensors(args.weights, to_published(jax.device_get(ours.params)))
    facts: dict[str, Any] = {"loss": ours.loss(ours.batches[0]), "machine": harness.machine()}
    begin = time.perf_counter()
    ours.run()
    facts["first_run_seconds"] = time.perf_counter() - begin
    begin = time.perf_counter()
    ours.run()
    facts["compile_seconds"] = facts.pop("first_run_seconds") - (time.perf_counter() - begin)
    return facts | {
        "ceiling": harness.matmul_ceiling(args.dtype),
        "flops": ours.flops(),
        "shapes": [
            {axis: batch[name].shape[-1] for axis, name in AXES.items()} for batch in ours.batches
        ],
        "shapes_compiled": len(ours.step.programs),
    }, ours.run


def compare(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Ours, the published setting and equal text, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        more = [*argv, "--weights", str(Path(folder) / "weights.safetensors")]
        sides = {}
        for name in ("ours", "equal_text", "published"):
            if sides:
                device = "cuda" if sides["ours"].facts["machine"]["platform"] == "gpu" else "cpu"
                more += ["--device", device]
            command = [sys.executable, "-m", "benchmarks.bench_train_step", *more]
            sides[name] = harness.Side([*command, "--serve", name])
        losses = {name: side.facts["loss"] for name, side in sides.items()}
        for name in ("equal_text", "published"):
            if abs(losses[name] / losses["ours"] - 1) > (1e-5 if args.dtype == "float32" else 1e-2):
                raise SystemExit(f"the sides do not compute the same loss: {losses}")
        seconds = harness.alternate({name: side.turn for name, side in sides.items()}, args.repeats)
        for side in sides.values():
            side.close()
    facts = sides["ours"].facts | {"lengths": sides["equal_text"].facts["lengths"]}
    return report(args, facts, seconds, losses)


def report(
    args: argparse.Namespace, facts: dict[str, Any], seconds: dict[str, list[float]],
    losses: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """The record that is written."""
    samples = {"ours": args.batch * args.rounds, "equal_text": args.batch * args.rounds,
               "published": args.published_batch}  # fmt: skip
    rate = {name: samples[name] / statistics.median(found) for name, found in seconds.items()}
    ceiling, achieved = facts["ceiling"], facts["flops"] / statistics.median(seconds["ours"])
    pairs = {
        name: [
            samples["ours"] / mine * theirs / samples[name]
            for mine, theirs in zip(seconds["ours"], seconds[name], strict=True)
        ]
        for name in ("published", "equal_text")
    }
    return {
        "benchmark": "train_step", "machine": facts["machine"], "dtype": args.dtype,
        "batch": args.batch, "published_batch": args.published_batch,
        "peer_keeps_freed": args.peer_keeps_freed, "shapes": facts["shapes"],
        "equal_text_lengths": facts["lengths"],
        "loss_without_dropout": losses, "compile_seconds": facts["compile_seconds"],
        "shapes_compiled": facts["shapes_compiled"],
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
        "gflop_per_step": facts["flops"] / args.rounds / 1e9,
        "gflop_per_second": achieved / 1e9,
        "matmul_ceiling_gflop_per_second": ceiling / 1e9,
        "model_flop_utilisation": achieved / ceiling,
    }  # fmt: skip


def peaks(args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of one side alone in this process, over updates of a few comments and their videos."""
    config, corpus = configure(args.tiny, args.dtype, num_comments=64)
    imported = harness.peak_resident_gib()
    if args.peaks == "ours":
        memory.keep_freed()  # as every door does; the other side needs less without
        memory.one_step_at_a_time()
        ours = Ours(config, corpus, plan_batches(config, corpus, args.batch, 3))
        ours.run()
        compiled_at = harness.peak_resident_gib()
        for _ in range(2):
            ours.run()
        return {"batch": args.batch, "allocator_peak_gib": ours.peak_gib(),
                "resident_peak_gib": harness.peak_resident_gib(),
                "resident_before_gib": imported,
                "resident_peak_first_updates_gib": compiled_at}  # fmt: skip
    side = peer_step.Theirs(config, corpus, None, args.device, False)
    batch = side.batch(np.arange(args.published_batch), config["data"]["text_len"])
    side.run([batch] * 3)
    resident = harness.peak_resident_gib()
    return {"batch": args.published_batch, "allocator_peak_gib": side.peak_gib(batch),
            "resident_peak_gib": resident, "resident_before_gib": imported}  # fmt: skip


def measure_memory(argv: list[str], device: str) -> dict[str, Any]:
    """`peaks` of both sides, and of ours at the published batch, each in a process of its own."""
    published = ["--peaks", "published", "--device", device]
    found = {
        "published": run_peaks([*argv, *published]),
        "ours": run_peaks([*argv, "--peaks", "ours"]),
    }
    same = str(found["published"]["batch"])
    found["ours_at_published_batch"] = run_peaks([*argv, "--peaks", "ours", "--batch", same])
    return found | {
        f"ratio_{what}{suffix}": found[f"ours{suffix}"][f"{what}_peak_gib"]
        / found["published"][f"{what}_peak_gib"]
        for what in ("allocator", "resident")
        for suffix in ("", "_at_published_batch")
    }


def run_peaks(flags: list[str]) -> dict[str, Any]:
    """The record of a process with such flags."""
    command = [sys.executable, "-m", "benchmarks.bench_train_step", *flags]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny model: does it run at all?")
    parser.add_argument("--batch", type=int, default=16, help="examples of our step")
    parser.add_argument("--published-batch", type=int, default=4, help="of the published setting")
    parser.add_argument("--rounds", type=int, default=8, help="different batches per timing")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each side")
    parser.add_argument("--dtype", default="float32", help="compute type of our side")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    parser.add_argument(
        "--peer-keeps-freed", action="store_true",
        help="on CPU, give PyTorch the allocator settings of core/memory.py as well",
    )  # fmt: skip
    parser.add_argument("--out", help="file to write instead of benchmarks/results/")
    # What the processes of the sides are told.
    for name in ("serve", "peaks", "weights", "device"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args)
        return {}
    if args.peaks:
        record = peaks(args)
        print(json.dumps(record))
        return record
    record = compare(args, argv)
    platform = record["machine"]["platform"]
    if not args.no_memory:
        record["memory"] = measure_memory(argv, "cuda" if platform == "gpu" else "cpu")
    harness.write(f"train_step_{platform}_{args.dtype}_{args.batch}", record, args.out)
    return record


if __name__ == "__main__":
    main()
