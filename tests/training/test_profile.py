"""config.profile: which updates are traced, what is said, and that nothing happens without it."""

import jax
import jax.numpy as jnp
import pytest

from jaxvsa.core import trace
from jaxvsa.core.errors import UserError
from jaxvsa.training.profile import parse_span, profiled, table


@jax.jit
def update(state, batch):
    """Far longer than its dispatch: some of it is left over if nobody waits."""
    for _ in range(20):
        state = jnp.tanh(state @ batch)
    return state, jnp.sum(batch)


def train(folder, span, steps, done=0):
    """Lines that were said during `steps` updates."""
    said, state = [], jnp.ones((500, 500))
    stream = iter([jnp.full((500, 500), 1e-3)] * steps)
    with profiled(span, done, folder, said.append, update, stream) as (step, feed):
        for batch in feed:
            state, _ = step(state, batch)
    return said


@pytest.mark.smoke
def test_span():
    assert parse_span("", 5) is None
    assert parse_span("10:20", 20) == (10, 20)
    assert parse_span("3:3", 3) == (3, 3)


@pytest.mark.smoke
@pytest.mark.parametrize("text", ["10", "a:b", "10-20", ":", "1:2:3", "-1:2", "10:20 "])
def test_span_that_is_none(text):
    with pytest.raises(UserError, match=r"config.profile is .*must be FIRST:LAST, as 10:20, or ''"):
        parse_span(text, 100)


@pytest.mark.parametrize("text", ["20:10", "0:3", "10:21", "21:22"])
def test_span_outside_of_the_run(text):
    with pytest.raises(UserError, match=f"config.profile is '{text}'.* this run are 1 to 20"):
        parse_span(text, 20)


def test_off_changes_nothing(tmp_path):
    stream = iter([])
    with profiled(None, 0, tmp_path / "profile", print, update, stream) as found:
        assert found[0] is update and found[1] is stream
    assert not list(tmp_path.iterdir())


def test_traces_whole_updates_of_the_span_and_says_where_the_time_went(tmp_path):
    said = train(tmp_path, (2, 4), steps=6)
    assert said[0].startswith("where the time of an update goes")
    assert any(line.startswith(trace.MATRIX) for line in said)
    assert "updates 2 to 4" in said[-1] and str(tmp_path) in said[-1]
    found = trace.read_trace(tmp_path, "update")
    order = [mark.kind for mark in sorted(found.marks, key=lambda mark: mark.start)]
    assert order == [trace.INPUT_MARK, trace.UPDATE_MARK] * 3 + [trace.WAIT_MARK]
    first, last = (min(m.start for m in found.marks), max(m.end for m in found.marks))
    work = [span for spans in found.devices.values() for span in spans]
    assert work and all(first <= span.start and span.end <= last for span in work)
    products = sum(span.kind == trace.MATRIX for span in work)
    assert products == 3 * 20
    assert list(tmp_path.glob("plugins/profile/*/*.trace.json.gz"))


def test_resumed_within_the_span_or_ended_before_its_end(tmp_path):
    (line,) = train(tmp_path / "a", (2, 4), steps=3, done=2)
    assert "update 2 is done already; nothing is traced" in line
    assert not (tmp_path / "a").exists()
    (line,) = train(tmp_path / "b", (2, 4), steps=3)
    assert "stopped before update 4" in line
    assert len(train(tmp_path / "b", (1, 1), steps=1)) > 1  # no trace is left running


def test_table_by_hand():
    lines = table({"matrix products": 0.3, "idle: anything else": 0.1}, 10)
    assert [" ".join(line.split()) for line in lines] == [
        "where the time of an update goes 40.00 ms 100.0 %",
        "matrix products 30.00 ms 75.0 %",
        "idle: anything else 10.00 ms 25.0 %",
    ]
