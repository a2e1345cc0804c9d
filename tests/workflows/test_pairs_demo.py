"""The demo of rewards as a user runs it: what it is there to show."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from workflows.small_runs import run_as_user

SCALES = ("mos", "levels")


@pytest.mark.slow
def test_demo_shows_that_scales_must_not_be_mixed(tmp_path: Path) -> None:
    """Pairs order videos within and across scales, raw scores do not; limits of CA3."""
    begin = time.monotonic()
    run_as_user("train", "--config=configs/clevereward.py", f"--run={tmp_path / 'run'}")
    assert time.monotonic() - begin < 480  # 140 s with two idle cores
    rows = {
        row["name"].split(" (")[0]: {
            name.removeprefix("test/source ").removesuffix("/without_ties"): value
            for name, value in row["values"].items()
            if name.startswith("test/source ") and name.endswith("/without_ties")
        }
        for row in json.loads((tmp_path / "run" / "table.json").read_text())
    }
    for name in ("clevereward", "demo_btt", "demo_no_negatives", "demo_sft_affine"):
        assert min(rows[name][source] for source in (*SCALES, "across")) > 0.95, name
    assert rows["demo_sft_raw"]["across"] < 0.30
    assert rows["demo_sft_zscore"]["across"] < 0.85
    assert rows["demo_no_scale"]["across"] < 0.88
    best = rows["the truth itself"]["aligned"]
    assert best - 0.03 < rows["clevereward"]["aligned"] <= best + 0.02
    assert rows["random"]["across"] == 0.5
