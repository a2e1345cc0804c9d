"""Signals: noted where something is at stake, raised elsewhere, agreed on by all processes."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from jaxvsa.core.signals import Interrupts

pytestmark = pytest.mark.smoke


def send(number):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(
    ("number", "error", "name"),
    [(signal.SIGTERM, SystemExit, "SIGTERM"), (signal.SIGINT, KeyboardInterrupt, "SIGINT")],
)
def test_signal_is_noted_while_waiting_and_ends_the_process_on_leave(number, error, name):
    before, lines = handlers(), []
    interrupts = Interrupts(lines.append)
    with pytest.raises(error) as caught, interrupts, interrupts.waiting():
        assert not interrupts.poll()
        send(number)
        assert interrupts.poll() and interrupts.poll()
        assert lines == []
        interrupts.leave("at step 7")
    assert lines == [f"stopped by {name} at step 7; the same command resumes"]
    assert getattr(caught.value, "code", 0) == 0
    assert handlers() == before


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signal_raises_where_nothing_is_at_stake(number, error):
    lines = []
    with pytest.raises(error), Interrupts(lines.append):
        send(number)
        pytest.fail("the signal was not raised")
    assert lines == [f"stopped by {number.name} at once; the same command resumes"]


def test_second_ctrl_c_does_not_wait_and_a_second_sigterm_does():
    with Interrupts(print) as interrupts, interrupts.waiting():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupts.poll()
    with Interrupts(print) as interrupts, interrupts.waiting():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_error_of_another_kind_is_not_called_a_stop():
    lines = []
    with pytest.raises(KeyError), Interrupts(lines.append):
        raise KeyError
    assert lines == []


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(print) as interrupts, interrupts.waiting():
            send(signal.SIGINT)
            assert not interrupts.poll()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_signals_alone():
    before, found = handlers(), []

    def work():
        with Interrupts(print):
            found.extend(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before


TWO_PROCESSES = """
import os, signal, sys
import jax, jax.numpy as jnp
port, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"localhost:{port}", 2, index)
from jaxvsa.core.signals import Interrupts
with Interrupts(print) as interrupts, interrupts.waiting():
    for step in range(20):
        if index == 1 and step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if interrupts.poll():
            interrupts.leave(f"at step {step}")
"""


def test_processes_stop_at_the_same_step_when_one_is_told():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, port, index],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in "01"
    ]
    want = "stopped by SIGTERM at step 6; the same command resumes"
    try:
        for output, errors in [process.communicate(timeout=120) for process in processes]:
            assert output.splitlines()[-1:] == [want], errors
        assert [process.returncode for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
