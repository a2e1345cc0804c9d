"""Running a task over batches."""

import dataclasses

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
        ["classify"],
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
    task = Task(
        outputs=lambda params, batch: {"valid_b": batch["row_b"]}, measure=lambda found, batch: {}
    )
    system = dataclasses.replace(_system([]), tasks={"name": task})
    mesh = make_mesh(MeshOptions(data=1, fsdp=1, tensor=1, step="jit"))
    tables = {"logits": jnp.zeros((10, 3))}
    batches = _batches(10, 4, np.zeros(10, np.int32))
    found, _ = evaluator.run(system, ["name"], {}, tables, batches, mesh)
    np.testing.assert_array_equal(found["valid_b"], np.arange(10))


def test_what_tasks_share_is_computed_once_and_given_to_each():
    shared, asked = [], []

    def begin(params, batch):
        shared.append(batch["logits_bc"].shape)
        return {"doubled_bc": 2 * batch["logits_bc"] * params["scale"]}

    def task(name):
        def outputs(params, batch):
            asked.append(name)
            return {name: batch["doubled_bc"].sum(axis=1), f"{name}_row": batch["row_b"]}

        def measure(found, batch):
            scores_bc = jnp.stack([jnp.zeros_like(found[name]), found[name]], axis=1)
            return {name: Confusion.from_batch(scores_bc, batch["label_b"], batch["valid_b"])}

        return Task(outputs, measure)

    tasks = {name: task(name) for name in ("one", "two", "not asked")}
    system = dataclasses.replace(_system([]), tasks=tasks, shared=begin)
    logits_nc = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    tables, params = {"logits": jnp.asarray(logits_nc)}, {"scale": jnp.float32(-1.5)}
    order = np.array([7, 2, 9, 0, 4, 1, 8, 3, 6, 5])
    batches = _batches(10, 4, np.zeros(10, np.int32), order)
    mesh = make_mesh(MeshOptions(data=2, fsdp=1, tensor=1, step="jit"))
    found, states = evaluator.run(system, ["two", "one"], params, tables, batches, mesh)
    assert shared == [(4, 3)] and asked == ["two", "one"]
    assert set(found) == {"one", "two", "one_row", "two_row"} and set(states) == {"one", "two"}
    want = -3 * logits_nc.sum(axis=1)
    for name in ("one", "two"):
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[f"{name}_row"], np.arange(10))
        assert states[name].counts_cc[0].tolist() == [sum(want <= 0), sum(want > 0)]


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
