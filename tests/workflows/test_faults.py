"""Every fault that can hit a run, made to happen: nothing is lost, and resuming is invisible."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from workflows import small_runs
from workflows.small_runs import TINY, arrays, assert_same_run, flags, rows

from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.cli import run_door
from jaxvsa.core.errors import UserError
from jaxvsa.core.integrity import CheckpointDamaged, Records
from jaxvsa.train import main
from jaxvsa.training.loop import Loop
from jaxvsa.workflows import fit as fitting
from jaxvsa.workflows import labelled, setup
from jaxvsa.workflows.runs import choose_step, read_trained

SMALLER = "--config.model.variant=video"  # a model that is traced in half the time


def fit(root: Path, run: Path, *more: str) -> None:
    small_runs.fit(root, run, SMALLER, *more)


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(root, run)
    return run


def steps(run: Path) -> list[int]:
    return Checkpoints(run / "checkpoints").steps()


def before(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Callable[..., None]
) -> None:
    """`act` is called with the arguments of `where.name` before it."""
    real = getattr(where, name)

    def call(*args: Any, **how: Any) -> Any:
        act(*args)
        return real(*args, **how)

    monkeypatch.setattr(where, name, call)


def at_update(number: int, act: Callable[[], None]) -> Callable[..., None]:
    """For `Loop._dispatch`: acts while update `number` (from 1) is on its way."""
    return lambda loop, state, batch: act() if int(state.step) == number - 1 else None


def door(root: Path, run: Path) -> int:
    """Exit code of `python -m jaxvsa.train`."""
    with pytest.raises(SystemExit) as caught:
        run_door(main, ["--config", TINY, "--run", str(run), *flags(root, SMALLER)])
    return int(caught.value.code or 0)


@pytest.mark.smoke
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_saves_the_step_and_exits(
    root: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    run, handlers = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patch:
        before(patch, Loop, "_dispatch", at_update(3, lambda: os.kill(os.getpid(), number)))
        assert door(root, run) == code
    assert steps(run) == [2, 3]
    said = capsys.readouterr().out
    assert f"stopped by {number.name} at step 3; the same command resumes\n" in said
    assert signal.getsignal(number) is handlers
    fit(root, run)
    assert_same_run(whole, run)


@pytest.mark.parametrize("place", ["evaluation", "saving", "report"])
def test_sigterm_outside_of_updates_loses_nothing(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = tmp_path / "run"

    def terminate(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    where, name, expected = {
        "evaluation": (fitting, "run", [2, 4]),
        "saving": (Checkpoints, "save", [2, 3]),  # a second signal comes while 3 is saved
        "report": (labelled.scoring, "score", [4, 6]),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        before(patch, where, name, terminate)
        fit(root, run)
    assert (caught.value.code, steps(run)) == (0, expected)
    assert not (run / "results.json").exists()
    memory = Checkpoints(run / "checkpoints").read_meta(expected[-1])["memory"]
    assert memory["owed"] == (place == "evaluation")
    fit(root, run)
    assert_same_run(whole, run)
    mine, theirs = (Records(path / "checkpoints").scores() for path in (run, whole))
    assert {4, 6} <= mine.keys() and mine == theirs


def test_end_before_the_first_checkpoint_begins_again(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before(patch, Loop, "_dispatch", at_update(2, vanish))
        fit(root, tmp_path / "run")
    assert steps(tmp_path / "run") == []
    fit(root, tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def start_broken(prelude: str, root: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """`python -m jaxvsa.train` in a process of its own, after some lines of Python."""
    code = f"import os, signal, sys\nfrom jaxvsa.train import main\n{prelude}\n"
    code += "from jaxvsa.core.cli import run_door\nrun_door(main, sys.argv[1:])"
    given = ["--config", TINY, "--run", str(run), *flags(root, SMALLER), *more]
    command = [sys.executable, "-c", code, *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_broken(prelude: str, root: Path, run: Path) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    process = start_broken(prelude, root, run)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


KILLED_AT_A_STEP = """
from jaxvsa.training.loop import Loop
real = Loop._dispatch
def dispatch(loop, state, batch):
    if int(state.step) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(loop, state, batch)
