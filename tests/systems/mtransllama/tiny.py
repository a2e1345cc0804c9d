"""MTransLLAMA at about the sizes of the demo: configuration, facts, batches and parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.trees import named, nest
from jaxvsa.systems.base import System, abstract_batch
from jaxvsa.systems.mtransllama.model import Clip, ModelOptions, MTransLLAMA
from jaxvsa.systems.mtransllama.system import Facts, build, build_model

SPEC = "configs/mtransllama.py"
VOCAB, WORDS, PAD, EOS = 40, 30, 1, 2
SIZES = {
    "b": 3, "n": 6, "a": 4, "g": 1, "w": 21, "l": 7, "c": 3, "y": 4, "t": 4, "p": 17, "f": 32,
    "i": 768,
}  # fmt: skip


SHORT = {"qformer": {"num_layers": 2}, "routing": {"schedule": "all"}}
"""Two layers of the Q-Former are compiled in half the time; both are routed."""


def config(variant: str = "demo", **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The demo without an image model to start from; nested values replace its own."""
    plain = to_plain(load_config(f"{SPEC}:{variant}"))
    plain["weights"]["base"] = ""
    if variant == "demo":
        plain["model"] = merged(plain["model"], SHORT)
    return merged(plain, sections)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with some values replaced; a key that does not exist is an error."""
    found = dict(values)
    for key, value in changes.items():
        assert key in found, key
        found[key] = merged(found[key], value) if isinstance(value, Mapping) else value
    return found


def facts(**changes: Any) -> Facts:
    fields: dict[str, Any] = {
        "label_names": {"way": ("left", "right", "both")}, "vocab_size": VOCAB, "pad_id": PAD,
        "eos_id": EOS, "words_size": WORDS, "video": "patches", "feature_width": SIZES["f"],
        "feature_dtype": "bfloat16",
    }  # fmt: skip
    if changes.get("video") == "pixels":
        fields |= {"feature_width": SIZES["i"], "feature_dtype": "uint8"}
    return Facts(**{**fields, **changes})


def system(given: Facts | None = None, **sections: Mapping[str, Any]) -> System:
    return build(config(**sections), given or facts())


def model(given: Facts | None = None, **sections: Mapping[str, Any]) -> MTransLLAMA:
    given = given or facts()
    options = ModelOptions.of(config(**sections)["model"], given.words_size)
    return build_model(options, given)


def batch(of: System, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Random questions of every length; the last choice of the first one is not offered."""
    rng, size = np.random.default_rng(seed), SIZES | sizes
    size["w"] = size["b"] // size["g"] * size["l"]
    made: dict[str, Any] = {}
    for name, like in abstract_batch(of, size).items():
        if name == "valid_b":
            made[name] = np.ones(size["b"], bool)
        elif name == "index_b":
            made[name] = np.arange(size["b"], dtype=np.int32)
        elif name.startswith("label_"):
            made[name] = rng.integers(0, size["c"], size["b"]).astype(np.int32)
        elif name == "pixel_bti":
            made[name] = rng.integers(0, 256, like.shape, dtype=np.uint8)
        elif name == "frames_btpf":
            made[name] = rng.normal(size=like.shape).astype(like.dtype)
        elif "length" in name:
            longest = size[{"prompt": "n", "answer": "a", "choice": "y"}[name.partition("_")[0]]]
            made[name] = rng.integers(2, longest + 1, like.shape).astype(np.int32)
            made[name].flat[0] = longest
        elif name in ("ids_gw", "frame_bt", "patch_btp"):
            made[name] = rng.integers(0, WORDS, like.shape).astype(np.int32)
        elif name == "word_bl":
            made[name] = word_places(rng, size)
        else:
            made[name] = rng.integers(3, VOCAB, like.shape).astype(np.int32)
    if "choice_length_bc" in made:
        made["choice_length_bc"][0, -1] = 0
    return made


def word_places(rng: np.random.Generator, size: Mapping[str, int]) -> np.ndarray:
    """Where words of random lengths lie; the first row is full."""
    length_b = rng.integers(2, size["l"] + 1, size["b"])
    length_b[0] = size["l"]
    start_gr = np.cumsum(length_b.reshape(size["g"], -1), axis=1)
    start_b = start_gr.reshape(-1) - length_b
    place_l = np.arange(size["l"])
    keep_bl = place_l[None] < length_b[:, None]
    return np.where(keep_bl, start_b[:, None] + place_l, -1).astype(np.int32)


@functools.cache
def params(of: System, scale: float = 0.2) -> Any:
    """Every leaf random, whatever begins at zero too."""
    shapes = jax.eval_shape(of.init, jax.random.key(0), abstract_batch(of, SIZES))
    rng = np.random.default_rng(7)
    return nest({
        path: (path.endswith("scale") + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)
        for path, leaf in named(shapes).items()
    })  # fmt: skip


def arguments(of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `MTransLLAMA.answer_logits` takes, from a batch."""
    width, length = of["prompt_bn"].shape[1], of["answer_ba"].shape[1]
    return {
        "clip": Clip.of(of, "ids_gw" in of),
        "prompt_bn": of["prompt_bn"],
        "keep_bn": np.arange(width)[None] >= width - of["prompt_length_b"][:, None],
        "answer_ba": of["answer_ba"],
        "keep_ba": np.arange(length)[None] < of["answer_length_b"][:, None],
    }


@functools.partial(jax.jit, static_argnums=0)
def answer_logits(of: MTransLLAMA, params: Any, given: Any) -> jax.Array:
    return of.apply({"params": params}, **given, deterministic=True)
