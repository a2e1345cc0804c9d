"""Checkpoints seen from outside: what a failure prints, and two processes that share a run."""

import logging
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.integrity import report_once

ONE_LINE = """
import sys
import numpy as np
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.core.integrity import CheckpointDamaged
try:
    Checkpoints(sys.argv[1]).restore_raw(1, ("learn", "opt"))
except CheckpointDamaged:
    async def write_fragment():
        pass
    write_fragment()  # what Orbax forgets to await when it breaks off, now and then
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    checkpoints = Checkpoints(sys.argv[1])
    rows = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32)
    checkpoints.save(2, {"rows": rows}, {})
    try:
        checkpoints.close()
    except UserError:
        sys.exit(7)
"""


def test_failures_print_nothing_beside_the_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {str(i): rng.normal(size=700).astype(np.float32) for i in range(9)}
    parts = {"learn": arrays, "opt": arrays}
    checkpoints.save(1, parts, {})
    checkpoints.close()
    for path in (tmp_path / "1/state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
    script = [sys.executable, "-c", ONE_LINE, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize(
    ("coroutine", "shown"),
    [("_wrap_awaitable", False), ("write() at orbax/io.py", False), ("mine", True)],
)
def test_late_answers_of_dropped_reads_are_not_shown(caplog, coroutine, shown):
    report_once()
    text = f"Task exception was never retrieved\nfuture: <Task finished coro=<{coroutine}() done>>"
    logging.getLogger("asyncio").error(text)
    assert (text in caplog.text) == shown


TWO_PROCESSES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import PartitionSpec as P
port, index, folder = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from jaxvsa.core import mesh as meshes, trees
from jaxvsa.core.checkpoint import Checkpoints
mesh = meshes.make_mesh(meshes.MeshOptions(data=-1, fsdp=2, tensor=1, step="jit"))
rows = np.arange(16, dtype=np.float32).reshape(8, 2)
mine = rows[4 * int(index) :][:4]
batch = meshes.put_batch({"x": mine}, mesh)["x"]
assert batch.shape == (8, 2) and float(jax.jit(lambda x: jnp.sum(x[:4]))(batch)) == rows[:4].sum()
params = {"w": np.arange(24, dtype=np.float32).reshape(4, 6)}
places = meshes.shardings(params, ((".*", P(("data", "fsdp"))),), mesh)
state = {"learn": jax.jit(lambda: params, out_shardings=places)()}
assert not state["learn"]["w"].is_fully_addressable
checkpoints = Checkpoints(folder)
for step in (1, 2, 3, 4):
    checkpoints.save(step, state, {}, 1 / step)
checkpoints.close()
sync_global_devices("saved")
assert checkpoints.steps() == [1, 3, 4], checkpoints.steps()
sync_global_devices("seen")
if int(index) == 0:
    (checkpoints.folder / "7").mkdir()
    (checkpoints.folder / "4/meta/metadata").unlink()
    for path in (checkpoints.folder / "3/state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
sync_global_devices("damaged")
step, got, _ = checkpoints.restore_newest(state)
names = sorted(path.name for path in checkpoints.folder.iterdir())
assert (step, names) == (1, ["1", "3.damaged", "4.damaged", "7.damaged"]), (step, names)
assert got["learn"]["w"].sharding == places["w"]
assert trees.digests(got) == trees.digests(state) == trees.digests({"learn": params})
"""


def test_two_processes_share_batch_state_and_checkpoints(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "run/2").mkdir(parents=True)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, port, index, str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in "01"
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output.decode()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
