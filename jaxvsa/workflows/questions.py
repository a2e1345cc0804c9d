"""Questions about clips: from a configuration to data, tokenizers, weights and facts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import numpy as np

from jaxvsa.core import distributed, trees
from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import Comments
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.language import Codecs, LanguageCodec, cut_left, ragged, read_codecs
from jaxvsa.data.pipeline import batches
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.question_batches import Clips, QuestionExamples, choices_of
from jaxvsa.data.questions import answer_texts, llm_text, qformer_text
from jaxvsa.data.text import TextCodec
from jaxvsa.interop.instructblip import read_fields
from jaxvsa.interop.names import Place
from jaxvsa.systems.base import Params, abstract_batch
from jaxvsa.systems.mtransllama.model import ModelOptions
from jaxvsa.systems.mtransllama.system import Facts, WeightsOptions
from jaxvsa.systems.mtransllama.system import build as build_system
from jaxvsa.workflows.clips_demo import ensure_base, ensure_clips
from jaxvsa.workflows.comments import RESIDENT_SHARE, device_bytes
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

NOUN = "questions"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Section `data` of a configuration.

    Attributes:
        root: folder written by `python -m jaxvsa.prepare`; "demo" and "demo_frames" are the
            synthetic clips.
        protocol: which split; the name of a family of folds ("released5") stands for all of them.
        llm_text: what the language model reads: the "question", or the dialogue, too ("full").
        speakers: "named" as in the data, or "anonymous": "Speaker 1", "Speaker 2", ...
        shapes: most padded shapes of the batches of a split; each is one compilation.
        resident: the clips lie on the device as one array, "yes" or "no"; "auto" if they take no
            more than `RESIDENT_SHARE` of its memory.
        vocab_size: ids of the tokenizers trained on the train questions without `weights.base`.
    """

    root: str
    protocol: str
    llm_text: Literal["question", "full"]
    speakers: Literal["named", "anonymous"]
    shapes: int
    resident: Literal["auto", "yes", "no"]
    vocab_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Batching:
    """How questions become batches: what of a configuration the pipeline needs.

    Attributes:
        data: see `DataOptions`.
        model: see `ModelOptions`.
        num_choices: answers that a question offers at most; 0 if answers are open.
    """

    data: DataOptions
    model: ModelOptions
    num_choices: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], num_choices: int = 0) -> Batching:
        """Read from a resolved configuration."""
        data = build(DataOptions, config["data"], "config.data")
        if data.shapes < 1:
            raise UserError(f"config.data.shapes is {data.shapes}; 1 is the least")
        return cls(data, ModelOptions.of(config["model"], 1), num_choices)

    def is_resident(self, features: FeatureTable | None) -> bool:
        """Whether the clips lie on the device as one array; see `DataOptions`."""
        if features is None or self.data.resident == "no":
            return False
        fits = features.values_nf.nbytes <= device_bytes() * RESIDENT_SHARE
        return fits or self.data.resident == "yes"

    def examples(
        self,
        comments: Comments,
        codec: Codecs,
        row_b: np.ndarray | None,
        features: FeatureTable | None,
        share: bool = False,
        resident: bool | None = None,
    ) -> QuestionExamples:
        """All questions, tokenised once; `resident` None: as the options say."""
        del share  # every question has a clip of its own
        model, asked = self.model, read_questions(comments, self.data.speakers)
        language = codec.language
        prompts = language.prompts([llm_text(one, self.data.llm_text) for one in asked])
        answers = language.answers([one.answer for one in asked])
        offered = language.answers([text for one in asked for text in answer_texts(one)])
        cut = dict.fromkeys(CUT, 0)
        prompts, cut["prompts"] = self._cut("prompts", prompts, model.max_prompt, comments.key)
        cut["answers"] = sum(len(row) > model.max_answer for row in (*answers, *offered))
        words = None
        if model.reads_words:
            texts = [qformer_text(one) for one in asked]
            tokens = codec.words.encode(texts, 1 << 30)
            ends = (tokens.start_b + tokens.length_b).tolist()
            rows = [
                tokens.ids_n[first:last].tolist()
                for first, last in zip(tokens.start_b.tolist(), ends, strict=True)
            ]
            rows, cut["words"] = self._cut("words", rows, model.max_words, comments.key)
            words = ragged(rows)
        clips = None
        if model.variant == "both" and row_b is not None and features is not None:
            here = self.is_resident(features) if resident is None else resident
            clips = self._clips(row_b, features, here)
        return QuestionExamples(
            ragged(prompts),
            ragged(_short(answers, model.max_answer)),
            words,
            comments.labels,
            choices_of(
                ragged(_short(offered, model.max_answer)),
                [len(answer_texts(one)) for one in asked],
                self.num_choices,
            ),
            clips,
            language.pad_id,
            cut,
        )

    def _cut(
        self, name: str, rows: list[list[int]], limit: int, keys: Sequence[str]
    ) -> tuple[list[list[int]], int]:
        """Rows of at most `limit` ids and how many were cut, or an error, as the options say."""
        if self.model.long == "error":
            for key, row in zip(keys, rows, strict=True):
                if len(row) > limit:
                    raise UserError(
                        f"question '{key}': its text for {_READERS[name]} has {len(row)} tokens, "
                        f"config.model.{_LIMITS[name]} is {limit}; raise it, or set "
                        "config.model.long=left to drop what was said first"
                    )
        return cut_left(rows, limit)

    def _clips(self, row_b: np.ndarray, features: FeatureTable, resident: bool) -> Clips:
        model = self.model
        patches = 0 if features.dtype == "uint8" else model.vision.num_tokens
        clips = Clips(row_b, features, model.num_frames, patches, resident)
        if model.short == "error":
            frames_g = clips.frames()
            few = [name for name, g in features.row.items() if frames_g[g] < model.num_frames]
            if few:
                raise UserError(
                    f"clip '{few[0]}' has {frames_g[features.row[few[0]]]} frames, "
                    f"config.model.num_frames is {model.num_frames} ({len(few)} such clips); set "
                    "config.model.short=repeat to repeat the last frame"
                )
        return clips

    def plan(self, examples: QuestionExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of all examples; `how` as in `BatchPlan`."""
        return BatchPlan(examples.axes(), batch_size, shapes=self.data.shapes, **how)

    def shuffled(self, examples: QuestionExamples, batch_size: int, **how: Any) -> BatchPlan:
        """The batches of training."""
        return self.plan(examples, batch_size, **how)

    def in_order(
        self, examples: QuestionExamples, batch_size: int, shards: tuple[Sequence[int], int]
    ) -> grain.MapDataset:
        """Every example once, for evaluation; shuffles nothing. `shards` as in `batches`."""
        plan = self.plan(examples, batch_size, order=examples.in_order(), groups=shards[1])
        return batches(plan, examples, shards=shards)


_READERS = {"prompts": "the language model", "words": "the Q-Former"}
_LIMITS = {"prompts": "max_prompt", "words": "max_words"}
CUT = {
    **{
        name: f"too long for {reader} and lost what was said first"
        for name, reader in _READERS.items()
    },
    "answers": "longer than config.model.max_answer and lost their end",
}
"""What happened to texts that were cut, for people."""


def say_cut(cut: Mapping[str, int], of: str = "") -> None:
    """Prints counts of `QuestionExamples.cut` that are not 0."""
    for name, count in cut.items():
        if count:
            print(f"WARNING: {count:,} texts{of} were {CUT[name]}", file=sys.stderr)


def _short(rows: list[list[int]], limit: int) -> list[list[int]]:
    """Answers lose their end beyond `limit`, but keep their end token."""
    return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]


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
