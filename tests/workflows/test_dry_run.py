"""What a run would cost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console
from workflows import small_questions as small

from jaxvsa import train
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.workflows.dry_run import dry_run


def test_dry_run_counts_what_the_run_then_stores(
    tiny: Any, trained_run: Path, tmp_path: Path
) -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    found = dry_run(tiny(), tmp_path / "run", console)
    stored = Checkpoints(trained_run / "checkpoints").restore_raw(4, ("learn", "opt"))
    sizes = {
        part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in stored.items()
    }
    assert found["parameters that learn"] == sizes["learn"]
    assert found["frozen parameters"] == 0
    state_bytes = found["state, MiB per device"] * 2**20
    assert abs(state_bytes - 4 * (sizes["learn"] + sizes["opt"])) < 64
    assert found["GFLOP per step (most frequent shape)"] > 0
    assert found["seconds per step (median of 3)"] > 0
    assert "parameters that learn" in console.export_text()
    assert not (tmp_path / "run").exists()


def test_dry_run_of_folds_is_that_of_the_first(
    text_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", f"{small.SPEC}:mustard_text", "--run", str(tmp_path / "run"), "--dry-run"]
    more = ("data.protocol=own", "data.vocab_size=300", "train.batch_size=8")
    train.main([*given, *small.flags(text_root, *more)])
    assert "parameters that learn" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
