"""Prompts and answers to token ids, with a language model's tokenizer or with one trained here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.data.text import TextCodec, Tokens


class LanguageCodec:
    """A tokenizer that opens prompts with one token and closes answers with another.

    Attributes:
        bos_id: opens a prompt.
        eos_id: closes an answer.
        pad_id: padding; the closing token where the tokenizer has none.
        vocab_size: largest id + 1, added tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, bos: str, eos: str, pad: str) -> None:
        """Takes over `tokenizer`; `pad` may be absent from its vocabulary.

        Raises:
            UserError: it has no such opening or closing token.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        for role, token in (("bos_token", bos), ("eos_token", eos)):
            if token not in vocab:
                raise UserError(f"the tokenizer has no token '{token}', named as its {role}")
        self._tokenizer, self._names = tokenizer, (bos, eos, pad)
        self.bos_id: int = vocab[bos]
        self.eos_id: int = vocab[eos]
        self.pad_id: int = vocab.get(pad, self.eos_id)
        self.vocab_size: int = max(vocab.values()) + 1

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, the opening token before them."""
        return [[self.bos_id, *ids] for ids in self._encode(texts)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, the closing token behind them."""
        return [[*ids, self.eos_id] for ids in self._encode(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of a row of ids up to its closing token, without special tokens."""
        kept = [int(i) for i in ids]
        kept = kept[: kept.index(self.eos_id)] if self.eos_id in kept else kept
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def to_json(self) -> str:
        """The whole codec as text; `from_json` gives back an equal one."""
        return json.dumps({"names": self._names, "tokenizer": self._tokenizer.to_str()})

    @classmethod
    def from_json(cls, text: str) -> LanguageCodec:
        """The codec that `to_json` wrote.

        Raises:
            UserError: the text is something else.
        """
        try:
            stored = json.loads(text)
            return cls(Tokenizer.from_str(stored["tokenizer"]), *stored["names"])
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"not a stored language codec: {error}") from error

    @classmethod
    def from_folder(cls, path: str | Path) -> LanguageCodec:
        """Tokenizer of a Hugging Face folder of a language model.

        Args:
            path: folder with tokenizer.json; the special tokens are those of tokenizer_config.json,
                else `<s>` and `</s>`.

        Raises:
            UserError: there is no such file, or it is damaged, or lacks a special token.
        """
        folder = Path(path)
        source = folder / "tokenizer.json"
        if not source.is_file():
            raise UserError(
                f"{folder} has no tokenizer.json; write one with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        named = folder / "tokenizer_config.json"
        found = read_json(named, "tokenizer file") if named.is_file() else {}

        def token(key: str, usual: str) -> str:
            value = found.get(key) or usual
            return value["content"] if isinstance(value, dict) else value

        try:
            tokenizer = Tokenizer.from_file(str(source))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{source}: damaged: {error}") from error
        names = token("bos_token", "<s>"), token("eos_token", "</s>"), token("pad_token", "[PAD]")
        try:
            return cls(tokenizer, *names)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> LanguageCodec:
        """Byte-level BPE with RoBERTa's special ids; the same texts give the same codec.

        Args:
            texts: what to learn the merges from; train examples only.
            vocab_size: as in `TextCodec.train_bpe`.
        """
        stored = json.loads(TextCodec.train_bpe(texts, vocab_size).to_json())
        return cls(Tokenizer.from_str(stored["tokenizer"]), "<s>", "</s>", "<pad>")

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            rows = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError) as error:
            raise UserError(f"a text cannot be encoded: {error}") from error
        return [row.ids for row in rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Codecs:
    """The tokenizers of both readers.

    Attributes:
        language: of the language model.
        words: of the Q-Former.
    """

    language: LanguageCodec
    words: TextCodec

    def to_json(self) -> str:
        """Both as text."""
        parts = {"language": self.language.to_json(), "words": self.words.to_json()}
        return json.dumps(parts)


def read_codecs(text: str) -> Codecs:
    """What `Codecs.to_json` wrote.

    Raises:
        UserError: the text is something else.
    """
    try:
        parts = json.loads(text)
        found = parts["language"], parts["words"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not the stored tokenizers of a run: {error}") from error
    return Codecs(LanguageCodec.from_json(found[0]), TextCodec.from_json(found[1]))


def ragged(rows: Sequence[Sequence[int]]) -> Tokens:
    """Rows of ids as one table."""
    length_b = np.fromiter(map(len, rows), np.int32, len(rows))
    start_b = np.cumsum(length_b, dtype=np.int64) - length_b
    ids_n = np.fromiter((i for row in rows for i in row), np.int32, int(length_b.sum()))
    return Tokens(ids_n, start_b, length_b)


def cut_left(rows: Sequence[Sequence[int]], limit: int) -> tuple[list[list[int]], int]:
    """Rows of at most `limit` ids, and how many were cut.

    A cut row keeps its first id, the opening token, and loses what follows it: in a dialogue, what
    was said first.
    """
    cut = [
        [row[0], *row[len(row) - limit + 1 :]] if len(row) > limit else list(row) for row in rows
    ]
    return cut, sum(len(row) > limit for row in rows)
