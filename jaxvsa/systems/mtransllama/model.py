"""MTransLLAMA: frames and dialogue -> visual tokens -> a language model that answers.

Source: "Efficient Transfer From Image-Based Large Multimodal Models to Video Tasks", IEEE TMM 2025,
called "the paper". Eq. 6 to 9, 11 and 12 are in `layers/qformer.py` and `layers/routing.py`, Eq. 10
in `layers/lora.py`, Eq. 3 in `loss.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.layers.decoder import Decoder, RopeScaling
from jaxvsa.layers.generate import generate, log_likelihood
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.layers.qformer import QFormer, QFormerOptions
from jaxvsa.layers.routing import RoutingOptions
from jaxvsa.layers.tokens import Words
from jaxvsa.layers.transformer import dense
from jaxvsa.layers.vision import VisionOptions, VisionTransformer

# Of CLIP, which the encoder was trained with: red, green, blue.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """Sizes of the language model; see `layers.decoder.Decoder`."""

    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_width: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    tied: bool
    remat: bool


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Section `model` of a configuration.

    Attributes:
        variant: "both"; "text": the language model alone, without a single visual token.
        num_frames: frames t of a clip, the paper's window size.
        short: a clip of fewer frames: its last one is repeated, or an error.
        max_prompt: most tokens of what the language model reads.
        max_words: most words the Q-Former reads; 0: it reads no text.
        long: a longer text loses its beginning ("left"), or is an error.
        max_answer: most tokens of an answer, its end included.
        max_new: most tokens that are written.
        num_beams: texts that the search keeps; 1 is greedy.
        length_penalty: see `layers.generate.beam_search`; read with more than one beam.
        vision: see `VisionOptions`.
        qformer: see `QFormerOptions`; its `vocab_size` is no key, the tokenizer says it.
        lora: see `LoraOptions`.
        routing: see `RoutingOptions`.
        decoder: see `DecoderOptions`.
        precision: of the Q-Former, whose changes always learn in float32.
        frozen: of vision transformer, projection and language model.
    """

    variant: Literal["both", "text"]
    num_frames: int
    short: Literal["repeat", "error"]
    max_prompt: int
    max_words: int
    long: Literal["left", "error"]
    max_answer: int
    max_new: int
    num_beams: int
    length_penalty: float
    vision: VisionOptions
    qformer: QFormerOptions
    lora: LoraOptions
    routing: RoutingOptions
    decoder: DecoderOptions
    precision: Precision
    frozen: Precision

    @classmethod
    def of(cls, section: Mapping[str, Any], words_size: int) -> ModelOptions:
        """Read from a resolved configuration.

        Args:
            section: "model".
            words_size: words of the Q-Former's tokenizer.

        Raises:
            UserError: an unknown, missing or mistyped key, or sizes that do not fit each other.
        """
        reads = section.get("variant") == "both" and section.get("max_words")
        qformer = {**section["qformer"], "vocab_size": words_size if reads else 0}
        found: ModelOptions = build(cls, {**section, "qformer": qformer}, "config.model")
        if found.variant == "both" and not 1 <= found.num_frames <= found.qformer.max_frames:
            raise UserError(
                f"config.model.num_frames is {found.num_frames}; it must be from 1 to "
                f"qformer.max_frames, {found.qformer.max_frames}"
            )
        if found.max_words > found.qformer.max_positions:
            raise UserError(
                f"config.model.max_words is {found.max_words}, but qformer.max_positions is "
                f"{found.qformer.max_positions}"
            )
        for name in ("max_prompt", "max_answer", "max_new", "num_beams"):
            if getattr(found, name) < 1:
                raise UserError(f"config.model.{name} is {getattr(found, name)}; 1 is the least")
        return found

    @property
    def reads_words(self) -> bool:
        """Whether the Q-Former reads text."""
        return self.variant == "both" and self.max_words > 0

    @property
    def num_visual(self) -> int:
        """Visual tokens in front of the text: q whatever t, unless frames are concatenated."""
        if self.variant == "text":
            return 0
        frames = self.num_frames if self.qformer.aggregate == "concat" else 1
        return frames * self.qformer.num_queries


class Clip(struct.PyTreeNode):
    """What is seen and said before the question.

    Attributes:
        pixel_bti: uint8 frames, rows, columns and colours in one axis i; None if `frames_btpf` is
            given.
        frames_btpf: what the vision transformer makes of them, bfloat16.
        words: dialogue and question for the Q-Former; None without text.
        example_b: int32, number of the example.
        update: int32, number of the update; None outside of training.
    """

    pixel_bti: jax.Array | None
    frames_btpf: jax.Array | None
    words: Words | None
    example_b: jax.Array
    update: jax.Array | None = None

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array], reads_words: bool) -> Clip:
        """From a batch of `QuestionExamples`."""
        words = Words(batch["ids_gw"], batch["word_bl"]) if reads_words else None
        seen = batch.get("pixel_bti"), batch.get("frames_btpf")
        return cls(*seen, words, batch["index_b"], batch.get("update"))


