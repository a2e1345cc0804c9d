"""The synthetic demo corpus: written in the release's format, then prepared like the release."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxvsa.data.sources.csmv import read_release
from jaxvsa.data.sources.demo import FEATURES, DemoFacts, read_facts, write_demo
from jaxvsa.workflows.prepare import FeatureSource, prepare

RELEASE = "release"


def ensure_demo(run: Path, seed: int) -> Path:
    """The prepared synthetic corpus of a run, generated if it is not there yet.

    Args:
        run: the run directory; the corpus lies in `data/release`, prepared in `data/prepared`.
        seed: of the generator and of the split by video.

    Returns:
        the prepared folder.
    """
    release, prepared = run / "data" / RELEASE, run / "data" / "prepared"
    if not prepared.exists():
        shutil.rmtree(release, ignore_errors=True)
        write_demo(release, seed)
        prepare(read_release(release), prepared, FeatureSource(release / FEATURES, "demo"), seed)
    return prepared


def demo_facts(prepared: Path) -> DemoFacts | None:
    """What is known of the synthetic corpus that was prepared here; None for any other data."""
    release = prepared.parent / RELEASE
    return read_facts(release) if (release / "bayes.json").exists() else None
