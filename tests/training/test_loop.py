"""The loop alone, with a step that is plain arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.systems.base import Mean
from jaxvsa.training.log import MetricsLog, Progress
from jaxvsa.training.loop import Hooks, Interrupted, Loop, Memory, TrainOptions
from jaxvsa.training.state import State

pytestmark = pytest.mark.smoke


def options(**more: Any) -> TrainOptions:
    fields = {
        "steps": 6, "epochs": 0.0, "batch_size": 1, "accumulate": 1, "eval_batch_size": 1,
        "eval_every": 2, "save_every": 0, "log_every": 2, "select_on": "dev/score",
        "patience": 0, "nonfinite": "stop", "max_skipped": 1, "tensorboard": False, "wandb": "",
    }  # fmt: skip
    return TrainOptions(**{**fields, **more})


class Bench:
    """A run whose loss at step t is t, and whose dev score is given per evaluation."""

    def __init__(self, folder: Path, scores: list[float], bad: tuple[int, ...] = ()) -> None:
        self.folder, self.scores, self.bad = folder, scores, bad
        folder.mkdir(exist_ok=True)
        self.saves: list[tuple[int, float | None, dict[str, Any]]] = []
        self.events: list[str] = []
        self.stop_at = -1  # the step at which a signal is seen
        self.interrupt_at = -1  # the step whose evaluation is broken off
        self.why: Exception = Interrupted()
        self.fail_at = -1  # the batch that cannot be loaded

    def step(self, state: State, batch: int) -> tuple[State, dict[str, Any]]:
        assert batch == int(state.step)
        self.events.append(f"step {batch}")
        finite = batch not in self.bad
        value = jnp.asarray(float(batch) if finite else np.nan)
        terms = {"loss": Mean(value, jnp.ones(())), "grad_norm": value, "finite": finite}
        return state.replace(step=state.step + 1), terms

    def evaluate(self, state: State) -> dict[str, float]:
        if int(state.step) == self.interrupt_at:
            raise self.why
        self.events.append(f"evaluate {int(state.step)}")
        return {"dev/score": self.scores[int(state.step) // 2 - 1]}

    def save(self, state: State, memory: Memory, score: float | None) -> None:
        self.events.append(f"save {int(state.step)}")
        kept = {**vars(memory), "window": {k: list(v) for k, v in memory.window.items()}}
        self.saves.append((int(state.step), score, kept))

    def run(self, chosen: TrainOptions, first: int = 0, memory: Memory | None = None) -> State:
        zero = jnp.zeros((), jnp.int32)
        state = State(jnp.asarray(first), jax.random.key(0), {}, {}, (), zero)
        asked = iter(range(first, 100))
        hooks = Hooks(
            self.step,
            self.evaluate,
            self.save,
            lambda t: 0.1,
            lambda: self.saves[-1][0] if self.saves else None,
            lambda: next(asked) == self.stop_at,
        )
        log = MetricsLog(self.folder)
        log.cut_after(first)
        loop = Loop(chosen, 6, 2, hooks, log, Progress(6, enabled=False), memory or Memory())

        def stream() -> Iterator[int]:
            for number in range(first, 100):
                if number == self.fail_at:
                    raise OSError("the disk is gone")
                yield number

        return loop.run(state, stream())

    def rows(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "time_s"} for line in lines]


def test_loop_order_scores_and_logged_means(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [0.1, 0.3, 0.2])
    assert int(bench.run(options()).step) == 6
    assert bench.events[:5] == ["step 0", "step 1", "evaluate 2", "save 2", "step 2"]
    assert [(step, score) for step, score, _ in bench.saves] == [(2, 0.1), (4, 0.3), (6, 0.2)]
    assert [m["finished"] for _, _, m in bench.saves] == [False, False, True]
    assert bench.saves[-1][2]["best"] == 0.3 and bench.saves[-1][2]["best_step"] == 4
    train = [row for row in bench.rows() if "train/loss" in row]
    assert [row["train/loss"] for row in train] == [0.5, 2.5, 4.5]


def test_loop_resumed_from_a_save_writes_the_same_rows(tmp_path: Path) -> None:
    whole, cut = Bench(tmp_path / "a", [0.1, 0.3, 0.2]), Bench(tmp_path / "b", [0.1, 0.3, 0.2])
    whole.run(options(log_every=3, save_every=1))
    cut.run(options(log_every=3, save_every=1))
    at = next(i for i, (step, _, _) in enumerate(cut.saves) if step == 4)
    cut.run(options(log_every=3, save_every=1), first=4, memory=Memory(**cut.saves[at][2]))
    assert cut.rows() == whole.rows()


def test_loop_resumed_at_its_end_does_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [0.1, 0.3, 0.2])
    bench.run(options())
    before = list(bench.events)
    bench.run(options(), first=6, memory=Memory(**bench.saves[-1][2]))
    assert bench.events == before


def test_patience_stops_after_evaluations_without_improvement(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [0.3, 0.2, 0.1])
    assert int(bench.run(options(patience=1)).step) == 4
    assert bench.saves[-1][2]["finished"]


def test_nonfinite_gradient_stops_before_anything_is_saved(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [0.1, 0.3, 0.2], bad=(3,))
    with pytest.raises(UserError, match=r"gradient of update 4 is not finite.*step 2 is saved"):
        bench.run(options())
    assert [step for step, _, _ in bench.saves] == [2]
    with pytest.raises(UserError, match=r"update 1 is not finite.*no checkpoint yet"):
        Bench(tmp_path / "first", [], bad=(0,)).run(options())


@pytest.mark.parametrize("at", [0, 1, 2, 3, 6])
def test_stop_saves_the_step_it_comes_at_and_resuming_writes_the_same_rows(
    tmp_path: Path, at: int
) -> None:
    scores = [0.1, 0.3, 0.2]
    whole, cut = Bench(tmp_path / "a", scores), Bench(tmp_path / "b", scores)
    whole.run(options(log_every=3))
    cut.stop_at = at
    assert int(cut.run(options(log_every=3)).step) == at
    assert [step for step, _, _ in cut.saves] == sorted({2, 4, 6, at} & set(range(1, at + 1)))
    cut.stop_at = -1
    memory = Memory(**cut.saves[-1][2]) if at else Memory()
    cut.run(options(log_every=3), first=at, memory=memory)
    assert cut.rows() == whole.rows()
    assert cut.saves[-1] == whole.saves[-1]
    assert cut.events.count("evaluate 2") == cut.events.count("evaluate 6") == 1


@pytest.mark.parametrize("at", [4, 6])
def test_interrupted_evaluation_is_made_up_for(tmp_path: Path, at: int) -> None:
    whole, cut = Bench(tmp_path / "a", [0.1, 0.3, 0.4]), Bench(tmp_path / "b", [0.1, 0.3, 0.4])
    whole.run(options())
    cut.interrupt_at = at
    for first in (0, at):  # the second time, the evaluation is interrupted again
        memory = Memory(**cut.saves[-1][2]) if first else Memory()
        assert int(cut.run(options(), first=first, memory=memory).step) == at
        step, score, kept = cut.saves[-1]
        assert (step, score, kept["owed"], kept["finished"]) == (at, None, True, False)
        assert cut.events.count(f"save {at}") == 1
    cut.interrupt_at = -1
    cut.run(options(), first=at, memory=Memory(**cut.saves[-1][2]))
    assert cut.rows() == whole.rows()
    assert dict((s, (v, m)) for s, v, m in cut.saves) == {s: (v, m) for s, v, m in whole.saves}


def test_failed_evaluation_is_an_error_after_saving(tmp_path: Path) -> None:
    whole, cut = Bench(tmp_path / "a", [0.1, 0.3, 0.4]), Bench(tmp_path / "b", [0.1, 0.3, 0.4])
    whole.run(options())
    cut.interrupt_at, cut.why = 4, OSError("the disk is gone")
    with pytest.raises(OSError, match="the disk is gone") as caught:
        cut.run(options())
    assert caught.value.__notes__ == ["while evaluating; step 4 is saved"]
    cut.interrupt_at = -1
    cut.run(options(), first=4, memory=Memory(**cut.saves[-1][2]))
    assert cut.rows() == whole.rows() and cut.saves[-2:] == whole.saves[-2:]


def test_batch_that_cannot_be_loaded_is_an_error_after_saving(tmp_path: Path) -> None:
    whole, cut = Bench(tmp_path / "a", [0.1, 0.3, 0.2]), Bench(tmp_path / "b", [0.1, 0.3, 0.2])
    whole.run(options())
    cut.fail_at = 3
    with pytest.raises(OSError, match="the disk is gone") as caught:
        cut.run(options())
    assert caught.value.__notes__ == ["while loading the batch of update 4; step 3 is saved"]
    cut.fail_at = -1
    cut.run(options(), first=3, memory=Memory(**cut.saves[-1][2]))
    assert cut.rows() == whole.rows() and cut.saves[-1] == whole.saves[-1]
    cut.fail_at = 2  # saved just before: not saved twice
    with pytest.raises(OSError, match="the disk is gone"):
        cut.run(options())
    assert [event for event in cut.events if event.startswith("save")][-2:] != ["save 2"] * 2


def test_nonfinite_gradient_is_skipped_and_counted_up_to_the_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "one", [0.1, 0.3, 0.2], bad=(3,))
    assert int(bench.run(options(nonfinite="skip")).step) == 6
    assert bench.saves[-1][2]["skipped"] == 1
    rows = [row for row in bench.rows() if "train/skipped" in row]
    assert [(row["step"], row["train/skipped"]) for row in rows] == [(4, 1.0)]
    with pytest.raises(UserError, match="update 5 is not finite"):
        Bench(tmp_path / "two", [0.1, 0.3, 0.2], bad=(3, 4)).run(options(nonfinite="skip"))


def test_running_out_of_memory_names_batch_and_accumulation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [0.1, 0.3, 0.2])

    def step(state: State, batch: int) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 byte")

    bench.step = step  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"batch_size=1, accumulate=1: double accumulate"):
        bench.run(options())


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"select_on": "test/opinion/micro_f1"}, "selection may only see dev"),
        ({"select_on": "", "patience": 2}, "needs config.train.select_on"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "set steps or epochs"),
        ({"steps": 0, "epochs": math.nan}, "set steps or epochs"),
        ({"steps": 0, "epochs": math.inf}, "set steps or epochs"),
        ({"steps": -3, "epochs": 1.0}, "steps is -3; 0 is the least"),
        ({"patience": -1}, "patience is -1; 0 is the least"),
        ({"eval_every": -1}, "eval_every is -1"),
    ],
)
def test_options_that_cannot_work_are_refused(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        options(**changed)


def test_metric_to_select_on_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'dev/scor', which the evaluation does not give; known"):
        Bench(tmp_path, [0.1]).run(options(select_on="dev/scor"))