class MTransLLAMA(nn.Module):
    """The whole model.

    Parameters: vision (without a cache of its outputs), qformer, project, decoder.

    Attributes:
        options: see `ModelOptions`.
        vocab_size: rows of the language model's word table.
        sees_pixels: clips come as pixels, not as outputs of the vision transformer.
    """

    options: ModelOptions
    vocab_size: int
    sees_pixels: bool

    def setup(self) -> None:
        """Declares the parts."""
        options = self.options
        self.decoder = make_decoder(options, self.vocab_size)
        if options.variant == "text":
            return
        if self.sees_pixels:
            self.vision = VisionTransformer(options.vision, options.frozen)
        self.qformer = QFormer(options.qformer, options.lora, options.routing, options.precision)
        self.project = dense(options.decoder.width, "project", options.frozen)

    def see(self, pixel_bti: jax.Array) -> jax.Array:
        """Outputs of the vision transformer for uint8 frames, (b,t,p,f) in bfloat16.

        Rounded as they are stored, so that a cache of them changes nothing.
        """
        rows, width = pixel_bti.shape[:2], pixel_bti.shape[2]
        pixel_ni = pixel_bti.reshape(-1, width)
        found_npf = self.vision(normalise(pixel_ni, self.options.vision.image_size))
        return found_npf.astype(jnp.bfloat16).reshape(*rows, *found_npf.shape[1:])

    def visual(self, clip: Clip, deterministic: bool) -> jax.Array:
        """Visual tokens in the language model's space, (b,q,d)."""
        frames_btpf = clip.frames_btpf
        if frames_btpf is None:
            if clip.pixel_bti is None:
                raise ValueError("a clip has neither pixels nor features")
            frames_btpf = self.see(clip.pixel_bti)
        token_bqd = self.qformer(
            frames_btpf, clip.words, clip.example_b, deterministic, clip.update
        )
        return self.project(token_bqd.astype(self.options.frozen.compute_dtype))

    def prefix(
        self, clip: Clip, prompt_bn: jax.Array, keep_bn: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Embeddings of [visual tokens; prompt] (b,z,d), and which are real (b,z)."""
        word_bnd = self.decoder.embed(prompt_bn)
        if self.options.variant == "text":
            return word_bnd, keep_bn
        token_bqd = self.visual(clip, deterministic)
        seen_bq = jnp.ones(token_bqd.shape[:2], bool)
        return (
            jnp.concatenate([token_bqd, word_bnd], axis=1),
            jnp.concatenate([seen_bq, keep_bn], axis=1),
        )

    def answer_logits(
        self,
        clip: Clip,
        prompt_bn: jax.Array,
        keep_bn: jax.Array,
        answer_ba: jax.Array,
        keep_ba: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Scores (b,a,v) of every token of the answers, given what stands before it.

        The layout is [visual tokens; padding; prompt][answer; padding]: with positions that count
        real columns, padding between the parts changes nothing, and answers begin at one column.

        Args:
            clip: what is seen.
            prompt_bn: int32, padded on the left.
            keep_bn: bool, real tokens.
            answer_ba: int32, padded on the right, the end token included.
            keep_ba: bool, real tokens.
            deterministic: nothing is drawn.
        """
        before_bzd, keep_bz = self.prefix(clip, prompt_bn, keep_bn, deterministic)
        x_byd = jnp.concatenate([before_bzd, self.decoder.embed(answer_ba[:, :-1])], axis=1)
        keep_by = jnp.concatenate([keep_bz, keep_ba[:, :-1]], axis=1)
        out_byd, _ = self.decoder(x_byd, keep_by)
        return self.decoder.logits(out_byd[:, keep_bz.shape[1] - 1 :])

    def __call__(
        self,
        clip: Clip,
        prompt_bn: jax.Array,
        keep_bn: jax.Array,
        answer_ba: jax.Array,
        keep_ba: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """`answer_logits`; it reaches all parameters."""
        return self.answer_logits(clip, prompt_bn, keep_bn, answer_ba, keep_ba, deterministic)


def normalise(pixel_ni: jax.Array, side: int) -> jax.Array:
    """Uint8 frames as images (n, rows, columns, 3) of about mean 0 and deviation 1, float32."""
    image_nyxk = pixel_ni.reshape(-1, side, side, 3).astype(jnp.float32) / 255
    mean_111k, std_111k = (
        jnp.asarray(values)[None, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (image_nyxk - mean_111k) / std_111k


def choice_likelihood(
    model: MTransLLAMA, params: Any, before_bzd: jax.Array, keep_bz: jax.Array,
    choice_bcy: jax.Array, keep_bcy: jax.Array,
) -> jax.Array:  # fmt: skip
    """Log likelihood per token of each of c answers, (b,c); -inf for one without tokens.

    Source: MTransLLAMA specification, section 4, `rank`.

    Args:
        model: whose language model is asked.
        params: of the whole model.
        before_bzd: see `MTransLLAMA.prefix`.
        keep_bz: likewise.
        choice_bcy: int32, tokens of the answers.
        keep_bcy: bool, real ones, which come first.
    """
    found: Any = make_decoder(model.options, model.vocab_size).apply(
        {"params": params["decoder"]}, before_bzd, keep_bz, choice_bcy, keep_bcy,
        method=log_likelihood,
    )  # fmt: skip
    return found


def write(
    model: MTransLLAMA, params: Any, before_bzd: jax.Array, keep_bz: jax.Array,
    *, eos_id: int, pad_id: int,
) -> jax.Array:  # fmt: skip
    """Answers, int32 (b, max_new), `pad_id` behind `eos_id`; see `choice_likelihood`."""
    options = model.options
    return generate(
        make_decoder(options, model.vocab_size), params["decoder"], before_bzd, keep_bz,
        num_tokens=options.max_new, num_beams=options.num_beams,
        length_penalty=options.length_penalty, eos_id=eos_id, pad_id=pad_id,
    )  # fmt: skip


def make_decoder(options: ModelOptions, vocab_size: int) -> Decoder:
    """The language model."""
    fields = dataclasses.fields(options.decoder)
    sizes = {field.name: getattr(options.decoder, field.name) for field in fields}
    return Decoder(vocab_size=vocab_size, precision=options.frozen, **sizes)
