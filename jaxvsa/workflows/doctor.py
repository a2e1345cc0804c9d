"""What keeps a run from working, in plain words: one probe per question, nothing is written."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxvsa.core import trees
from jaxvsa.core.checkpoint import Checkpoints
from jaxvsa.core.errors import UserError
from jaxvsa.data.features import Manifest
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.text import TextCodec
from jaxvsa.data.videocross_files import count_leaks, open_videocross
from jaxvsa.interop.roberta import check_vocab, read_encoder
from jaxvsa.systems.base import abstract_batch
from jaxvsa.workflows.assemble import KINDS
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.evaluate import open_data
from jaxvsa.workflows.fit import SAVED, Setup, prepare_run
from jaxvsa.workflows.prepare_questions import RECORD, clip_names
from jaxvsa.workflows.runs import RunFolder, read_trained

DRIVER = Path("/proc/driver/nvidia/version")
KEPT = 4  # checkpoints on the disk at once: two newest, the best, the one being written


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer of one probe.

    Attributes:
        name: what was looked at.
        ok: nothing is wrong with it.
        text: what it is, or what is wrong and the cure.
    """

    name: str
    ok: bool
    text: str


def examine(
    run: Path | None = None,
    data: Path | None = None,
    weights: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Probes the machine, and whatever is named.

    Args:
        run: a run directory: its checkpoints, whether it fits its data and this machine.
        data: a prepared folder; with `run`, instead of the one the run was trained on.
        weights: a Hugging Face folder of a text encoder.
        config: a run that shall be started: plain values, `data.root` and all.

    Yields:
        findings, each as soon as it is made.
    """
    yield _probe("packages", _packages)
    yield _probe("device", _device)
    if run is not None:
        found = _probe("run", partial(_run, run))
        yield found
        if found.ok:
            data = data or _root(run)
            yield from _of_checkpoints(RunFolder(run).checkpoints())
            yield _probe("run and data", partial(_run_and_data, run, data))
            config = config or _unfinished(run, data)
    if data is not None and ((data / "card.json").is_file() or _reads_pairs(run)):
        yield _probe("pairs", partial(_pairs, data))
    elif data is not None:
        yield _probe("comments", partial(_comments, data))
        yield _probe("features", partial(_features, data))
    if weights is not None:
        yield _probe("weights", partial(_weights, weights))
    if config is not None:
        yield from _of_config(config, run or Path())


def _probe(name: str, look: Callable[[], str]) -> Finding:
    """What `look` says, or what it complains of."""
    try:
        return Finding(name, True, look())
    except UserError as error:
        return Finding(name, False, str(error))


def _packages() -> str:
    """Versions, compared with those that pyproject.toml asks for."""
    version = importlib.metadata.version
    try:
        required = importlib.metadata.requires("jaxvsa") or []
        found = [f"jaxvsa {version('jaxvsa')}"]
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError("jaxvsa is not installed; run pip install -e . in its folder") from error
    for line in required:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line.replace(" ", ""))
        if match is None:  # belongs to an extra
            continue
        name, least = match.groups()
        try:
            have = version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(f"{name} is missing; run pip install '{name}>={least}'") from error
        if _numbers(have) < _numbers(least):
            raise UserError(f"{name} is {have}; run pip install -U '{name}>={least}'")
        found.append(f"{name} {have}")
    return ", ".join(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _device() -> str:
    """Devices of JAX; a GPU that it does not use is a problem."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"JAX finds no device ({why}); check JAX_PLATFORMS and the driver") from (
            error
        )
    if devices[0].platform == "cpu" and has_nvidia():
        asked = os.environ.get("JAX_PLATFORMS")
        cure = f"unset JAX_PLATFORMS={asked}" if asked else "run pip install -U 'jax[cuda]'"
        raise UserError(f"JAX runs on the CPU, but this machine has an NVIDIA GPU; {cure}")
    return f"{len(devices)} x {devices[0].device_kind}"


def has_nvidia() -> bool:
    """Whether a driver of NVIDIA answers on this machine."""
    if DRIVER.exists():
        return True
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def _run(run: Path) -> str:
    """Readable, and of a format that this version knows."""
    return f"{run}, {RunFolder(run).read_config()['system']}"


def _unfinished(run: Path, data: Path) -> dict[str, Any] | None:
    """The configuration of a run that has updates left; they will need disk and memory."""
    if RunFolder(run).results.exists():
        return None
    config = RunFolder(run).read_config()
    return {**config, "data": {**config["data"], "root": str(data)}}


def _root(run: Path) -> Path:
    """The data of a run."""
    root = RunFolder(run).read_config()["data"]["root"]
    return run / "data" / "prepared" if root == DEMO else Path(root)


def _reads_pairs(run: Path | None) -> bool:
    """Whether a readable run is one of pairs, whose data is a VideoCross."""
    if run is None or not _probe("run", partial(_run, run)).ok:
        return False
    return KINDS.get(RunFolder(run).read_config()["system"]) == "pairs"


def _of_checkpoints(checkpoints: Checkpoints) -> Iterator[Finding]:
    """Every checkpoint is read whole and compared with its digests."""
    folders = checkpoints.folder.glob("*")
    steps = sorted(int(path.name) for path in folders if path.name.isdecimal())
    if not steps:
        yield Finding("checkpoint", True, "none yet")
    for step in steps:
        yield _probe(f"checkpoint {step}", partial(_checkpoint, checkpoints, step))


def _checkpoint(checkpoints: Checkpoints, step: int) -> str:
    state = checkpoints.restore_raw(step, SAVED)
    return f"intact, {_size(trees.num_bytes(state))}"


