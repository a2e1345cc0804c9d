"""Golden cases of VC-CSA: where they are, how they are read, and how close a port must come.

A case is a folder with `state_dict.safetensors` (published names), `grads.safetensors` (gradients
of the total loss without dropout; a tensor that has none is absent), `config.json` and `io.npz`
(inputs, every intermediate as `out_<name>`, losses, and the losses of eight AdamW updates). The
numbers were computed in float64 from float32 weights; all but predictions, losses and trajectories
are stored as float32.

    golden = load(case)
    check_outputs(golden, outputs, "float32")  # {"visual_encoded": ..., "opinion_loss": ...}
    check_grads(golden, to_published(grads), "float32")
    check_trajectory(golden, "hf", losses, "float32")   # loss before each of the eight updates

Every check raises AssertionError with the name of what is wrong, and returns the largest absolute
error of each array, so that a figure can be reported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load_file

COMMITTED = Path(__file__).resolve().parent / "golden" / "small"
VARIABLE = "JAXVSA_GOLDEN"
FILES = ("config.json", "grads.safetensors", "io.npz", "state_dict.safetensors")

Dtype = Literal["float32", "float64"]

# A float64 value that was stored as float32 is off by at most half a unit in the last place.
_STORED = 2.0**-24


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """One case. Attributes hold what the files hold, under the names of the files."""

    name: str
    config: dict[str, Any]
    state: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    io: dict[str, np.ndarray]

    @property
    def model(self) -> dict[str, Any]:
        """The published model settings (`visual_length`, `multiview_num`, ...)."""
        return self.config["model"]

    @property
    def roberta(self) -> dict[str, Any]:
        """The text encoder's settings, under the names of Hugging Face."""
        return self.config["roberta"]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """Stored intermediates, predictions and losses, without the prefix `out_`."""
        return {k.removeprefix("out_"): v for k, v in self.io.items() if k.startswith("out_")}


def cases() -> list[Path]:
    """The committed case, then every case folder under $JAXVSA_GOLDEN, sorted by name.

    Raises:
        RuntimeError: the variable is set, and its folder is missing, holds no case, or holds a
            folder that lacks one of the four files.
    """
    found = [COMMITTED]
    if VARIABLE in os.environ:
        given = os.environ[VARIABLE]
        root = Path(given)
        more = sorted(p for p in root.iterdir() if p.is_dir()) if given and root.is_dir() else []
        if not more:
            raise RuntimeError(f"${VARIABLE} is {given!r}, which holds no case folder")
        found += more
    for case in found:
        missing = [file for file in FILES if not (case / file).is_file()]
        if missing:
            raise RuntimeError(f"golden case {case} lacks {', '.join(missing)}")
    return found


@functools.cache
def load(case: Path) -> Golden:
    """Reads one case folder. Arrays are shared between callers: do not write into them."""
    with np.load(case / "io.npz", allow_pickle=False) as stored:
        io = {name: stored[name] for name in stored.files}
    return Golden(
        name=case.name,
        config=json.loads((case / "config.json").read_text()),
        state=load_file(case / "state_dict.safetensors"),
        grads=load_file(case / "grads.safetensors"),
        io=io,
    )


def check_outputs(
    golden: Golden,
    outputs: Mapping[str, Any],
    dtype: Dtype,
    allow_missing: Iterable[str] = (),
) -> dict[str, float]:
    """Compares intermediates, predictions and losses; every stored one must be given.

    Tolerances, absolute, float32: intermediates 2e-5, predictions 2e-6, losses 1e-6. In float64:
    predictions and losses 1e-12, intermediates 1e-12 beside the rounding of the file.
    """
    _same_names(golden.outputs, outputs, allow_missing)
    errors = {}
    for name, want in golden.outputs.items():
        if name in outputs:
            exact = want.dtype == np.float64
            if dtype == "float64":
                atol, rtol = 1e-12, 0.0 if exact else _STORED
            elif name.endswith("_loss"):
                atol, rtol = 1e-6, 0.0
            else:
                atol, rtol = (2e-6 if name.endswith("_predict") else 2e-5), 0.0
            errors[name] = _close(f"{golden.name}: {name}", outputs[name], want, atol, rtol)
    return errors


def check_grads(
    golden: Golden,
    grads: Mapping[str, Any],
    dtype: Dtype,
    allow_missing: Iterable[str] = (),
) -> dict[str, float]:
    """Compares d(total loss)/d(parameter) by published name.

    The tensors without a stored gradient (unused ones and class weights) may be left out or be
    exactly zero. Tolerance, float32: 1e-5 of the largest stored value of the tensor, plus 1e-6.
    In float64: 1e-12 beside the rounding of the file.
    """
    idle = golden.state.keys() - golden.grads.keys()
    moved = [name for name in sorted(idle & grads.keys()) if np.any(np.asarray(grads[name]))]
    if moved:
        raise AssertionError(f"{golden.name}: gradient where there is none: {moved}")
    used = {name: value for name, value in grads.items() if name not in idle}
    _same_names(golden.grads, used, allow_missing)
    errors = {}
    for name, want in golden.grads.items():
        if name in used:
            atol, rtol = 1e-5 * float(np.abs(want).max()) + 1e-6, 0.0
            if dtype == "float64":
                atol, rtol = 1e-12, _STORED
            errors[name] = _close(f"{golden.name}: grad {name}", used[name], want, atol, rtol)
    return errors


def check_trajectory(
    golden: Golden, rule: Literal["hf", "torch"], losses: Sequence[float], dtype: Dtype
) -> float:
    """Compares the total loss before each of the eight AdamW updates of the case.

    Update t uses the learning rate `golden.io["traj_lr"][t]`; the other settings stand in
    `golden.config["trajectory"]`. `rule` is the place of epsilon: "hf" adds it to sqrt(v) before
    the bias correction, "torch" after. Tolerance: 5e-6 in float32, 1e-12 in float64.
    """
    want = golden.io[f"traj_loss_{rule}_adamw"]
    atol = 5e-6 if dtype == "float32" else 1e-12
    return _close(f"{golden.name}: {rule} AdamW", np.asarray(losses), want, atol, 0.0)


def _same_names(
    want: Mapping[str, Any], got: Mapping[str, Any], allow_missing: Iterable[str]
) -> None:
    missing = sorted(want.keys() - got.keys() - set(allow_missing))
    unknown = sorted(got.keys() - want.keys())
    if missing or unknown:
        raise AssertionError(f"missing: {missing}; not in the case: {unknown}")


def _close(what: str, got: Any, want: np.ndarray, atol: float, rtol: float) -> float:
    """Largest absolute error; shapes must be equal, not only broadcastable."""
    got = np.asarray(got, np.float64)
    if got.shape != want.shape:
        raise AssertionError(f"{what}: shape {got.shape}, not {want.shape}")
    want = want.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)
    return float(np.abs(got - want).max())
