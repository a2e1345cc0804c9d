"""The benchmarks of MTransLLAMA run at their tiny size, and what they write holds together."""

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


def run(name: str, tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "record.json"
    module = importlib.import_module(f"benchmarks.{name}")
    module.main(["--tiny", "--repeats", "2", "--warm", "1", "--out", str(out), *flags])
    return json.loads(out.read_text("utf-8"))


def test_attention_apart_and_joint(tmp_path: Path) -> None:
    record = run("bench_mtransllama_attention", tmp_path, "--memory", "0.0001")
    points = {(p["variant"], p["s"], p["f"]): p for p in record["points"]}
    assert len(points) == 3 * 2 * 3
    measured = [p for p in points.values() if "skipped" not in p]
    assert measured and all(p["seconds_min"] > 0 and p["repeats"] == 2 for p in measured)
    for (variant, *_), point in points.items():
        # The compiler also counts softmax and norms, which weigh much at this width.
        assert 1 <= point["gflop"] / point["gflop_by_formula"] < 2, variant
    assert points["spatial", 5, 1]["gflop"] == points["joint", 5, 1]["gflop"]
    # By hand: s = 5, f = 4, d = 16.
    want = {"joint": 8 * 20 * 256 + 4 * 400 * 16, "divided": 16 * 20 * 256 + 4 * 20 * 9 * 16,
            "spatial": 8 * 20 * 256 + 4 * 20 * 5 * 16}  # fmt: skip
    for variant, flops in want.items():
        assert points[variant, 5, 4]["gflop_by_formula"] == pytest.approx(flops / 1e9)
    assert len(record["fitted_over_f"]) == 6 and len(record["divided_over_joint"]) == 6


def test_attention_that_does_not_fit_is_counted_and_skipped(tmp_path: Path) -> None:
    record = run("bench_mtransllama_attention", tmp_path, "--memory", "1e-9")
    skipped = [p for p in record["points"] if "skipped" in p]
    assert skipped and all(p["gflop"] > 0 and p["temp_bytes"] > 0 for p in skipped)
    assert all("seconds_median" not in p for p in skipped)


def test_visual_tokens_in_the_language_model(tmp_path: Path) -> None:
    """By hand, at the shape of Vicuna-7B: half a MiB for a token, 6.48e9 kernels in its layers."""
    rows = run("bench_mtransllama_attention", tmp_path)["llm_tokens"]
    row = next(row for row in rows if row["f"] == 4)
    assert row["cache_mib_saved"] == 96 * 0.5
    tokens, pairs = row["concat"]["tokens"] + 64, (row["concat"]["tokens"] + 64) ** 2
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    flops = 2 * tokens * layers + 4 * 32 * pairs * 4096 + 2 * 4096 * 32001
    assert row["concat"]["prefill_gflop"] == pytest.approx(flops / 1e9, rel=1e-9)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("llm,parts", [("none", {"forward", "step"}), ("small", {"generate"})])
def test_both_sides_do_the_same_work(llm: str, parts: set[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    flags = ("--llm", llm, "--sides", "ours", "eager", "--parts", *sorted(parts))
    check(run("bench_mtransllama_step", tmp_path, *flags), parts, "eager")


@pytest.mark.slow
@pytest.mark.torch
def test_compiled_peer_and_the_likelihood_of_answers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    record = run("bench_mtransllama_step", tmp_path, "--llm", "small")
    check(record, {"forward", "step", "generate"}, "compile")


def check(record: dict[str, Any], parts: set[str], rival: str) -> None:
    assert set(record["parts"]) == parts
    for part, found in record["parts"].items():
        assert found[f"difference_{rival}"] <= {"generate": 0, "forward": 1e-4, "step": 1e-5}[part]
        low, high = found[f"ratio_{rival}_range"]
        assert 0 < low <= found[f"ratio_{rival}"] <= high
        sides = found["sides"].values()
        assert len({side["learnable"] for side in sides}) == 1
        assert min(side["resident_peak_gib"] for side in sides) > 0
    if "step" in parts:
        losses = record["parts"]["step"]["losses"]["ours"]
        assert len(losses) == 10 and losses[-1] < losses[0]


def test_the_published_setting_trains_as_many_values_as_the_paper_says() -> None:
    """2.5 million; see `configs/mtransllama.py`."""
    step = importlib.import_module("benchmarks.bench_mtransllama_step")
    case = importlib.import_module("benchmarks.mtransllama_case")
    jax = importlib.import_module("jax")
    trees = importlib.import_module("jaxvsa.core.trees")
    args = step.flags().parse_args([])
    found = case.Case(args)
    first = {name: array[:1] for name, array in found.batch.items()}
    shapes = jax.eval_shape(found.system.init, jax.random.key(0), first)
    learn, _ = trees.split(shapes, found.system.trainable)
    assert trees.num_values(learn) == 2_454_966
