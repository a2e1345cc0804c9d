"""Hugging Face RoBERTa and BERT folders <-> fields and parameters of `TextEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named
from jaxvsa.interop.names import Leaf, read_leaves, write_leaves
from jaxvsa.interop.tensors import load_safetensors
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.text_encoder import TextEncoder

_OUTER = {
    "word/embedding": "embeddings.word_embeddings.weight",
    "position/embedding": "embeddings.position_embeddings.weight",
    "type/embedding": "embeddings.token_type_embeddings.weight",
    "norm_embed/scale": "embeddings.LayerNorm.weight",
    "norm_embed/bias": "embeddings.LayerNorm.bias",
}
_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
}
_NORM = {"norm_attention": "attention.output.LayerNorm", "norm_mlp": "output.LayerNorm"}
_LAYER = {
    **{f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in _DENSE.items()},
    **{f"{ours}/bias": f"{theirs}.bias" for ours, theirs in _DENSE.items()},
    **{f"{ours}/scale": f"{theirs}.weight" for ours, theirs in _NORM.items()},
    **{f"{ours}/bias": f"{theirs}.bias" for ours, theirs in _NORM.items()},
}
# Heads of other tasks, and buffers that old versions stored.
IGNORED = (
    r"pooler\.dense\.(weight|bias)",
    r"embeddings\.(position_ids|token_type_ids)",
    r"(lm_head|cls|classifier|qa_outputs)\..*",
)
_FIELDS = {
    "vocab_size": ("vocab_size", int),
    "width": ("hidden_size", int),
    "num_layers": ("num_hidden_layers", int),
    "num_heads": ("num_attention_heads", int),
    "mlp_width": ("intermediate_size", int),
    "max_positions": ("max_position_embeddings", int),
    "num_types": ("type_vocab_size", int),
    "norm_eps": ("layer_norm_eps", float),
    "pad_id": ("pad_token_id", int),
    "dropout": ("hidden_dropout_prob", float),
    "attention_dropout": ("attention_probs_dropout_prob", float),
}


def read_encoder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `TextEncoder` (all but `precision`) and its float32 parameters.

    Args:
        folder: config.json beside model.safetensors or its shards; tensor names with or without
            the model's prefix.

    Raises:
        UserError: not such a folder, not a RoBERTa or BERT, or a tensor that is missing, left
            over or of the wrong shape.
    """
    folder = Path(folder)
    fields = _read_fields(folder)
    state = load_safetensors(folder)
    prefix = f"{fields['kind']}."
    bare = {name.removeprefix(prefix): array for name, array in state.items()}
    try:
        params = from_names(bare)
        _check_shapes(fields, params)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return fields, jax.tree.map(lambda leaf: leaf.astype(np.float32, copy=False), params)


def from_names(state: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """Parameters of `TextEncoder` from the published names that begin with `prefix`.

    The number of layers is that of the names. Poolers and heads (`IGNORED`) are left out; names
    without the prefix are not looked at; types stay as they are.

    Raises:
        UserError: a tensor is missing or left over.
    """
    own = {
        prefix + _modern(name[len(prefix) :]): array
        for name, array in state.items()
        if name.startswith(prefix) and not _ignored(name[len(prefix) :])
    }
    found = [re.match(r"encoder\.layer\.(\d+)\.", name.removeprefix(prefix)) for name in own]
    num_layers = 1 + max((int(match[1]) for match in found if match), default=0)
    return read_leaves(_leaves(num_layers, prefix), own)


def to_names(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """The inverse of `from_names`: arrays by published name, layers apart, kernels transposed."""
    return write_leaves(_leaves(sum(key.startswith("layer_") for key in params), prefix), params)


def _leaves(num_layers: int, prefix: str) -> dict[str, Leaf]:
    """Where the parameters of `TextEncoder` come from."""
    table = {path: Leaf((prefix + name,)) for path, name in _OUTER.items()}
    for i in range(num_layers):
        for path, name in _LAYER.items():
            source = (f"{prefix}encoder.layer.{i}.{name}",)
            table[f"layer_{i}/{path}"] = Leaf(source, transposed=path.endswith("/kernel"))
    return table


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `TextEncoder` as runs up to format 2 have them: one array for all layers."""
    own = {key: branch for key, branch in params.items() if not key.startswith("layer_")}
    layers = [params[f"layer_{i}"] for i in range(len(params) - len(own))]
    return own | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    own, layers = dict(params), params["layers"]
    del own["layers"]
    for i in range(len(jax.tree.leaves(layers)[0])):
        own[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
    return own


def check_vocab(codec_size: int, encoder_vocab: int) -> None:
    """Refuses a tokenizer that can name rows which the encoder does not have.

    Raises:
        UserError: `codec_size` ids, but fewer rows in the word table. More rows are fine:
            published tables are often padded.
    """
    if codec_size > encoder_vocab:
        raise UserError(
            f"the tokenizer has {codec_size} ids, but the text encoder's word table only "
            f"{encoder_vocab} rows; take tokenizer and weights from the same folder"
        )


def _read_fields(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not folder.is_dir() or not path.is_file():
        raise UserError(f"{path}: not found; expected a Hugging Face folder of a text encoder")
    config = read_json(path, "model configuration")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("roberta", "bert"):
        raise UserError(f"{path}: model_type is {kind!r}; known: 'roberta', 'bert'")
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key} is {config[key]!r}; only {value!r} is supported")
    return {"kind": kind} | {
        field: _typed(path, config, key, kind_of) for field, (key, kind_of) in _FIELDS.items()
    }


def _typed(path: Path, config: Mapping[str, Any], key: str, kind_of: type) -> int | float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, kind_of)):
        raise UserError(f"{path}: {key} is {value!r}; expected {kind_of.__name__}")
    return kind_of(value)


def _check_shapes(fields: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Compares with the shapes that the model itself would create."""
    model = TextEncoder(**fields, precision=Precision())

    def init() -> Any:
        packing = Packing.rectangle(1, 1)
        sight = Sight.of(packing, packing.row_n >= 0, packing.row_n)
        return model.init(jax.random.key(0), packing.row_n, packing, sight, True)

    made = jax.eval_shape(init)
    given, wanted = named(params), named(made["params"])
    count = sum(key.startswith("layer_") for key in params)
    if count != fields["num_layers"]:
        raise UserError(
            f"the tensors are those of {count} layers, but config.json says "
            f"num_hidden_layers {fields['num_layers']}"
        )
    for path, leaf in wanted.items():
        if given[path].shape != leaf.shape:
            number, _, inner = path.removeprefix("layer_").partition("/")
            theirs = _OUTER.get(path) or f"encoder.layer.{number}.{_LAYER[inner]}"
            raise UserError(
                f"tensor '{theirs}' makes '{path}' {given[path].shape}, "
                f"but config.json says {leaf.shape}"
            )


def _ignored(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


def _modern(name: str) -> str:
    """Names of the first BERT files, which were converted from TensorFlow."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name