def _run_and_data(run: Path, data: Path) -> str:
    """Labels and features of the data are those of the run."""
    step = RunFolder(run).checkpoints().newest()
    if step is None:
        return "nothing trained yet"
    open_data(read_trained(run, step), run, data)
    return f"{data} has the labels and features of training"


def _comments(data: Path) -> str:
    """Reading compares the records with the digest in data.json."""
    prepared = Prepared.open(data)
    for protocol, splits in prepared.protocols.items():
        for split, count in splits.items():
            if (found := len(prepared.comments(protocol, split))) != count:
                raise UserError(
                    f"{data}: data.json counts {count} comments in {protocol}/{split}, there are "
                    f"{found}; prepare again"
                )
    total = sum(next(iter(prepared.protocols.values())).values())
    labels = ", ".join(f"{task} ({len(names)})" for task, names in prepared.labels.items())
    return f"{total:,}; labels {labels}; splits {', '.join(prepared.protocols)}"


def _pairs(data: Path) -> str:
    """The files of a VideoCross can be read, and share nothing between splits.

    Reading features compares the records with the digests in card.json.
    """
    cross = open_videocross(data)
    tables = (
        ("videos", cross.features(), [video.video_id for video in cross.videos]),
        ("questions", cross.question_features(), cross.questions),
    )
    stored = []
    for noun, table, names in tables:
        if table is not None:
            table.rows(names, noun)
        stored.append(f"{noun} {'none' if table is None else f'{table.width} wide'}")
    leaks = {name: count for name, count in count_leaks(data).items() if count}
    if leaks:
        found = ", ".join(f"{count:,} {name}" for name, count in leaks.items())
        raise UserError(f"{data}: splits share {found}; prepare again")
    return (
        f"{len(cross.pairs):,} of {len(cross.videos):,} videos; no leak between splits; "
        f"features: {', '.join(stored)}"
    )


def _features(data: Path) -> str:
    """The records are as wide and as many as data.json says, and no comment lacks its video."""
    prepared = Prepared.open(data)
    table = prepared.features()
    if prepared.manifest is None or table is None:
        return "none: only for models of text alone"
    manifest = Manifest.from_dict(prepared.manifest)
    for protocol, splits in prepared.protocols.items():
        for split in splits:
            comments = prepared.comments(protocol, split)
            table.rows(clip_names(comments) if RECORD in comments.extra else comments.video)
    rows = f"{manifest.num_rows:,} rows of {manifest.width} {manifest.dtype}"
    return f"{manifest.encoder}, {rows}, {len(table.row):,} videos"


def _weights(folder: Path) -> str:
    """Tensors fit config.json, and the tokenizer fits the word table."""
    fields, params = read_encoder(folder)
    codec = TextCodec.from_folder(folder)
    check_vocab(codec.vocab_size, fields["vocab_size"])
    return (
        f"{fields['kind']}, {fields['num_layers']} layers of width {fields['width']}, "
        f"{trees.num_values(params):,} parameters; tokenizer of {codec.vocab_size:,} ids"
    )


def _of_config(config: Mapping[str, Any], run: Path) -> Iterator[Finding]:
    """Builds and traces the run, then compares its size with disk and memory."""
    with tempfile.TemporaryDirectory() as folder:  # of the demo corpus, if that is asked for
        setups: list[Setup] = []
        yield _probe("configuration", partial(_setup, config, Path(folder), setups))
        for setup in setups:
            yield _probe("disk", partial(_disk, setup, run))
            yield _probe("memory", partial(_memory, setup))


def _setup(config: Mapping[str, Any], folder: Path, found: list[Setup]) -> str:
    """Appends to `found` what `fit` would start from."""
    setup = prepare_run(config, folder)
    batch = abstract_batch(setup.system, setup.data.sizes())
    jax.eval_shape(setup.system.init, jax.random.key(0), batch)
    found.append(setup)
    return (
        f"{setup.system.name}, {trees.num_values(setup.abstract.learn):,} parameters learn; "
        f"{setup.num_steps:,} updates"
    )


def _disk(setup: Setup, run: Path) -> str:
    """Room for all checkpoints that are there at once."""
    one = trees.num_bytes({"learn": setup.abstract.learn, "opt": setup.abstract.opt})
    there = next(path for path in (run, *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{_size(free)} free, {KEPT} checkpoints of {_size(one)} are kept at once"
    if free < KEPT * one:
        raise UserError(
            f"too little disk under {there.absolute()}: {text}; free some, or move --run"
        )
    return text


def _memory(setup: Setup) -> str:
    """Room for state, gradients and features; activations come on top."""
    options = setup.mesh_options
    state = trees.num_bytes({"learn": setup.abstract.learn, "opt": setup.abstract.opt})
    state += trees.num_bytes([setup.abstract.learn, setup.abstract.held])
    per_device = state // (options.fsdp * options.tensor)
    table = trees.num_bytes(setup.data.tables(setup.system))
    need, available = per_device + table, available_memory()
    text = (
        f"{_size(available)} available, at least {_size(need)} needed: {_size(per_device)} for "
        f"parameters, gradients and moments, {_size(table)} for features"
    )
    if need > available:
        raise UserError(
            f"too little memory: {text}; set config.data.resident=no, raise config.mesh.fsdp, "
            "or take a larger machine"
        )
    return text


def available_memory() -> int:
    """Bytes that are free on the first device; on a CPU, on the machine."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        free = None
    if free:
        return int(free[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
