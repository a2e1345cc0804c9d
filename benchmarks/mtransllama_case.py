"""What both sides of a comparison of MTransLLAMA are given: sizes, weights and one batch."""

from __future__ import annotations

import argparse
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxvsa.core.config import build, load_config, to_plain
from jaxvsa.core.trees import named, nest
from jaxvsa.data.language import ragged
from jaxvsa.data.packing import pack_tokens
from jaxvsa.data.plan import BatchPlan
from jaxvsa.data.question_batches import PACKED_UNIT
from jaxvsa.data.sizes import Axis
from jaxvsa.layers.qformer import QFormer
from jaxvsa.layers.tokens import Words
from jaxvsa.systems import module
from jaxvsa.systems.base import Mean, System
from jaxvsa.systems.mtransllama.model import ModelOptions
from jaxvsa.systems.mtransllama.system import WeightsOptions, trainable

WORDS = 30523  # rows of BERT's word table in LAVIS
NEW_TOKENS = 16
VOCAB = {"none": 0, "tiny": 61, "small": 32000, "7b": 32001}
SMALL_LLM: dict[str, Any] = {
    "width": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 8, "mlp_width": 1376,
}  # fmt: skip


class Case:
    """One setting of the comparison.

    Attributes:
        tiny: the sizes are those of the tests.
        config: resolved configuration; the model's section is that of `mustard` unless tiny.
        options: of the model.
        system: its training step: likelihood of an answer, or without a language model the mean
            square distance of the visual tokens from a fixed target.
        batch: fields without the axis of accumulation.
        vocab_size: of the language model; 0 without.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads the flags of `bench_mtransllama_step`."""
        self.tiny = args.tiny
        self.vocab_size = VOCAB["tiny" if args.tiny and args.llm != "none" else args.llm]
        self.config = configure(args)
        self.words_size = 97 if args.tiny else WORDS
        self.options = ModelOptions.of(self.config["model"], self.words_size)
        self.width = self.options.vision.width
        self.batch = inputs(args, self)
        self.system = self.build()

    @property
    def weights(self) -> WeightsOptions:
        """What learns."""
        found: WeightsOptions = build(WeightsOptions, self.config["weights"], "config.weights")
        return found

    def build(self) -> System:
        """The real system, or the Q-Former alone."""
        if not self.vocab_size:
            return qformer_system(self)
        system = module("mtransllama")
        facts = system.Facts({}, self.vocab_size, 0, 2, self.words_size, "patches", self.width, "")
        return system.build(self.config, facts)

    def params(self) -> Any:
        """Random parameters on the host, the same in every process."""
        first = {name: array[:1] for name, array in self.batch.items()}
        shapes = jax.eval_shape(self.system.init, jax.random.key(0), first)
        # BERT starts with 0.02. With more, twelve layers magnify the last bits of a float until two
        # correct sides differ by 1e-3 after five updates; tiny ones need more to do anything.
        scale = 0.05 if self.tiny else 0.02
        return nest({path: draw(path, leaf, scale) for path, leaf in named(shapes).items()})


def configure(args: argparse.Namespace) -> dict[str, Any]:
    """The published configuration, or the demo's sizes, changed as the flags say."""
    config = to_plain(load_config("mtransllama:" + ("demo" if args.tiny else "mustard"), []))
    model = config["model"]
    model["num_frames"] = args.frames
    model["qformer"]["max_frames"] = max(model["qformer"]["max_frames"], args.frames)
    model["precision"] = {"param": args.dtype, "compute": args.dtype}
    model["frozen"] = dict(model["precision"])
    model["decoder"]["remat"] = args.remat
    if args.llm == "small" and not args.tiny:
        model["decoder"] |= SMALL_LLM
    config["weights"]["base"] = ""
    return config


