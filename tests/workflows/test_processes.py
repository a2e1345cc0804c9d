"""Two real processes on this machine train, save and evaluate what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workflows.small_runs import TINY, flags, rows

from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.files import read_jsonl
from jaxvsa.workflows.evaluate import evaluate

pytestmark = pytest.mark.slow

MORE = (
    "--config.train.log_every=1",
    "--config.train.steps=8",
    "--config.model.variant=video",  # a model that is traced in half the time
)

# Every update's examples go to a file; the process gets SIGTERM before one of them.
TRAIN = """
import json, os, signal, sys
from jaxvsa import train
from jaxvsa.core.cli import run_door
from jaxvsa.workflows import fit

seen, stop_at, *argv = sys.argv[1:]
make_step = fit.make_step

def make(*args):
    step, updates = make_step(*args), []

    def call(state, tables, batch):
        updates.append(batch["index_b"].tolist())
        with open(seen, "w") as file:
            json.dump(updates, file)
        if len(updates) == int(stop_at):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, tables, batch)

    return call

fit.make_step = make
run_door(train.main, argv)
"""


def start(devices: int, *argv: str, together: tuple[int, int, int] | None = None) -> Any:
    """A process with this many devices, alone or as (port, number, count) of several."""
    if together is not None:
        port, number, count = together
        coordinator = ("--coordinator", f"localhost:{port}")
        argv = (*argv, *coordinator, "--num-processes", str(count), "--process-id", str(number))
    name = "--xla_force_host_platform_device_count"
    xla = os.environ["XLA_FLAGS"].replace(f"{name}=4", f"{name}={devices}")
    env = {**os.environ, "XLA_FLAGS": xla, "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return subprocess.Popen(
        [sys.executable, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes: Any) -> list[str]:
    """What each printed; all must end well."""
    found = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, found, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in found]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def train(root: Path, run: Path, number: int, stop_at: int = 0) -> tuple[str, ...]:
    """Arguments of a training process."""
    config = ("--config", TINY, *flags(root, *MORE), "--run", str(run))
    return ("-c", TRAIN, str(run.parent / f"{run.name}-{number}"), str(stop_at), *config)


def examples(run: Path, number: int) -> np.ndarray:
    """Examples (updates, rows) that a process was given."""
    return np.array(json.loads((run.parent / f"{run.name}-{number}").read_text()))[:, 0]


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """An uninterrupted run of one process; one that two processes began and one finished."""
    folder = tmp_path_factory.mktemp("runs")
    whole, shared = folder / "whole", folder / "shared"
    finish(start(4, *train(root, whole, 0)))
    port = free_port()
    pair = [
        start(2, *train(root, shared, n, stop_at=3 if n else 0), together=(port, n, 2))
        for n in range(2)
    ]
    first, second = finish(*pair)
    assert "stopped by SIGTERM at step" in first and "updates of 8 comments" in first
    assert "vccsa" not in second and "step" not in second  # of several processes one speaks
    step = Checkpoints(shared / "checkpoints").newest()
    assert step is not None and 3 <= step < 8
    assert not (shared / "results.json").exists()
    (resumed,) = finish(start(1, *train(root, shared, 2)))
    assert f"resuming {shared} at step {step} of 8" in resumed
    return whole, shared, step


def test_processes_take_their_slices_and_one_resumes_with_the_same_batches(
    runs: tuple[Path, Path, int],
) -> None:
    whole, shared, step = runs
    want = examples(whole, 0)
    assert want.shape == (8, 8)
    halves = [examples(shared, number) for number in range(2)]
    assert halves[0].shape == halves[1].shape == (step, 4)
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), want[:step])
    np.testing.assert_array_equal(examples(shared, 2), want[step:])


def test_losses_of_processes_are_those_of_one(runs: tuple[Path, Path, int]) -> None:
    whole, shared, _ = runs
    mine, theirs = rows(shared), rows(whole)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)


def test_one_process_writes_files_and_all_restore(runs: tuple[Path, Path, int]) -> None:
    whole, shared, _ = runs
    starts = json.loads((shared / "env.json").read_text())
    assert [record["processes"] for record in starts] == [2, 1]
    names = [{path.name for path in run.iterdir()} for run in (whole, shared)]
    assert names[0] == names[1]


def test_evaluation_of_uneven_shards_counts_every_example_once(
    runs: tuple[Path, Path, int], tmp_path: Path
) -> None:
    """Four devices of one process, and six of two processes, see every comment once."""
    run = runs[0]
    (alone, *_) = evaluate(run, split="dev", out=tmp_path / "one")
    port = free_port()
    argv = ("-m", "jaxvsa.evaluate", "--run", str(run), "--split", "dev", "--out")
    pair = [start(3, *argv, str(tmp_path / "two"), together=(port, n, 2)) for n in range(2)]
    first, second = finish(*pair)
    assert "opinion" in first and "opinion" not in second
    one, two = (read_jsonl(tmp_path / name / "dev.jsonl") for name in ("one", "two"))
    keys = [row["key"] for row in one]
    assert len(keys) == len(set(keys)) and len(keys) % 4 and len(keys) % 6
    assert [row["key"] for row in two] == keys
    for path in sorted((tmp_path / "one").glob("*-confusion.csv")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    for row, other in zip(one, two, strict=True):
        for task in ("opinion", "emotion"):
            np.testing.assert_allclose(
                list(row[task]["probabilities"].values()),
                list(other[task]["probabilities"].values()),
                rtol=1e-5,
                atol=1e-5,
            )
    assert 0 <= alone.values["dev/opinion/accuracy"] <= 1
