"""Checkpoints that are complete or do not count, and are what was saved or raise.

A folder holds one sub-folder per step, named by its number, with two Orbax items: `state`, the
arrays, and `meta`, one JSON record: `format`, `step`, `score`, `user` (whatever the caller needs
to resume) and `digests`, a CRC-32 per array, with `crc`, that of the record itself. Nothing in it
depends on devices: any mesh, one process or several, can read it.

What can go wrong and what happens (Orbax 0.12.8 itself returns wrong values for a flipped byte):

    killed while saving                 temporary folder, does not count; removed by the next save
    empty or foreign folder, lost item  does not count; replaced if that step is saved again
    byte flipped, file cut or lost      CheckpointDamaged at restore, naming the item and the cure
    record unreadable or changed        CheckpointDamaged from everything that looks at the step
    record of a newer format            UserError, naming both formats
    other names, shapes or dtypes       UserError, naming the first array that differs
    no space left, no permission        UserError at the next save, wait or close; the checkpoints
                                        before it are intact and stay restorable
    step saved twice                    ValueError; the first one stays

Damage is never answered by taking an older checkpoint: which one to go on from is the user's
choice, made by deleting the damaged folder.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.retention import Retention, ranked

FORMAT = 1
STATE = "state"
META = "meta"


class CheckpointDamaged(UserError):
    """What lies on disk is not what was saved."""


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, the newest and the best are kept.

    Reading neither creates nor removes anything, so a run that is still training can be evaluated.
    With several processes all of them make the same calls.

    Attributes:
        folder: holds one sub-folder per step.
    """

    def __init__(
        self, folder: str | pathlib.Path, keep_newest: int = 1, keep_best: int = 1
    ) -> None:
        """The folder need not exist.

        Args:
            folder: see the class.
            keep_newest: how many of the newest checkpoints stay, at least 1.
            keep_best: how many of those with the highest scores stay besides.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._retention = Retention(keep_newest, keep_best)
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None

    def save(
        self, step: int, state: trees.Tree, meta: Mapping[str, Any], score: float | None = None
    ) -> None:
        """Starts to write one checkpoint; the arrays may be donated as soon as this returns.

        Waits for the save before it. Once this one is complete, those no longer kept are removed.

        Args:
            step: number of finished training steps.
            state: any tree of arrays, typed keys included.
            meta: values that JSON can hold.
            score: higher is better; None is never the best.

        Raises:
            UserError: this save could not begin, or the one before it failed.
            ValueError: the step is already saved, or the score is not finite.
        """
        self.wait()
        scores = self._scores()
        if step in scores:
            raise ValueError(f"step {step} is already saved in {self.folder}")
        if score is not None and not math.isfinite(score):
            raise ValueError(f"the score of step {step} is {score}")
        for path, leaf in trees.named(state).items():
            if jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True) != leaf.dtype:
                raise ValueError(f"'{path}' is {leaf.dtype}, which JAX would restore as 32 bit")
        record = _seal(
            {
                "format": FORMAT,
                "step": step,
                "score": score,
                "digests": trees.digests(state),
                "user": dict(meta),
            }
        )
        self._retention.scores = {**scores, step: score}
        self._saving = step
        with self._saving_guard():
            manager = self._open_manager()
            self._clear(self.folder / str(step))
            manager.reload()  # the disk decides which steps exist, also after a failed save
            items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(record)}
            manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
            UserError: it failed. Told once; a later save starts afresh.
        """
        if self._manager is None or self._saving is None:
            return
        with self._saving_guard():
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits for the last save and frees the threads; reading still works.

        Raises:
            UserError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._close_manager()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending. One still being written is not among them.

        Raises:
            CheckpointDamaged: a record is there but unreadable.
        """
        return list(self._scores())

    def newest(self) -> int | None:
        """The last complete step, None if there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The complete step with the highest score, the earlier one of equals.

        None if no checkpoint has a score.
        """
        return next(iter(ranked(self._scores())), None)

    def read_meta(self, step: int) -> dict[str, Any]:
        """What was given to `save` as `meta`; tuples come back as lists.

        Raises:
            UserError: no such step, or a format newer than this version reads.
            CheckpointDamaged: the record is not what was saved.
        """
        return self._record(step)["user"]

    def restore(self, step: int, target: trees.Tree) -> trees.Tree:
        """The state on the devices, every array checked against its digest.

        Args:
            step: one of `steps()`.
            target: the state as `jax.ShapeDtypeStruct` with shardings, or as arrays. A leaf
                without a sharding goes to the first device.

        Raises:
            UserError: no such step, or names, shapes or dtypes that differ from `target`.
            CheckpointDamaged: the arrays are not what was saved.
        """
        folder, digests, stored = self._open_state(step)
        _compare(trees.named(stored), target, folder)
        with _reading(folder), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            state = reader.restore(folder, args=ocp.args.StandardRestore(_abstract(target)))
        _verify(trees.digests(state), digests, folder)
        return state

    def restore_raw(self, step: int, parts: Sequence[str] = ("learn",)) -> dict[str, Any]:
        """Top-level parts of the state as nested dicts of numpy arrays; needs no target.

        Positions in tuples and lists become keys "0", "1", ...; typed keys come as key data.

        Raises:
            UserError: no such step or part.
            CheckpointDamaged: these parts are not what was saved; the others are not looked at.
        """
        folder, digests, stored = self._open_state(step)
        if unknown := [part for part in parts if part not in stored]:
            raise UserError(f"{folder} has no part '{unknown[0]}'; it has {sorted(stored)}")
        item = {part: stored[part] for part in parts}
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=to_numpy, partial_restore=True)
        with _reading(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            state = reader.restore(folder, args=args)
        wanted = {path: crc for path, crc in digests.items() if path.split("/")[0] in parts}
        _verify(trees.digests(state), wanted, folder)
        return trees.nest(trees.named(state))

    def _open_state(self, step: int) -> tuple[pathlib.Path, dict[str, str], dict[str, Any]]:
        """Folder of the arrays, their digests, and their shapes and dtypes as a tree."""
        digests = self._record(step)["digests"]
        folder = self._state(step)
        with _reading(folder):
            stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            names = trees.named(stored).keys()
        if lost := sorted(names ^ digests.keys()):
            raise _damaged(folder, f"'{lost[0]}' is in only one of its two lists of arrays")
        return folder, digests, stored

    def _state(self, step: int) -> pathlib.Path:
        return self.folder / str(step) / STATE

    def _complete(self) -> list[int]:
        """Steps whose two items are there; a save renames its folder only when it is written."""
        numbers = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())
        return [n for n in numbers if self._file(n).exists() and any(self._state(n).glob("*"))]

    def _file(self, step: int) -> pathlib.Path:
        return self.folder / str(step) / META / "metadata"

    def _scores(self) -> dict[int, float | None]:
        """Score of every complete step, ascending by step."""
        return {step: self._record(step)["score"] for step in self._complete()}

    def _record(self, step: int) -> dict[str, Any]:
        """The checked JSON record of a step."""
        if step not in self._complete():
            raise UserError(
                f"{self.folder} has no checkpoint of step {step}, but {self._complete()}"
            )
        path = self._file(step)
        with _reading(path):
            record = json.loads(path.read_text("utf-8"))
            newer = record["format"] > FORMAT
            sound = newer or (record == _seal(record) and record["step"] == step)
        if newer:
            raise UserError(
                f"{path} has format {record['format']}, this version of jaxvsa reads up to "
                f"{FORMAT}; install a newer one"
            )
        if not sound:
            raise _damaged(path, "the record is not what was saved")
        return record

    def _open_manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            _report_once()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._retention,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _clear(self, folder: pathlib.Path) -> None:
        """Removes what stands in the way of a step: `save` has seen that it is not complete."""
        if jax.process_index() == 0 and folder.exists():
            shutil.rmtree(folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"cleared {folder}")

    @contextlib.contextmanager
    def _saving_guard(self) -> Iterator[None]:
        """Turns a failed save into one line.

        What it left may be large and is removed, but other writers may not have stopped yet; the
        manager is given up because opening the next one removes the rest.
        """
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            with contextlib.suppress(Exception):  # tells the same error again
                self._close_manager()
            if jax.process_index() == 0:
                for path in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            why = "no space left" if _is_full(error) else _first_line(error)
            raise UserError(
                f"{why}: saving step {step} to {self.folder} failed; complete checkpoints: "
                f"{self._complete()}; free space or repair the folder, then run the same command"
            ) from error


def _seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON returns it, with the CRC-32 of its canonical text."""
    body = {key: value for key, value in record.items() if key != "crc"}
    body = json.loads(json.dumps(body, allow_nan=False))
    return {**body, "crc": f"{zlib.crc32(json.dumps(body, sort_keys=True).encode()):08x}"}


