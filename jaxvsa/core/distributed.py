"""Several processes that train or evaluate together: how they meet, who writes, how they end.

A launcher starts the same command once per machine or per device. The processes meet through the
flags `--coordinator`, `--num-processes` and `--process-id`, or by what SLURM, Open MPI or an
indexed Kubernetes job put into the environment. A single process starts nothing and imports
nothing for this, also in a notebook or an `srun` of one task within a larger allocation.

The first process writes all files but checkpoints, and prints; the others only print errors. An
error in one process ends them all: it leaves at once, without the meeting at the end that JAX would
wait minutes for, and the others lose their connection to it (at the latest when it was not heard of
for `HEARTBEAT_S`, from JAX itself).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jaxvsa.core.errors import UserError

TIMEOUT_S = 300
HEARTBEAT_S = 60
_COUNTS = {"Open MPI": "OMPI_COMM_WORLD_SIZE", "SLURM": "SLURM_STEP_NUM_TASKS"}
_ALONE = "or give --num-processes 1 to processes that have nothing to do with each other"
_LOST_PEER = re.compile(r"gloo|nccl|coordination service|(closed|reset) by peer", re.IGNORECASE)


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The three flags of a door that several processes may run together."""
    group = parser.add_argument_group(
        "several processes", "needed only without SLURM, Open MPI or an indexed Kubernetes job"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many are started")
    group.add_argument("--process-id", type=int, metavar="I", help="this one, 0 to N-1")


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: int = TIMEOUT_S,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Meets the other processes of this run; does nothing for a single process.

    Call it before JAX looks at its devices.

    Args:
        coordinator: host and port of process 0; None asks the environment.
        num_processes: 1 overrules whatever the environment says.
        process_id: of this process.
        timeout_s: after which a process that waits for the others leaves with exit code 2.
        env: the environment.

    Raises:
        UserError: only some of the three are given, or they make no sense; the port is taken; JAX
            was used before; the launcher did not tell what it had to.
    """
    given = (coordinator, num_processes, process_id)
    if num_processes == 1 and process_id in (None, 0):
        return
    _check_flags(*given)
    launcher = None if coordinator else find_launcher(env)
    if coordinator is None and launcher is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    if coordinator and process_id == 0:
        _check_port(coordinator)
    how: dict[str, Any] = {"cluster_detection_method": "deactivate"} if coordinator else {}
    if launcher == "SLURM":
        num_processes = int(env[_COUNTS["SLURM"]])
        # Without this, JAX shows each task the one GPU of its own number.
        if sees_own_devices(env):
            how["local_device_ids"] = []
    where = coordinator or f"the environment of {launcher}"
    with _giving_up(where, timeout_s):
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=timeout_s + 60,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                **how,
            )
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the processes could not meet through {where}: {why}; give --coordinator "
                f"HOST:PORT --num-processes N --process-id I, {_ALONE}"
            ) from error


def find_launcher(env: Mapping[str, str]) -> str | None:
    """What started this process as one of several: "SLURM", "Open MPI", "Kubernetes" or None.

    Of SLURM, only the number of tasks of the own step counts: an `sbatch` script, a notebook and
    an `srun` of one task also see the number of tasks of the allocation, which nobody started.

    Raises:
        UserError: an indexed Kubernetes job, and the package JAX asks Kubernetes with is missing.
    """
    for launcher, variable in _COUNTS.items():
        if _count(env, variable) > 1:
            return launcher
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                f"this is pod {env['JOB_COMPLETION_INDEX']} of an indexed Kubernetes job, but the "
                "package kubernetes, with which JAX finds the other pods, is not installed: "
                "pip install 'jax[k8s]', or give --coordinator HOST:PORT --num-processes N "
                f"--process-id $JOB_COMPLETION_INDEX, {_ALONE}"
            )
        return "Kubernetes"
    return None


def sees_own_devices(env: Mapping[str, str]) -> bool:
    """Whether a SLURM task may take every GPU it sees: alone on its node, or bound to its own.

    Otherwise the tasks of a node share what they see, one GPU each.
    """
    if _count(env, _COUNTS["SLURM"]) == _count(env, "SLURM_STEP_NUM_NODES"):
        return True
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and len(visible.split(",")) < _count(env, "SLURM_GPUS_ON_NODE")


def refuse_several(door: str, env: Mapping[str, str] = os.environ) -> None:
    """For a door that runs alone.

    Raises:
        UserError: SLURM or Open MPI started it as one of several processes.
    """
    for launcher, variable in _COUNTS.items():
        if (count := _count(env, variable)) > 1:
            raise UserError(
                f"{door} runs in one process, but {launcher} started {count}; start one task"
            )


def several() -> bool:
    """Whether this process is one of several; asks no device if it is not."""
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def own_number() -> int:
    """Number of this process, 0 for the one that writes and prints."""
    if not several():
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this process writes and prints."""
    return own_number() == 0


@contextlib.contextmanager
def first_before_others(what: str) -> Iterator[None]:
    """The first process runs the block, then all others do: for files that only one may make.

    Args:
        what: name of the block, the same in all processes.
    """
    if not several():
        yield
        return
    from jax.experimental.multihost_utils import sync_global_devices

    if is_first():
        yield
        sync_global_devices(what)
    else:
        sync_global_devices(what)
        yield


def say_error(message: str) -> None:
    """One line on stderr, with the number of the process if there are several."""
    text = " ".join(message.split())
    if several():
        text = f"process {own_number()}: {text}"
    print(text, file=sys.stderr)


def lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another process is gone."""
    return several() and _LOST_PEER.search(str(error)) is not None


def leave(code: int) -> NoReturn:
    """Ends this process; with an error, it does not wait for the others, which then end too."""
    if code and several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _check_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    flags = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(flags)}, or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator is '{coordinator}'; it must be HOST:PORT, as node1:9731")
    if num_processes < 1:
        raise UserError(f"--num-processes is {num_processes}; it must be at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process-id is {process_id}; it must be from 0 to {num_processes - 1}")


def _check_port(coordinator: str) -> None:
    """JAX 0.10 crashes without a word if it cannot listen."""
    port = int(coordinator.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} of --coordinator: {error.strerror}; "
            "choose another port, in all processes"
        ) from error


@contextlib.contextmanager
def _giving_up(where: str, timeout_s: int) -> Iterator[None]:
    """Ends the process with one line after a time: JAX itself would abort with a stack trace."""

    def end() -> None:
        print(
            f"error: the other processes did not come to {where} within {timeout_s} s; start all "
            "of them, with the same --coordinator and --num-processes, and see that each machine "
            "reaches that port",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _count(env: Mapping[str, str], name: str) -> int:
    """A number of the environment, 0 if it is not there."""
    value = env.get(name, "")
    return int(value) if value.isdecimal() else 0
