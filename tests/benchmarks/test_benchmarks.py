"""The benchmarks run at their tiny size, and what they write holds what is quoted from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def run(name: str, tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "record.json"
    module = importlib.import_module(f"benchmarks.{name}")
    module.main(["--tiny", "--repeats", "2", "--out", str(out), *flags])
    return json.loads(out.read_text("utf-8"))


def test_lengths_of_the_corpus_are_those_of_csmv() -> None:
    harness = importlib.import_module("benchmarks.harness")
    corpus = harness.make_corpus(40_000, 4_000, 2, 100)
    length_b, count_g = corpus.tokens.length_b, corpus.features.count_g
    assert 14.5 < length_b.mean() < 15.5  # published: 15.03
    for quantile, length in ((5, 5), (25, 9), (50, 13), (75, 19), (90, 27), (95, 33), (99, 43)):
        assert abs(np.percentile(length_b, quantile) - length) <= 1
    longest = [row.max() + 1 for row in length_b.reshape(-1, 16)]
    assert 35 < np.mean(longest) < 40  # published: 37
    assert 85 < count_g.mean() < 95
    packed = (np.minimum(count_g, 180) + 10).mean() / 180
    assert 0.5 < packed < 0.55  # published: 0.52, simulated there too


@pytest.mark.torch
def test_training_step_of_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    record = run("bench_train_step", tmp_path, "--batch", "8", "--rounds", "1", "--no-memory")
    losses = record["loss_without_dropout"]
    assert losses["ours"] == pytest.approx(losses["equal_text"], rel=1e-5)
    assert losses["ours"] == pytest.approx(losses["published"], rel=1e-5)
    rate = record["samples_per_second"]
    assert set(rate) == {"ours", "equal_text", "published"} and min(rate.values()) > 0
    for side in ("published", "equal_text"):
        low, high = record[f"ratio_{side}_range"]
        assert 0 < low <= record[f"ratio_{side}"] <= high
    assert record["gflop_per_step"] > 0 and record["shapes_compiled"] <= 2


@pytest.mark.torch
@pytest.mark.slow
def test_memory_of_both_sides(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    record = run("bench_train_step", tmp_path, "--batch", "8", "--rounds", "2")
    memory = record["memory"]
    for side in ("ours", "published", "ours_at_published_batch"):
        assert 0 < memory[side]["allocator_peak_gib"] < memory[side]["resident_peak_gib"]
    assert memory["ratio_resident"] > 0 and memory["ratio_allocator"] > 0


def test_evaluation_three_ways(tmp_path: Path) -> None:
    record = run("bench_eval", tmp_path)
    for size in ("roberta_base_size", "minilm_size"):
        assert max(record[size]["largest_difference"].values()) < 1e-5
        assert record[size]["flop_ceiling"] > 1
        assert set(record[size]["comments_per_second"]) == {"shared", "unshared", "padded"}


def test_pipeline_resident_and_streamed(tmp_path: Path) -> None:
    record = run("bench_pipeline", tmp_path)
    assert record["resident"]["comments_per_second"] > 0
    assert record["streamed"]["feature_gb_per_second"] > 0
    assert 0 <= record["streamed"]["share_of_rows_that_are_padding"] < 0.9


@pytest.mark.slow
def test_scaling_of_a_step(tmp_path: Path) -> None:
    record = run("bench_scaling", tmp_path)
    assert set(record["curves"]) == {"batch", "text_length", "frames"}
    for axis, curve in record["curves"].items():
        assert len({point[axis] for point in curve["points"]}) == 2
        assert min(point["seconds_min"] for point in curve["points"]) > 0
        assert 0 <= curve["exponent_of_flops"] < 1.1


def test_committed_results_name_their_hardware() -> None:
    found = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert any(path.name.startswith("train_step_cpu") for path in found)
    for path in found:
        record = json.loads(path.read_text("utf-8"))
        assert record["machine"]["device"] and record["machine"]["cores"] > 0, path.name
        if record["benchmark"] == "train_step":
            assert {"ratio_published", "ratio_equal_text"} <= record.keys(), path.name