def _abstract(target: trees.Tree) -> trees.Tree:
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, target)


def _compare(stored: Mapping[str, Any], target: trees.Tree, folder: pathlib.Path) -> None:
    """Refuses a checkpoint of another model: Orbax would cast dtypes without a word."""
    wanted = trees.named(target)
    for path in sorted(stored.keys() ^ wanted.keys()):
        where = "the checkpoint, not in this model" if path in stored else "this model only"
        raise UserError(f"{folder} is of another model: '{path}' is in {where}")
    for path, leaf in wanted.items():
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        here = (np.dtype(leaf.dtype), tuple(leaf.shape))
        there = (np.dtype(stored[path].dtype), tuple(stored[path].shape))
        if here != there:
            raise UserError(
                f"{folder} is of another model: '{path}' is {there[0]} {there[1]} there, "
                f"{here[0]} {here[1]} here"
            )


def _verify(found: Mapping[str, str], saved: Mapping[str, str], folder: pathlib.Path) -> None:
    for path in sorted(found.keys() | saved.keys()):
        if found.get(path) != saved.get(path):
            raise _damaged(folder, f"the values of '{path}' are not what was saved")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Names what could not be read; memory that ran out is not damage."""
    _report_once()
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # TensorStore raises bare Exception for a truncated file
        raise _damaged(path, _first_line(error)) from error


def _damaged(path: pathlib.Path, why: str) -> CheckpointDamaged:
    step = next(part for part in path.parents if part.name.isdecimal())
    return CheckpointDamaged(
        f"{path} is damaged: {why}; restore it from a copy, or delete {step} to go on from the "
        "checkpoint before it"
    )


@functools.cache
def _report_once() -> None:
    """Leaves failures to our one line, from now on: they are raised, so nothing gets lost.

    Orbax logs each with several tracebacks, and drops reads and writes whose late answers and
    whose end print some more.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    report_others = sys.unraisablehook

    def report(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped = code is not None and "orbax" in code.co_filename
        if not dropped and str(unraisable.exc_value) != "Event loop is closed":
            report_others(unraisable)

    sys.unraisablehook = report


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a file size limit is behind the error."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    texts = ("No space left", "Disk quota exceeded", "File too large")
    return getattr(error, "errno", None) in full or any(text in str(error) for text in texts)