def draw(path: str, leaf: Any, scale: float) -> np.ndarray:
    """A leaf by its path, of this deviation."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    scale = 0.02 if path.startswith("decoder/") else 0.1 if path.endswith("scale") else scale
    value = rng.standard_normal(leaf.shape, np.float32)
    value *= scale
    if path.endswith("scale"):
        value += 1
    return value.astype(leaf.dtype)


def word_lengths(args: argparse.Namespace) -> list[int]:
    """Words of each row."""
    shorter = max(args.words * 3 // 4, 1)
    return args.lengths or [args.words] + [shorter] * (args.batch - 1)


def inputs(args: argparse.Namespace, case: Case) -> dict[str, np.ndarray]:
    """One batch: cached patches, packed words of the lengths asked for, a prompt and an answer."""
    rng, rows = np.random.default_rng(0), args.batch
    options = case.options
    shape = (rows, args.frames, options.vision.num_tokens, case.width)
    patches = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
    words = ragged([rng.integers(1, case.words_size, n).tolist() for n in word_lengths(args)])
    axes = {"w": Axis(words.length_b, True, 1, PACKED_UNIT, within="l"),
            "l": Axis(words.length_b, False, 1)}  # fmt: skip
    sizes = BatchPlan(axes, rows, order=np.arange(rows))[0].sizes
    ids_gw, word_bl = pack_tokens(
        words, np.arange(rows), words.length_b, sizes["w"], sizes["l"], 1, 0
    )
    found = {
        "frames_btpf": patches.astype(options.precision.compute_dtype),
        "ids_gw": ids_gw,
        "word_bl": word_bl,
        "index_b": np.arange(rows, dtype=np.int32),
        "valid_b": np.ones(rows, bool),
    }
    if not case.vocab_size:
        target = (rows, case.options.num_visual, options.qformer.width)
        return {**found, "target_bqd": rng.standard_normal(target, np.float32)}
    for name, length in (("prompt_bn", args.prompt), ("answer_ba", args.answer)):
        ids = rng.integers(3, case.vocab_size, (rows, length)).astype(np.int32)
        found |= {name: ids, f"{name[:-3]}_length_b": np.full(rows, length, np.int32)}
    return found


def visual_tokens(case: Case) -> np.ndarray:
    """What generation is given instead of the outputs of the Q-Former, (b,q,d)."""
    shape = (len(case.batch["index_b"]), case.options.num_visual, case.options.decoder.width)
    value = 0.05 * np.random.default_rng(1).standard_normal(shape, np.float32)
    return value.astype(case.options.frozen.compute_dtype)


def qformer_module(options: ModelOptions) -> QFormer:
    """The Q-Former of a model."""
    return QFormer(options.qformer, options.lora, options.routing, options.precision)


def arguments(batch: Any) -> tuple[Any, ...]:
    """Of the Q-Former, but the last."""
    return batch["frames_btpf"], Words(batch["ids_gw"], batch["word_bl"]), batch["index_b"]


def padded_words(batch: Any) -> dict[str, np.ndarray]:
    """The words of a batch as a rectangle: ids (b,l), and which of them are real."""
    keep_bl = batch["word_bl"] >= 0
    ids_bl = np.where(keep_bl, batch["ids_gw"][0][batch["word_bl"]], 0)
    return {"ids_bl": ids_bl, "keep_bl": keep_bl}


def tokens(model: QFormer, params: Any, batch: Any) -> jax.Array:
    """What the Q-Former makes of a batch."""
    return model.apply({"params": params}, *arguments(batch), True)


def qformer_system(case: Case) -> System:
    """The Q-Former without a language model, drawn towards fixed tokens."""
    model = qformer_module(case.options)

    def init(rng: jax.Array, batch: Any) -> Any:
        return {"qformer": model.init(rng, *arguments(batch), True)["params"]}

    def loss(params: Any, batch: Any, rng: jax.Array | None) -> dict[str, Mean]:
        token_bqd = tokens(model, params["qformer"], batch)
        apart_bqd = token_bqd.astype(jnp.float32) - batch["target_bqd"]
        return {"loss": Mean.of(jnp.mean(apart_bqd**2, axis=(1, 2)), batch["valid_b"])}

    return System(
        name="mtransllama_qformer",
        fields={},
        init=init,
        loss=loss,
        tasks={},
        trainable=trainable(case.options, case.weights),
        parts=(("qformer", "qformer/.*"), ("decoder", "decoder/.*"), ("rest", ".*")),
    )
