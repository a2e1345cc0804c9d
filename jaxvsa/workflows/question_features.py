"""The frozen text encoder, run once over all questions: its outputs are stored and trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import digest_bytes
from jaxvsa.core.precision import Precision
from jaxvsa.data.features import DTYPES, FeatureTable, Manifest
from jaxvsa.data.question_batches import padded
from jaxvsa.data.text import TextCodec, Tokens
from jaxvsa.interop.roberta import check_vocab, read_encoder
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.text_encoder import TextEncoder

TOKENS_AT_ONCE = 4096
UNIT = 16
"""Padded questions have a multiple of so many tokens; each is one compilation."""
Kept = Literal["mean", "token"]


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionEncoder:
    """A text encoder and its tokenizer.

    Attributes:
        folder: where they were read.
        codec: the tokenizer.
        model: the network.
        params: its float32 weights.
        longest: most tokens of a question, special tokens included; longer ones lose their end.
    """

    folder: Path
    codec: TextCodec
    model: TextEncoder
    params: Any
    longest: int

    @classmethod
    def open(cls, folder: str | Path, longest: int) -> QuestionEncoder:
        """Reads a Hugging Face folder of a RoBERTa or BERT.

        Raises:
            UserError: no such folder or model; weights of another tokenizer; `longest` is more
                than the model has positions for.
        """
        fields, params = read_encoder(folder)
        codec = TextCodec.from_folder(folder)
        check_vocab(codec.vocab_size, fields["vocab_size"])
        usable = fields["max_positions"]
        usable -= fields["pad_id"] + 1 if fields["kind"] == "roberta" else 0
        if not 2 < longest <= usable:
            raise UserError(
                f"--question-len {longest}: {folder} reads 3 to {usable} tokens of a text"
            )
        model = TextEncoder(**fields, precision=Precision())
        return cls(Path(folder), codec, model, params, longest)

    def name(self, kept: Kept) -> str:
        """What the features are made by: weights, tokenizer, and what is kept of a question."""
        weights = "".join(f"{k}{v}" for k, v in sorted(trees.digests(self.params).items()))
        digest = digest_bytes(weights.encode(), self.codec.to_json().encode())[:16]
        what = "mean" if kept == "mean" else "each"
        return f"{self.model.kind} {digest}, {what} of {self.longest} tokens at most"


def encode_questions(
    encoder: QuestionEncoder, questions: Sequence[str], kept: Kept, dtype: str, console: Console
) -> tuple[FeatureTable, Manifest, int]:
    """The last hidden states of every question, special tokens among them.

    The mean is that of all tokens, in float32, as sentence encoders take it.

    Args:
        encoder: runs in float32.
        questions: texts, each once.
        kept: "token": a row for each token; "mean": their mean alone.
        dtype: stored type, a key of `DTYPES`.
        console: where progress goes.

    Returns:
        The table by text, sorted; its manifest; how many questions lost their end.

    Raises:
        UserError: a value that is not finite, or not in `dtype`.
    """
    texts = sorted(questions)
    whole = encoder.codec.encode(texts, encoder.longest + 1)
    cut = int(np.sum(whole.length_b > encoder.longest))
    tokens = encoder.codec.encode(texts, encoder.longest)
    count_b = np.ones_like(tokens.length_b) if kept == "mean" else tokens.length_b
    end_b = np.cumsum(count_b, dtype=np.int64)
    values_nf = np.empty((int(end_b[-1]), encoder.model.width), DTYPES[dtype])

    @jax.jit
    def encode(params: Any, ids_bl: jax.Array, length_b: jax.Array) -> jax.Array:
        packing = Packing.rectangle(*ids_bl.shape)
        real_n = packing.place_n < length_b[packing.row_n]
        sight = Sight.of(packing, real_n, packing.row_n)
        out_nu: Any = encoder.model.apply(
            {"params": params}, ids_bl.reshape(-1), packing, sight, True
        )
        return out_nu.reshape(*ids_bl.shape, -1)

    params = jax.tree.map(jnp.asarray, encoder.params)
    for index_b, size in track(_plan(tokens, encoder.longest), "questions", console=console):
        ids_bl = padded(tokens, index_b, size, encoder.codec.pad_id)
        length_b = tokens.length_b[index_b]
        rows = TOKENS_AT_ONCE // size
        ids_bl = np.pad(ids_bl, ((0, rows - len(index_b)), (0, 0)), mode="edge")
        full_b = np.pad(length_b, (0, rows - len(index_b)), mode="edge")
        out_blu = np.asarray(encode(params, ids_bl, full_b))[: len(index_b)]
        real_bl = np.arange(size) < length_b[:, None]
        if kept == "mean":
            found_nu = np.sum(out_blu, axis=1, where=real_bl[..., None]) / length_b[:, None]
        else:
            found_nu = out_blu[real_bl]
        _store(values_nf, found_nu, index_b, end_b - count_b, count_b, encoder.folder)
    table = FeatureTable.from_counts(values_nf, count_b, texts)
    return table, table.describe(encoder.name(kept)), cut


def _plan(tokens: Tokens, longest: int) -> list[tuple[np.ndarray, int]]:
    """Questions of like length together, and their padded length."""
    size_b = np.minimum(-(-tokens.length_b // UNIT) * UNIT, longest)
    found = []
    for size in np.unique(size_b).tolist():
        of_b, rows = np.flatnonzero(size_b == size), TOKENS_AT_ONCE // size
        found += [(of_b[first : first + rows], size) for first in range(0, len(of_b), rows)]
    return found


def _store(
    values_nf: np.ndarray,
    found_nu: np.ndarray,
    index_b: np.ndarray,
    start_b: np.ndarray,
    count_b: np.ndarray,
    folder: Path,
) -> None:
    """Puts the rows of some questions, one after another in `found_nu`, at their places."""
    count_b, start_b = count_b[index_b], start_b[index_b]
    first_b = np.cumsum(count_b) - count_b
    at_n = np.repeat(start_b - first_b, count_b) + np.arange(len(found_nu))
    with np.errstate(over="ignore"):
        stored_nf = found_nu.astype(values_nf.dtype)
    if not np.isfinite(stored_nf).all():
        if np.isfinite(found_nu).all():
            raise UserError(
                f"{folder}: outputs are too large for {stored_nf.dtype}; use --dtype bfloat16"
            )
        raise UserError(f"{folder}: outputs are not finite; its weights are damaged")
    values_nf[at_n] = stored_nf
