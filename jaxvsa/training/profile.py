"""Traces a few updates of a run and says where their time went."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxvsa.core import distributed, trace
from jaxvsa.core.errors import UserError

PROGRAM = "update"  # name of the jitted step
Step = Callable[[Any, Any], Any]


def parse_span(text: str, num_steps: int) -> tuple[int, int] | None:
    """First and last update of `config.profile`, both included, counted from 1; None for "".

    Raises:
        UserError: not as "10:20", or not within the run.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise UserError(f"config.profile is '{text}'; it must be FIRST:LAST, as 10:20, or ''")
    first, last = int(found[1]), int(found[2])
    if not 1 <= first <= last <= num_steps:
        raise UserError(
            f"config.profile is '{text}', but the updates of this run are 1 to {num_steps}; "
            "choose a first and a last one among them"
        )
    return first, last


class Profile:
    """Stands between the loop, its stream and its step; traces from one update to another.

    The trace begins and ends with an idle device, so that it holds whole updates. What happens
    between them, evaluations and checkpoints, is part of it. Of several processes the first one
    traces, its own devices.
    """

    def __init__(
        self, span: tuple[int, int], done: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        """Prepare; nothing is traced before the first update of `span`.

        Args:
            span: from `parse_span`.
            done: updates before this process; nothing is traced if they reach into the span.
            folder: of the trace.
            say: prints a line.
        """
        self._first, self._last = span
        self._done, self._folder, self._say = done, folder, say
        self._outputs: Any = None
        self._running = False
        self._wanted = distributed.is_first()
        if done >= self._first and self._wanted:
            self._wanted = False
            say(f"config.profile: update {self._first} is done already; nothing is traced")

    def stream(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the wait for each of them is marked."""
        while True:
            if self._done + 1 == self._first and self._wanted:
                self._start()
            with jax.profiler.TraceAnnotation(trace.INPUT_MARK):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def step(self, call: Step) -> Step:
        """The same step; its dispatch is marked, and the last one of the span is waited for."""

        def marked(state: Any, batch: Any) -> Any:
            number = self._done + 1
            with jax.profiler.StepTraceAnnotation(trace.UPDATE_MARK, step_num=number):
                self._outputs = call(state, batch)
            self._done = number
            if self._running and number == self._last:
                with jax.profiler.TraceAnnotation(trace.WAIT_MARK):
                    jax.block_until_ready(self._outputs)
                self._stop()
                self._report()
            return self._outputs

        return marked

    def close(self) -> None:
        """Ends a trace whose last update did not come."""
        if self._running:
            self._stop()
            self._say(f"config.profile: stopped before update {self._last}; see {self._folder}")

    def _start(self) -> None:
        jax.block_until_ready(self._outputs)
        shutil.rmtree(self._folder, ignore_errors=True)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # what Python does would fill the trace
        options.host_tracer_level = 1
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
        self._running = True

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def _report(self) -> None:
        found = trace.shares(trace.read_trace(self._folder, PROGRAM))
        count = self._last - self._first + 1
        for line in table(found, count):
            self._say(line)
        self._say(
            f"updates {self._first} to {self._last}; tracing itself costs time. The trace, for "
            f"https://ui.perfetto.dev: {self._folder}"
        )


def table(seconds: dict[str, float], count: int) -> list[str]:
    """Lines: where the time of an update goes, by kind of work, most first."""
    total = sum(seconds.values())
    rows = [("where the time of an update goes", total), *seconds.items()]
    return [
        f"{name:<34}{1e3 * value / count:>10.2f} ms {100 * value / total:>6.1f} %"
        for name, value in rows
    ]


@contextlib.contextmanager
def profiled(
    span: tuple[int, int] | None,
    done: int,
    folder: Path,
    say: Callable[[str], None],
    step: Step,
    stream: Iterator[Any],
) -> Iterator[tuple[Step, Iterator[Any]]]:
    """What the loop shall use for `step` and `stream`: themselves, or traced ones.

    Args:
        span: from `parse_span`; None traces nothing and adds nothing.
        done: updates before this process.
        folder: where the trace goes.
        say: prints a line.
        step: (state, batch) -> (state, terms).
        stream: of batches.
    """
    if span is None:
        yield step, stream
        return
    profile = Profile(span, done, folder, say)
    try:
        yield profile.step(step), profile.stream(stream)
    finally:
        profile.close()