Loop._dispatch = dispatch
"""
# A checkpoint becomes complete when its folder is renamed.
KILLED_WHILE_SAVING = """
real = os.rename
def rename(old, new, **how):
    if "/4.orbax-checkpoint-tmp" in str(old) and str(new).endswith("/4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(old, new, **how)
os.rename = rename
"""


@pytest.mark.parametrize("when", [KILLED_AT_A_STEP, KILLED_WHILE_SAVING], ids=["step", "save"])
def test_sigkill_resumes_from_the_last_complete_checkpoint(
    root: Path, whole: Path, tmp_path: Path, when: str
) -> None:
    run = tmp_path / "run"
    code, errors = run_broken(when, root, run)
    assert code == -signal.SIGKILL, errors
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    if when is KILLED_WHILE_SAVING:
        assert left[0] == "2" and left[1].startswith("4.orbax-checkpoint-tmp"), left
    fit(root, run)
    assert_same_run(whole, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


TOLD_AT_A_STEP = """
from jaxvsa.training.loop import Loop
real = Loop._dispatch
def dispatch(loop, state, batch):
    if int(state.step) == 1 and "--process-id=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(loop, state, batch)
Loop._dispatch = dispatch
"""


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    given = [(address, "--num-processes=2", f"--process-id={index}") for index in range(2)]
    processes = [start_broken(TOLD_AT_A_STEP, root, run, *more) for more in given]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "stopped by SIGTERM at step 3; the same command resumes\n" in said[0][0]
    assert steps(run) == [2, 3]
    fit(root, run)
    for mine, theirs in zip(rows(run), rows(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


FULL_DISK = """
import resource
from jaxvsa.core.checkpoint import Checkpoints
real = Checkpoints.save
def save(checkpoints, step, *rest):
    if step == 4:
        checkpoints.wait()  # for step 2, which is written in the background
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    real(checkpoints, step, *rest)
Checkpoints.save = save
"""


def test_no_space_left_is_one_line_and_resumes(root: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, errors = run_broken(FULL_DISK, root, run)
    assert code == 2 and errors.startswith("error: no space left: saving step 4 to ")
    assert errors.count("\n") == 1 and "complete checkpoints: [2]" in errors
    assert steps(run) == [2]
    fit(root, run)
    assert_same_run(whole, run)


def flip(folder: Path) -> None:
    """Flips bytes all over the arrays: a single one may lie where nothing is read."""
    for path in (p for p in folder.rglob("d/*") if p.is_file()):
        content = bytearray(path.read_bytes())
        for at in range(len(content) // 8, len(content), 1 + len(content) // 4):
            content[at] ^= 0x10
        path.write_bytes(content)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def unfinished(whole: Path, run: Path) -> Path:
    """A copy of the run that was stopped between its last update and its report."""
    shutil.copytree(whole, run)
    (run / "results.json").unlink()
    return run / "checkpoints"


@pytest.mark.parametrize("harm", [flip, empty])
def test_damaged_newest_checkpoint_is_trained_again(
    root: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
) -> None:
    run = tmp_path / "run"
    folder = unfinished(whole, run)
    harm(folder / "6")
    fit(root, run)
    line = next(line for line in capsys.readouterr().err.splitlines() if "WARNING" in line)
    assert f"{folder / '6'} is damaged (" in line and "training goes on from step 4" in line
    assert_same_run(whole, run)
    assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]


def test_nothing_begins_anew_when_every_checkpoint_is_damaged(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder = unfinished(whole, run)
    flip(folder / "4")
    empty(folder / "6")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no checkpoint in .* is what was saved") as caught:
        fit(root, run)
    assert "\n" not in str(caught.value)
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_best_checkpoint_is_never_replaced_by_another(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = unfinished(whole, run)
    best = choose_step(Checkpoints(folder), "best", run)
    other = 10 - best  # of 4 and 6
    flip(folder / str(best))
    with pytest.raises(CheckpointDamaged, match=rf"/{best} is damaged: .*take another step"):
        read_trained(run)
    assert read_trained(run, other).step == other
    if best == 4:
        shutil.rmtree(folder / "4")
        with pytest.raises(UserError, match=r"best checkpoint, step 4, is lost; .*--step; it has"):
            read_trained(run)
    empty(folder / "6")  # the newest is the one that knows which is the best
    with pytest.raises(CheckpointDamaged, match="/6 is damaged: meta/metadata is missing"):
        read_trained(run)


def test_corrupt_feature_record_is_named_and_not_trained_on(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    data, run = shutil.copytree(root.parent, tmp_path / "corpus") / root.name, tmp_path / "run"
    path = max(data.glob("videos/1.0.0/*.array_record*"), key=lambda path: path.stat().st_size)
    sound = path.read_bytes()
    path.write_bytes(b"".join((sound[:9000], bytes([sound[9000] ^ 1]), sound[9001:])))
    with pytest.raises(UserError, match=rf"{path} is damaged .*; prepare the data again") as caught:
        fit(data, run)
    assert "\n" not in str(caught.value) and not run.exists()
    path.write_bytes(sound)
    fit(data, run)
    assert_same_run(whole, run)


def test_dying_data_worker_ends_the_run_at_its_step(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, threads = tmp_path / "run", []
    real = setup.batches

    def batches(plan: Any, examples: Any, *rest: Any) -> Any:
        class Dies:
            def batch(self, *args: Any) -> Any:
                threads.append(threading.current_thread())
                if len(threads) == 4:
                    raise OSError("the disk is gone")
                return examples.batch(*args)

        return real(plan, Dies(), *rest)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone") as caught:
        patch.setattr(setup, "batches", batches)
        fit(root, run)
    assert "while loading the batch of update 4; step 3 is saved" in caught.value.__notes__
    assert threading.main_thread() not in threads
    assert steps(run) == [2, 3]
    fit(root, run)
    assert_same_run(whole, run)


def poisoned(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Makes the features of one update not finite, and so its gradient."""
    real = fitting.make_step

    def make_step(*args: Any) -> Any:
        step = real(*args)

        def spoil(leaf: Any) -> Any:
            return leaf * np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        def call(state: Any, tables: Any, batch: Any) -> Any:
            if int(state.step) == update - 1:
                tables, batch = jax.tree.map(spoil, (tables, batch))
            return step(state, tables, batch)

        return call

    monkeypatch.setattr(fitting, "make_step", make_step)


@pytest.mark.parametrize("option", ["stop", "skip"])
def test_nonfinite_gradient_never_reaches_a_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    run = tmp_path / "run"
    poisoned(monkeypatch, 3)
    if option == "stop":
        with pytest.raises(UserError, match=r"gradient of update 3 is not finite.*step 2 is saved"):
            fit(root, run)
        assert steps(run) == [2]
    else:
        fit(root, run, "--config.train.nonfinite=skip")
        counts = {row["step"]: row["train/skipped"] for row in rows(run) if "train/skipped" in row}
        assert counts == {4: 1.0}
        assert arrays(run)["skipped"] == 1
    for step in steps(run):
        for path, leaf in arrays(run, step).items():
            assert np.isfinite(leaf).all(), path
