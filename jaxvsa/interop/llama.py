"""Hugging Face folders of LLaMA, Llama 2 and 3, Vicuna <-> fields and parameters of `Decoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.interop.names import Leaf, Place, read_leaves, write_leaves
from jaxvsa.layers.decoder import RopeScaling

_LAYER = {
    "query/kernel": "self_attn.q_proj",
    "key/kernel": "self_attn.k_proj",
    "value/kernel": "self_attn.v_proj",
    "out/kernel": "self_attn.o_proj",
    "gate/kernel": "mlp.gate_proj",
    "up/kernel": "mlp.up_proj",
    "down/kernel": "mlp.down_proj",
    "norm_attention/scale": "input_layernorm",
    "norm_mlp/scale": "post_attention_layernorm",
}
_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Decoder`, all but `remat` and `precision`, from a config.json.

    Raises:
        UserError: another kind of model, a key that is missing, or rotations or biases that
            `Decoder` does not have.
    """
    if config.get("model_type") != "llama":
        raise UserError(f"config.json: model_type {config.get('model_type')!r}; known: 'llama'")
    for key in _FIELDS.values():
        if key not in config:
            raise UserError(f"config.json: no '{key}'")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise UserError(f"config.json: {key} is true; only models without these biases fit")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if config.get("head_dim") not in (None, width // heads):
        raise UserError(f"config.json: head_dim {config['head_dim']} is not {width // heads}")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json: hidden_act {config['hidden_act']!r}; known: 'silu'")
    # Newer files keep everything in rope_parameters.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return {
        **{ours: config[theirs] for ours, theirs in _FIELDS.items()},
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "rope_theta": float(theta),
        "rope_scaling": _scaling(rope),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind != "llama3":
        raise UserError(f"config.json: rope_type {kind!r}; known: 'default', 'llama3'")
    return RopeScaling(
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )


def leaves(num_layers: int, tied: bool, prefix: str = "") -> dict[str, Leaf]:
    """Where the parameters of `Decoder` come from; `prefix` as in "language_model."."""
    table = {
        "word": Leaf((f"{prefix}model.embed_tokens.weight",)),
        "norm/scale": Leaf((f"{prefix}model.norm.weight",)),
    }
    if not tied:
        table["head"] = Leaf((f"{prefix}lm_head.weight",), transposed=True)
    for path, name in _LAYER.items():
        pattern = f"{prefix}model.layers.{{}}.{name}.weight"
        table[f"layers/{path}"] = Leaf.per_layer(pattern, num_layers, path.endswith("kernel"))
    return table


def read_decoder(
    tensors: Mapping[str, Any], fields: Mapping[str, Any], prefix: str = "",
    place: Place | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Parameters of `Decoder` from the tensors that begin with `prefix`.

    Raises:
        UserError: a tensor is missing or left over, or the word table is of another shape than
            `fields` say; `place` checks other shapes.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    table = leaves(fields["num_layers"], fields["tied"], prefix)
    word = table["word"].names[0]
    if word in own and tuple(own[word].shape) != (fields["vocab_size"], fields["width"]):
        raise UserError(
            f"tensor '{word}' has shape {tuple(own[word].shape)}, config.json says "
            f"{(fields['vocab_size'], fields['width'])}"
        )

    def ignored(name: str) -> bool:
        # Buffers that old versions stored; a copy of the tied table.
        buffer = re.search(r"rotary_emb\.inv_freq$", name) is not None
        return buffer or (fields["tied"] and name == f"{prefix}lm_head.weight")

    return read_leaves(table, own, place, ignored)


def to_names(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Published names and layouts of the parameters of `Decoder`."""
    num_layers = len(params["layers"]["query"]["kernel"])
    return write_leaves(leaves(num_layers, "head" not in params, prefix), params)
