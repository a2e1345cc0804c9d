"""Checkpoints that are complete or do not count, and are what was saved or raise.

A folder holds one sub-folder per step, named by its number, with two Orbax items: `state`, the
arrays, and `meta`, one JSON record: `format`, `step`, `score`, `user` (whatever the caller needs
to resume) and `digests`, a CRC-32 per array, with `crc`, that of the record itself. Nothing in it
depends on devices: any mesh, one process or several, can read it.

What can go wrong in a run, what happens, and the test that makes it happen. "Resumes" means: the
same command goes on, and parameters, metrics and results end up as without the fault, bit for bit.

    SIGTERM or Ctrl-C: the update is finished and saved; exit code 0 or 130; resumes
        test_signal_saves_the_step_and_exits
    ... while evaluating, saving, reporting: what is due is made up for; resumes
        test_sigterm_outside_of_updates_loses_nothing
    ... to one of several processes: all stop at the same update
        test_processes_stop_at_the_same_step_when_one_is_told
        test_sigterm_to_one_of_two_processes_stops_both
    SIGKILL, also during a save: a half-written folder does not count; resumes
        test_sigkill_resumes_from_the_last_complete_checkpoint
    killed before the first checkpoint: resumes at step 0
        test_end_before_the_first_checkpoint_begins_again
    file cut or lost, byte flipped, folder empty: falls back, resumes
        test_damaged_newest_falls_back_loudly_and_is_moved_aside
        test_damaged_newest_checkpoint_is_trained_again
    every checkpoint damaged: one line; nothing is moved or begun
        test_nothing_begins_anew_when_every_checkpoint_is_damaged
    best checkpoint damaged or lost: one line from `evaluate` and `predict`
        test_best_checkpoint_is_never_replaced_by_another
    no space left: one line at the next save; what was complete stays; resumes
        test_no_space_left_is_one_line_and_resumes
    feature record changed after `prepare`: one line at the start, naming the file
        test_corrupt_feature_record_is_named_and_not_trained_on
    batch cannot be loaded: the error, after the last update was saved; resumes
        test_dying_data_worker_ends_the_run_at_its_step
    gradient not finite: one line, or skipped and counted; never saved
        test_nonfinite_gradient_never_reaches_a_checkpoint
    record of a newer format, another model: one line
        test_another_model_is_no_damage

"Falls back" means: `restore_newest` goes on from the newest checkpoint that is what was saved. It
says so on stderr and moves the damaged ones to `<step>.damaged`, where they stay until that step is
saved again. So two of the newest are kept, and the best up to each of them: three checkpoints at
most and a fourth while it is written. `evaluate` and `predict` never fall back by themselves.
(Orbax 0.12.8 by itself returns wrong values for a flipped byte.)
"""

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.integrity import (
    META,
    STATE,
    CheckpointDamaged,
    Records,
    abstract,
    compare,
    first_line,
    is_full,
    reading,
    report_once,
    verify,
)
from jaxvsa.core.retention import Retention

