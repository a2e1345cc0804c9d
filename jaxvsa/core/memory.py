"""How the C library handles the large temporary arrays of a step on CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Keeps freed memory in the process instead of giving it back after every step.

    A training step on CPU allocates its gradients and activations anew. By default glibc maps and
    unmaps them each time, and the kernel clears every page again: half a second of CPU time for
    each GB. Call it before threads are started.

    Returns:
        whether it could be done: only with glibc.
    """
    library = _glibc()
    if library is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([library.mallopt(name, value) == 1 for name, value in settings])


def give_back() -> bool:
    """Gives freed memory back once, such as what the compiler has used.

    Returns:
        whether there was any; False also without glibc.
    """
    library = _glibc()
    return library is not None and library.malloc_trim(0) == 1


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
