"""What training computes on some devices: losses, gradients and predictions as flat arrays.

    python trajectories.py OUT ROOT NAME --config.mesh.data=8 ... [, NAME ...]

writes OUT/NAME.npz for every comma-separated list of overrides, on all devices of the process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from jaxvsa.core import mesh as meshes
from jaxvsa.core import trees
from jaxvsa.core.config import load_config
from jaxvsa.data.pipeline import iterate
from jaxvsa.evaluation.evaluator import run as evaluate
from jaxvsa.training.step import make_step
from jaxvsa.workflows import fit as fitting

UPDATES = 3
EVAL_BATCH = 16


def trajectory(
    root: Path,
    run: Path,
    count: int,
    *more: str,
    predict: bool = True,
    spec: str = "configs/vccsa.py:tiny",
    task: str = "classify",
) -> dict[str, np.ndarray]:
    """Losses of some updates, the gradient of the first, and at last predictions of dev."""
    given = (f"--config.data.root={root}", "--config.data.shapes=1", *more)
    setup = fitting.prepare_run(load_config(spec, list(given)), run, jax.devices()[:count])
    system, mesh, data = setup.system, setup.mesh, setup.data
    placed = meshes.shardings(
        setup.abstract, system.partition, mesh, params=setup.abstract.params()
    )
    state = fitting.first_state(setup, placed)
    tables = meshes.put_whole(data.tables(system), mesh)
    step = make_step(system, setup.tx, mesh, setup.mesh_options.step, placed)
    state, terms = step(state, tables, setup.stream[0])
    losses = [terms["loss"].compute()]
    moments = trees.named(jax.device_get(state.opt))
    for number in range(1, UPDATES):
        state, terms = step(state, tables, setup.stream[number])
        losses.append(terms["loss"].compute())
    # After one update, Adam's first moment is the gradient, times a constant.
    scale = 1 - data.config["optim"]["beta1"]
    found = {path: leaf / scale for path, leaf in moments.items() if "/mu/" in path}
    if predict:
        dev = data.in_order("dev", EVAL_BATCH, mesh)
        params = jax.device_get(state.params())
        probs, _ = evaluate(system, [task], params, tables, iterate(dev), mesh)
        found |= {f"probability/{task}": rows for task, rows in probs.items()}
    return {name: np.asarray(leaf) for name, leaf in found.items()} | {"loss": np.array(losses)}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Equal to 1e-5: losses relatively, gradients and predictions also absolutely."""
    assert "loss" in got and any("/mu/" in name for name in got)
    for name, leaf in got.items():
        near = 0.0 if name == "loss" else 1e-5
        np.testing.assert_allclose(leaf, want[name], rtol=1e-5, atol=near, err_msg=name)


def main(out: Path, root: Path, *words: str) -> None:
    """See above."""
    for part in " ".join(words).split(","):
        name, *more = part.split()
        np.savez(out / name, **trajectory(root, out / "run", jax.device_count(), *more))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
