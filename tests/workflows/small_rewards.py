"""A small set of synthetic rewards and runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core.config import load_config
from jaxvsa.workflows import fit as fitting
from jaxvsa.workflows.rewards_demo import Sizes, write_rewards

SPEC = "configs/clevereward.py"
SIZES = Sizes(graded=(40, 16, 16), across=(0, 12, 12), prompts=(12, 4, 4), votes=2)


def write(out: Path) -> Path:
    write_rewards(out, 0, SIZES)
    return out


def flags(root: Path, *more: str) -> list[str]:
    """Six short updates; `more` without "--config."."""
    given = [
        f"data.root={root}", "train.steps=6", "train.eval_every=4", "train.save_every=2",
        "train.log_every=1", "train.batch_size=16", "train.eval_batch_size=32", "mesh.data=1",
        "model.width=8", "model.hidden=8", *more,
    ]  # fmt: skip
    return [f"--config.{override}" for override in given]


def config(variant: str, root: Path, *more: str) -> ConfigDict:
    return load_config(f"{SPEC}:{variant}", flags(root, *more))


def fit(variant: str, root: Path, run: Path, *more: str) -> list[Any]:
    return fitting.fit(config(variant, root, *more), run, Console(quiet=True))
