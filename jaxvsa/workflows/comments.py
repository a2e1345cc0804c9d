"""Comments under videos: from a configuration to data, tokenizer, weights and facts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import numpy as np

from jaxvsa.core import trees
from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.data.comments import CommentExamples, Videos
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.text import TextCodec, UnknownShare
from jaxvsa.interop.names import Place
from jaxvsa.interop.roberta import unstack_layers
from jaxvsa.layers.temporal import tower_margin
from jaxvsa.systems import module
from jaxvsa.systems.base import Params
from jaxvsa.workflows.demo import DEMO, ensure_demo
from jaxvsa.workflows.labelled import Labelled
from jaxvsa.workflows.labelled import render as render
from jaxvsa.workflows.text_weights import frozen_text, read_text

NOUN = "comments"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Section `data` of a configuration.

    Attributes:
        root: folder written by `python -m jaxvsa.prepare`; "demo" is the synthetic corpus.
        protocol: which split: "official", or "by_video" (no video in two splits).
        text_len: longest comment in tokens, special tokens included.
        text_pad: "one" padding token a comment, which stands for all of them; "max" all of them:
            the published statistics of dropout, at the old cost.
        shapes: most padded shapes of the batches of a split; each is one compilation.
        resident: features lie on the device as one array, "yes" or "no" (gathered on the host);
            "auto" if they take no more than `RESIDENT_SHARE` of its memory.
        group: "none": batches are uniform draws; "length" or "video": among the examples of the
            next `window` batches, those of similar length, or on the same video, which then share
            its frames, come together. Faster, and another sampling.
        window: batches, at least 1; read with `group`.
        vocab_size: ids of the byte-level BPE trained on the train comments without weights.
    """

    root: str
    protocol: str
    text_len: int
    text_pad: Literal["one", "max"]
    shapes: int
    resident: Literal["auto", "yes", "no"]
    group: Literal["none", "length", "video"]
    window: int
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """Section `weights` of a configuration.

    Attributes:
        text: Hugging Face folder of a RoBERTa or BERT; "" trains the encoder from scratch.
        freeze_text: the text encoder does not learn.
    """

    text: str
    freeze_text: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Batching:
    """How comments become batches: what of a configuration the pipeline needs.

    Attributes:
        variant: of the model: "text" reads no features, "video" no text.
        text_len: see `DataOptions`.
        pad_all: every padding token of a comment is in the batch.
        most_shapes: see `DataOptions.shapes`.
        frames_limit: the model's `visual_length`.
        margin: rows that a video needs behind its frames.
        resident: see `DataOptions`.
        group: likewise.
        window: likewise.
    """

    variant: str
    text_len: int
    pad_all: bool
    most_shapes: int
    frames_limit: int
    margin: int
    resident: str
    group: str
    window: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Batching:
        """Read from a resolved configuration."""
        data = build(DataOptions, config["data"], "config.data")
        model = config["model"]
        if data.shapes < 1:
            raise UserError(f"config.data.shapes is {data.shapes}; 1 is the least")
        return cls(
            model["variant"],
            data.text_len,
            data.text_pad == "max",
            data.shapes,
            model["visual_length"],
            tower_margin(model["num_scales"]),
            data.resident,
            data.group,
            data.window,
        )

    def full_sizes(self, batch_size: int = 1) -> dict[str, int]:
        """Sizes of a batch of one group whose rows are all as long as they can be."""
        text, frames = self.text_len, self.frames_limit
        sizes = {"n": batch_size * text, "l": text, "m": batch_size * frames, "t": frames}
        return {"g": 1, "b": batch_size, **sizes}

    def is_resident(self, features: FeatureTable | None) -> bool:
        """Whether the features lie on the device as one array; see `DataOptions`."""
        if features is None or self.resident == "no":
            return False
        fits = features.values_nf.nbytes <= device_bytes() * RESIDENT_SHARE
        return fits or self.resident == "yes"

    def examples(
        self,
        comments: Comments,
        codec: TextCodec,
        row_b: np.ndarray | None,
        features: FeatureTable | None,
        share: bool = False,
    ) -> CommentExamples:
        """All comments, tokenised once; `share`: those on one video share its frames."""
        videos = None
        if self.variant != "text" and row_b is not None and features is not None:
            resident = self.is_resident(features)
            videos = Videos(row_b, features, self.frames_limit, self.margin, resident, share)
        tokens = None
        if self.variant != "video":
            tokens = codec.encode(comments.text, self.text_len)
        return CommentExamples(
            tokens,
            comments.labels,
            videos,
            pad_id=codec.pad_id,
            text_len=self.text_len,
            pad_all=self.pad_all,
        )

    def plan(self, examples: CommentExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of all examples; `how` as in `BatchPlan`."""
        return BatchPlan(examples.axes(), batch_size, shapes=self.most_shapes, **how)

    def shuffled(self, examples: CommentExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training."""
        sort_b = None if self.group == "none" else examples.sort_key(self.group)
        return self.plan(examples, batch_size, sort_b=sort_b, window=self.window, **how)

    def in_order(
        self, examples: CommentExamples, batch_size: int, shards: tuple[Sequence[int], int]
    ) -> grain.MapDataset:
        """Every example once, for evaluation, in batches of those on one video; shuffles nothing.

        `shards` as in `pipeline.batches`.
        """
        plan = self.plan(examples, batch_size, order=examples.in_order(), groups=shards[1])
        return batches(plan, examples, shards=shards)


RESIDENT_SHARE = 0.4
"""Share of a device's memory that features may take to be resident without being asked to."""


def device_bytes() -> int:
    """Memory of the first device, or of the machine where the device does not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclasses.dataclass(frozen=True, eq=False)
class Assembled(Labelled):
    """What a run reads.

    Attributes:
        config: resolved: the text encoder's fields are those of the weights.
        prepared: the data set.
        codec: the tokenizer.
        facts: the system's `Facts`.
        text_params: weights of the text encoder; None = from scratch.
        unknown: share of tokens of the train comments that the tokenizer cannot write; None if
            the run was trained before.
    """

    config: dict[str, Any]
    prepared: Prepared
    codec: TextCodec
    facts: Any
    text_params: Params | None
    unknown: UnknownShare | None

    noun = NOUN
    fresh = r"(?!text/).*"
    """Parameters that `given` need not hold."""

    def given(self, place: Place | None) -> tuple[dict[str, Any], str]:
        """Parameters by path that come from files, and from which; {} if none do."""
        del place  # small enough for the host
        if self.text_params is None:
            return {}, ""
        return trees.named({"text": self.text_params}), self.config["weights"]["text"]

    def sizes(self, batch_size: int = 1) -> dict[str, int]:
        """Sizes of a batch whose rows are all as long as they can be."""
        return {"f": self.facts.feature_width or 0, **self.batching.full_sizes(batch_size)}

    def about(self) -> list[str]:
        """What to know of the text, a line each."""
        if self.unknown is None:
            return []
        return [
            f"text: {self.codec.vocab_size:,} tokens; unknown in train: "
            f"{100 * self.unknown.tokens:.2f} % of tokens, "
            f"{100 * self.unknown.comments:.2f} % of comments"
        ]

    @functools.cached_property
    def batching(self) -> Batching:
        """See `Batching`."""
        return Batching.of(self.config)

    @property
    def features(self) -> FeatureTable | None:
        """The features, if the model sees video."""
        return None if self.batching.variant == "text" else self.prepared.features()

    @property
    def manifest(self) -> Manifest | None:
        """Of the features, if the model sees video."""
        found = None if self.batching.variant == "text" else self.prepared.manifest
        return None if found is None else Manifest.from_dict(found)

    def examples(self, split: str) -> CommentExamples:
        """The comments of a split, tokenised; those to evaluate share their videos."""
        comments, features = self.comments(split), self.features
        row_b = None if features is None else features.rows(comments.video)
        share = split != "train" or self.batching.group == "video"
        return self.batching.examples(comments, self.codec, row_b, features, share)


def assemble(config: Mapping[str, Any], run: Path) -> Assembled:
    """Opens the data, tokenizer and weights of a configuration.

    Args:
        config: plain values, as the configuration file and the command line give them.
        run: where the demo corpus goes.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    resolved = copy.deepcopy(dict(config))
    options = build(DataOptions, config["data"], "config.data")
    weights = build(WeightsOptions, config["weights"], "config.weights")
    if not options.root:
        raise UserError(
            "config.data.root is empty; write the data once with `python -m jaxvsa.prepare csmv "
            "--root CSMV/ --features ... --out DIR` and pass --config.data.root=DIR"
        )
    if weights.freeze_text and not weights.text:
        raise UserError("config.weights.freeze_text needs config.weights.text: a random text "
                        "encoder that does not learn is of no use")  # fmt: skip
    root = find_root(run, options.root, config["seed"])
    prepared = Prepared.open(root)
    train = prepared.comments(options.protocol, "train")
    codec, text_params, vocab = read_text(resolved, options.vocab_size, weights.text, train.text)
    manifest = prepared.manifest
    facts = module(config["system"]).Facts(
        label_names={task: tuple(names) for task, names in prepared.labels.items()},
        label_counts={
            task: tuple(np.bincount(train.labels[task], minlength=len(names)).tolist())
            for task, names in prepared.labels.items()
        },
        vocab_size=vocab,
        pad_id=codec.pad_id,
        feature_width=None if manifest is None else manifest["width"],
        feature_dtype=None if manifest is None else manifest["dtype"],
    )
    unknown = codec.unknown_share(codec.encode(train.text, options.text_len))
    return Assembled(resolved, prepared, codec, facts, text_params, unknown)


def find_root(run: Path, root: str, seed: int) -> Path:
    """The prepared folder `root`; "demo" is the synthetic corpus of a run."""
    return ensure_demo(run, seed) if root == DEMO else Path(root)


def reopen(trained: Any, root: Path, protocol: str | None) -> Assembled:
    """Data for a trained model.

    Args:
        trained: a `runs.Trained`.
        root: a prepared folder.
        protocol: how it is split; None = as in training.

    Raises:
        UserError: other labels or features than those of training.
    """
    config = copy.deepcopy(trained.config)
    config["data"]["protocol"] = protocol or config["data"]["protocol"]
    prepared = Prepared.open(root)
    found = Assembled(config, prepared, trained.codec, trained.facts, None, None)
    found.check(trained)
    return found


def read_codec(text: str) -> TextCodec:
    """The tokenizer that a checkpoint holds."""
    return TextCodec.from_json(text)


def read_params(
    meta: Mapping[str, Any], config: dict[str, Any], facts: Any, learn: Params
) -> tuple[Params, Params]:
    """Parameters that learn, and those that are frozen.

    Args:
        meta: a checkpoint's record; `config` in the terms of this version.
        config: of the run.
        facts: of the run.
        learn: the checkpoint's arrays; up to format 2 the text layers were stacked.
    """
    del facts
    stacked = "unroll" in meta["config"]["model"]["text"]
    held = frozen_text(config, meta["held"], stacked) if meta["held"] else {}
    if stacked and "text" in learn:
        learn = {**learn, "text": unstack_layers(learn["text"])}
    return learn, held
