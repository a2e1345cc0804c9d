"""Training end to end on a small synthetic corpus: interruptions, devices, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

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
from jaxvsa.workflows.runs import read_trained

TINY = "configs/vccsa.py:tiny"


def flags(root: Path, *more: str) -> list[str]:
    return [
        f"--config.data.root={root}",
        "--config.data.text_rungs=(24,)",  # one shape, one compilation
        "--config.data.frame_rungs=(12,)",
        "--config.train.eval_every=4",
        "--config.train.save_every=2",
        *more,
    ]


def fit(root: Path, run: Path, *more: str) -> list[Any]:
    return fitting.fit(load_config(TINY, flags(root, *more)), run, Console(quiet=True))


def arrays(run: Path, step: int = 6) -> dict[str, np.ndarray]:
    parts = ("learn", "opt", "rng", "step", "skipped")
    tree = Checkpoints(run / "checkpoints").restore_raw(step, parts)
    return {str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time_s"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    mine, theirs = arrays(one), arrays(other)
    assert mine.keys() == theirs.keys()
    for path in mine:
        np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(root, run)
    return run


@pytest.mark.smoke
@pytest.mark.parametrize("after", [1, 3, 5])
def test_interruption_is_invisible(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real = fitting.iterate

    def stopping(stream: Any, state: Any = None) -> Any:
        inner = real(stream, state)

        class Stops:
            taken = 0

            def __next__(self) -> Any:
                if self.taken == after:
                    raise KeyboardInterrupt
                self.taken += 1
                return next(inner)

            def get_state(self) -> Any:
                return inner.get_state()

        return inner if stream is not monkeypatched["train"] else Stops()

    monkeypatched: dict[str, Any] = {}
    prepare_run = fitting.prepare_run

    def remember(*args: Any, **how: Any) -> Any:
        setup = prepare_run(*args, **how)
        monkeypatched["train"] = setup.stream
        return setup

    monkeypatch.setattr(fitting, "prepare_run", remember)
    monkeypatch.setattr(fitting, "iterate", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(root, tmp_path / "cut")
    monkeypatch.undo()
    fit(root, tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")


def test_killed_and_resumed_equals_uninterrupted(root: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    # Steps are slowed down, so that the signal arrives between two of them.
    code = (
        "import time; from jaxvsa.training import loop; from jaxvsa.train import main; "
        "import sys; d = loop.Loop._dispatch; "
        "loop.Loop._dispatch = lambda *a: (time.sleep(1.0), d(*a))[1]; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "--config", TINY, "--run", str(run), *flags(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while not Checkpoints(run / "checkpoints").steps() and time.monotonic() < end:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert Checkpoints(run / "checkpoints").steps()[-1] < 6
    fit(root, run)
    assert_same_run(whole, run)


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
    assert Checkpoints(whole / "checkpoints").best() == best
    assert not any("test/" in name for row in rows(whole) for name in row)


def test_run_starts_from_the_parameters_of_another(root: Path, whole: Path, tmp_path: Path) -> None:
    config = load_config(TINY, flags(root, f"--config.init_from={whole}"))
    setup = fitting.prepare_run(config, tmp_path)
    placed = meshes.shardings(
        setup.abstract, setup.system.partition, setup.mesh, params=setup.abstract.params()
    )
    state = fitting.first_state(setup, placed)
    best = Checkpoints(whole / "checkpoints").best()
    assert best is not None
    want = Checkpoints(whole / "checkpoints").restore_raw(best)["learn"]
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
        (
            "--config.data.text_rungs=(12,20)",
            "config.data.text_len is 24; the last rung must be 24",
        ),
        ("--config.data.frame_rungs=()", "config.model.visual_length is 12; the last rung"),
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
