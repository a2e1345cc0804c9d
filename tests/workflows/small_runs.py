"""Six updates on the synthetic corpus, and what two such runs must have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.config import load_config
from jaxvsa.core.trees import named
from jaxvsa.workflows import fit as fitting

TINY = "configs/vccsa.py:tiny"


def flags(root: Path, *more: str) -> list[str]:
    return [
        f"--config.data.root={root}",
        "--config.data.shapes=1",  # one compilation
        "--config.train.eval_every=4",
        "--config.train.save_every=2",
        *more,
    ]


def fit(root: Path, run: Path, *more: str) -> list[Any]:
    return fitting.fit(load_config(TINY, flags(root, *more)), run, Console(quiet=True))


def arrays(run: Path, step: int = 6) -> dict[str, np.ndarray]:
    return named(Checkpoints(run / "checkpoints").restore_raw(step, None))


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time_s"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters, moments, metrics and results are equal, bit for bit."""
    assert rows(one) == rows(other)
    mine, theirs = arrays(one), arrays(other)
    assert mine.keys() == theirs.keys()
    for path in mine:
        np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert results[0] == results[1]


def run_as_user(door: str, *arguments: str, timeout_s: int = 900) -> None:
    """A door in a process of its own, which sees one device and optimises, unlike this one."""
    command = [sys.executable, "-m", f"jaxvsa.{door}", *arguments]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
