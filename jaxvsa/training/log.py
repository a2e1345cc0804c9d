"""What a run tells while it trains: metrics.jsonl, optional services, and a progress bar."""

from __future__ import annotations

import collections
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType

from rich import progress as rich_progress
from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import append_jsonl, cut_jsonl, digest_bytes

_PLAIN_EVERY_S = 10.0
_WINDOW_S = 30.0


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and copies them to the services asked for.

    A row is {"step", "time_s", metric: value, ...}; time_s counts from the start of this process,
    so that it restarts at a resume. Of several processes only the first writes.

    Raises:
        UserError: a service was asked for and its package is not installed.
    """

    def __init__(self, run: str | Path, tensorboard: bool = False, wandb: str = "") -> None:
        """Open the log; `wandb` is the project's name, "" = off."""
        self.path = Path(run) / "metrics.jsonl"
        self._start_s = time.monotonic()
        self._last_step = -1
        self._writes = distributed.is_first()
        self._tensorboard = _optional("tensorboardX") if tensorboard else None
        self._wandb = _optional("wandb") if wandb else None
        self._project = wandb
        self._sinks: list[tuple[Callable[[int, Mapping[str, float]], None], Callable[[], None]]]
        self._sinks = []
        self._opened = False

    def cut_after(self, step: int) -> None:
        """Drop rows past the restored step, because training will write them again.

        Call it at every start of a run that may have been interrupted; -1 drops all rows.
        """
        self._last_step = step
        if self._writes:
            cut_jsonl(self.path, lambda row: row["step"] <= step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row."""
        if not self._writes:
            return
        if not self._opened:  # only now is it known where a resumed run continues
            self._open_services()
        time_s = round(time.monotonic() - self._start_s, 3)
        append_jsonl(self.path, {"step": step, "time_s": time_s, **values})
        for send, _ in self._sinks:
            send(step, values)

    def close(self) -> None:
        """Flush the services; metrics.jsonl itself is complete after every write."""
        for _, finish in self._sinks:
            finish()
        self._sinks = []

    def _open_services(self) -> None:
        self._opened = True
        folder = self.path.parent
        if self._tensorboard is not None:
            writer = self._tensorboard.SummaryWriter(
                str(folder / "tensorboard"), purge_step=self._last_step + 1
            )

            def send_tensorboard(step: int, values: Mapping[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            self._sinks.append((send_tensorboard, writer.close))
        if self._wandb is not None:
            run = self._wandb.init(
                project=self._project,
                name=folder.name,
                id=digest_bytes(str(folder.resolve()).encode()),
                dir=str(folder),
                resume="allow",
            )
            # Rows repeated after a resume would be refused by W&B's own step, which only grows.
            run.define_metric("*", step_metric="step")
            self._sinks.append((lambda step, values: run.log({"step": step, **values}), run.finish))


def _optional(package: str) -> ModuleType:
    """Import a package of the `logging` extra."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{package} is not installed; install it with: pip install 'jaxvsa[logging]'"
        ) from error


class Progress:
    """A bar with loss, samples/s and time left; plain lines where stdout is no terminal.

    A console that is quiet gets neither.

    The rate is measured over the last 30 seconds and never contains the first update, which
    waited for compilation. It takes floats the caller has read already, so it never waits for a
    device. Use it as a context manager.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a bar of `total` steps, of which `start` were done before this process."""
        self._total = total
        self._console = console or Console(highlight=False)
        self._enabled = enabled and not self._console.quiet
        self._clock = clock
        self._samples = 0
        self._window: collections.deque[tuple[float, int, int]] = collections.deque()
        self._line = ""
        self._last_line_s = clock()
        self._bar: rich_progress.Progress | None = None
        if self._enabled and self._console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("step {task.completed}/{task.total}"),
                rich_progress.BarColumn(bar_width=None),
                rich_progress.TextColumn("{task.fields[text]}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("train", total=total, completed=start, text="compiling")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._line:
            self._print_line()

    @property
    def samples_per_s(self) -> float | None:
        """Recent rate; None until two updates were seen."""
        return self._rates()[1]

    def update(self, step: int, num_samples: int, loss: float) -> None:
        """Report that `step` steps are done, the last `num_samples` examples among them."""
        now_s = self._clock()
        self._samples += num_samples
        self._window.append((now_s, step, self._samples))
        while len(self._window) > 2 and now_s - self._window[1][0] > _WINDOW_S:
            self._window.popleft()
        if not self._enabled:
            return
        text = self._describe(step, loss)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            return
        self._line = f"step {step}/{self._total}  {text}"
        if now_s - self._last_line_s >= _PLAIN_EVERY_S or step >= self._total:
            self._print_line()

    def restart_window(self) -> None:
        """Forget the recent past, after an evaluation or whatever else was no training."""
        self._window.clear()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, soft_wrap=True)

    def _rates(self) -> tuple[float | None, float | None]:
        """(steps/s, samples/s) between the oldest and the newest update of the window."""
        if len(self._window) < 2:
            return None, None
        (first_s, first_step, first), (last_s, last_step, last) = self._window[0], self._window[-1]
        elapsed_s = max(last_s - first_s, 1e-9)
        return (last_step - first_step) / elapsed_s, (last - first) / elapsed_s

    def _describe(self, step: int, loss: float) -> str:
        parts = [f"loss {loss:.4f}"]
        steps_per_s, samples_per_s = self._rates()
        if steps_per_s and samples_per_s:
            left_s = (self._total - step) / steps_per_s
            parts += [f"{samples_per_s:.1f} samples/s", f"{clock_time(left_s)} left"]
        return "  ".join(parts)

    def _print_line(self) -> None:
        self.say(self._line)
        self._line = ""
        self._last_line_s = self._clock()


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds: 3725 -> "1:02:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
