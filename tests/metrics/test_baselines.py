"""Predictions that need no model."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxvsa.data.sources import mustard
from jaxvsa.metrics.baselines import majority, option_chance, speaker_prior, video_majority

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


def test_speaker_prior_by_hand():
    speaker = ["a", "a", "b", "b", "b", "c", "c", "d", "d"]
    label_n = np.array([0, 1, 1, 0, 0, 2, 0, 1, 1])
    predicted_b = speaker_prior(speaker, label_n, ["d", "c", "b", "a", "unseen"])
    # a: tie of 0 and 1, 1 wins; c: tie of 0 and 2, the lower wins; unseen: 0 is most frequent.
    np.testing.assert_array_equal(predicted_b, [1, 0, 0, 1, 0])
    assert predicted_b.dtype == np.int32
    assert speaker_prior(speaker, label_n, ["a"], tie_label=0) == [0]
    with pytest.raises(ValueError, match="zip"):
        speaker_prior(speaker[1:], label_n, ["a"])
    with pytest.raises(ValueError, match="no train labels"):
        speaker_prior([], np.array([], np.int32), ["a"])


def test_option_chance_by_hand():
    assert option_chance([2, 4, 4]) == pytest.approx(1 / 3)
    for wrong in ([], [2, 0]):
        with pytest.raises(ValueError, match="chance needs questions with at least one option"):
            option_chance(wrong)


@pytest.mark.real_data
def test_baselines_on_mustard_give_the_known_figures(mustard_path):
    most, prior = [], []
    for fold in range(5):
        found = mustard.read_release(mustard_path, fold=fold)
        train, test = found.split("train"), found.split("test")
        train_label_n = np.array([question.label for question in train])
        label_b = np.array([question.label for question in test])
        most.append(int((majority(train_label_n, len(test)) == label_b).sum()))
        speakers = [[question.extra["speaker"] for question in part] for part in (train, test)]
        predicted_b = speaker_prior(speakers[0], train_label_n, speakers[1])
        prior.append(int((predicted_b == label_b).sum()))
    assert prior == [90, 97, 91, 97, 101] and sum(prior) == 476
    assert round(100 * sum(prior) / 690, 2) == 68.99
    assert round(100 * sum(most) / 690, 2) == 45.94
