"""Training of CleveReward with its data against PyTorch: pairs per second.

    python -m benchmarks.bench_reward_step                  (CPU or GPU, whatever JAX finds)
    python -m benchmarks.bench_reward_step --tiny           (what the tests run)

Data is synthetic (`reward_case.py`). Our side is what `fit` builds of a configuration: the stream
of batches, their way to the device, the update. PyTorch's side is `peer_reward.py`: whole batches
indexed in memory, eager and under torch.compile, and a loader of single pairs. Both draw their
batches while they are timed. Before that they take ten updates from the same weights on the same
batches, and their losses must agree. Each side lives in a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness, reward_case
from jaxvsa.core import memory, trees
from jaxvsa.core import mesh as meshes
from jaxvsa.data.pipeline import iterate
from jaxvsa.data.scored import ALIGNED_NUMBERS
from jaxvsa.training.step import make_step
from jaxvsa.workflows.setup import first_state, prepare_run

SIDES = ("ours", "eager", "compile", "loader_0", "loader_2")
LOSSES = 10


class Ours:
    """A run as `fit` starts it, stopped before its first update."""

    def __init__(self, setting: str, data: Path, run: Path, batch_size: int) -> None:
        """Reads the data and places the first state; nothing is compiled yet."""
        config = reward_case.configure(setting, data, batch_size)
        self.setup = prepare_run(config, run)
        system, mesh = self.setup.system, self.setup.mesh
        shardings = meshes.shardings(
            self.setup.abstract, system.partition, mesh, params=self.setup.abstract.params()
        )
        self.state = first_state(self.setup, shardings)
        self.tables = meshes.put_whole(self.setup.data.tables(system), mesh)
        kind = self.setup.mesh_options.step
        self.step = make_step(system, self.setup.tx, mesh, kind, shardings)
        self.stream = iterate(self.setup.stream)
        self.waited = 0.0

    def params(self) -> dict[str, np.ndarray]:
        """By path."""
        return {path: np.asarray(leaf) for path, leaf in trees.named(self.state.params()).items()}

    def first(self) -> tuple[list[float], list[dict[str, np.ndarray]], list[float]]:
        """Losses of the first updates, their batches, and seconds each."""
        losses, batches, seconds = [], [], []
        for _ in range(LOSSES):
            batch = next(self.stream)
            begin = time.perf_counter()
            self.state, terms = self.step(self.state, self.tables, batch)
            losses.append(terms["loss"].compute())
            seconds.append(time.perf_counter() - begin)
            batches.append({name: array[0] for name, array in batch.items()})
        return losses, batches, seconds

    def run(self, updates: int) -> None:
        """Updates; the terms of one are read after the next is dispatched, as the loop does."""
        pending, self.waited = None, 0.0
        for _ in range(updates):
            begin = time.perf_counter()
            batch = next(self.stream)
            self.waited += time.perf_counter() - begin
            self.state, terms = self.step(self.state, self.tables, batch)
            jax.device_get(pending)
            pending = terms
        jax.device_get(pending)
        jax.block_until_ready(self.state)

    def for_peers(self) -> dict[str, Any]:
        """What PyTorch's side must know of the configuration."""
        config = self.setup.data.config
        contrasts = config["loss"]["negatives"] == "inbatch"
        return {
            "contrastive": config["loss"]["contrastive"] if contrasts else 0.0,
            "optim": config["optim"],
            "batch_size": config["train"]["batch_size"],
            "num_steps": self.setup.num_steps,
            "power": config["data"]["sampling"],
            "aligned": ALIGNED_NUMBERS,
        }