DAMAGED = ".damaged"


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, the newest and the best are kept.

    Only `save`, `amend` and `restore_newest` change anything on the disk, so a run that is still
    training can be evaluated. With several processes all of them make the same calls.

    Attributes:
        folder: holds one sub-folder per step.
    """

    def __init__(
        self, folder: str | pathlib.Path, keep_newest: int = 2, keep_best: int = 1
    ) -> None:
        """The folder need not exist.

        Args:
            folder: see the class.
            keep_newest: how many of the newest checkpoints stay, at least 1; with 1 there is
                nothing to fall back to.
            keep_best: how many of those with the highest scores stay besides; see `Retention`.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._records = Records(self.folder)
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
        if step in self.steps():
            raise ValueError(f"step {step} is already saved in {self.folder}")
        for path, leaf in trees.named(state).items():
            if jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True) != leaf.dtype:
                raise ValueError(f"'{path}' is {leaf.dtype}, which JAX would restore as 32 bit")
        record = self._records.make(step, trees.digests(state), meta, score)
        self._retention.scores = {**self._records.scores(), step: score}
        self._saving = step
        with self._saving_guard():
            manager = self._open_manager()
            self._clear(step)
            manager.reload()  # the disk decides which steps exist, also after a failed save
            items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(record)}
            manager.save(step, args=ocp.args.Composite(**items), force=True)

    def amend(self, step: int, meta: Mapping[str, Any], score: float | None) -> None:
        """Replaces the record of a complete checkpoint, atomically; its arrays stay.

        Raises:
            UserError: no such step, or the disk is full; the old record is still there.
            CheckpointDamaged: the old record is not what was saved.
            ValueError: the score is not finite.
        """
        self.wait()
        digests = self._records.read(step)["digests"]
        record = self._records.make(step, digests, meta, score)
        if jax.process_index() == 0:
            self._records.write(record)
        _meet(f"amended {step}")

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
        """Steps with both items, ascending, whether intact or not; none that is being written."""
        return self._records.complete()

    def newest(self) -> int | None:
        """The last step, None if nothing was ever saved.

        Raises:
            CheckpointDamaged: an item of it is missing, or its record is not what was saved.
        """
        step = max(self._records.numbers(), default=None)
        if step is not None:
            self._records.read(step)
        return step

    def read_meta(self, step: int) -> dict[str, Any]:
        """What was given to `save` as `meta`; tuples come back as lists.

        Raises:
            UserError: no such step, or a format newer than this version reads.
            CheckpointDamaged: an item is missing, or the record is not what was saved.
        """
        return self._records.read(step)["user"]

    def restore_newest(self, target: trees.Tree) -> tuple[int, trees.Tree, dict[str, Any]] | None:
        """The newest checkpoint that is what was saved; damaged ones are moved aside, loudly.

        Args:
            target: as for `restore`.

        Returns:
            Step, state and `meta`; None if nothing was ever saved.

        Raises:
            UserError: every checkpoint is damaged: nothing is moved, and a run must not begin
                anew without a word. Or as `restore`.
        """
        damaged = []
        for step in reversed(self._records.numbers()):
            try:
                self._agree_on(step)
                meta, state = self.read_meta(step), self.restore(step, target)
            except CheckpointDamaged as error:
                damaged.append(error)
                continue
            for found in damaged:
                self._move_aside(found, step)
            return step, state, meta
        if damaged or any(self.folder.glob(f"*{DAMAGED}")):
            why = f": step {damaged[0].folder.name}, {damaged[0].why}" if damaged else ""
            raise UserError(
                f"no checkpoint in {self.folder} is what was saved{why}; restore one from a copy, "
                "or delete the folder to train from the start"
            )
        return None

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
        compare(trees.named(stored), target, folder)
        with reading(folder), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            state = reader.restore(folder, args=ocp.args.StandardRestore(abstract(target)))
        verify(trees.digests(state), digests, folder)
        return state

    def restore_raw(self, step: int, parts: Sequence[str] | None = ("learn",)) -> dict[str, Any]:
        """Top-level parts of the state as nested dicts of numpy arrays; needs no target.

        Positions in tuples and lists become keys "0", "1", ...; typed keys come as key data. Each
        process reads for itself.

        Args:
            step: one of `steps()`.
            parts: their names; None is all of them.

        Raises:
            UserError: no such step or part.
            CheckpointDamaged: these parts are not what was saved; the others are not looked at.
        """
        folder, digests, stored = self._open_state(step)
        parts = list(stored) if parts is None else parts
        if unknown := [part for part in parts if part not in stored]:
            raise UserError(f"{folder} has no part '{unknown[0]}'; it has {sorted(stored)}")
        item = {part: stored[part] for part in parts}
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=to_numpy, partial_restore=True)
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with (
            reading(folder),
            ocp.Checkpointer(handler, multiprocessing_options=alone) as reader,
        ):
            state = reader.restore(folder, args=args)
        wanted = {path: crc for path, crc in digests.items() if path.split("/")[0] in parts}
        verify(trees.digests(state), wanted, folder)
        return trees.nest(trees.named(state))

    def _open_state(self, step: int) -> tuple[pathlib.Path, dict[str, str], dict[str, Any]]:
        """Folder of the arrays, their digests, and their shapes and dtypes as a tree."""
        digests = self._records.read(step)["digests"]
        folder = self.folder / str(step) / STATE
        with reading(folder):
            stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            names = trees.named(stored).keys()
        if lost := sorted(names ^ digests.keys()):
            raise CheckpointDamaged(folder, f"'{lost[0]}' is in only one of its lists of arrays")
        return folder, digests, stored

    def _agree_on(self, step: int) -> None:
        """With several processes: all of them find damage, or none.

        One that fails alone while arrays are read together would leave the others waiting.
        """
        if jax.process_count() == 1:
            return
        found = None
        try:
            self.restore_raw(step, None)
        except CheckpointDamaged as error:
            found = error
        if np.any(multihost_utils.process_allgather(np.array(found is not None))):
            folder = self.folder / str(step)
            raise found or CheckpointDamaged(folder, "another process cannot read it")

    def _move_aside(self, damage: CheckpointDamaged, step: int) -> None:
        """Renames a damaged folder and says that training goes on from `step`."""
        aside = damage.folder.with_name(damage.folder.name + DAMAGED)
        if jax.process_index() == 0:
            try:
                shutil.rmtree(aside, ignore_errors=True)
                damage.folder.rename(aside)
            except OSError as error:
                raise UserError(
                    f"{damage.folder} is damaged ({damage.why}) and cannot be moved to {aside.name}"
                    f" ({error.strerror}); repair the folder, then run the same command"
                ) from error
            print(
                f"WARNING: {damage.folder} is damaged ({damage.why}); moved to {aside.name}, "
                f"training goes on from step {step}",
                file=sys.stderr,
            )
        _meet(f"moved {damage.folder}")

    def _open_manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            report_once()
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

    def _clear(self, step: int) -> None:
        """Removes what stands in the way of a step: `save` has seen that it is not complete."""
        if jax.process_index() == 0:
            for name in (f"{step}", f"{step}{DAMAGED}"):
                if (self.folder / name).exists():
                    shutil.rmtree(self.folder / name)
        _meet(f"cleared {step}")

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
            why = "no space left" if is_full(error) else first_line(error)
            raise UserError(
                f"{why}: saving step {step} to {self.folder} failed; complete checkpoints: "
                f"{self.steps()}; free space or repair the folder, then run the same command"
            ) from error


def _meet(where: str) -> None:
    """Lets several processes wait for each other."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
