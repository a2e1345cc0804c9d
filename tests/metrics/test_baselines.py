"""Predictions that need no model."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxvsa.metrics.baselines import majority, video_majority

pytestmark = pytest.mark.smoke

VIDEO = ["a", "a", "b", "b", "b", "c", "c", "c", "c"]
LABEL_N = np.array([2, 1, 0, 1, 1, 1, 0, 0, 1])


def test_majority_by_hand():
    np.testing.assert_array_equal(majority(LABEL_N, 3), [1, 1, 1])


def test_majority_tie_goes_to_the_first_in_train_order():
    assert majority(np.array([2, 0, 0, 2, 1]), 1) == [2]
    assert majority(np.array([0, 2, 0, 2, 1]), 1) == [0]


def test_video_majority_by_hand():
    predicted_b = video_majority(VIDEO, LABEL_N, ["c", "b", "a", "unseen", "b"])
    # a: tie of 2 and 1, 2 came first; c: tie of 1 and 0, 1 came first; unseen: global majority.
    np.testing.assert_array_equal(predicted_b, [1, 1, 2, 1, 1])
    assert predicted_b.dtype == np.int32


def test_video_majority_does_not_depend_on_the_order_of_videos():
    rng = np.random.default_rng(0)
    video = [f"v{i}" for i in rng.integers(20, size=300)]
    label_n = rng.integers(4, size=300)
    grouped = np.argsort(video, kind="stable")  # the order within each video stays
    np.testing.assert_array_equal(
        video_majority(video, label_n, video),
        video_majority([video[i] for i in grouped], label_n[grouped], video),
    )


def test_baselines_refuse_an_empty_train_split():
    with pytest.raises(ValueError, match="no train labels"):
        majority(np.array([], np.int32), 3)


def _read_csmv(root: Path) -> dict[str, list[dict[str, str]]]:
    """Split -> rows with both labels, as plain as possible."""
    with zipfile.ZipFile(root / "lable_data_dict.json.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("lable_data_dict.json")]
        table = json.loads(archive.read(name))
    splits = {}
    for split in ("train", "dev", "test"):
        keys = json.loads((root / f"{split}_set.json").read_text())
        splits[split] = [table[key] for key in keys]
    return splits


@pytest.mark.real_data
@pytest.mark.parametrize(
    "task,dev,test",
    [("opinion", 67.22, 68.04), ("emotion", 46.13, 47.45)],
    ids=["opinion", "emotion"],
)
def test_video_majority_on_csmv_gives_the_known_figures(csmv_path, task, dev, test):
    index = json.loads((csmv_path / f"{task}_label_map.json").read_text())
    videos, labels = {}, {}
    for split, rows in _read_csmv(csmv_path).items():
        rows = [row for row in rows if row[f"{task}_label"] is not None]
        videos[split] = [row["video_file_id"] for row in rows]
        labels[split] = np.array([index[row[f"{task}_label"]] for row in rows])
    for split, want in (("dev", dev), ("test", test)):
        predicted_b = video_majority(videos["train"], labels["train"], videos[split])
        assert round(100 * np.mean(predicted_b == labels[split]), 2) == want