def serve(args: argparse.Namespace) -> None:
    """One side in this process, for `harness.Side`."""
    folder = Path(args.folder)
    if args.serve == "ours":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several sides, one device
        memory.keep_freed()  # as every door does
        memory.one_step_at_a_time()
        jax.config.update("jax_default_matmul_precision", "highest")
        side, facts = our_side(args, folder)
    else:
        if args.peer_keeps_freed:
            memory.keep_freed()
        side, facts = their_side(args, folder)
    side.run(args.updates)

    def turn() -> None:
        begin = time.perf_counter()
        side.run(args.updates)
        seen = {
            "seconds": time.perf_counter() - begin,
            "waited_seconds": side.waited,
            "resident_gib": resident_gib(),
        }
        with (folder / f"{args.serve}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")

    harness.serve(facts, turn)


def our_side(args: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Ours, ready, and what it reports; files for the others."""
    side = Ours(args.settings[0], Path(args.data), folder / "run", args.batch)
    data: Any = side.setup.data
    params: dict[str, Any] = side.params()
    np.savez(folder / "params.npz", **params)
    if not (folder.parent / "texts.npy").exists():
        reward_case.Arrays.of(data).save(folder.parent)
    (folder / "setting.json").write_text(json.dumps(side.for_peers()), encoding="utf-8")
    losses, batches, seconds = side.first()
    np.save(folder / "indices.npy", np.stack([batch["index_b"] for batch in batches]))
    facts = {
        "machine": harness.machine(),
        "losses": losses,
        "compile_seconds": seconds[0] - statistics.median(seconds[1:]),
        "updates_of_the_run": side.setup.num_steps,
        "data": reward_case.shares(data),
        "stored": {noun: found["manifest"] for noun, found in data.cross.stored.items()},
        "questions_per_batch": counts(batches, "question_gk"),
        "anchors_per_batch": counts(batches, "anchor_gm"),
        "rows_aligned_per_batch": [
            int(np.isin(batch["dimension_b"], ALIGNED_NUMBERS).sum()) for batch in batches
        ],
        "sizes": side.setup.plan[0].sizes,
        "matmul_ceiling_gflop_per_second": harness.matmul_ceiling("float32") / 1e9,
    }
    return side, facts


def counts(batches: list[dict[str, np.ndarray]], field: str) -> list[int]:
    """How many entries of each batch are real."""
    return [int(np.sum(batch.get(field, np.full(1, -1)) >= 0)) for batch in batches]


def their_side(args: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    """PyTorch's side, ready, and what it reports."""
    import torch

    from benchmarks import peer_reward

    if args.device != "cuda":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    arrays = reward_case.Arrays.load(folder.parent)
    setting = json.loads((folder / "setting.json").read_text("utf-8"))
    with np.load(folder / "params.npz") as found:
        params = dict(found)
    side = peer_reward.Theirs(arrays, params, setting, args.serve, args.device)
    losses = side.losses(np.load(folder / "indices.npy"))
    return side, {"losses": losses, "torch": torch.__version__}


def resident_gib() -> float:
    """Resident memory of this process and its children now."""
    pages = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if os.getpid() in (int(path.parent.name), int(fields[1])):
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def compare(args: argparse.Namespace, setting: str, folder: Path) -> dict[str, Any]:
    """All sides of one setting, in turns."""
    folder.mkdir()
    base = ["--settings", setting, "--batch", args.batch, "--updates", args.updates]
    base += ["--folder", folder, "--data", args.data]
    base += ["--peer-keeps-freed"] if args.peer_keeps_freed else []
    command = [sys.executable, "-m", "benchmarks.bench_reward_step", *map(str, base)]
    sides: dict[str, harness.Side] = {}
    for name in args.sides:
        on_gpu = sides and sides["ours"].facts["machine"]["platform"] == "gpu"
        device = "cuda" if on_gpu else "cpu"
        sides[name] = harness.Side([*command, "--device", device, "--serve", name])
    losses = {name: np.array(side.facts["losses"]) for name, side in sides.items()}
    apart = {
        name: float(np.abs(found / losses["ours"] - 1).max()) for name, found in losses.items()
    }
    if not max(apart.values()) <= 1e-3:
        raise SystemExit(f"{setting}: the sides do not compute the same losses: {apart}, {losses}")
    turns = {name: side.turn for name, side in sides.items()}
    seconds = harness.alternate(turns, args.repeats, args.warm)
    for side in sides.values():
        side.close()
    lines = {
        name: (folder / f"{name}.jsonl").read_text("utf-8").splitlines()[args.warm :]
        for name in sides
    }
    seen = {name: [json.loads(line) for line in found] for name, found in lines.items()}
    facts = {name: side.facts for name, side in sides.items()}
    return {"losses_apart": apart, **report(args, facts, seconds, seen)}


def report(
    args: argparse.Namespace,
    facts: dict[str, dict[str, Any]],
    seconds: dict[str, list[float]],
    seen: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    """What is written of one setting."""
    ours, pairs = facts["ours"], args.batch * args.updates
    sizes, anchors = ours["sizes"], round(statistics.mean(ours["anchors_per_batch"]))
    count = functools.partial(reward_case.gflop, args.batch, widths=reward_case.WIDTHS)
    products = count(sizes["k"], sizes.get("m", 0))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    rate = sum(products.values()) * args.updates / median["ours"]
    record: dict[str, Any] = {
        **{key: value for key, value in ours.items() if key != "losses"},
        "torch": facts[args.sides[-1]].get("torch"),
        "losses": ours["losses"],
        "gflop_per_update": products,
        "gflop_per_update_of_peers": count(args.batch, anchors),
        "gflop_per_second": rate,
        "share_of_ceiling": rate / ours["matmul_ceiling_gflop_per_second"],
    }
    for name in args.sides[1:]:
        found = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        record[f"ratio_{name}"] = statistics.median(found)
        record[f"ratio_{name}_range"] = [min(found), max(found)]
    record["sides"] = {
        name: {
            **harness.summary([s / args.updates for s in found]),
            "pairs_per_second": pairs / median[name],
            "waits_for_data_seconds": statistics.median(
                turn["waited_seconds"] / args.updates for turn in seen[name]
            ),
            "resident_gib": max(turn["resident_gib"] for turn in seen[name]),
        }
        for name, found in seconds.items()
    }
    return record


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of all settings."""
    record: dict[str, Any] = {
        "benchmark": "reward_step", "machine": None, "dtype": "float32", "batch": args.batch,
        "updates_per_turn": args.updates, "peer_keeps_freed": args.peer_keeps_freed,
        "data": None, "stored": None, "settings": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args.data = args.data or str(Path(folder, "videocross"))
        if not Path(args.data).exists():
            reward_case.write_data(Path(args.data), args.tiny)
        for setting in args.settings:
            one = argparse.Namespace(**{**vars(args), "settings": [setting]})
            found = compare(one, setting, Path(folder, setting))
            for key in ("machine", "data", "stored"):
                record[key] = found.pop(key)
            record["settings"][setting] = found
    return record


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tiny", action="store_true", help="little data: does it run at all?")
    add("--settings", nargs="+", choices=reward_case.SETTINGS, default=list(reward_case.SETTINGS))
    add("--sides", nargs="+", choices=SIDES, default=SIDES, help="ours first")
    add("--batch", type=int, default=4096, help="pairs of an update")
    add("--updates", type=int, default=20, help="of a turn")
    add("--repeats", type=int, default=10, help="turns of each side that are timed")
    add("--warm", type=int, default=1, help="turns before that")
    add("--data", default="", help="folder with the data of an earlier run, or a new one to keep")
    add("--peer-keeps-freed", action="store_true",
        help="on CPU, give PyTorch the allocator settings of core/memory.py as well")  # fmt: skip
    add("--out", help="file to write instead of benchmarks/results/")
    for name in ("serve", "folder", "device"):  # what the processes of the sides are told
        add(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args)
        return {}
    if args.sides[0] != "ours":
        parser.error("--sides: ours first")
    record = measure(args)
    names = ["reward_step", record["machine"]["platform"], str(args.batch), *args.settings]
    names += ["peer_keeps_freed"] if args.peer_keeps_freed else []
    harness.write("_".join(names), record, args.out)
    return record


if __name__ == "__main__":
    main()
