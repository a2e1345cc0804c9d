"""The synthetic demo corpus: written in the release's format, then prepared like the release."""

from __future__ import annotations

import shutil
from pathlib import Path

from jaxvsa.core.files import staged_folder
from jaxvsa.data.sources.csmv import read_release
from jaxvsa.data.sources.demo import write_demo
from jaxvsa.workflows.prepare import FeatureSource, prepare


def ensure_demo(run: Path, seed: int) -> Path:
    """The prepared synthetic corpus of a run, generated if it is not there yet.

    Args:
        run: the run directory; the corpus lies in `data/release`, prepared in `data/prepared`.
        seed: of the generator and of the split by video.

    Returns:
        the prepared folder.
    """
    release, prepared = run / "data" / "release", run / "data" / "prepared"
    if not prepared.exists():
        shutil.rmtree(release, ignore_errors=True)
        with staged_folder(release) as folder:
            write_demo(folder, seed)
        source = FeatureSource(folder=release / "visual_feature" / "demo", encoder="demo")
        prepare(read_release(release), prepared, source, seed=seed)
    return prepared
