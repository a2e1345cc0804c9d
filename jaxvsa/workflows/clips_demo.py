"""The synthetic clips of the demo, and the small image model that it starts from."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core.config import load_config
from jaxvsa.data.sources import clips
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.prepare_questions import prepare_questions

FRAMES = "demo_frames"


def ensure_clips(run: Path, root: str, seed: int) -> Path:
    """The prepared folder `root`; that of the synthetic clips is made by one process if need be.

    Args:
        run: the run directory; synthetic clips lie in `data/prepared`.
        root: a folder; "demo": moving squares; "demo_frames": single frames.
        seed: of the generator.
    """
    if root not in (DEMO, FRAMES):
        return Path(root)
    prepared = run / "data" / "prepared"
    with distributed.first_before_others("demo clips"):
        if not prepared.exists():
            made = (clips.order_clips if root == DEMO else clips.half_frames)(seed)
            prepare_questions({"demo": made.questions}, prepared, "way", clips.WAYS, made.frames)
    return prepared


def ensure_base(run: Path, base: str) -> str:
    """The image model to start from; "demo" is trained first, in RUN/base, if it is not there yet.

    Args:
        run: the run directory.
        base: `config.weights.base`.
    """
    if base != DEMO:
        return base
    from jaxvsa.workflows.fit import fit  # which needs `assemble`, which needs this

    console = Console(highlight=False, quiet=not distributed.is_first())
    if not (run / "base" / "results.json").exists():
        console.print("first the image model, all weights, on single frames:")
        fit(load_config("mtransllama:demo_base"), run / "base", console)
        console.print("now the video model on top of it:")
    return str(run / "base")
