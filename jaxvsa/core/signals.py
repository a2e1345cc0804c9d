"""SIGTERM and Ctrl-C: a wish that is granted between two updates, by all processes at the same one.

SIGTERM is what schedulers send before they take a machine away; it ends with exit code 0. Ctrl-C
(SIGINT) ends with 130, and pressed a second time it does not wait for anything. Orbax and JAX only
know the first, and only after `jax.distributed.initialize`.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """While this is entered, the two signals end the process in order.

    Where nothing is at stake they raise at once: `SystemExit` with code 0, or `KeyboardInterrupt`.
    Within `waiting` they are only noted; the caller asks with `poll`, saves, and calls `leave`. A
    second SIGTERM changes nothing, so that what is being saved is finished; a second SIGINT raises.

    Outside the main thread, where Python handles no signals, nothing happens. A signal that the
    process was told to ignore (`nohup`) stays ignored.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        """`say` prints the one line that tells how it ended."""
        self._say = say
        self._told = 0  # the signal this process got; 0 = none
        self._agreed = 0  # what all processes know of
        self._sent: jax.Array | None = None
        self._waiting = False
        self._raised: BaseException | None = None
        self._where = "at once"
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None is a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if error is not None and error is self._raised:
            name = signal.Signals(self._told or self._agreed).name
            self._say(f"stopped by {name} {self._where}; the same command resumes")

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Signals are noted instead of raised."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def poll(self) -> bool:
        """Whether to stop; all processes must ask equally often, and get the same answers.

        One process: without any wait. Several: what was known at the call before, so that the
        exchange runs beside the computation and nothing waits for it.
        """
        if jax.process_count() == 1:
            self._agreed = self._told
        else:
            before, self._sent = self._sent, _highest(self._told)
            self._agreed = 0 if before is None else int(before)
        return self._agreed != 0

    def leave(self, where: str) -> None:
        """Ends the process because `poll` said so.

        Args:
            where: for the message: "at step 7".

        Raises:
            SystemExit: code 0, after SIGTERM.
            KeyboardInterrupt: after SIGINT.
        """
        self._where = where
        self._raise(self._agreed)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self._told == number == signal.SIGINT
        self._told = self._told or number
        if again or not self._waiting:
            self._raise(number)

    def _raise(self, number: int) -> None:
        self._raised = SystemExit(0) if number == signal.SIGTERM else KeyboardInterrupt()
        raise self._raised


def _highest(value: int) -> jax.Array:
    """The highest `value` of all processes, on its way."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "d"), P("d"))
    mine = np.full(jax.local_device_count(), value, np.int32)
    return _largest(sharding)(jax.make_array_from_process_local_data(sharding, mine))


@functools.cache
def _largest(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.max, out_shardings=NamedSharding(sharding.mesh, P()))
