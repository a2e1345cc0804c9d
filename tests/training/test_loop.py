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
from jaxvsa.training.loop import Hooks, Loop, Memory, TrainOptions
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

    def step(self, state: State, batch: int) -> tuple[State, dict[str, Any]]:
        assert batch == int(state.step)
        self.events.append(f"step {batch}")
        finite = batch not in self.bad
        value = jnp.asarray(float(batch) if finite else np.nan)
        terms = {"loss": Mean(value, jnp.ones(())), "grad_norm": value, "finite": finite}
        return state.replace(step=state.step + 1), terms

    def evaluate(self, state: State) -> dict[str, float]:
        self.events.append(f"evaluate {int(state.step)}")
        return {"dev/score": self.scores[int(state.step) // 2 - 1]}

    def save(self, state: State, memory: Memory, score: float | None) -> None:
        self.events.append(f"save {int(state.step)}")
        kept = {**vars(memory), "window": {k: list(v) for k, v in memory.window.items()}}
        self.saves.append((int(state.step), score, kept))

    def run(self, chosen: TrainOptions, first: int = 0, memory: Memory | None = None) -> State:
        zero = jnp.zeros((), jnp.int32)
        state = State(jnp.asarray(first), jax.random.key(0), {}, {}, (), zero)
        hooks = Hooks(self.step, self.evaluate, self.save, lambda t: 0.1, lambda: None)
        log = MetricsLog(self.folder)
        log.cut_after(first)
        loop = Loop(chosen, 6, 2, hooks, log, Progress(6, enabled=False), memory or Memory())

        def stream() -> Iterator[int]:
            yield from range(first, 100)

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
    with pytest.raises(UserError, match=r"gradient of update 4 is not finite.*no checkpoint yet"):
        bench.run(options())
    assert [step for step, _, _ in bench.saves] == [2]


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
