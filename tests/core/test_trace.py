"""Where the time goes: shares by hand, a trace of a GPU written by hand, a real one of the CPU."""

import jax
import jax.numpy as jnp
import pytest

from jaxvsa.core import trace
from jaxvsa.core.errors import UserError
from jaxvsa.core.trace import Operation, Span, Trace, kind_of, read_trace, shares

MS = 1_000_000_000  # picoseconds


def span(start_ms, end_ms, kind):
    return Span(round(start_ms * MS), round(end_ms * MS), kind)


def marks(*spans):
    return [span(*item) for item in spans]


def in_ms(found):
    return {kind: pytest.approx(1e3 * value) for kind, value in found.items()}


@pytest.mark.smoke
def test_shares_by_hand():
    """Work of two threads, a loop around it, a short gap, the host's marks; outside is cut off."""
    work = [
        span(-5, 2, "matrix products"),  # begins before the first mark
        span(12.05, 13, "elementwise"),  # begins after the last one
        span(1, 3, "elementwise"),
        span(3, 4, ""),  # a loop between two operations of its body
        span(4, 5, "elementwise"),
        span(3, 5, ""),
        span(5.05, 6, "elementwise"),
    ]
    host = marks((0, 1, "update"), (6, 8, "next batch"), (8, 9, "update"), (11, 12, "wait"))
    found = shares(Trace({"CPU": work}, host))
    assert in_ms(found) == {
        "matrix products": 1.5,
        "elementwise": 0.5 + 1 + 1 + 0.95,
        trace.GAPS: 1.05,
        "idle: waiting for input": 2,
        "idle: dispatch, compilation": 1,
        "idle: anything else": 3,
    }
    assert sum(found.values()) == pytest.approx(0.012)


def test_shares_are_the_mean_of_the_devices():
    lines = {"GPU:0": [span(0, 4, "elementwise")], "GPU:1": [span(0, 2, "communication")]}
    found = shares(Trace(lines, marks((0, 1, "update"), (3, 4, "wait"))))
    assert in_ms(found) == {"elementwise": 2, "communication": 1, "idle: anything else": 1}


def test_shares_need_a_mark():
    with pytest.raises(UserError, match="nothing was traced"):
        shares(Trace({}, []))


