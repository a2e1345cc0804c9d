"""Several processes: when they meet, what a mistake says, how one that fails ends the others."""

import os
import socket
import subprocess
import sys
import time

import pytest

from jaxvsa.core import distributed
from jaxvsa.core.cli import door_parser
from jaxvsa.core.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("env", "launcher"),
    [
        ({}, None),
        (SLURM, None),  # an sbatch script, a notebook: the allocation has 8 tasks, nobody runs them
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "8"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "16"}, "Open MPI"),
        (POD, None),
        ({"JOB_COMPLETION_INDEX": "0"}, None),
    ],
)
def test_launcher_is_found_by_what_it_started(env, launcher):
    assert distributed.find_launcher(env) == launcher


def test_indexed_kubernetes_job_needs_a_package_of_jax(monkeypatch):
    pod = {**POD, "JOB_COMPLETION_INDEX": "3"}
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pod 3 .*pip install 'jax\[k8s\]'.*--num-processes 1"):
        distributed.find_launcher(pod)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert distributed.find_launcher(pod) == "Kubernetes"
    distributed.refuse_several("predict", pod)  # it may well be a job of independent pods


@pytest.mark.parametrize(
    ("tasks", "nodes", "more", "own"),
    [
        (2, 2, {}, True),
        (16, 2, {}, False),
        (16, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}, False),
        (16, 2, {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "8"}, True),
    ],
    ids=["one-per-node", "unknown", "all-visible", "bound"],
)
def test_slurm_task_takes_all_it_sees_or_its_number(tasks, nodes, more, own):
    counts = {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes)}
    assert distributed.sees_own_devices({**counts, **more}) is own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("node1:9731", None, None), "--num-processes and --process-id missing"),
        ((None, 2, None), "--coordinator and --process-id missing"),
        ((None, None, 0), "--coordinator and --num-processes missing"),
        (("node1", 2, 0), "--coordinator is 'node1'; it must be HOST:PORT"),
        (("node1:port", 2, 0), "must be HOST:PORT"),
        (("node1:70000", 2, 0), "must be HOST:PORT"),
        (("node1:9731", 0, 0), "--num-processes is 0; it must be at least 1"),
        (("node1:9731", 2, 2), "--process-id is 2; it must be from 0 to 1"),
        (("node1:9731", 1, 1), "--process-id is 1; it must be from 0 to 0"),
    ],
)
def test_flags_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        distributed.join(*given, env={})


def test_flags_of_a_door():
    parser = door_parser("train", "Trains.", "python -m jaxvsa.train")
    distributed.add_process_flags(parser)
    argv = ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "1"]
    args = parser.parse_args(argv)
    assert (args.coordinator, args.num_processes, args.process_id) == ("a:1", 2, 1)


@pytest.mark.smoke
def test_one_process_does_not_even_import_jax():
    code = """
import sys
from jaxvsa.core import distributed
env = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}
distributed.join(env=env)
distributed.join(num_processes=1, env={"SLURM_STEP_NUM_TASKS": "8"})
assert not distributed.several() and distributed.is_first()
with distributed.first_before_others("nothing"):
    pass
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predict_refuses_to_be_several():
    with pytest.raises(UserError, match="predict runs in one process, but SLURM started 4"):
        distributed.refuse_several("predict", {"SLURM_STEP_NUM_TASKS": "4"})
    distributed.refuse_several("predict", SLURM)


def test_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .*another port"):
            distributed.join(f"localhost:{port}", 2, 0, env={})


def test_meeting_after_jax_was_used():
    code = f"""
import jax
jax.devices()
from jaxvsa.core import distributed
distributed.join("localhost:{free_port()}", 2, 0, env={{}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: the processes could not meet through localhost" in done.stderr
    assert "must be called before any JAX calls" in done.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_others_that_do_not_come(number):
    port = free_port()
    code = f"""
from jaxvsa.core import distributed
distributed.join("localhost:{port}", 2, {number}, env={{}}, timeout_s=1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the other processes did not come to localhost:{port} ")
    assert "within 1 s" in done.stderr and done.stderr.count("\n") == 1


MEETING = """
import os, sys, time
from jaxvsa.core import distributed
from jaxvsa.core.cli import run_door
from jaxvsa.core.errors import UserError

def main(argv):
    port, number, case, folder = argv
    distributed.join(f"localhost:{port}", 2, int(number))
    first = distributed.is_first()
    assert distributed.several() and first == (number == "0")
    path = os.path.join(folder, "corpus")
    with distributed.first_before_others("corpus"):
        if first:
            time.sleep(1)
        if not os.path.exists(path):
            open(path, "w").write(number)
    assert open(path).read() == "0"
    if case == "well":
        return
    if not first and case == "user":
        raise UserError("no such file")
    if not first and case == "ours":
        raise KeyError("ours")
    with distributed.first_before_others("the end"):
        pass
    time.sleep(30)

if __name__ == "__main__":
    run_door(main)
"""


def meet(tmp_path, case):
    """Exit codes, stderrs and seconds of two processes."""
    port, start = str(free_port()), time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, port, number, case, str(tmp_path)],
            env={**os.environ, "XLA_FLAGS": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], errors, time.monotonic() - start


def test_first_process_writes_before_the_others_read(tmp_path):
    codes, errors, _ = meet(tmp_path, "well")
    assert codes == [0, 0], errors


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [("user", 2, "process 1: error: no such file\n"), ("ours", 1, "KeyError: 'ours'")],
)
def test_error_in_one_process_ends_all_soon(tmp_path, case, code, message):
    codes, errors, seconds = meet(tmp_path, case)
    assert codes[1] == code and message in errors[1]
    assert codes[0] == 1
    assert "process 0: error: another process of this run has ended, so this one" in errors[0]
    assert "Traceback" not in errors[0]
    assert seconds < 25
