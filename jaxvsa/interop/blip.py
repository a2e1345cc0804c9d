"""Hugging Face tensors of BLIP-2 and InstructBLIP <-> vision transformer, Q-Former, projection.

The tensors of LAVIS checkpoints are turned into these first (`lavis.read_lavis`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.names import Leaf, Place, read_leaves, write_leaves
from jaxvsa.layers.qformer import QFormerOptions

_BLOCK = {
    "norm_attention/scale": "layer_norm1.weight",
    "norm_attention/bias": "layer_norm1.bias",
    "qkv/kernel": "self_attn.qkv.weight",
    "qkv/bias": "self_attn.qkv.bias",
    "out/kernel": "self_attn.projection.weight",
    "out/bias": "self_attn.projection.bias",
    "norm_mlp/scale": "layer_norm2.weight",
    "norm_mlp/bias": "layer_norm2.bias",
    "mlp_in/kernel": "mlp.fc1.weight",
    "mlp_in/bias": "mlp.fc1.bias",
    "mlp_out/kernel": "mlp.fc2.weight",
    "mlp_out/bias": "mlp.fc2.bias",
}
_ATTENTION = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "out": "output.dense",
    "norm": "output.LayerNorm",
}
_NETWORK = {
    "mlp_query": ("intermediate_query", "output_query"),
    "mlp_word": ("intermediate", "output"),
}


def sizes_of(tensors: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What the tensors say of their model: fields of `VisionOptions` and of `QFormerOptions`.

    {"vision": {...}, "qformer": {...}, "projection": {"width": ...}}, each only if its tensors are
    there. Numbers of heads cannot be seen (heads are 88 wide in EVA-CLIP-g, 64 in the Q-Former).
    The word table may have more rows than BERT's 30,522: LAVIS adds a token to it.

    Args:
        tensors: with `shape`, by Hugging Face name; nothing is read.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found: dict[str, dict[str, int]] = {}

    def count(pattern: str) -> int:
        numbers = [int(match[1]) for name in shape if (match := re.match(pattern, name))]
        return max(numbers, default=-1) + 1

    patch = shape.get("vision_model.embeddings.patch_embedding.weight")
    if patch is not None:
        side = math.isqrt(shape["vision_model.embeddings.position_embedding"][1] - 1)
        found["vision"] = {
            "image_size": side * patch[-1], "patch_size": patch[-1], "width": patch[0],
            "num_layers": count(r"vision_model\.encoder\.layers\.(\d+)\."),
            "mlp_width": shape["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        }  # fmt: skip
    if "query_tokens" in shape:
        layers = count(r"qformer\.encoder\.layer\.(\d+)\.")
        crossing = count(r"qformer\.encoder\.layer\.(\d+)\.crossattention")
        text = "qformer.embeddings.word_embeddings.weight"
        inner = "qformer.encoder.layer.0.intermediate_query.dense.weight"
        crosses = {name.split(".")[3] for name in shape if ".crossattention." in name}
        found["qformer"] = {
            "num_layers": layers, "width": shape["query_tokens"][-1],
            "num_queries": shape["query_tokens"][1], "mlp_width": shape[inner][0],
            "vocab_size": shape[text][0] if text in shape else 0,
            "max_positions": shape.get(text.replace("word", "position"), (0,))[0],
            "cross_every": (crossing - 1) // (len(crosses) - 1) if len(crosses) > 1 else layers,
        }  # fmt: skip
    if "language_projection.weight" in shape:
        found["projection"] = {"width": shape["language_projection.weight"][0]}
    return found


def read_projection(
    tensors: Mapping[str, Any], prefix: str = "language_projection.", place: Place | None = None
) -> dict[str, Any]:
    """Kernel and bias of the linear layer from the Q-Former's width to the decoder's.

    Raises:
        UserError: a tensor is missing or left over.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    table = {
        "kernel": Leaf((f"{prefix}weight",), transposed=True),
        "bias": Leaf((f"{prefix}bias",)),
    }
    return read_leaves(table, own, place)


def vision_leaves(num_layers: int, prefix: str = "vision_model.") -> dict[str, Leaf]:
    """Where the blocks and norm of `VisionTransformer` come from; its inputs are odd ones out."""
    table = {
        "norm/scale": Leaf((f"{prefix}post_layernorm.weight",)),
        "norm/bias": Leaf((f"{prefix}post_layernorm.bias",)),
        "patch_bias": Leaf((f"{prefix}embeddings.patch_embedding.bias",)),
    }
    for path, name in _BLOCK.items():
        pattern = f"{prefix}encoder.layers.{{}}.{name}"
        table[f"blocks/{path}"] = Leaf.per_layer(pattern, num_layers, path.endswith("kernel"))
    return table


