"""What both sides of `bench_reward_step` read: synthetic pairs with the shape of VideoCross."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxvsa.core.config import load_config
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.pair_batches import split_rows
from jaxvsa.data.scored import DIMENSIONS
from jaxvsa.data.scored_pairs import Settings
from jaxvsa.data.sources import reward_demo, t2vqa, videofeedback
from jaxvsa.data.videocross import build
from jaxvsa.data.videocross_files import write_videocross

SETTINGS = {"paper": "clevereward:paper", "no_negatives": "clevereward:no_negatives"}
WIDTHS = {"videos": 768, "questions": 384}
SMALL = {"num_prompts": 40, "num_feedback": 240, "num_votes": 1}


def write_data(out: Path, tiny: bool) -> None:
    """A folder of VideoCross with features.

    T2VQA-DB and VideoFeedback in files of the published sizes with random prompts and scores,
    43,000 videos, become pairs as `prepare videocross` makes them, 300,000 at most. Features are
    random: one float16 row for each video and each question.
    """
    sizes = SMALL if tiny else {"num_votes": 1}
    with tempfile.TemporaryDirectory() as folder:
        files = reward_demo.write_releases(Path(folder, "releases"), **sizes)
        parts = [
            t2vqa.read_release(files["t2vqa"]),
            videofeedback.read_release(files["videofeedback"]),
        ]
    cross = build(parts, Settings(budget=2_000 if tiny else 300_000))
    rng = np.random.default_rng(0)
    names = {
        "videos": sorted(video.video_id for video in cross.videos),
        "questions": sorted(cross.questions),
    }
    tables = {}
    for noun, entries in names.items():
        values_nf = rng.standard_normal((len(entries), WIDTHS[noun]), np.float32)
        values_nf = values_nf.astype(np.float16)
        table = FeatureTable.from_counts(values_nf, np.ones(len(entries), np.int32), entries)
        tables[noun] = table, table.describe("random numbers")
    write_videocross(out, cross, tables["videos"], tables["questions"])


def configure(setting: str, root: Path, batch_size: int) -> ConfigDict:
    """The configuration of a setting."""
    config = load_config(SETTINGS[setting], [])
    config.data.root, config.data.resident = str(root), "yes"
    config.train.batch_size = batch_size
    return config


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """All training pairs as plain arrays, for PyTorch.

    Attributes:
        columns: fields of a batch that holds every pair once, with a question for each row.
        videos_nf: float32, what `columns["video_bvt"]` numbers.
        texts_ne: likewise `columns["text_b"]`.
    """

    columns: dict[str, np.ndarray]
    videos_nf: np.ndarray
    texts_ne: np.ndarray

    @classmethod
    def of(cls, data: Any) -> Arrays:
        """From `workflows.pairs.Assembled`."""
        examples = data.examples("train")
        index_b = np.arange(len(examples))
        sizes = {"t": 1, "l": 1, "k": len(data.cross.questions), "m": len(examples)}
        columns = examples.batch(index_b, np.ones(len(index_b), bool), sizes, 1)
        asked_b = columns.pop("asked_b")
        columns["question_b"] = columns.pop("question_gk")[0, asked_b]
        columns["text_b"] = columns.pop("text_gkl")[0, asked_b, 0]
        columns.pop("anchor_gm", None)
        videos, texts = (table.values_nf for table in data.features)
        return cls(columns, videos, texts)

    def save(self, folder: Path) -> None:
        """Files that `load` reads."""
        columns: dict[str, Any] = self.columns
        np.savez(folder / "columns.npz", **columns)
        np.save(folder / "videos.npy", self.videos_nf)
        np.save(folder / "texts.npy", self.texts_ne)

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """What `save` wrote."""
        with np.load(folder / "columns.npz") as found:
            columns = dict(found)
        return cls(columns, np.load(folder / "videos.npy"), np.load(folder / "texts.npy"))


def shares(data: Any) -> dict[str, Any]:
    """What there is of each kind among the pairs of training."""
    examples = data.examples("train")
    pairs, sources = data.cross.pairs.take(examples.row_n), data.cross.sources
    cells: Counter = Counter()
    for source, dimension in zip(pairs.source_n.tolist(), pairs.dimension_n.tolist(), strict=True):
        cells[f"{sources[source]}/{DIMENSIONS[dimension]}"] += 1
    return {
        "videos": len(data.cross.videos),
        "questions": len(data.cross.questions),
        "pairs_of_all_splits": len(data.cross.pairs),
        "pairs_of_train": len(examples),
        "train_by_source_and_dimension": dict(sorted(cells.items())),
        "ties_of_train_left_out": len(split_rows(data.cross, "train")) - len(examples),
    }


def gflop(
    pairs: int, questions: int, anchors: int, widths: dict[str, int], width: int = 256
) -> dict[str, float]:
    """Products of one update, by part.

    Features get no gradient, so projections are two passes: forward and their kernels. The square
    of anchors is three: similarities, gradients of videos, of texts.
    """
    parts = {
        "videos": 2 * 2 * 2 * pairs * widths["videos"] * width,
        "questions": 2 * 2 * questions * widths["questions"] * width,
        "rewards": 3 * 2 * 2 * pairs * width,
        "contrastive": 3 * 2 * anchors**2 * width,
    }
    return {name: value / 1e9 for name, value in parts.items()}
