"""Questions about clips: from a configuration to data, tokenizers, weights and facts."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvsa.core import distributed, trees
from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.language import Codecs, LanguageCodec, read_codecs
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.question_batches import QuestionExamples
from jaxvsa.data.questions import answer_texts, llm_text, qformer_text
from jaxvsa.data.text import TextCodec
from jaxvsa.interop.instructblip import read_fields
from jaxvsa.interop.names import Place
from jaxvsa.systems.base import Params, abstract_batch
from jaxvsa.systems.mtransllama.model import ModelOptions
from jaxvsa.systems.mtransllama.system import Facts, WeightsOptions
from jaxvsa.systems.mtransllama.system import build as build_system
from jaxvsa.workflows.clips_demo import ensure_base, ensure_clips
from jaxvsa.workflows.image_model import (
    FRESH,
    codec_of_folder,
    codec_of_run,
    is_run,
    read_base,
)
from jaxvsa.workflows.labelled import Labelled
from jaxvsa.workflows.labelled import render as render
from jaxvsa.workflows.patches import check_cache
from jaxvsa.workflows.prepare_questions import RECORD, clip_names, read_questions
from jaxvsa.workflows.question_batching import Batching, DataOptions, say_cut

NOUN = "questions"


@dataclasses.dataclass(frozen=True, eq=False)
class Assembled(Labelled):
    """What a run reads.

    Attributes:
        config: resolved: sizes are those of the weights.
        prepared: the data set.
        codec: both tokenizers.
        facts: the system's `Facts`.
        base: where the image model's weights are; "" = from scratch.
        fields: of its config.json; {} if it is a run of ours.
    """

    config: dict[str, Any]
    prepared: Prepared
    codec: Codecs
    facts: Facts
    base: str
    fields: dict[str, dict[str, Any]]

    noun = NOUN
    fresh = FRESH
    """Parameters that the image model does not have."""

    @functools.cached_property
    def batching(self) -> Batching:
        """See `Batching`."""
        names = self.facts.label_names.values()
        return Batching.of(self.config, max((len(found) for found in names), default=0))

    @functools.cached_property
    def _read(self) -> set[str]:
        """Splits whose texts were tokenised, and counted for people, before."""
        return set()

    @property
    def features(self) -> FeatureTable | None:
        """The clips, if the model sees them."""
        return self.prepared.features() if self.batching.model.variant == "both" else None

    @property
    def manifest(self) -> Manifest | None:
        """Of the clips, if the model sees them."""
        found = self.prepared.manifest if self.batching.model.variant == "both" else None
        return None if found is None else Manifest.from_dict(found)

    def examples(self, split: str) -> QuestionExamples:
        """The questions of a split, tokenised; the first time says how many texts were cut."""
        comments, features = self.comments(split), self.features
        row_b = None if features is None else features.rows(clip_names(comments))
        examples = self.batching.examples(comments, self.codec, row_b, features)
        if split not in self._read and distributed.is_first():
            say_cut(examples.cut, f" of {split}")
        self._read.add(split)
        return examples

    def sizes(self, batch_size: int = 1) -> dict[str, int]:
        """Sizes of a batch whose rows are all as long as they can be."""
        return full_sizes(self.config, self.facts, batch_size)

    def given(self, place: Place | None) -> tuple[dict[str, Any], str]:
        """Parameters by path of the image model, and where they are; {} from scratch."""
        if not self.base:
            return {}, ""
        pixels = self.facts.video == "pixels"
        return read_base(self.config, self.base, self.fields, pixels, place), self.base

    def about(self) -> list[str]:
        """What to know of the texts, a line each."""
        model = self.batching.model
        return [
            f"text: {self.facts.vocab_size:,} tokens, of the Q-Former "
            f"{self.facts.words_size if model.reads_words else 0:,}; "
            f"{model.num_visual} visual tokens of {model.num_frames} frames"
        ]


def assemble(config: Mapping[str, Any], run: Path) -> Assembled:
    """Opens the data, tokenizers and weights of a configuration.

    Raises:
        UserError: anything that the user can mend, in one line.
    """
    resolved = copy.deepcopy(dict(config))
    options = build(DataOptions, config["data"], "config.data")
    weights = build(WeightsOptions, config["weights"], "config.weights")
    if not options.root:
        raise UserError(
            "config.data.root is empty; write the data once with `python -m jaxvsa.prepare mustard "
            "--root MUSTARD/ --out DIR` and pass --config.data.root=DIR"
        )
    root = find_root(run, options.root, config["seed"])
    prepared = Prepared.open(root)
    sees = config["model"].get("variant") == "both"
    if sees and not weights.base and weights.learn == "adapters":
        raise UserError(
            "config.weights.base is empty and config.weights.learn is 'adapters': everything else "
            "would stay random; name an InstructBLIP or BLIP-2 folder, or set learn='all'"
        )
    base = resolved["weights"]["base"] = ensure_base(run, weights.base)
    train = prepared.comments(options.protocol, "train")
    if RECORD not in train.extra:
        raise UserError(f"{root} holds comments, not questions; prepare it with a source of those")
    fields: dict[str, dict[str, Any]] = {}
    if base and is_run(base):
        codec, sizes = codec_of_run(base, resolved)
    elif base:
        fields = read_fields(base)
        codec, sizes = codec_of_folder(base, fields, resolved)
    else:
        codec, sizes = _train_codecs(train, options)
    manifest = prepared.manifest
    stored = "" if manifest is None else "pixels" if manifest["dtype"] == "uint8" else "patches"
    if resolved["model"]["variant"] == "text":
        manifest, stored = None, ""
    if manifest is not None and stored == "patches":
        check_cache(manifest["encoder"], root, base, resolved["model"])
    facts = Facts(
        label_names={task: tuple(names) for task, names in prepared.labels.items()},
        vocab_size=sizes[0],
        pad_id=codec.language.pad_id,
        eos_id=codec.language.eos_id,
        words_size=sizes[1],
        video=stored,
        feature_width=0 if manifest is None else manifest["width"],
        feature_dtype="" if manifest is None else manifest["dtype"],
    )
    return Assembled(resolved, prepared, codec, facts, base, fields)


def _train_codecs(train: Comments, options: DataOptions) -> tuple[Codecs, tuple[int, int]]:
    """Tokenizers of the train questions."""
    asked = read_questions(train, options.speakers)
    texts = [llm_text(one, "full") for one in asked]
    texts += [text for one in asked for text in (one.answer, *answer_texts(one))]
    language = LanguageCodec.train_bpe(texts, options.vocab_size)
    words = TextCodec.train_bpe([qformer_text(one) for one in asked], options.vocab_size)
    return Codecs(language, words), (language.vocab_size, words.vocab_size)


def find_root(run: Path, root: str, seed: int) -> Path:
    """The prepared folder `root`; see `clips_demo.ensure_clips`."""
    return ensure_clips(run, root, seed)


def reopen(trained: Any, root: Path, protocol: str | None) -> Assembled:
    """Data for a trained model; see `comments.reopen`."""
    config = copy.deepcopy(trained.config)
    config["data"]["protocol"] = protocol or config["data"]["protocol"]
    prepared = Prepared.open(root)
    found = Assembled(config, prepared, trained.codec, trained.facts, "", {})
    found.check(trained)
    return found


def read_codec(text: str) -> Codecs:
    """The tokenizers that a checkpoint holds."""
    return read_codecs(text)


def read_params(
    meta: Mapping[str, Any], config: dict[str, Any], facts: Facts, learn: Params
) -> tuple[Params, Params]:
    """Parameters that learn, and those that are frozen; see `comments.read_params`."""
    return learn, read_held(config, facts, meta["held"]) if meta["held"] else {}


def read_held(config: dict[str, Any], facts: Facts, digests: Mapping[str, str]) -> dict[str, Any]:
    """The frozen parameters, which checkpoints do not repeat, checked against their digests.

    Raises:
        UserError: they are gone, or others than those trained with.
    """
    base, found = config["weights"]["base"], {}
    if base:
        fields = {} if is_run(base) else read_fields(base)
        found = read_base(config, base, fields, facts.video == "pixels")
    abstract = abstract_params(config, facts)
    held = {}
    for path in digests:
        leaf = found.get(path)
        if leaf is None:  # a row of zeros that does not learn
            leaf = np.zeros(abstract[path].shape, np.float32)
        held[path] = np.asarray(leaf).astype(abstract[path].dtype)
    if trees.digests(trees.nest(held)) != digests:
        raise UserError(
            f"{base} holds other weights than the run was trained with; restore the original there"
        )
    return trees.nest(held)


def full_sizes(config: Mapping[str, Any], facts: Facts, batch_size: int = 1) -> dict[str, int]:
    """Sizes of a batch of one group whose rows are all as long as they can be."""
    model, width = ModelOptions.of(config["model"], 1), facts.feature_width
    most = max((len(names) for names in facts.label_names.values()), default=1)
    return {
        "g": 1, "b": batch_size, "n": model.max_prompt, "a": model.max_answer,
        "w": batch_size * model.max_words, "l": model.max_words,
        "t": model.num_frames, "p": model.vision.num_tokens, "f": width, "i": width,
        "c": most, "y": model.max_answer,
    }  # fmt: skip


def abstract_params(config: Mapping[str, Any], facts: Facts) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every parameter by path."""
    system = build_system(config, facts)
    batch = abstract_batch(system, full_sizes(config, facts))
    params = jax.eval_shape(system.init, jax.random.key(0), batch)
    return trees.named(params)
