"""What the benchmarks share: the machine, alternating runs, ceilings, the CSMV-shaped data."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvsa.data.comments import CommentExamples, Videos
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.text import Tokens

RESULTS = Path(__file__).parent / "results"
VOCAB = 50265  # rows of RoBERTa's word table

_ANSWER = "answer: "  # begins a line that is meant for `Side`

# Quantiles of the token lengths of CSMV's comments under RoBERTa's tokenizer, special tokens
# included; between them lengths are interpolated, which gives a mean of 15 tokens, as measured.
LENGTH_AT = {
    0: 3, 1: 4, 5: 5, 25: 9, 50: 13, 75: 18, 90: 26, 95: 33, 99: 43,
    99.82: 64, 99.977: 128, 100: 237,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Random comments and features with the shape of CSMV; only the lengths are real.

    Attributes:
        tokens: random ids; lengths from `LENGTH_AT`.
        labels: random, "opinion" of 3 and "emotion" of 8 classes.
        video_b: video of each comment, all videos equally likely.
        features: float16, frames of a video from a gamma distribution (mean 90: 30 seconds at 3
            rows a second), uncut.
    """

    tokens: Tokens
    labels: dict[str, np.ndarray]
    video_b: np.ndarray
    features: FeatureTable

    def examples(self, frames_limit: int, margin: int, **how: Any) -> CommentExamples:
        """The comments as the pipeline reads them; `how`: resident, share, text_len, pad_all."""
        resident, share = how.pop("resident", True), how.pop("share", False)
        videos = Videos(self.video_b, self.features, frames_limit, margin, resident, share)
        text_len = how.pop("text_len", 512)
        return CommentExamples(self.tokens, self.labels, videos, pad_id=1, text_len=text_len, **how)


def make_corpus(
    num_comments: int, num_videos: int, width: int, vocab: int, *, longest: int = 237,
    length: int | None = None, frames: int | None = None, seed: int = 0,
) -> Corpus:  # fmt: skip
    """A corpus; `longest` cuts the comments, `width` is that of the features.

    With `length` all comments have so many tokens, with `frames` all videos so many rows.
    """
    rng = np.random.default_rng(seed)
    quantiles = rng.uniform(0, 100, num_comments)
    length_b = np.interp(quantiles, list(LENGTH_AT), list(LENGTH_AT.values())).round()
    length_b = np.minimum(length_b, longest).astype(np.int32)
    if length is not None:
        length_b[:] = length
    start_b = np.cumsum(length_b, dtype=np.int64) - length_b
    ids_n = rng.integers(4, vocab, int(length_b.sum()), dtype=np.int32)
    count_g = np.maximum(rng.gamma(2.0, 45.0, num_videos), 3).astype(np.int32)
    if frames is not None:
        count_g[:] = frames
    values_nf = rng.standard_normal((4096, width), np.float32).astype(np.float16)
    values_nf = np.resize(values_nf, (int(count_g.sum()), width))
    return Corpus(
        Tokens(ids_n, start_b, length_b),
        {
            "opinion": rng.integers(0, 3, num_comments).astype(np.int32),
            "emotion": rng.integers(0, 8, num_comments).astype(np.int32),
        },
        rng.integers(0, num_videos, num_comments),
        FeatureTable.from_counts(values_nf, count_g, [f"v{g}" for g in range(num_videos)]),
    )


def alternate(
    runs: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every run, one after another in turns, so that all see the same machine.

    A run must return only when its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


class Side:
    """A process of its own that runs when told to and otherwise waits.

    Attributes:
        facts: what it reported when it was ready.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Starts `command`, which must call `serve`, and waits until it is ready."""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, Any] = json.loads(self._answer())

    def turn(self) -> None:
        """One run."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return line[len(_ANSWER) :]
        raise SystemExit(f"a side ended with status {self._process.wait()} before it had answered")


def serve(facts: Mapping[str, Any], run: Callable[[], Any]) -> None:
    """The other end of `Side`: reports the facts, then runs once for every line that comes."""
    print(_ANSWER + json.dumps(facts), flush=True)
    for _ in sys.stdin:
        run()
        print(_ANSWER, flush=True)


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and count of some timings."""
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "repeats": len(seconds),
    }


def matmul_ceiling(dtype: str, seconds: float = 1.0) -> float:
    """FLOP/s of the best of some large matrix products in this process."""
    best = 0.0
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    for size in sizes:
        a_ij = jnp.ones((size, size), dtype)
        product = jax.jit(lambda a: a @ a)
        product(a_ij).block_until_ready()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            product(a_ij).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "device": device.device_kind if device.platform != "cpu" else _cpu_name(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "device_memory_gib": round(stats.get("bytes_limit", 0) / 2**30, 1) or None,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def peak_resident_gib() -> float:
    """Largest resident memory of this process so far; `getrusage` would inherit its parent's."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def write(name: str, record: Mapping[str, Any], out: str | None) -> None:
    """Prints a record and writes it as JSON, to `out` or benchmarks/results/<name>.json."""
    path = Path(out) if out else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2)
    path.write_text(text + "\n", "utf-8")
    print(text)
    print(f"written: {path}")
