"""How many programs a run compiles: one for each shape of its batches, and hardly another."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from rich.console import Console
from workflows.small_runs import TINY, flags

from jaxvsa.core.config import load_config
from jaxvsa.data.pipeline import iterate
from jaxvsa.workflows import fit as fitting
from jaxvsa.workflows.setup import Setup

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.fixture
def lowered() -> Iterator[collections.Counter[str]]:
    """Programs that were compiled or read from the cache of compilations, by name."""
    names: collections.Counter[str] = collections.Counter()

    def listen(event: str, _: float, **more: str) -> None:
        if event == LOWERED:
            names[more["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def shapes_of(setup: Setup, split: str) -> set[tuple[tuple[int, ...], ...]]:
    """Shapes of the batches in which a split is evaluated."""
    found = setup.data.in_order(split, setup.options.eval_batch_size, setup.mesh)
    return {tuple(array.shape for array in batch.values()) for batch in iterate(found)}


@pytest.mark.slow
def test_training_with_evaluations_compiles_no_more_than_its_shapes(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lowered: collections.Counter[str],
) -> None:
    """Two epochs, so that batches come which the shapes were not chosen for."""
    shapes = 3
    more = (
        "--config.mesh.data=1",
        f"--config.data.shapes={shapes}",
        "--config.data.text_len=64",
        "--config.model.text.max_positions=66",
        "--config.train.steps=0",
        "--config.train.epochs=2",
        "--config.train.batch_size=16",
        "--config.train.eval_every=0",
        "--config.train.save_every=0",
    )
    config = load_config(TINY, flags(root, *more))
    setup = fitting.prepare_run(config, tmp_path / "run")
    assert setup.num_steps == 2 * setup.plan.steps_per_epoch
    seen = {tuple(setup.plan[step].sizes.values()) for step in range(setup.num_steps)}
    assert 1 < len(seen) <= shapes
    in_training: collections.Counter[str] = collections.Counter()
    report = fitting.report
    monkeypatch.setattr(
        fitting, "report", lambda *given: (in_training.update(lowered), report(*given))[1]
    )
    lowered.clear()
    fitting.fit(config, tmp_path / "run", Console(quiet=True))
    assert in_training["jit(update)"] == len(seen)
    seen_of = {name: shapes_of(setup, name) for name in ("dev", "test")}
    assert in_training["jit(evaluation_step)"] == len(seen_of["dev"]) <= shapes
    # Beside them there is one program for the first parameters; the rest are single operations.
    ours = ("jit(update)", "jit(evaluation_step)", "jit(init)", "jit(<lambda>)")
    assert sum(in_training[name] for name in ours) <= 2 * shapes + 2
    # The table at the end runs what is compiled already; only test has shapes of its own.
    assert lowered["jit(update)"] == len(seen)
    assert lowered["jit(evaluation_step)"] == len(seen_of["dev"] | seen_of["test"])
