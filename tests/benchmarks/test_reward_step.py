"""The benchmark of CleveReward's training runs at its tiny size, and its record holds together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the sides are processes of their own


def run(tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "record.json"
    module = importlib.import_module("benchmarks.bench_reward_step")
    given = ("--tiny", "--batch", "64", "--updates", "2", "--repeats", "2")
    module.main([*given, "--out", str(out), *flags])
    return json.loads(out.read_text("utf-8"))


def check(record: dict[str, Any], settings: set[str], rivals: set[str]) -> None:
    assert set(record["settings"]) == settings
    for found in record["settings"].values():
        assert len(found["losses"]) == 10
        assert max(found["losses_apart"].values()) < 1e-5
        assert set(found["sides"]) == {"ours", *rivals}
        for rival in rivals:
            low, high = found[f"ratio_{rival}_range"]
            assert 0 < low <= found[f"ratio_{rival}"] <= high
        for side in found["sides"].values():
            assert side["pairs_per_second"] > 0 and side["resident_gib"] > 0
            assert 0 <= side["waits_for_data_seconds"] < side["seconds_max"]
    train = record["data"]["train_by_source_and_dimension"]
    assert sum(train.values()) == record["data"]["pairs_of_train"]
    assert {name: found["width"] for name, found in record["stored"].items()} == {
        "videos": 768, "questions": 384,
    }  # fmt: skip


@pytest.mark.torch
def test_both_sides_do_the_same_work(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    record = run(tmp_path, "--settings", "paper", "--sides", "ours", "eager")
    check(record, {"paper"}, {"eager"})
    found = record["settings"]["paper"]
    aligned = found["rows_aligned_per_batch"]
    for few, many in zip(found["anchors_per_batch"], aligned, strict=True):
        assert 0 < few <= many < 64
    assert all(0 < count < 64 for count in found["questions_per_batch"])
    assert found["gflop_per_update"]["questions"] <= found["gflop_per_update_of_peers"]["questions"]


@pytest.mark.slow
@pytest.mark.torch
def test_all_sides_of_both_settings(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    record = run(tmp_path)
    check(record, {"paper", "no_negatives"}, {"eager", "compile", "loader_0", "loader_2"})
    assert record["settings"]["no_negatives"]["gflop_per_update"]["contrastive"] == 0


def test_operations_by_hand() -> None:
    case = importlib.import_module("benchmarks.reward_case")
    found = case.gflop(2, 13, 7, {"videos": 3, "questions": 5}, 11)
    want = {
        "videos": 2 * 4 * 2 * 3 * 11, "questions": 2 * 2 * 13 * 5 * 11,
        "rewards": 3 * 2 * 4 * 11, "contrastive": 3 * 2 * 49 * 11,
    }  # fmt: skip
    assert found == {name: pytest.approx(value / 1e9) for name, value in want.items()}
