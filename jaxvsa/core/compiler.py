"""What the compiler is told about a training step."""

import functools

import jax

_FRUGAL = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@functools.cache
def step_options() -> dict[str, str]:
    """Compiler options of a training step: on CPU, operations in an order that needs less memory.

    Otherwise XLA makes the zeros that gradients are added to long before it needs them. None where
    the compiler does not know the option: it belongs to one compiler, not to JAX.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_FRUGAL).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(_FRUGAL)