def operation(*codes, path="jit(update)/jvp(Model)/text/add", target=""):
    return Operation(codes[0] if codes else "", frozenset(codes), path, target)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("found", "name", "kind"),
    [
        (operation("fusion", "dot", "add"), "ynn_fusion.3", trace.MATRIX),
        (operation("convolution"), "conv", trace.MATRIX),
        (operation("custom-call", target="__cublas$lt$matmul"), "nvjet_hsh", trace.MATRIX),
        (operation("custom-call", target="__cudnn$fmha"), "kernel", trace.MATRIX),
        (operation("custom-call", target="cu_topk"), "kernel", trace.GATHER),
        (operation("custom-call", target="mystery"), "kernel", trace.UNKNOWN),
        (operation(), "MemcpyD2D", trace.COPY),
        (operation(), "ncclDevKernel_AllReduce", trace.EXCHANGE),
        (operation(), "graph_node_7", trace.UNKNOWN),
        (operation("all-reduce-start"), "all-reduce.1", trace.EXCHANGE),
        (operation("fusion", "dot", path="jit(update)/jvp(M)/gates/cell/dot"), "a", trace.LOOP),
        (operation("fusion", "tanh", path="jit(f)/jvp(M)/cancelled/tanh"), "a", trace.POINTWISE),
        (operation("fusion", "gather", "add"), "gather_fusion", trace.GATHER),
        (operation("fusion", "reduce", "exponential"), "a", trace.REDUCE),
        (operation("fusion", "multiply", "xor", "shift-left"), "a", trace.RANDOM),
        (operation("add", path="jit(f)/jvp(M)/jit(_threefry_fold_in)/add"), "a", trace.RANDOM),
        (operation("fusion", "multiply", path="jit(update)/square"), "a", trace.OPTIMISER),
        (operation("transpose", "bitcast"), "a", trace.COPY),
        (operation("dynamic-slice", "subtract", path="a/jvp(M)/dynamic_slice"), "a", trace.COPY),
        (operation("fusion", "dynamic-slice", "multiply"), "a", trace.POINTWISE),
        (operation("copy", path=""), "copy.2", trace.COPY),
    ],
)
def test_kind_of_an_operation(found, name, kind):
    assert kind_of(found, name) == kind


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields):
    """A protobuf message of (number, int, text or message)."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def instruction(name, code, path="", called=(), target=""):
    packed = b"".join(varint(number) for number in called)
    fields = [(1, name), (2, code), (7, message((2, path))), (28, target)]
    return (2, message(*fields, *([(38, packed)] if called else [])))


def entry(number, name, *more):
    return message((1, number), (2, message((1, number), (2, name), *more)))


def a_program():
    """`jit_update`: a fusion that holds a product, and the call of a library."""
    fused = message((5, 1), instruction("dot.1", "dot", "jit(update)/jvp(M)/dot_general"))
    main = message(
        (5, 2),
        instruction("loop_fusion.3", "fusion", "jit(update)/jvp(M)/add", [1]),
        instruction("custom-call.4", "custom-call", target="__cudnn$rnn"),
        instruction("while.5", "while"),
    )
    return message((1, message((1, "jit_update"), (3, fused), (3, main))))


def a_trace():
    """Two kernels of a stream by name of instruction, one by its own, one copy; marks in ms."""
    names = ["loop_fusion_3", "rnn_kernel", "MemcpyH2D", "update", "wait", "loop_fusion"]
    events = [(4, entry(number, name)) for number, name in enumerate(names, 1)]
    keys = ["hlo_op", "program_id", "loop_fusion.3", "custom-call.4", "hlo_module", "jit_update"]
    stats = [(5, entry(number, name)) for number, name in enumerate(keys, 1)]

    def event(number, start_ms, end_ms, *stats):
        times = (2, round(start_ms * MS)), (3, round((end_ms - start_ms) * MS))
        return (4, message((1, number), *times, *((4, message(*stat)) for stat in stats)))

    update = [(1, 2), (3, 4)], [(1, 5), (7, 6)]  # numbered as when it was compiled: not 3

    def by(op):  # a text, or the number of one
        return [(1, 1), (5, op) if isinstance(op, str) else (7, op)], *update

    compute = message(
        (2, "Stream #13(Compute)"),
        (3, 2_000_000),  # starts at 2 ms
        event(1, 0, 1, *by(3)),
        event(2, 1, 3, *by("custom-call.4")),
        event(1, 3, 3.5, *update),
        event(1, 4, 5, [(1, 1), (5, "loop_fusion.3")], [(1, 2), (3, 8)], [(1, 5), (5, "jit_eval")]),
    )
    copies = message((2, "Stream #14(MemcpyH2D)"), (3, 2_000_000), event(3, 5, 6))
    derived = message((2, "XLA Ops"), (3, 1_000_000), event(6, 0, 9, *by(3)))
    gpu = message((2, "/device:GPU:0"), (3, compute), (3, copies), (3, derived), *events, *stats)
    python = message((2, "python"), (3, 1_000_000), event(4, 0, 1), event(5, 6, 8))
    host = message((2, "/host:CPU"), (3, python), *events, *stats)
    proto = (5, message((1, 1), (6, a_program())))
    small = message((5, 2), instruction("loop_fusion.3", "transpose"))
    other = (5, message((1, 1), (6, message((1, message((1, "jit_update"), (3, small)))))))
    programs = [(4, entry(1, "jit_update(3)", proto)), (4, entry(2, "jit_update(4)", other))]
    metadata = message((2, "/host:metadata"), *programs)
    return message((1, gpu), (1, host), (1, metadata))


def write(folder, raw):
    path = folder / "plugins/profile/2026_01_01/host.xplane.pb"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)


def test_trace_of_a_gpu_by_hand(tmp_path):
    write(tmp_path, a_trace())
    found = shares(read_trace(tmp_path, "update"))
    assert in_ms(found) == {
        trace.MATRIX: 1.5,
        trace.LOOP: 2,
        trace.COPY: 1,
        trace.OTHER_PROGRAM: 1,
        "idle: dispatch, compilation": 1,
        "idle: anything else": 1.5,
    }


def test_trace_that_is_damaged_or_absent(tmp_path):
    with pytest.raises(UserError, match="has no trace"):
        read_trace(tmp_path, "update")
    write(tmp_path, a_trace()[:-50])
    with pytest.raises(UserError, match=r"host\.xplane\.pb cannot be read"):
        read_trace(tmp_path, "update")


def test_real_trace_of_the_cpu(tmp_path):
    """Every kind that the program holds is found, and the parts are the whole."""

    def loss(w, x):
        y = jnp.tanh(x @ w)
        with jax.named_scope("cell"):
            y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), y, None, length=4)
        return jnp.sum(jax.nn.softmax(y)[jnp.array([3, 1])])

    @jax.jit
    def update(w, x):
        return w - 0.1 * jax.grad(loss)(w, x)

    w = jnp.ones((400, 400))
    jax.block_until_ready(update(w, w))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(tmp_path), profiler_options=options):
        for number in range(3):
            with jax.profiler.StepTraceAnnotation(trace.UPDATE_MARK, step_num=number):
                w = update(w, w)
        with jax.profiler.TraceAnnotation(trace.WAIT_MARK):
            jax.block_until_ready(w)
    found = read_trace(tmp_path, "update")
    assert [mark.kind for mark in found.marks].count("update") == 3
    parts = shares(found)
    whole = max(m.end for m in found.marks) - min(m.start for m in found.marks)
    assert sum(parts.values()) == pytest.approx(whole / 1e12)
    assert parts.keys() >= {trace.MATRIX, trace.LOOP, trace.OPTIMISER}
    assert parts[trace.MATRIX] + parts[trace.LOOP] > 0.3 * sum(parts.values())
    assert trace.OTHER_PROGRAM in shares(read_trace(tmp_path, "evaluate"))