def read_vision(
    tensors: Mapping[str, Any], num_layers: int, prefix: str = "vision_model.",
    place: Place | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Parameters of `VisionTransformer` from the tensors that begin with `prefix`.

    Raises:
        UserError: a tensor is missing or left over.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    odd = {}
    for path, name in _VISION_INPUTS.items():
        if f"{prefix}{name}" not in own:
            raise UserError(f"tensor '{prefix}{name}' is missing")
        odd[path] = own.pop(f"{prefix}{name}")[:]
    odd["whole"], odd["position"] = odd["whole"].reshape(-1), odd["position"][0]
    # (f, colour, row, column) -> (row, column, colour) by f
    odd["patch"] = np.moveaxis(odd["patch"], 0, -1).transpose(1, 2, 0, 3).reshape(
        -1, len(odd["patch"])
    )  # fmt: skip
    if place is not None:
        for path, array in odd.items():
            sharding, dtype = place(path, array.shape)
            odd[path] = jax.device_put(np.asarray(array, dtype), sharding)
    found = named(read_leaves(vision_leaves(num_layers, prefix), own, place))
    return nest({**found, **odd})


_VISION_INPUTS = {
    "whole": "embeddings.class_embedding",
    "position": "embeddings.position_embedding",
    "patch": "embeddings.patch_embedding.weight",
}


def qformer_leaves(options: QFormerOptions, prefix: str = "qformer.") -> dict[str, Leaf]:
    """Where the frozen parameters of `QFormer` come from, but for its queries."""
    table, text = {}, bool(options.vocab_size)
    norm = "embeddings.layernorm" if text else "layernorm"
    table["norm_embed/scale"] = Leaf((f"{prefix}{norm}.weight",))
    table["norm_embed/bias"] = Leaf((f"{prefix}{norm}.bias",))
    if text:
        table["word"] = Leaf((f"{prefix}embeddings.word_embeddings.weight",))
        table["position"] = Leaf((f"{prefix}embeddings.position_embeddings.weight",))

    def both(path: str, name: str) -> None:
        is_norm = path.endswith("norm")
        table[f"{path}/{'scale' if is_norm else 'kernel'}"] = Leaf(
            (f"{prefix}{name}.weight",), transposed=not is_norm
        )
        table[f"{path}/bias"] = Leaf((f"{prefix}{name}.bias",))

    for i in range(options.num_layers):
        theirs = f"encoder.layer.{i}"
        for path, name in _ATTENTION.items():
            both(f"layer_{i}/attention/{path}", f"{theirs}.attention.{name}")
            if i % options.cross_every == 0:
                both(f"layer_{i}/cross/{path}", f"{theirs}.crossattention.{name}")
        for path, (inner, outer) in _NETWORK.items():
            if text or path == "mlp_query":
                both(f"layer_{i}/{path}/in", f"{theirs}.{inner}.dense")
                both(f"layer_{i}/{path}/out", f"{theirs}.{outer}.dense")
                both(f"layer_{i}/{path}/norm", f"{theirs}.{outer}.LayerNorm")
    return table


def read_qformer(
    tensors: Mapping[str, Any], options: QFormerOptions, prefix: str = "qformer.",
    place: Place | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Frozen parameters of `QFormer`: those of the image model, "query_tokens" included.

    What is new in `QFormer` (low-rank changes, routers, positions of frames and queries) is not
    among them.

    Raises:
        UserError: a tensor is missing or left over, or there are not so many queries of this width;
            `place` checks other shapes.
    """
    if "query_tokens" not in tensors:
        raise UserError("tensor 'query_tokens' is missing")
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def ignored(name: str) -> bool:
        # Buffers that old versions stored.
        return name == f"{prefix}embeddings.position_ids"

    found = read_leaves(qformer_leaves(options, prefix), own, place, ignored)
    query_qd = tensors["query_tokens"][:][0]
    if query_qd.shape != (options.num_queries, options.width):
        raise UserError(
            f"tensor 'query_tokens' has shape {query_qd.shape}, expected "
            f"{(options.num_queries, options.width)}"
        )
    return {**found, "queries": query_qd}


def without_words(tensors: Mapping[str, Any], prefix: str = "qformer.") -> dict[str, Any]:
    """The tensors of a Q-Former that reads text as those of one that does not, as BLIP-2 has it."""
    part = r"(embeddings\.(word|position)|encoder\.layer\.\d+\.(intermediate|output)\.)"
    words = re.compile(re.escape(prefix) + part)
    norm = f"{prefix}embeddings.layernorm."
    return {
        name.replace(norm, f"{prefix}layernorm."): tensor
        for name, tensor in tensors.items()
        if not words.match(name)
    }


def to_names(params: Any, options: QFormerOptions, prefix: str = "qformer.") -> dict[str, Any]:
    """Published names and layouts of the frozen parameters of `QFormer`."""
    tensors = write_leaves(qformer_leaves(options, prefix), params)
    return {**tensors, "query_tokens": np.asarray(params["queries"])[None]}
