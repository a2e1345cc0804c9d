"""How the C library handles the large temporary arrays of a step on CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Keeps freed memory in the process instead of giving it back after every step.

    A training step on CPU allocates its gradients and activations anew. By default glibc maps and
    unmaps them each time, and the kernel clears every page again: half a second of CPU time for
    each GB. Resident memory stays at its peak instead. Call it before threads are started.

    Returns:
        whether it could be done: only with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([library.mallopt(name, value) == 1 for name, value in settings])
