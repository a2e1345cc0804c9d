import platform
import subprocess
import sys

import pytest

from jaxvsa.core import memory

SCRIPT = """
import resource, sys, threading
from jaxvsa.core.memory import keep_freed
import numpy as np

if sys.argv[1] == "keep":
    assert keep_freed()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def fill():
        np.empty(64 << 20, np.uint8).fill(1)
    for _ in range(4):
        thread = threading.Thread(target=fill)  # XLA allocates in threads of its own
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_without_page_faults():
    def count(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert count("keep") < count("default") / 4


GIVING = """
import numpy as np
from jaxvsa.core.memory import give_back, keep_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed()
np.full(256 << 20, 1, np.uint8)
kept = resident()
assert give_back()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_can_be_given_back():
    command = [sys.executable, "-c", GIVING]
    freed = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert freed > 250 << 20


AT_A_TIME = """
from jaxvsa.core.memory import one_step_at_a_time

one_step_at_a_time()
import jax, jax.numpy as jnp
slow = jax.jit(lambda x: jax.lax.fori_loop(0, 30, lambda _, y: jnp.tanh(y @ x), x))
x = jnp.ones((1000, 1000)) / 1000
slow(x).block_until_ready()
print(slow(x).is_ready())
"""


def test_a_call_returns_when_it_is_done():
    command = [sys.executable, "-c", AT_A_TIME]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"
    without = [sys.executable, "-c", AT_A_TIME.replace("\none_step_at_a_time()", "")]
    assert subprocess.run(without, check=True, capture_output=True, text=True).stdout == "False\n"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert memory.keep_freed() is False
    assert memory.give_back() is False
