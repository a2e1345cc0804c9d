"""What must not change a result: devices, where features lie, accumulation; dropout is on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from workflows import trajectories
from workflows.trajectories import assert_same, trajectory

Found = dict[str, np.ndarray]
MESHES = {
    "data": "--config.mesh.data=8",
    "fsdp": "--config.mesh.data=1 --config.mesh.fsdp=8",
    "mixed": "--config.mesh.data=2 --config.mesh.fsdp=2 --config.mesh.tensor=2",
}


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The trajectory on one device."""
    return trajectory(root, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def eight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trajectories on eight devices, which only another process can have."""
    out = tmp_path_factory.mktemp("eight")
    cases = ",".join(f"{name} {flags}" for name, flags in MESHES.items())
    count = "--xla_force_host_platform_device_count"
    env = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace(f"{count}=4", f"{count}=8"),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    script = [sys.executable, trajectories.__file__, str(out), str(root), cases]
    subprocess.run(script, env=env, check=True)
    return out


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_compute_what_one_does(name: str, eight: Path, alone: Found) -> None:
    with np.load(eight / f"{name}.npz") as found:
        assert set(found.files) == alone.keys()
        assert_same(dict(found), alone)


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (4, "--config.mesh.step=pmap"),
        (1, "--config.data.resident=no"),
        (1, "--config.train.accumulate=2"),
    ],
    ids=["pmap", "streamed", "accumulated"],
)
def test_how_it_is_computed_changes_nothing(
    root: Path, tmp_path: Path, alone: Found, count: int, more: str
) -> None:
    predict = "resident" in more  # training alone knows of the others
    assert_same(trajectory(root, tmp_path, count, more, predict=predict), alone)
