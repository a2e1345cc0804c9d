"""A Hugging Face folder of InstructBLIP, BLIP-2 or LLaMA -> sizes and parameters of MTransLLAMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.interop import blip, llama
from jaxvsa.interop.names import Place
from jaxvsa.interop.tensors import open_safetensors
from jaxvsa.layers.qformer import QFormerOptions

# Field -> its key, and the value that an absent key means: files of transformers 4 leave out of
# nested sections what is as in the classes InstructBlipVisionConfig, InstructBlipQFormerConfig and
# LlamaConfig.
_VISION = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "width": ("hidden_size", 1408),
    "num_layers": ("num_hidden_layers", 39),
    "num_heads": ("num_attention_heads", 16),
    "mlp_width": ("intermediate_size", 6144),
    "norm_eps": ("layer_norm_eps", 1e-6),
}
_QFORMER = {
    "num_layers": ("num_hidden_layers", 12),
    "width": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "max_positions": ("max_position_embeddings", 512),
    "cross_every": ("cross_attention_frequency", 2),
    "norm_eps": ("layer_norm_eps", 1e-12),
}
_WORDS = ("vocab_size", 30522)
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_KINDS = ("instructblip", "instructblipvideo", "blip-2")
PREFIX = "language_model."


def read_fields(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What config.json says: fields of the sections vision, qformer and decoder.

    A folder of LLaMA alone has only the last. "qformer" holds "vocab_size", 0 for BLIP-2; "decoder"
    holds "vocab_size", too.

    Raises:
        UserError: no such file, another kind of model, a key that is missing.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        kinds = ", ".join((*_KINDS, "llama"))
        raise UserError(f"{folder} has no config.json; name a Hugging Face folder of {kinds}")
    config = read_json(path, "model configuration")
    kind = config.get("model_type") if isinstance(config, dict) else None
    try:
        if kind == "llama":
            return {"decoder": _plain(llama.fields_of(config))}
        if kind not in _KINDS:
            known = ", ".join((*_KINDS, "llama"))
            raise UserError(f"config.json: model_type {kind!r}; known: {known}")
        for name in ("vision_config", "qformer_config", "text_config"):
            if not isinstance(config[name], dict):
                raise UserError(f"config.json: '{name}' is no section")
        theirs = config["qformer_config"]
        qformer = {name: theirs.get(*where) for name, where in _QFORMER.items()}
        qformer["num_queries"] = config.get("num_query_tokens", 32)
        qformer["vocab_size"] = theirs.get(*_WORDS) if kind != "blip-2" else 0
        vision = config["vision_config"]
        return {
            "vision": {name: vision.get(*where) for name, where in _VISION.items()},
            "qformer": qformer,
            "decoder": _plain(llama.fields_of(_LLAMA | config["text_config"])),
        }
    except KeyError as error:
        raise UserError(f"{path}: no {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "rope_scaling": dataclasses.asdict(fields["rope_scaling"])}


def read_weights(
    folder: str | Path,
    fields: Mapping[str, Mapping[str, Any]],
    options: QFormerOptions | None,
    place: Place | None = None,
    need_vision: bool = True,
) -> dict[str, Any]:
    """Parameters by path, read piece by piece.

    Args:
        folder: with safetensors files.
        fields: from `read_fields`.
        options: of the Q-Former; without `vocab_size` it reads no text, whatever the folder holds;
            None reads the language model alone.
        place: where a parameter goes, by its path in the whole model; None = the host.
        need_vision: False leaves the vision transformer out.

    Raises:
        UserError: no such files, or a tensor is missing or left over; `place` checks shapes.
    """
    try:
        tensors: dict[str, Any] = dict(open_safetensors(folder))
        if options is None or "qformer" not in fields:
            prefix = PREFIX if "qformer" in fields else ""
            below = _below(place, "decoder")
            decoder = llama.read_decoder(tensors, fields["decoder"], prefix, below)
            return trees.named({"decoder": decoder})
        known = ("vision_model.", "qformer.", "query_tokens", "language_projection.", PREFIX)
        over = sorted(name for name in tensors if not name.startswith(known))
        if over:
            raise UserError(f"tensor '{over[0]}' has no place in the model ({len(over)} in all)")
        found: dict[str, Any] = {}
        if need_vision:
            layers = fields["vision"]["num_layers"]
            found["vision"] = blip.read_vision(tensors, layers, place=_below(place, "vision"))
        if fields["qformer"]["vocab_size"] and not options.vocab_size:
            tensors = blip.without_words(tensors)
        found["qformer"] = blip.read_qformer(tensors, options, place=_below(place, "qformer"))
        found["project"] = blip.read_projection(tensors, place=_below(place, "project"))
        found["decoder"] = llama.read_decoder(
            tensors, fields["decoder"], PREFIX, _below(place, "decoder")
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return trees.named(found)


def _below(place: Place | None, branch: str) -> Place | None:
    """`place` for the paths of one part."""
    if place is None:
        return None
    return lambda path, shape: place(f"{branch}/{path}", shape)


def projection_names(project: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Published names and layouts of the projection."""
    return {
        "language_projection.weight": np.asarray(project["kernel"]).T,
        "language_projection.bias": np.asarray(project["bias"]),
    }
