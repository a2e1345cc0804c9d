"""The training loop: when to evaluate, save, log and stop. It knows neither model nor data.

Order of one turn: read what is pending -> evaluate if due -> save if due or told to stop -> next
batch -> dispatch. The terms of a step are read after the next one is dispatched, so that the device
never waits for the host, except before saving: a state is saved only once its own losses were read
and found finite. Saving comes before the next batch is taken, so that the saved stream fits the
saved step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax

from jaxvsa.core.errors import UserError
from jaxvsa.systems.base import Mean
from jaxvsa.training.log import MetricsLog, Progress
from jaxvsa.training.state import State


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Section `train` of a configuration.

    Attributes:
        steps: updates of the run; 0 = as many as `epochs` need.
        epochs: passes over the train split; read only if `steps` is 0.
        batch_size: examples of one update, over all devices and micro-batches.
        accumulate: micro-batches of one update.
        eval_batch_size: examples of one evaluation batch.
        eval_every: updates between evaluations on dev; 0 = once an epoch.
        save_every: updates between further checkpoints; 0 = only with evaluations.
        log_every: updates whose mean is one row of metrics.jsonl.
        select_on: the dev metric whose best checkpoint is kept and reported; "" = the last one.
        patience: evaluations without improvement after which training stops; 0 = off.
        nonfinite: "stop" at the first gradient that is not finite, or "skip" that update.
        max_skipped: skipped updates after which the run stops all the same.
        tensorboard: also write TensorBoard event files.
        wandb: project on Weights & Biases; "" = off.
    """

    steps: int
    epochs: float
    batch_size: int
    accumulate: int
    eval_batch_size: int
    eval_every: int
    save_every: int
    log_every: int
    select_on: str
    patience: int
    nonfinite: Literal["stop", "skip"]
    max_skipped: int
    tensorboard: bool
    wandb: str

    def __post_init__(self) -> None:
        """Refuses selection on anything but dev, and sizes that cannot work."""
        if self.select_on and not self.select_on.startswith("dev/"):
            raise UserError(
                f"config.train.select_on is '{self.select_on}'; selection may only see dev: "
                "name a metric that starts with 'dev/', or '' for the last step"
            )
        if self.patience and not self.select_on:
            raise UserError("config.train.patience needs config.train.select_on to watch")
        for name in ("batch_size", "accumulate", "eval_batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"config.train.{name} is {getattr(self, name)}; 1 is the least")
        for name in ("steps", "eval_every", "save_every", "patience", "max_skipped"):
            if getattr(self, name) < 0:
                raise UserError(f"config.train.{name} is {getattr(self, name)}; 0 is the least")
        if self.steps == 0 and not 0 < self.epochs < math.inf:
            raise UserError("config.train: set steps or epochs above 0")


@dataclasses.dataclass
class Memory:
    """What the loop must remember across an interruption, beside the state.

    Attributes:
        best: best value of `select_on` so far; None before the first evaluation.
        best_step: its step.
        stale: evaluations since then.
        skipped: updates refused so far.
        window: sums (total, weight) of the unfinished row of metrics.jsonl.
        finished: no update is left to do.
        owed: the evaluation due at this step was interrupted and is still to be done.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    skipped: int = 0
    window: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    finished: bool = False
    owed: bool = False


class Interrupted(Exception):
    """An evaluation was broken off because the process is to stop."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls.

    Attributes:
        step: (state, batch) -> (state, terms); jitted, places the batch, donates the state.
        evaluate: (state) -> dev metrics; may raise `Interrupted`.
        save: (state, memory, score or None); called again for the step that was resumed from if
            an evaluation was owed there.
        rate: learning rate of an update, for the log.
        newest: step of the newest checkpoint, for messages.
        stop: whether to save and stop now; asked once a turn, the same answer on every process.
    """

    step: Callable[[State, Any], tuple[State, Mapping[str, Any]]]
    evaluate: Callable[[State], dict[str, float]]
    save: Callable[[State, Memory, float | None], None]
    rate: Callable[[int], Any]
    newest: Callable[[], int | None]
    stop: Callable[[], bool]


class Loop:
    """Runs updates until the run is done."""

    def __init__(
        self,
        options: TrainOptions,
        num_steps: int,
        eval_every: int,
        hooks: Hooks,
        log: MetricsLog,
        progress: Progress,
        memory: Memory,
    ) -> None:
        """`eval_every` is in updates, resolved; `memory` is read from the checkpoint or new."""
        self.options, self.num_steps, self.eval_every = options, num_steps, eval_every
        self.hooks, self.log, self.progress, self.memory = hooks, log, progress, memory
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._saved = -1

    def run(self, state: State, stream: Iterator[Any]) -> State:
        """Trains from `state`, whose step says where the stream stands, to the end or to a stop.

        Raises:
            UserError: a gradient was not finite (option "stop", or too many were skipped), or the
                device ran out of memory.
            Exception: whatever the stream or the evaluation raised; in a single process the last
                state is saved.
        """
        start = step = self._saved = int(state.step)
        while True:
            score, evaluated = None, False
            # What was due at the step of a checkpoint was done before it was written, or is owed.
            if (step > start or self.memory.owed) and self._due(step, self.eval_every):
                self._read()
                score, evaluated = self._evaluate(state, step)
            stop = self.hooks.stop() or self.memory.owed
            done = not self.memory.owed and (step >= self.num_steps or self._exhausted())
            due = done or stop or self._due(step, self.options.save_every)
            if evaluated or (step > start and due):
                self._save(state, step, score, done)
            if done or stop:
                return state
            state, terms = self._dispatch(state, self._next(stream, state, step))
            self._read()
            step += 1
            self._pending = (step, terms)

    def _save(self, state: State, step: int, score: float | None, done: bool) -> None:
        self._read()
        self.memory.finished = done
        self.hooks.save(state, self.memory, score)
        self._saved = step

    def _next(self, stream: Iterator[Any], state: State, step: int) -> Any:
        try:
            return next(stream)
        except Exception as error:
            self._rescue(state, step)
            error.add_note(f"while loading the batch of update {step + 1}; {self._good()}")
            raise

    def _rescue(self, state: State, step: int) -> None:
        """Saves what was done before an error that the state has no part in ends the run.

        Not with several processes: the others do not know, and all save or none.
        """
        if step > self._saved and jax.process_count() == 1:
            self._save(state, step, None, False)

    def _good(self) -> str:
        newest = self.hooks.newest()
        return "there is no checkpoint yet" if newest is None else f"step {newest} is saved"

    def _due(self, step: int, every: int) -> bool:
        """Whether step is a multiple of `every` (0 = never) or the last one."""
        return step > 0 and every > 0 and (step % every == 0 or step == self.num_steps)

    def _exhausted(self) -> bool:
        return bool(self.options.patience) and self.memory.stale >= self.options.patience

    def _dispatch(self, state: State, batch: Any) -> tuple[State, Mapping[str, Any]]:
        try:
            return self.hooks.step(state, batch)
        except jax.errors.JaxRuntimeError as error:
            raise self._memory_error(error) from error

    def _memory_error(self, error: Exception) -> Exception:
        if "RESOURCE_EXHAUSTED" not in str(error):
            return error
        options = self.options
        return UserError(
            f"out of device memory with config.train.batch_size={options.batch_size}, "
            f"accumulate={options.accumulate}: double accumulate, which leaves the result as it is"
        )

    def _read(self) -> None:
        """Fetches the terms of the last dispatched step and accounts for them."""
        if self._pending is None:
            return
        step, terms = self._pending
        self._pending = None
        try:
            terms = jax.device_get(terms)
        except jax.errors.JaxRuntimeError as error:
            raise self._memory_error(error) from error
        if not terms["finite"]:
            self._nonfinite(step)
        window, means = self.memory.window, {k: v for k, v in terms.items() if isinstance(v, Mean)}
        values = {k: (float(v.total), float(v.weight)) for k, v in means.items()}
        values["grad_norm"] = (float(terms["grad_norm"]), 1.0)
        if terms["finite"]:
            for name, (total, weight) in values.items():
                sums = window.setdefault(f"train/{name}", [0.0, 0.0])
                sums[0], sums[1] = sums[0] + total, sums[1] + weight
        self.progress.update(step, round(values["loss"][1]), means["loss"].compute())
        if step % self.options.log_every == 0 or step == self.num_steps:
            row = {k: total / weight for k, (total, weight) in window.items() if weight}
            self.log.write(step, {**row, "train/lr": float(self.hooks.rate(step - 1))})
            window.clear()

    def _nonfinite(self, step: int) -> None:
        window = self.memory.window.setdefault("train/skipped", [0.0, 1.0])
        window[0] += 1
        self.memory.skipped += 1
        if self.options.nonfinite == "stop" or self.memory.skipped > self.options.max_skipped:
            raise UserError(
                f"the gradient of update {step} is not finite, so it was not applied; "
                f"{self._good()}; "
                "lower config.optim.lr, set config.optim.clip_norm, or set "
                "config.train.nonfinite='skip' with a higher config.train.max_skipped"
            )

    def _evaluate(self, state: State, step: int) -> tuple[float | None, bool]:
        """The score, and whether the evaluation came to its end."""
        try:
            metrics = self.hooks.evaluate(state)
        except Interrupted:
            self.memory.owed = True
            return None, False
        except Exception as error:
            self.memory.owed = True
            self._rescue(state, step)
            error.add_note(f"while evaluating; {self._good()}")
            raise
        self.memory.owed = False
        self.log.write(step, metrics)
        self.progress.restart_window()
        name = self.options.select_on
        if not name:
            return None, True
        if name not in metrics:
            raise UserError(
                f"config.train.select_on is '{name}', which the evaluation does not give; "
                f"known: {sorted(metrics)}"
            )
        score = metrics[name]
        if self.memory.best is None or score > self.memory.best:
            self.memory.best, self.memory.best_step, self.memory.stale = score, step, 0
        else:
            self.memory.stale += 1
        self.progress.say(f"step {step}  {name} {score:.4f}  best {self.memory.best:.4f}")
        return score, True
