"""Pairs of videos: from a configuration to data, features and facts, and what results say."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import grain
import numpy as np
from jax.sharding import Mesh

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.core.mesh import local_shards
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.pair_batches import PairExamples, mean_table, score_stats, split_rows
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.videocross_files import OpenVideoCross, open_videocross
from jaxvsa.interop.names import Place
from jaxvsa.systems.base import Params, System
from jaxvsa.systems.clevereward.loss import LossOptions
from jaxvsa.systems.clevereward.system import Facts
from jaxvsa.workflows.comments import RESIDENT_SHARE, device_bytes
from jaxvsa.workflows.labelled import check_features
from jaxvsa.workflows.ranked import Ranked
from jaxvsa.workflows.ranked import render as render
from jaxvsa.workflows.rewards_demo import ensure_rewards
from jaxvsa.workflows.score import batch_size

NOUN = "pairs"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Section `data` of a configuration.

    Attributes:
        root: folder written by `python -m jaxvsa.prepare videocross` with --features and
            --text-encoder; "demo" = synthetic.
        num_frames: most rows of a video that are read, evenly chosen; with a mean all count.
        num_words: most rows of a question, likewise.
        sampling: a source of n pairs has a share of n ** sampling of the updates: 1 as there are,
            0 all alike.
        resident: features lie on the device as arrays, "yes" or "no" (gathered on the host);
            "auto" if they take no more than `RESIDENT_SHARE` of its memory.
        shapes: most padded shapes of the batches of a split; each is one compilation.
    """

    root: str
    num_frames: int
    num_words: int
    sampling: float
    resident: Literal["auto", "yes", "no"]
    shapes: int

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be."""
        for name in ("num_frames", "num_words", "shapes"):
            if getattr(self, name) < 1:
                raise UserError(f"config.data.{name} is {getattr(self, name)}; 1 is the least")
        if not 0 <= self.sampling <= 1:
            raise UserError(f"config.data.sampling is {self.sampling}; it must be from 0 to 1")


@dataclasses.dataclass(frozen=True)
class QuestionCodec:
    """How questions became features.

    Attributes:
        manifest: `Manifest.to_dict()` of the features of the questions of training.
    """

    manifest: dict[str, Any]

    def to_json(self) -> str:
        """For a checkpoint."""
        return json.dumps(self.manifest)


@dataclasses.dataclass(frozen=True, eq=False)
class Assembled(Ranked):
    """What a run reads; see `assemble.Data`.

    Attributes:
        config: as given.
        cross: the pairs.
        codec: what is known of the questions' features.
        facts: the system's `Facts`.
    """

    config: dict[str, Any]
    cross: OpenVideoCross
    codec: QuestionCodec
    facts: Facts

    noun = NOUN
    fresh = ""
    protocol = ""

    @functools.cached_property
    def options(self) -> DataOptions:
        """Section `data`."""
        found: DataOptions = build(DataOptions, self.config["data"], "config.data")
        return found

    @functools.cached_property
    def losses(self) -> LossOptions:
        """Section `loss`."""
        found: LossOptions = build(LossOptions, self.config["loss"], "config.loss")
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have pairs."""
        return tuple(split for split in SPLITS if len(split_rows(self.cross, split)))

    @property
    def manifest(self) -> Manifest:
        """Of the features of the videos."""
        return Manifest.from_dict(self.cross.manifest or {})

    @functools.cached_property
    def features(self) -> tuple[FeatureTable, FeatureTable]:
        """Of videos and of questions, one row each where the model takes the mean."""
        model = self.config["model"]
        return (
            _pooled(self.cross.features(), model["pool_video"]),
            _pooled(self.cross.question_features(), model["pool_text"]),
        )

    @functools.cached_property
    def is_resident(self) -> bool:
        """Whether the features lie on the device; see `DataOptions`."""
        size = sum(table.values_nf.nbytes for table in self.features)
        fits = size <= device_bytes() * RESIDENT_SHARE
        return self.options.resident == "yes" or (self.options.resident == "auto" and fits)

    def examples(self, split: str) -> PairExamples:
        """The pairs of a split; of train those that the loss learns from."""
        train, losses = split == "train", self.losses
        row_n = self._taught() if train else split_rows(self.cross, split)
        if train and not losses.learns_from_ties:
            row_n = row_n[self.cross.pairs.answer_n[row_n] != 0]
        videos, questions = self.features
        return PairExamples(
            self.cross,
            row_n,
            videos,
            questions,
            num_frames=self.options.num_frames,
            num_words=self.options.num_words,
            resident=self.is_resident,
            contrasts=train and losses.contrasts,
        )

    def _taught(self) -> np.ndarray:
        """Places of the train pairs of the kinds that `config.loss.negatives` wants."""
        mismatches = self.losses.negatives in ("materialised", "both")
        return split_rows(self.cross, "train", mismatches)

    def plan(self, examples: PairExamples, size: int, **how: Any) -> BatchPlan:
        """The batches of all examples; `how` as in `BatchPlan`."""
        return BatchPlan(examples.axes(), size, shapes=self.options.shapes, **how)

    def shuffled(self, examples: PairExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training."""
        sampling = self.options.sampling
        return self.plan(examples, batch_size, strata_b=examples.source_n, power=sampling, **how)

    def in_order(self, split: str, limit: int, mesh: Mesh) -> grain.MapDataset:
        """Every pair of a split once, in batches of about `limit` at most."""
        examples, shards = self.examples(split), local_shards(mesh)
        size = batch_size(len(examples), limit, mesh)
        plan = self.plan(examples, size, order=examples.in_order(), groups=shards[1])
        return batches(plan, examples, shards=shards)

    def sizes(self, batch_size: int = 1) -> dict[str, int]:
        """Sizes of a batch whose rows are all as long as they can be."""
        model, options, facts = self.config["model"], self.options, self.facts
        return {
            "b": batch_size, "v": 2, "f": facts.video_width, "e": facts.text_width,
            "g": 1, "k": batch_size, "m": batch_size,
            "t": 1 if model["pool_video"] == "mean" else options.num_frames,
            "l": 1 if model["pool_text"] == "mean" else options.num_words,
        }  # fmt: skip

    def tables(self, system: System) -> dict[str, np.ndarray]:
        """Large arrays that enter the step as arguments."""
        if not self.is_resident:
            return {}
        names = sorted({table for table, _ in system.tables.values()}, reverse=True)
        return {name: table.values_nf for name, table in zip(names, self.features, strict=True)}

    def given(self, place: Place | None) -> tuple[dict[str, Any], str]:
        """Nothing: features are inputs, and all parameters start at random."""
        del place
        return {}, ""

    def about(self) -> list[str]:
        """What to know before training, a line each."""
        examples = self.examples("train")
        count_s = np.bincount(examples.source_n, minlength=len(self.cross.sources))
        counts = zip(self.cross.sources, count_s.tolist(), strict=True)
        listed = ", ".join(f"{name} {count:,}" for name, count in counts if count)
        text = self.codec.manifest
        ties = len(self._taught()) - len(examples)
        kind = f"config.loss.kind '{self.losses.kind}'"
        return [
            f"train: {len(examples):,} pairs ({listed})",
            *[f"without {ties:,} ties, from which {kind} learns nothing"] * (ties > 0),
            f"features: videos {self.manifest.encoder}, {self.manifest.width} wide; questions "
            f"{text['encoder']}, {text['width']} wide",
        ]

    def record(self) -> dict[str, Any]:
        """What data.json of a run says: where the data is, and what it was."""
        return {
            "root": str(self.root),
            "digest": self.cross.digest,
            "features": {"videos": self.manifest.to_dict(), "questions": self.codec.manifest},
            "report": self.cross.card,
        }


def assemble(config: Mapping[str, Any], run: Path) -> Assembled:
    """Opens the pairs and features of a configuration.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    resolved = copy.deepcopy(dict(config))
    options: DataOptions = build(DataOptions, config["data"], "config.data")
    if not options.root:
        raise UserError(
            "config.data.root is empty; write the data once with `python -m jaxvsa.prepare "
            "videocross --source ... --features DIR --text-encoder DIR --out DIR` and pass "
            "--config.data.root=DIR"
        )
    cross = open_features(find_root(run, options.root, config["seed"]))
    bare = Assembled(resolved, cross, QuestionCodec(cross.question_manifest or {}), _NO_FACTS)
    videos, questions = bare.features
    facts = Facts(
        cross.sources, videos.width, videos.dtype, questions.width, questions.dtype,
        *score_stats(cross),
    )  # fmt: skip
    data = dataclasses.replace(bare, facts=facts)
    _check_lessons(data)
    return data


def _check_lessons(data: Assembled) -> None:
    """Refuses train pairs of which the loss uses none: the run would end as it began."""
    if "train" not in data.splits:
        return
    kind, examples = data.losses.kind, data.examples("train")
    if kind == "mse" and not np.isfinite(examples.score_nv).any():
        raise UserError(
            f"{data.root}: no train pair has scores, from which config.loss.kind 'mse' learns; add "
            "a scored --source, or take a variant that learns from pairs"
        )
    if not len(examples):
        raise UserError(
            f"{data.root}: all train pairs are ties, from which config.loss.kind '{kind}' learns "
            "nothing; add decided pairs, or set it to 'btt'"
        )


def open_features(root: Path) -> OpenVideoCross:
    """A VideoCross with features of videos and questions.

    Raises:
        UserError: no such folder, or one without features.
    """
    cross = open_videocross(root)
    for noun, flag in (("videos", "--features DIR"), ("questions", "--text-encoder DIR")):
        if noun not in cross.stored:
            raise UserError(f"{root} has no features of {noun}; prepare it again with {flag}")
    return cross


def reopen(trained: Any, root: Path, protocol: str | None) -> Assembled:
    """Data for a trained model.

    Args:
        trained: a `runs.Trained`.
        root: a VideoCross with features.
        protocol: None; pairs are split in one way.

    Raises:
        UserError: features of another kind than those of training.
    """
    if protocol:
        raise UserError(f"--protocol {protocol}: pairs are split in one way; leave it out")
    cross = open_features(root)
    given = QuestionCodec(cross.question_manifest or {})
    check_features(trained.manifest, Manifest.from_dict(cross.manifest or {}))
    check_features(Manifest.from_dict(trained.codec.manifest), Manifest.from_dict(given.manifest))
    return Assembled(copy.deepcopy(trained.config), cross, given, trained.facts)


def find_root(run: Path, root: str, seed: int) -> Path:
    """The folder `root`; "demo" is the synthetic one of a run."""
    return ensure_rewards(run, root, seed)


def read_codec(text: str) -> QuestionCodec:
    """What a checkpoint says of the questions' features."""
    return QuestionCodec(json.loads(text))


def read_params(
    meta: Mapping[str, Any], config: dict[str, Any], facts: Facts, learn: Params
) -> tuple[Params, Params]:
    """Parameters that learn, and those that are frozen: none are."""
    del meta, config, facts
    return learn, {}


def _pooled(table: FeatureTable | None, pool: str) -> FeatureTable:
    """One row for each entry where the model takes their mean anyway."""
    assert table is not None  # `open_features`
    return mean_table(table) if pool == "mean" else table


_NO_FACTS = Facts((), 0, "", 0, "", (), (), (), ())
