"""Training end to end on a small synthetic corpus: files, devices, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from workflows.small_runs import TINY, arrays, assert_same_run, fit, flags, rows

from jaxvsa.core import mesh as meshes
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.config import load_config
from jaxvsa.core.errors import UserError
from jaxvsa.data.sources.csmv import read_release
from jaxvsa.data.sources.demo import write_demo
from jaxvsa.interop.roberta import read_encoder, to_names
from jaxvsa.interop.tensors import save_safetensors
from jaxvsa.workflows import fit as fitting
from jaxvsa.workflows.prepare import FeatureSource, prepare
from jaxvsa.workflows.runs import choose_step, read_trained


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(root, run)
    return run


def test_complete_run_is_not_trained_again(whole: Path, root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*")}
    found = fit(root, whole)
    assert found[0].name.startswith("vccsa")
    assert {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")} == before


def test_run_of_another_configuration_is_refused_with_the_differences(
    whole: Path, root: Path
) -> None:
    with pytest.raises(UserError, match=r"optim\.lr: 0\.5 here, 0\.001 in the run"):
        fit(root, whole, "--config.optim.lr=0.5")


def test_run_resumes_on_another_number_of_devices(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(root, run, "--config.mesh.data=1")
    want = Checkpoints(run / "checkpoints").restore_raw(6)["learn"]["token"]
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "results.json").unlink()
    fit(root, run, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    got = Checkpoints(run / "checkpoints").restore_raw(6)["learn"]["token"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert [row["step"] for row in rows(run)] == sorted(row["step"] for row in rows(run))


def test_start_that_was_killed_early_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "env.json").write_text("[]")
    fit(root, run, "--config.train.steps=2")
    assert (run / "results.json").exists()


def test_results_hold_the_model_and_every_baseline(whole: Path) -> None:
    found = json.loads((whole / "results.json").read_text())
    names = [row["name"].split(" (")[0] for row in found]
    assert names == [
        "vccsa", "global majority", "video majority",
        "Bayes optimum", "Bayes text only", "Bayes video only",
    ]  # fmt: skip
    for row in found:
        for split in ("dev", "test"):
            assert 0 < row["values"][f"{split}/emotion/micro_f1"] <= 1
    assert found[0]["errors"]["test/opinion/micro_f1"] > 0
    both = found[3]["values"]["test/opinion/accuracy"]
    assert both > found[4]["values"]["test/opinion/accuracy"]
    for split in ("dev", "test"):
        assert (whole / "predictions" / f"{split}.jsonl").stat().st_size > 1000
        assert (whole / "predictions" / f"{split}-opinion-confusion.png").exists()


def test_selection_keeps_the_best_dev_checkpoint(whole: Path) -> None:
    scores = {
        row["step"]: row["dev/all/micro_f1_sum"]
        for row in rows(whole)
        if "dev/all/micro_f1_sum" in row
    }
    best = max(scores, key=lambda step: (scores[step], -step))
    assert choose_step(Checkpoints(whole / "checkpoints"), "best", whole) == best
    assert not any("test/" in name for row in rows(whole) for name in row)


def test_run_starts_from_the_parameters_of_another(root: Path, whole: Path, tmp_path: Path) -> None:
    config = load_config(TINY, flags(root, f"--config.init_from={whole}"))
    setup = fitting.prepare_run(config, tmp_path)
    placed = meshes.shardings(
        setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
    )
    state = fitting.first_state(setup, placed)
    want = read_trained(whole, "best").params
    np.testing.assert_array_equal(state.learn["token"], want["token"])
    assert int(state.step) == 0


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("--config.data.root=", "config.data.root is empty"),
        ("--config.data.protocol=offical", "no protocol 'offical'; did you mean 'official'"),
        ("--config.weights.text=nowhere", "nowhere/config.json: not found"),
        ("--config.weights.freeze_text=True", "needs config.weights.text"),
        ("--config.model.consensus.num_heads=3", "3 heads do not divide width 8"),
        ("--config.data.shapes=0", "config.data.shapes is 0; 1 is the least"),
        ("--config.data.resident=maybe", r"config\.data\.resident: .*'maybe'"),
        ("--config.data.text_pad=two", r"config\.data\.text_pad: .*'two'"),
        ("--config.model.num_scales=0", r"config\.model\.num_scales is 0; 1 is the least"),
        ("--config.model.consensus.num_heads=0", r"consensus\.num_heads is 0; 1 is the least"),
        ("--config.model.text.width=0", r"config\.model\.text\.width is 0; 1 is the least"),
        ("--config.model.dropout=1.5", r"model\.dropout is 1\.5; it must be .* below 1"),
        ("--config.seed=-1", r"config\.seed is -1; it must be from 0 to 4294967295"),
        ("--config.seed=4294967296", r"config\.seed is 4294967296; it must be"),
        ("--config.model.text.max_positions=20", "lower data.text_len"),
        ("--config.mesh.data=3", "batch size 8 cannot be split over 3 devices"),
        ("--config.mesh.data=64", r"does not fit 4 device"),
        ("--config.train.select_on=test/opinion/micro_f1", "selection may only see dev"),
    ],
)
def test_bad_settings_are_one_line(root: Path, tmp_path: Path, more: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        fit(root, tmp_path / "bad", more)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad" / "config.json").exists()


@pytest.mark.parametrize(("section", "value"), [("train", None), ("data", 1), ("seed", "x")])
def test_a_file_of_ones_own_must_have_every_section(
    root: Path, tmp_path: Path, section: str, value: Any
) -> None:
    config = load_config(TINY, flags(root)).to_dict()
    config.pop(section)
    if value is not None:
        config[section] = value
    with pytest.raises(UserError, match=rf"config\.{section} is .*; it must be .*, as in configs"):
        fitting.fit(ConfigDict(config), tmp_path / "bad", Console(quiet=True))
    assert not (tmp_path / "bad").exists()


def test_frozen_text_encoder_does_not_move_and_is_not_stored(
    root: Path, weights: Path, tmp_path: Path
) -> None:
    given = (f"--config.weights.text={weights}", "--config.weights.freeze_text=True")
    run = tmp_path / "frozen"
    fit(root, run, *given)
    saved = Checkpoints(run / "checkpoints")
    assert "text" not in saved.restore_raw(6)["learn"]
    assert not any("text/" in path for path in arrays(run))
    trained = read_trained(run, 6)
    _, params = read_encoder(weights)
    jax.tree.map(np.testing.assert_array_equal, trained.params["text"], params)
    with pytest.raises(UserError, match="other text weights than the run was trained with"):
        moved = jax.tree.map(lambda leaf: leaf + 1, params)
        save_safetensors(weights / "model.safetensors", to_names(moved))
        try:
            read_trained(run, 6)
        finally:
            save_safetensors(weights / "model.safetensors", to_names(params))


def test_resume_with_a_frozen_text_encoder_is_invisible(
    root: Path, weights: Path, tmp_path: Path
) -> None:
    given = (f"--config.weights.text={weights}", "--config.weights.freeze_text=True")
    for name in ("whole", "cut"):
        fit(root, tmp_path / name, *given)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    (tmp_path / "cut" / "results.json").unlink()
    fit(root, tmp_path / "cut", *given)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_other_data_under_the_same_path_is_refused(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root, data)
    fit(data, tmp_path / "run", "--config.train.steps=2")
    shutil.rmtree(data)
    write_demo(tmp_path / "release", seed=9, num_videos=30)
    source = FeatureSource(tmp_path / "release" / "visual_feature" / "demo", "demo")
    prepare(read_release(tmp_path / "release"), data, source)
    with pytest.raises(UserError, match="holds other data than"):
        fit(data, tmp_path / "run", "--config.train.steps=2")


@pytest.mark.parametrize("more", ["init_from=nowhere", "train.wandb=project"])
def test_refused_start_leaves_nothing_that_refuses_the_next(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError):
        fit(root, tmp_path / "run", f"--config.{more}")
    fit(root, tmp_path / "run", "--config.train.steps=2")
    assert (tmp_path / "run" / "results.json").exists()
