"""Options of the compiler: known ones are used, unknown ones are left out."""

import jax
import jax.numpy as jnp
import pytest

from jaxvsa.core import compiler


@pytest.fixture(autouse=True)
def asked_anew():
    compiler.step_options.cache_clear()
    yield
    compiler.step_options.cache_clear()


def test_options_of_a_step_on_cpu_are_accepted():
    options = compiler.step_options()
    assert set(options) == {"xla_cpu_scheduler_type"}
    assert jax.jit(lambda x: x + 1, compiler_options=options)(jnp.ones(())) == 2


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "_FRUGAL", {"xla_cpu_of_another_day": "1"})
    assert compiler.step_options() == {}


def test_other_devices_get_no_options_of_the_cpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.step_options() == {}
