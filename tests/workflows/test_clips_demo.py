"""The demo on synthetic clips: its files, and what it reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from workflows.small_runs import run_as_user

from jaxvsa.data.prepared import Prepared
from jaxvsa.data.sources import clips
from jaxvsa.workflows.clips_demo import FRAMES, ensure_base, ensure_clips
from jaxvsa.workflows.evaluate import find_root
from jaxvsa.workflows.report import read_rows


def test_data_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    assert ensure_clips(tmp_path / "run", "somewhere", 0) == Path("somewhere")
    assert ensure_base(tmp_path / "run", "base") == "base"
    assert ensure_base(tmp_path / "run", "") == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["demo", FRAMES])
def test_clips_are_made_once(tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SIZES", {"train": 8, "dev": 4, "test": 4})
    small = {"train": 8, "dev": 4, "test": 4}
    make = {"demo": clips.order_clips, FRAMES: clips.half_frames}[root]
    monkeypatch.setattr(clips, make.__name__, lambda seed: make(seed, small))
    found = ensure_clips(tmp_path, root, 3)
    assert found == tmp_path / "data" / "prepared"
    prepared = Prepared.open(found)
    assert prepared.protocols == {"demo": small}
    np.testing.assert_array_equal(prepared.features().values_nf, make(3, small).frames.values_nf)
    config = {"system": "mtransllama", "seed": 3, "data": {"root": root}}
    assert find_root(config, tmp_path) == found
    before = (found / "data.json").stat().st_mtime_ns
    assert ensure_clips(tmp_path, root, 3) == found
    assert (found / "data.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_order_is_learned_by_the_video_model_alone(tmp_path: Path) -> None:
    """The claim of the demo: above 95 %, and chance for what is blind to the order of frames."""
    run_as_user("train", "--config", "configs/mtransllama.py", "--run", str(tmp_path / "run"))
    full, blind, *_ = read_rows(tmp_path / "run" / "table.json")
    assert full.name.startswith("mtransllama") and blind.name == "demo_no_mqt"
    name = "test/way/accuracy"
    assert full.values[name] > 0.95
    assert abs(blind.values[name] - 0.5) <= 3 * blind.errors[name]
    assert full.values["test/way/written_accuracy"] > 0.95
    assert full.values["test/way/invalid_rate"] == 0
