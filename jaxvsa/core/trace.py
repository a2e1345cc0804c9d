"""Where the time of a profiler trace goes: every instant of it belongs to one kind of work.

Reads the `.xplane.pb` that `jax.profiler` writes on CPU and GPU, with the compiled programs in it:
what an operation is follows from the instructions that were fused into it, not from its name, which
on CPU is often `ynn_fusion`. Field numbers are those of `xplane.proto` and `hlo.proto` of OpenXLA.

Instants in which several operations run are shared among them equally. On a CPU the times of all
devices and threads lie on one line; of several GPUs, each has its own line and the table shows
their mean.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError
from jaxvsa.core.protobuf import every, fields, numbers, one, text

MATRIX = "matrix products"
LOOP = "LSTM loop"
GATHER = "gather, scatter, sort"
RANDOM = "random numbers"
REDUCE = "softmax, norms, reductions"
POINTWISE = "elementwise"
OPTIMISER = "optimiser, gradient norm"
COPY = "copies, slices, layout changes"
EXCHANGE = "communication"
OTHER_PROGRAM = "other programs (evaluation)"
UNKNOWN = "other, not attributed"
GAPS = "short gaps between operations"
HOST_KINDS = ("idle: waiting for input", "idle: dispatch, compilation", "idle: anything else")

INPUT_MARK, UPDATE_MARK, WAIT_MARK = "next batch", "update", "wait"
_MARKS = (INPUT_MARK, UPDATE_MARK, WAIT_MARK)

_GAP = 100_000_000  # 0.1 ms: a longer one has its cause outside of the program
# What encloses operations that are recorded themselves.
_ENCLOSING = {"while", "call", "conditional", "async-start", "async-done"}
_EXCHANGES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-")
_MATRIX = {"dot", "ragged-dot", "convolution"}
_GATHER = {"gather", "scatter", "sort"}
_REDUCE = {"reduce", "reduce-window", "select-and-scatter"}
_COPY = {
    "fusion", "copy", "copy-start", "copy-done", "transpose", "bitcast", "broadcast", "reshape",
    "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "reverse", "iota",
    "constant", "tuple", "get-tuple-element", "parameter",
}  # fmt: skip
_SLICE_PATH = re.compile(r"/dynamic_(update_)?slice$")
_LIBRARY = (
    (EXCHANGE, re.compile(r"nccl|rccl|AllReduce|AllGather|ReduceScatter", re.IGNORECASE)),
    (LOOP, re.compile(r"rnn|lstm", re.IGNORECASE)),
    (MATRIX, re.compile(r"gemm|matmul|nvjet|cutlass|xmma|cublas|conv|fmha|flash", re.IGNORECASE)),
    (COPY, re.compile(r"memcpy|memset", re.IGNORECASE)),
    (GATHER, re.compile(r"sort|topk", re.IGNORECASE)),
)
_LOOP_PATH = re.compile(r"(^|[/(])(cell|\w*lstm\w*|\w*rnn\w*)([/)]|$)", re.IGNORECASE)
_RANDOM_PATH = re.compile(r"threefry|_bernoulli|_uniform|random_bits|rng_bit", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
        opcode: its own.
        opcodes: this and those of everything fused into it.
        path: where it comes from, as "jit(update)/jvp(Model)/text/dot_general"; "" if made up by
            the compiler.
        target: the library function that it calls; "" if none.
    """

    opcode: str
    opcodes: frozenset[str]
    path: str = ""
    target: str = ""


