"""Running a task over batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.mesh import MeshOptions, make_mesh
from jaxvsa.evaluation import evaluator
from jaxvsa.metrics.confusion import Confusion
from jaxvsa.systems.base import System, Task

pytestmark = pytest.mark.smoke

NAMES = {"opinion": ("positive", "neutral", "negative")}


def _system(traces):
    """Logits are rows of a table: what the test expects can be read off."""

    def outputs(params, batch):
        traces.append(batch["row_b"].shape)
        return {"logits_bc": batch["logits_bc"] * params["scale"], "row_b": batch["row_b"]}

    def measure(found, batch):
        count = Confusion.from_batch(found["logits_bc"], batch["label_b"], batch["valid_b"])
        return {"opinion": count}

    task = Task(outputs=outputs, measure=measure)
    return System(
        name="lookup",
        fields={},
        init=lambda rng, batch: {},
        loss=lambda params, batch, rng: {},
        tasks={"classify": task},
        tables={"logits_bc": ("logits", "row_b")},
    )


def _batches(num, size, label_n, order=None):
    """`num` examples, in `order` if one is given, the last batch padded with example 0."""
    order = np.arange(num) if order is None else order
    for start in range(0, num, size):
        valid_b = np.arange(start, start + size) < num
        row_b = np.zeros(size, np.int32)
        row_b[valid_b] = order[start : start + size]
        fields = {"row_b": row_b, "label_b": label_n[row_b], "valid_b": valid_b}
        yield fields | {"index_b": row_b}


def _run(num, size, devices=1, traces=None, order=None):
    rng = np.random.default_rng(0)
    logits_nc = rng.normal(size=(num, 3)).astype(np.float32)
    label_n = rng.integers(3, size=num).astype(np.int32)
    system = _system([] if traces is None else traces)
    found, states = evaluator.run(
        system,
        system.tasks["classify"],
        {"scale": jnp.float32(-1.0)},
        {"logits": jnp.asarray(logits_nc)},
        _batches(num, size, label_n, order),
        make_mesh(MeshOptions(data=devices, fsdp=1, tensor=1, step="jit")),
    )
    return found, states, logits_nc, label_n


def test_run_counts_every_example_once_and_keeps_the_order():
    found, states, logits_nc, label_n = _run(num=10, size=4)
    np.testing.assert_array_equal(found["row_b"], np.arange(10))
    np.testing.assert_array_equal(found["logits_bc"], -logits_nc)
    assert set(found) == {"row_b", "logits_bc"}
    want = Confusion.from_labels(label_n, logits_nc.argmin(axis=1), 3)
    np.testing.assert_array_equal(states["opinion"].counts_cc, want.counts_cc)


def test_run_restores_the_order_of_the_examples():
    order = np.array([7, 2, 9, 0, 4, 1, 8, 3, 6, 5])
    found, states, *_ = _run(num=10, size=4, order=order)
    want, counted, *_ = _run(num=10, size=4)
    np.testing.assert_array_equal(found["row_b"], np.arange(10))
    np.testing.assert_array_equal(found["logits_bc"], want["logits_bc"])
    np.testing.assert_array_equal(states["opinion"].counts_cc, counted["opinion"].counts_cc)


@pytest.mark.parametrize("size,devices", [(12, 1), (4, 2), (4, 4)])
def test_run_does_not_depend_on_batch_size_or_devices(size, devices):
    found, states, *_ = _run(num=10, size=4)
    again, states_again, *_ = _run(num=10, size=size, devices=devices)
    np.testing.assert_array_equal(found["logits_bc"], again["logits_bc"])
    np.testing.assert_array_equal(states["opinion"].counts_cc, states_again["opinion"].counts_cc)


def test_run_compiles_once_for_all_batches_of_one_shape():
    traces: list[tuple[int, ...]] = []
    _run(num=20, size=4, traces=traces)
    assert traces == [(4,)]


def test_run_reads_a_batch_only_after_the_next_was_dispatched(monkeypatch):
    events = []
    step, read = evaluator.evaluation_step, evaluator._valid_rows
    monkeypatch.setattr(
        evaluator, "evaluation_step", lambda *args: (events.append("dispatch"), step(*args))[1]
    )
    monkeypatch.setattr(
        evaluator, "_valid_rows", lambda fetched: (events.append("read"), read(fetched))[1]
    )
    _run(num=12, size=4)
    assert events == ["dispatch", "dispatch", "read", "dispatch", "read", "read"]


def test_an_output_may_have_the_name_of_a_batch_field():
    system = _system([])
    task = Task(
        outputs=lambda params, batch: {"valid_b": batch["row_b"]}, measure=lambda found, batch: {}
    )
    mesh = make_mesh(MeshOptions(data=1, fsdp=1, tensor=1, step="jit"))
    tables = {"logits": jnp.zeros((10, 3))}
    batches = _batches(10, 4, np.zeros(10, np.int32))
    found, _ = evaluator.run(system, task, {}, tables, batches, mesh)
    np.testing.assert_array_equal(found["valid_b"], np.arange(10))


def test_run_refuses_an_empty_split():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        _run(num=0, size=4)


def test_flat_metrics_are_named_by_split_task_and_class():
    state = Confusion(np.array([[1, 1, 0], [0, 2, 0], [1, 0, 0]], np.int32))
    flat = evaluator.flat_metrics({"opinion": state}, "dev", NAMES)
    assert flat["dev/opinion/micro_f1"] == 0.6
    assert flat["dev/opinion/f1/positive"] == 0.5
    assert flat["dev/opinion/f1/neutral"] == 0.8
    assert flat["dev/opinion/support/negative"] == 1
    assert all(name.startswith("dev/opinion/") for name in flat)
    assert {type(value) for value in flat.values()} <= {float, int}
