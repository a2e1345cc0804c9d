"""Golden numbers of the Q-Former: what is in the file, and how torch computes it.

`golden/qformer.npz` holds parameters by our paths (`params/...`), inputs, and for every case the
output and the gradients of sum(output * weight) with respect to the patches and to what the paper
trains (`<case>/out`, `<case>/frames`, `<case>/grad/...`). All were computed in float64 from the
float32 numbers in the file, and stored as float32. `routed/...` is one softmax under routing.

    image      anchor A: the image model of transformers, frame by frame (output only)
    video      anchor D: attention over space, time and patches, each with its own change
    hadamard, mixture, log    the same with routing; mixture is anchor F
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from interop.qformer_oracle import (
    STILL,
    Video,
    hf_frames,
    hf_model,
    inputs,
    make,
    random_params,
    routed_probs,
    without,
)

from jaxvsa.core.trees import named, nest
from jaxvsa.layers.qformer import QFormer

FILE = Path(__file__).resolve().parent / "golden" / "qformer.npz"
SMALL: dict[str, Any] = {"num_layers": 2, "width": 16, "mlp_width": 20, "max_frames": 4}
COMBINE = ("hadamard", "mixture", "log")
GRADED = ("video", *COMBINE)
BANDS = np.stack([np.abs(np.subtract.outer(range(6), range(6))) <= n for n in (5, 1, 2)])


def model(case: str) -> QFormer:
    """The settings of a case."""
    if case == "image":
        return make(**SMALL, temporal=False)
    routing = {"enabled": case in COMBINE, "schedule": "all", "orders": (0, 1, 2)}
    return make(**SMALL, routing={**routing, "combine": case if case in COMBINE else "hadamard"})


def start() -> dict[str, Any]:
    """Everything that goes in."""
    frames, ids_bl, keep_bl, _ = inputs(3)
    rng = np.random.default_rng(11)
    params = {f"params/{path}": leaf for path, leaf in named(random_params(model("log"))).items()}
    return {
        **params, "frames": frames, "ids": ids_bl, "keep": keep_bl,
        "weight": rng.normal(size=(2, 15, 16)).astype(np.float32),
        "routed/score": rng.normal(size=(2, 3, 6, 6)).astype(np.float32),
        "routed/keep": np.arange(6)[None] < np.array([6, 4])[:, None],
        "routed/weight": rng.dirichlet(np.ones(3), 2).astype(np.float32),
    }  # fmt: skip


def compute(given: Any) -> dict[str, np.ndarray]:
    """Everything that comes out, by torch; needs the parity extra."""
    import torch

    params, args = parameters(given), arguments(given)
    still = without(params, *STILL)
    image = hf_model(model("image"), still).double()
    found = {"image/out": hf_frames(image, still, args)}
    for case in GRADED:
        video = Video(model(case), params, double=True)
        frames = torch.tensor(given["frames"], dtype=torch.float64, requires_grad=True)
        out = video(frames, *args[1:])
        (out * torch.tensor(given["weight"])).sum().backward()
        found |= {f"{case}/out": out.detach().numpy(), f"{case}/frames": frames.grad.numpy()}
        grads = video.grads()
        found |= {f"{case}/grad/{path}": grads[path] for path in video.leaf}
    score, weight = (torch.tensor(given[f"routed/{k}"]).double() for k in ("score", "weight"))
    keep = torch.tensor(given["routed/keep"])[:, None, None]
    sees = [torch.tensor(mask) for mask in BANDS]
    for combine in COMBINE:
        found[f"routed/{combine}"] = routed_probs(torch, score, keep, weight, sees, combine).numpy()
    return {name: np.asarray(array, np.float32) for name, array in found.items()}


def parameters(given: Any) -> dict[str, Any]:
    """The tree of parameters; those of routing are there in every case."""
    return nest({k.removeprefix("params/"): given[k] for k in given if k.startswith("params/")})


def arguments(given: Any) -> tuple[Any, ...]:
    """What `QFormer` is called with."""
    return given["frames"], given["ids"], given["keep"], np.arange(2)
