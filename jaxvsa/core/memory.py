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


def one_step_at_a_time() -> None:
    """On CPU a call of a compiled function returns when it is done.

    A step dispatched while the one before still runs gets temporary arrays of its own, so that
    memory holds two sets of them now and then; it does not start any sooner. Call it before JAX
    looks at its devices.
    """
    import jax  # doors that only print their help do not wait for it

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
