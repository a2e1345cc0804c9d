"""LAVIS checkpoints of BLIP-2 and InstructBLIP, read as the tensors of their Hugging Face models.

What `read_lavis` gives goes to `blip.read_qformer`, `blip.read_vision` and `blip.read_projection`.

Source: names of LAVIS (Li et al., 2022), `blip2_vicuna_instruct.py`, `blip2_qformer.py` and
`eva_vit.py`; names of transformers, `InstructBlipForConditionalGeneration`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.interop.torch_file import read_torch_file

_NAMES = (
    (r"^Qformer\.bert\.", "qformer."),
    (r"(\.|^)attention\.self\.", r"\1attention.attention."),
    (r"crossattention\.self\.", "crossattention.attention."),
    (r"embeddings\.LayerNorm\.", "embeddings.layernorm."),
    (r"^(llm|opt|t5)_proj\.", "language_projection."),
    (r"^llm_model\.", "language_model."),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
     r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.", r"vision_model.encoder.layers.\1.self_attn."),
    (r"^visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
)  # fmt: skip
_KNOWN = re.compile(r"query_tokens$|(qformer|vision_model|language_projection|language_model)\.")
# What only the pretraining of Q-Former or vision transformer reads.
_HEADS = re.compile(r"temp$|(Qformer\.cls|vision_proj|text_proj|itm_head|norm|fc_norm|head)\.")
# The vision transformer in a file of its own has no prefix.
_BARE = re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks)\.")
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
_HALF = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)([qv])_bias$")


def modern(name: str) -> str:
    """The Hugging Face name of a LAVIS name; other names stay as they are."""
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def read_lavis(*paths: str | Path, num_vision_layers: int = 39) -> dict[str, np.ndarray]:
    """The tensors of published .pth files under Hugging Face names, in the files' own types.

    LAVIS keeps the vision transformer in a file of its own (eva_vit_g.pth) and what was trained in
    another (instruct_blip_vicuna7b_trimmed.pth); both can be given.

    Raises:
        UserError: see `read_torch_file` and `from_lavis`; a tensor that is in two files.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        if Path(path).is_dir():
            raise UserError(f"{path}: a folder; LAVIS weights are single .pth files, name one")
        state = read_torch_file(path)
        try:
            found = from_lavis(state, num_vision_layers)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise UserError(f"{path}: tensor '{twice[0]}' is in another file, too; leave one out")
        tensors |= found
    return tensors


def from_lavis(tensors: Mapping[str, Any], num_vision_layers: int = 39) -> dict[str, Any]:
    """Tensors of LAVIS under Hugging Face names and in their layouts.

    The biases of queries and values become one with zeros for the keys. Left out: the heads of the
    pretraining, and vision blocks from `num_vision_layers` on (LAVIS runs 39 of the 40 of EVA-g).
    Names that are already those of Hugging Face pass.

    Args:
        tensors: arrays by LAVIS name.
        num_vision_layers: blocks of the vision transformer that are kept.

    Raises:
        UserError: a tensor that neither belongs to the model nor to its pretraining; one half of
            a bias without the other.
    """
    found: dict[str, Any] = {}
    # The Q-Former without text has one LayerNorm and no embeddings around it.
    text = "Qformer.bert.embeddings.word_embeddings.weight" in tensors
    for name, array in tensors.items():
        if _HEADS.match(name):
            continue
        new = modern(f"visual_encoder.{name}" if _BARE.match(name) else name)
        if not text and name.startswith("Qformer."):
            new = new.replace("qformer.embeddings.layernorm.", "qformer.layernorm.")
        if not _KNOWN.match(new):
            raise UserError(
                f"tensor '{name}' is none of BLIP-2 or InstructBLIP (Q-Former, vision "
                "transformer, projection, language model)"
            )
        layer = _LAYER.match(new)
        if layer is None or int(layer[1]) < num_vision_layers:
            found[new] = array
    return _whole_biases(found)


def _whole_biases(tensors: dict[str, Any]) -> dict[str, Any]:
    """Biases q and v of each block side by side, zeros between them."""
    halves = {match[1] for name in tensors if (match := _HALF.match(name))}
    for start in halves:
        for half in ("q_bias", "v_bias"):
            if start + half not in tensors:
                raise UserError(f"tensor '{start}{half}' is missing, though its other half is not")
        query_f, value_f = (tensors.pop(start + half)[:] for half in ("q_bias", "v_bias"))
        tensors[f"{start}qkv.bias"] = np.concatenate([query_f, np.zeros_like(value_f), value_f])
    return tensors
