"""The run directory, and a trained model read back from it.

RUN/config.json       format version and the resolved configuration
RUN/env.json          one record per start: versions, devices, git state
RUN/data.json         what was trained on: report of `prepare`, labels, feature manifest
RUN/checkpoints/      two newest and the best, each with everything that `load` needs
RUN/metrics.jsonl     one row per `log_every` updates and per evaluation
RUN/predictions/      predictions and confusion matrices, per split
RUN/results.json      the final table
RUN/lock              held by the process that trains
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxvsa.core import trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.config import differences
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, write_json
from jaxvsa.data.features import Manifest
from jaxvsa.systems import module
from jaxvsa.systems.base import Params, System
from jaxvsa.workflows.assemble import kind

FORMAT = 3
# May differ when a run is resumed: devices, traces and other runs are invisible in its results.
_FREE = ("mesh.", "profile:", "beside:")
# What a start that was killed early leaves behind.
_BEFORE_CONFIG = {"data", "base", "env.json", "data.json", "lock"}
_PACKAGES = ("jaxvsa", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Codec(Protocol):
    """A tokenizer, or several, that can be stored in a checkpoint."""

    def to_json(self) -> str:
        """The whole codec as text."""


class RunFolder:
    """Names and first files of one run."""

    def __init__(self, path: str | Path) -> None:
        """`path` need not exist."""
        self.path = Path(path)

    @property
    def results(self) -> Path:
        """The final table."""
        return self.path / "results.json"

    @property
    def predictions(self) -> Path:
        """Folder of predictions and confusion matrices."""
        return self.path / "predictions"

    def checkpoints(self) -> Checkpoints:
        """The two newest and the best checkpoint of the run."""
        return Checkpoints(self.path / "checkpoints")

    def check(self, config: dict[str, Any], data: dict[str, Any]) -> bool:
        """Whether the run exists; if it does, it must be the one that is asked for.

        Raises:
            UserError: the folder holds something else, a run of a newer format, of another
                configuration (the differences are named) or of other data.
        """
        if (self.path / "config.json").exists():
            self._check_same(config, data)
            return True
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder; choose another --run")
        if self.path.is_dir() and {p.name for p in self.path.iterdir()} - _BEFORE_CONFIG:
            raise UserError(f"{self.path} is not empty and not a run; choose another --run")
        return False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder for one run at a time; the lock goes with the process, however it ends.

        Raises:
            UserError: somebody else is training here.
        """
        if jax.process_index() != 0:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path} is being trained by another process; wait for it, or choose "
                    "another --run"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield

    def begin(self, config: dict[str, Any], data: dict[str, Any]) -> bool:
        """Checks as `check`, writes the first files, config.json last; returns what it returns."""
        existed = self.check(config, data)
        if jax.process_index() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            starts = read_json(self.path / "env.json", "environment") if existed else []
            write_json(self.path / "env.json", [*starts, environment()])
            write_json(self.path / "data.json", data)
            write_json(self.path / "config.json", {"format": FORMAT, "config": config})
        return existed

    def _check_same(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        changes = [
            line for line in differences(self.read_config(), config) if not line.startswith(_FREE)
        ]
        if changes:
            raise UserError(
                f"{self.path} is a run of another configuration ({'; '.join(changes)}); "
                "choose another --run, or repeat the command it was started with"
            )
        before = read_json(self.path / "data.json", "description of the data")
        if not isinstance(before, dict) or not {"digest", "features"} <= before.keys():
            raise UserError(
                f"{self.path / 'data.json'} does not describe the data of the run; restore it, "
                "or choose another --run"
            )
        if before["digest"] != data["digest"] or before["features"] != data["features"]:
            raise UserError(
                f"{data['root']} holds other data than {self.path} was started with; "
                "prepare it again as it was, or choose another --run"
            )

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration of the run.

        Raises:
            UserError: no run, or one of a newer format.
        """
        path = self.path / "config.json"
        if not path.exists():
            raise UserError(f"{self.path} is not a run: it has no config.json; check the path")
        record = read_json(path, "run configuration")
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise UserError(f"{path} is not a run configuration; restore it or start a new --run")
        if record.get("format") not in range(1, FORMAT + 1):
            raise UserError(
                f"{path} has format {record.get('format')}, this version reads up to {FORMAT}; "
                "use the version of jaxvsa that wrote it"
            )
        return upgraded(record["config"])


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration in the terms of this version.

    A key that has come since gets the value that does what the older version did. Format 1 had
    ladders of padded lengths, format 1 and 2 a loop over the text layers; neither changed a result.
    """
    if config["system"] == "mtransllama":
        weights = {key: value for key, value in config["weights"].items() if key != "routers"}
        model = dict(config["model"])
        model["qformer"] = {"dropout": 0.0, **model["qformer"]}
        model["routing"] = {"tau_last": 0.1, "tau_updates": 0, **model["routing"]}
        return {**config, "weights": weights, "model": model}
    if config["system"] != "vccsa":  # the others came with format 3
        return config
    text = {key: value for key, value in config["model"]["text"].items() if key != "unroll"}
    config = {**config, "model": {**config["model"], "text": text}}
    if "text_rungs" not in config["data"]:
        return config
    data = {key: value for key, value in config["data"].items() if not key.endswith("_rungs")}
    data["text_pad"] = {"rung": "one", "max": "max"}[data["text_pad"]]
    data["resident"] = "yes" if data["resident"] else "no"
    data |= {"shapes": 8, "group": "none", "window": 32}
    return {"profile": "", **config, "data": data}


def environment() -> dict[str, Any]:
    """What a result may depend on beside the configuration."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from, and whether it was changed."""

    def ask(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A model read from a run.

    Attributes:
        config: the resolved configuration.
        facts: the system's `Facts`.
        system: built from both.
        params: the whole parameter tree, numpy.
        codec: the tokenizer, or several, it was trained with.
        manifest: of the features it was trained on; None without video.
        step: updates done.
    """

    config: dict[str, Any]
    facts: Any
    system: System
    params: Params
    codec: Any
    manifest: Manifest | None
    step: int


def describe(
    config: dict[str, Any], facts: Any, codec: Codec, manifest: Manifest | None, held: Any
) -> dict[str, Any]:
    """What a checkpoint keeps beside the arrays, so that it can be read alone."""
    return {
        "config": config,
        "facts": dataclasses.asdict(facts),
        "codec": codec.to_json(),
        "manifest": None if manifest is None else manifest.to_dict(),
        "held": trees.digests(held),
    }


def read_trained(run: str | Path, which: str | int = "best") -> Trained:
    """The model of a run.

    Args:
        run: its folder.
        which: "best", "newest" or a step.

    Raises:
        UserError: no run, no such checkpoint, damage, or frozen weights that are gone or others.
    """
    checkpoints, step = _find(run, which)
    meta = checkpoints.read_meta(step)
    return assemble_trained(meta, checkpoints.restore_raw(step)["learn"], step)


def read_about(run: str | Path) -> dict[str, Any]:
    """What the best checkpoint of a run keeps beside its arrays; see `describe`.

    Raises:
        UserError: no run, or no checkpoint.
    """
    checkpoints, step = _find(run, "best")
    meta = checkpoints.read_meta(step)
    return {**meta, "config": upgraded(meta["config"])}


def _find(run: str | Path, which: str | int) -> tuple[Checkpoints, int]:
    """Checkpoints of a run, and the step that is meant."""
    folder = RunFolder(run)
    folder.read_config()
    checkpoints = folder.checkpoints()
    return checkpoints, choose_step(checkpoints, which, folder.path)


def choose_step(checkpoints: Checkpoints, which: str | int, run: Path) -> int:
    """The step that "best", "newest" or a number means; best without scores is the newest.

    Which one was the best, the newest checkpoint says: should that one be lost, no other takes
    its place.

    Raises:
        UserError: there is none, or not that one.
        CheckpointDamaged: the newest was asked for, or had to be asked, and is damaged.
    """
    steps = checkpoints.steps()
    if str(which).isdecimal():
        if int(which) not in steps:
            raise UserError(f"{run} has no checkpoint of step {which}; it has {steps}")
        return int(which)
    if which not in ("best", "newest"):
        raise UserError(f"{run} has no checkpoint of step {which}; it has {steps}")
    newest = checkpoints.newest()
    if newest is None:
        raise UserError(f"{run} has no complete checkpoint yet; train it first")
    memory = checkpoints.read_meta(newest)["memory"]
    if which == "newest" or memory["best"] is None:
        return newest
    if memory["best_step"] not in steps:
        raise UserError(
            f"{run}: the best checkpoint, step {memory['best_step']}, is lost; restore it from a "
            f"copy, or name another one with --step; it has {steps}"
        )
    return memory["best_step"]


def assemble_trained(meta: dict[str, Any], learn: Params, step: int) -> Trained:
    """The model of one checkpoint's record and arrays."""
    config = upgraded(meta["config"])
    system_module = module(config["system"])
    facts = system_module.Facts.from_dict(meta["facts"])
    reader = kind(config["system"])
    learn, held = reader.read_params(meta, config, facts, learn)
    manifest = meta["manifest"]
    return Trained(
        config=config,
        facts=facts,
        system=system_module.build(config, facts),
        params=trees.join(learn, held),
        codec=reader.read_codec(meta["codec"]),
        manifest=None if manifest is None else Manifest.from_dict(manifest),
        step=step,
    )