@dataclasses.dataclass(frozen=True)
class Span:
    """Something that lasted, in picoseconds.

    Attributes:
        start: first instant.
        end: first instant after it.
        kind: of the work, or the name of a mark.
    """

    start: int
    end: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a trace says.

    Attributes:
        devices: name of a line of time -> its work.
        marks: of the host: when it waited for input or dispatched an update.
    """

    devices: Mapping[str, Sequence[Span]]
    marks: Sequence[Span]


def read_trace(folder: Path, program: str) -> Trace:
    """The newest trace below the folder that was given to `jax.profiler.start_trace`.

    Args:
        folder: see above.
        program: part of the name of the program that is looked at; work of others is one kind.

    Raises:
        UserError: there is none, or it is not what JAX writes.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not files:
        raise UserError(f"{folder} has no trace; the profiler wrote nothing")
    try:
        planes = [_Plane(raw) for raw in every(memoryview(files[-1].read_bytes()), 1)]
        return _sort_out(planes, program)
    except (IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{files[-1]} cannot be read: {error!r}; the trace is damaged") from error


def shares(trace: Trace) -> dict[str, float]:
    """Seconds of every kind between the first and the last mark, most first; they add up to it.

    Raises:
        UserError: no mark is in the trace.
    """
    if not trace.marks:
        raise UserError("the trace has none of our marks: nothing was traced")
    first = min(mark.start for mark in trace.marks)
    last = max(mark.end for mark in trace.marks)
    lines = list(trace.devices.values()) or [()]
    total: dict[str, float] = collections.defaultdict(float)
    for work in lines:
        for kind, value in _sweep([*work, *_gaps(work)], trace.marks, first, last).items():
            total[kind] += value / len(lines) / 1e12
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def kind_of(operation: Operation, name: str) -> str:
    """The kind of work of an operation; `name` is that of its kernel or of itself."""
    codes, path = operation.opcodes, operation.path
    if any(code.startswith(_EXCHANGES) for code in codes):
        return EXCHANGE
    if _LOOP_PATH.search(path):
        return LOOP
    if codes & _MATRIX:
        return MATRIX
    if "custom-call" in codes or not codes:  # a library's kernel, or one that nothing names
        for kind, pattern in _LIBRARY:
            if pattern.search(f"{operation.target} {name}"):
                return kind
        return UNKNOWN
    if _RANDOM_PATH.search(path) or {"xor", "shift-left"} <= codes or "rng-bit-generator" in codes:
        return RANDOM
    if path.startswith(("jit(", "pmap(")) and "jvp(" not in path:
        return OPTIMISER
    if codes & _GATHER:
        return GATHER
    if codes & _REDUCE:
        return REDUCE
    return COPY if codes <= _COPY or _SLICE_PATH.search(path) else POINTWISE


def _gaps(work: Iterable[Span]) -> Iterator[Span]:
    """What lies between two operations that nearly touch."""
    end = None
    for span in sorted(work, key=lambda span: span.start):
        if end is not None and 0 < span.start - end < _GAP:
            yield Span(end, span.start, GAPS)
        end = span.end if end is None else max(end, span.end)


def _sweep(work: Iterable[Span], marks: Iterable[Span], first: int, last: int) -> dict[str, float]:
    """Picoseconds of every kind on one line of time."""
    borders: list[tuple[int, int, int, str]] = []  # instant, change, is a mark, kind
    for is_mark, spans in enumerate((work, marks)):
        for span in spans:
            start, end = max(span.start, first), min(span.end, last)
            if start < end:
                borders += [(start, 1, is_mark, span.kind), (end, -1, is_mark, span.kind)]
    borders.sort()
    running: tuple[collections.Counter[str], ...] = (collections.Counter(), collections.Counter())
    found: dict[str, float] = collections.defaultdict(float)
    now = first
    for instant, change, is_mark, kind in [*borders, (last, 0, 0, "")]:
        if instant > now:
            for name, share in _divide(*running).items():
                found[name] += share * (instant - now)
            now = instant
        running[is_mark][kind] += change
    return found


def _divide(work: Mapping[str, int], marks: Mapping[str, int]) -> dict[str, float]:
    """What an instant is spent on: work if there is any, of loops only if there is nothing else."""
    counts = {kind: count for kind, count in work.items() if count > 0}
    inner = {kind: count for kind, count in counts.items() if kind != ""} or counts
    if inner:
        total = sum(inner.values())
        return {kind or GAPS: count / total for kind, count in inner.items()}
    for mark, kind in zip(_MARKS, HOST_KINDS, strict=False):
        if marks.get(mark, 0) > 0:
            return {kind: 1.0}
    return {HOST_KINDS[-1]: 1.0}


@dataclasses.dataclass(frozen=True)
class _Event:
    """What was recorded of one operation: its line of time, program, name and kernel."""

    device: str
    module: str
    program: int
    name: str
    kernel: str
    start: int
    end: int


def _sort_out(planes: Sequence[_Plane], wanted: str) -> Trace:
    """Work of the devices and marks of the host; enclosing operations have the kind ""."""
    programs = {
        number: _operations(module)
        for plane in planes
        if plane.name == "/host:metadata"
        for number, module in _modules(plane).items()
        if wanted in text(module, 1)
    }
    events, marks = _events(planes)
    names: dict[int, set[str]] = collections.defaultdict(set)
    for event in events:
        if wanted in event.module:
            names[event.program].add(event.name)
    known = {number: _best(programs, number, found) for number, found in names.items()}

    @functools.cache
    def kind(module: str, program: int, name: str, kernel: str) -> str:
        if module and wanted not in module:
            return OTHER_PROGRAM
        here = known.get(program, {})
        operation = here.get(name) or here.get(_dotted(kernel)) or Operation("", frozenset())
        return "" if operation.opcode in _ENCLOSING else kind_of(operation, kernel)

    devices: dict[str, list[Span]] = {}
    for event in events:
        found = kind(event.module, event.program, event.name, event.kernel)
        devices.setdefault(event.device, []).append(Span(event.start, event.end, found))
    if len(devices) > 1:
        devices.pop("CPU", None)  # what a host computes beside its GPUs
    return Trace(devices, marks)


def _best(
    programs: Mapping[int, dict[str, Operation]], number: int, names: set[str]
) -> dict[str, Operation]:
    """The program that has these names: one from JAX's cache of programs has a number of old."""
    order = sorted(
        programs, key=lambda other: (len(names & programs[other].keys()), other == number)
    )
    return programs[order[-1]] if order else {}


def _events(planes: Sequence[_Plane]) -> tuple[list[_Event], list[Span]]:
    """The operations of all devices, and our marks."""
    events, marks = [], []
    for plane in planes:
        own = plane.name.startswith("/device:GPU")
        if not own and plane.name != "/host:CPU":
            continue
        for line, kernel, start, end, stats in plane.events():
            if line.startswith("Stream") if own else "hlo_op" in stats:
                device = plane.name if own else "CPU"
                module, name = str(stats.get("hlo_module", "")), str(stats.get("hlo_op", ""))
                program = int(stats.get("program_id", -1))
                events.append(_Event(device, module, program, name, kernel, start, end))
            elif not own and kernel in _MARKS:
                marks.append(Span(start, end, kernel))
    return events, marks


def _dotted(kernel: str) -> str:
    """The instruction `loop_add_fusion.3` that a kernel `loop_add_fusion_3` was made from."""
    return re.sub(r"_(\d+)$", r".\1", kernel)


def _modules(plane: _Plane) -> dict[int, memoryview]:
    """Program number -> its `HloModuleProto`; the number ends the name, as in "jit_update(78)"."""
    found = {}
    for metadata in plane.metadata.values():
        number = re.search(r"\((\d+)\)$", text(metadata, 2))
        for stat in every(metadata, 5):
            for proto in every(stat, 6):
                if number:
                    found[int(number[1])] = one(proto, 1)
    return found


def _operations(module: memoryview) -> dict[str, Operation]:
    """Instructions of a module, with the opcodes of the computations that they fuse."""
    computations = {}
    for raw in every(module, 3):
        computations[one(raw, 5)] = [dict(fields(item)) for item in every(raw, 2)]

    @functools.cache
    def inside(number: int) -> frozenset[str]:
        return frozenset().union(*(codes(item) for item in computations.get(number, [])))

    def codes(item: Mapping[int, Any]) -> frozenset[str]:
        code = bytes(item[2]).decode()
        called = numbers(item.get(38, b"")) if code in ("fusion", "call", "async-start") else []
        return frozenset({code}).union(*(inside(number) for number in called))

    found = {}
    for items in computations.values():
        for item in items:
            path = text(item[7], 2) if 7 in item else ""
            target = bytes(item.get(28, b"")).decode()
            name, code = bytes(item[1]).decode(), bytes(item[2]).decode()
            found[name] = Operation(code, codes(item), path, target)
    return found


class _Plane:
    """One `XPlane`: a device or the host.

    Attributes:
        name: as "/device:GPU:0".
        metadata: number -> what is common to events.
    """

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self.name = text(raw, 2)
        self.metadata = {one(entry, 1, 0): one(entry, 2) for entry in every(raw, 4)}
        self._names = {number: text(entry, 2) for number, entry in self.metadata.items()}
        entries = [(one(entry, 1, 0), one(entry, 2)) for entry in every(raw, 5)]
        self._stats = {number: text(entry, 2) for number, entry in entries}

    def events(self) -> Iterator[tuple[str, str, int, int, dict[str, Any]]]:
        """Line, name, start, end and stats of every event."""
        for line in every(self._raw, 3):
            name, zero = text(line, 2), 1000 * one(line, 3, 0)
            for raw in every(line, 4):
                event, stats = {}, {}
                for number, value in fields(raw):
                    if number == 4:
                        stats.update(self._stat(value))
                    else:
                        event[number] = value
                start = zero + event.get(2, 0)
                yield name, self._names[event[1]], start, start + event.get(3, 0), stats

    def _stat(self, raw: memoryview) -> dict[str, Any]:
        found = dict(fields(raw))
        key = self._stats.get(found.pop(1, 0), "")
        for number, value in found.items():
            if number == 5:
                return {key: bytes(value).decode()}
            return {key: self._stats.get(value, "") if number == 7 else value}
        return {key: 0}
