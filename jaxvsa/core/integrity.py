"""What makes a checkpoint trustworthy: its sealed record, its digests, and words for damage."""

import contextlib
import errno
import functools
import json
import logging
import math
import pathlib
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import write_atomic

FORMAT = 1
STATE = "state"
META = "meta"


class CheckpointDamaged(UserError):
    """What lies on disk is not what was saved.

    Attributes:
        folder: of the step.
        why: which part, and what is wrong with it.
    """

    def __init__(self, path: pathlib.Path, why: str) -> None:
        """`path` is the folder of the step, or a part of it."""
        self.folder = next(part for part in (path, *path.parents) if part.name.isdecimal())
        self.why = why if path == self.folder else f"{path.relative_to(self.folder)}: {why}"
        super().__init__(
            f"{self.folder} is damaged: {self.why}; restore it from a copy, or take another step "
            "(training does: it goes on from the one before)"
        )


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON returns it, with `crc`, the CRC-32 of its canonical text.

    Every later format keeps this seal: without it a changed format number could not be told from
    a flipped bit.
    """
    body = {key: value for key, value in record.items() if key != "crc"}
    body = json.loads(json.dumps(body, allow_nan=False))
    return {**body, "crc": f"{zlib.crc32(json.dumps(body, sort_keys=True).encode()):08x}"}


class Records:
    """The records of all checkpoints under one folder; see `core.checkpoint` for what is there."""

    def __init__(self, folder: pathlib.Path) -> None:
        """`folder` need not exist."""
        self.folder = folder

    def numbers(self) -> list[int]:
        """All steps that have a folder, ascending; a save names it only when it is written."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def complete(self) -> list[int]:
        """Those with both items."""
        return [step for step in self.numbers() if not self._lost(step)]

    def scores(self) -> dict[int, float | None]:
        """Scores by step, without the steps whose record cannot be read."""
        found = {}
        for step in self.complete():
            with contextlib.suppress(CheckpointDamaged):
                found[step] = self.read(step)["score"]
        return found

    def read(self, step: int) -> dict[str, Any]:
        """The record of a step.

        Raises:
            UserError: no such step, or a format newer than this version reads.
            CheckpointDamaged: an item is missing, or the record is not what was saved.
        """
        if step not in self.numbers():
            raise UserError(
                f"{self.folder} has no checkpoint of step {step}, but {self.complete()}"
            )
        if lost := self._lost(step):
            raise CheckpointDamaged(self.folder / str(step), lost)
        path = self._file(step)
        with reading(path):
            record = json.loads(path.read_text("utf-8"))
            sound = record == seal(record) and record["step"] == step
        if not sound:
            raise CheckpointDamaged(path, "the record is not what was saved")
        if record["format"] > FORMAT:
            raise UserError(
                f"{path} has format {record['format']}, this version of jaxvsa reads up to "
                f"{FORMAT}; install a newer one"
            )
        return record

    def write(self, record: Mapping[str, Any]) -> None:
        """Replaces the record of a complete step, atomically."""
        write_atomic(self._file(record["step"]), json.dumps(record))

    @staticmethod
    def make(
        step: int, digests: Mapping[str, str], meta: Mapping[str, Any], score: float | None
    ) -> dict[str, Any]:
        """A sealed record.

        Raises:
            ValueError: the score is not finite.
        """
        if score is not None and not math.isfinite(score):
            raise ValueError(f"the score of step {step} is {score}")
        body = {"format": FORMAT, "step": step, "score": score, "digests": digests}
        return seal({**body, "user": dict(meta)})

    def _file(self, step: int) -> pathlib.Path:
        return self.folder / str(step) / META / "metadata"

    def _lost(self, step: int) -> str:
        """What the folder of a step lacks; "" if both items are there."""
        if not self._file(step).exists():
            return f"{META}/metadata is missing"
        return "" if any((self.folder / str(step) / STATE).glob("*")) else f"{STATE} is missing"


def abstract(target: trees.Tree) -> trees.Tree:
    """Shapes, dtypes and shardings; a leaf without a sharding goes to the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, target)


def compare(stored: Mapping[str, Any], target: trees.Tree, folder: pathlib.Path) -> None:
    """Refuses a checkpoint of another model: Orbax would cast dtypes without a word.

    Args:
        stored: shape and dtype of every array of the checkpoint, by path.
        target: the state that is wanted.
        folder: for the message.

    Raises:
        UserError: the first name, shape or dtype that differs.
    """
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


def verify(found: Mapping[str, str], saved: Mapping[str, str], folder: pathlib.Path) -> None:
    """Compares digests by path.

    Raises:
        CheckpointDamaged: the first array that differs.
    """
    for path in sorted(found.keys() | saved.keys()):
        if found.get(path) != saved.get(path):
            raise CheckpointDamaged(folder, f"the values of '{path}' are not what was saved")


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Names what could not be read; memory that ran out is not damage."""
    report_once()
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # TensorStore raises bare Exception for a truncated file
        raise CheckpointDamaged(path, first_line(error)) from error


@functools.cache
def report_once() -> None:
    """Leaves failures to our one line, from now on: they are raised, so nothing gets lost.

    Orbax logs each with several tracebacks, and drops reads and writes whose late answers and
    whose end print some more.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(_of_others)
    dropped = r"coroutine '.*(serialize|_write|write_fragment|_read_).*' was never awaited"
    warnings.filterwarnings("ignore", dropped, RuntimeWarning)
    report_others = sys.unraisablehook

    def report(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        theirs = code is not None and "orbax" in code.co_filename
        if not theirs and str(unraisable.exc_value) != "Event loop is closed":
            report_others(unraisable)

    sys.unraisablehook = report


def _of_others(record: logging.LogRecord) -> bool:
    """Whether asyncio speaks of anything but a dropped read or write of Orbax and TensorStore."""
    text = record.getMessage()
    theirs = any(word in text for word in ("_wrap_awaitable", "orbax"))
    return not ("exception was never retrieved" in text and theirs)


def first_line(error: BaseException) -> str:
    """Type and first line of an error's text."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a file size limit is behind the error."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    texts = ("No space left", "Disk quota exceeded", "File too large")
    return getattr(error, "errno", None) in full or any(text in str(error) for text in texts)
