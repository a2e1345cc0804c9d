"""Tokenizer and weights of a text encoder, from a folder, from scratch, or as they were frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.data.text import TextCodec
from jaxvsa.interop.roberta import check_vocab, read_encoder, stack_layers
from jaxvsa.systems.base import Params


def read_text(
    config: dict[str, Any], vocab_size: int, folder: str, texts: Sequence[str]
) -> tuple[TextCodec, Params | None, int]:
    """Tokenizer, weights and word rows; `config["model"]["text"]` becomes what the weights say.

    The dropout rates stay those of the configuration: they are a matter of training.

    Args:
        config: resolved here.
        vocab_size: ids of a tokenizer trained without weights.
        folder: of the weights; "" = from scratch.
        texts: of train.
    """
    if not folder or config["model"]["variant"] == "video":
        codec = TextCodec.train_bpe(texts, vocab_size)
        return codec, None, codec.vocab_size
    fields, params = read_encoder(folder)
    codec = TextCodec.from_folder(folder)
    check_vocab(codec.vocab_size, fields["vocab_size"])
    ours = config["model"]["text"]
    ours.update({name: value for name, value in fields.items() if name in _SHAPE})
    return codec, params, fields["vocab_size"]


_SHAPE = (
    "kind", "width", "num_layers", "num_heads", "mlp_width", "max_positions", "num_types",
    "norm_eps",
)  # fmt: skip


def frozen_text(config: dict[str, Any], digests: dict[str, str], stacked: bool) -> Params:
    """The frozen text encoder, which checkpoints do not repeat, checked against its digest.

    Args:
        config: of the run.
        digests: of the weights it was trained with.
        stacked: whether they are those of stacked layers.

    Raises:
        UserError: the folder is gone, or holds other weights than those trained with.
    """
    folder = config["weights"]["text"]
    _, params = read_encoder(folder)
    store = config["model"]["precision"]["param"]
    held = {"text": jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(store)), params)}
    compared = {"text": stack_layers(held["text"])} if stacked else held
    if trees.digests(compared) != digests:
        raise UserError(
            f"{folder} holds other text weights than the run was trained with; "
            "restore the original folder there"
        )
    return held
