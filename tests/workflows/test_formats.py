"""What an earlier version wrote is read by this one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxvsa.workflows.predict import load

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.smoke
@pytest.mark.parametrize("packed", sorted(FIXTURES.glob("*.zip")), ids=lambda path: path.stem)
def test_committed_run_loads_and_predicts_what_it_did(packed: Path, tmp_path: Path) -> None:
    assert packed.stat().st_size <= 200_000
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "expected.json").read_text())
    features = tmp_path / "features"
    features.mkdir()
    name = expected["rows"][0]["video"].replace(".mp4", ".npy")
    np.save(features / name, np.array(expected["features"], np.float16))
    found = load(tmp_path / "run").predict(expected["rows"], features=features)
    assert len(found) == len(expected["predictions"]) == 3
    for got, want in zip(found, expected["predictions"], strict=True):
        for task in ("opinion", "emotion"):
            assert got[task]["predicted"] == want[task]["predicted"]
            np.testing.assert_allclose(
                list(got[task]["probabilities"].values()),
                list(want[task]["probabilities"].values()),
                atol=1e-6,
            )
