"""Comments to token ids, with the tokenizer of a published encoder or with one trained here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many comments in one ragged table, special tokens included.

    Attributes:
        ids_n: int32, all comments one after the other.
        start_b: int64, where comment b begins in `ids_n`.
        length_b: int32, how many ids it has.
    """

    ids_n: np.ndarray
    start_b: np.ndarray
    length_b: np.ndarray

    def __len__(self) -> int:
        """Number of comments."""
        return len(self.length_b)


@dataclasses.dataclass(frozen=True)
class Specials:
    """Text of the tokens that mean something else than text."""

    cls: str
    sep: str
    pad: str
    unk: str


@dataclasses.dataclass(frozen=True)
class UnknownShare:
    """How much a vocabulary cannot write, as shares between 0 and 1.

    Attributes:
        tokens: unknown among all tokens but the start and end of each comment.
        comments: comments with at least one unknown token.
    """

    tokens: float
    comments: float


ROBERTA = Specials(cls="<s>", sep="</s>", pad="<pad>", unk="<unk>")
BERT = Specials(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]")


class TextCodec:
    """A tokenizer with its special tokens; what it writes equals Hugging Face's fast tokenizers.

    Padding and truncation stored in a tokenizer file are dropped: lengths are decided per call.

    Attributes:
        specials: the special tokens.
        pad_id: id of padding.
        unk_id: id of the unknown token.
        vocab_size: largest id + 1, added tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, specials: Specials) -> None:
        """Takes over `tokenizer`.

        Raises:
            UserError: a special token is not in its vocabulary, or an empty text is not written as
                start and end.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        for role, token in dataclasses.asdict(specials).items():
            if token not in vocab:
                raise UserError(f"the tokenizer has no token '{token}', named as its {role}")
        ends = {token: vocab[token] for token in (specials.cls, specials.sep)}
        if tokenizer.post_processor is None:
            single = f"{specials.cls} $A {specials.sep}"
            tokenizer.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=list(ends.items())
            )
        empty = tokenizer.encode("").tokens
        if empty != list(ends):
            raise UserError(f"the tokenizer writes an empty text as {empty}, not as {list(ends)}")
        self._tokenizer = tokenizer
        self.specials = specials
        self.pad_id: int = vocab[specials.pad]
        self.unk_id: int = vocab[specials.unk]
        self.vocab_size: int = max(vocab.values()) + 1

    def encode(self, texts: Sequence[str], max_len: int) -> Tokens:
        """Token ids of every text; an empty text gives just the special tokens.

        Args:
            texts: the comments.
            max_len: longest row, special tokens included; longer comments lose their end, never
                their closing token.

        Raises:
            UserError: `max_len` leaves no room for text, or a text is no valid Unicode.
        """
        num_special = self._tokenizer.num_special_tokens_to_add(False)
        if max_len <= num_special:
            raise UserError(
                f"text length {max_len} leaves no room beside {num_special} special tokens"
            )
        self._tokenizer.enable_truncation(max_len)
        try:
            rows = [row.ids for row in self._tokenizer.encode_batch_fast(list(texts))]
        except (TypeError, UnicodeError) as error:
            raise UserError(_culprit(texts) or f"cannot encode: {error}") from error
        finally:
            self._tokenizer.no_truncation()
        length_b = np.fromiter(map(len, rows), np.int32, len(rows))
        start_b = np.cumsum(length_b, dtype=np.int64) - length_b
        ids_n = np.fromiter((i for row in rows for i in row), np.int32, int(length_b.sum()))
        return Tokens(ids_n, start_b, length_b)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of one row of ids, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def unknown_share(self, tokens: Tokens) -> UnknownShare:
        """Share of tokens and of comments that this vocabulary cannot write; 0 of nothing is 0."""
        unknown_n = tokens.ids_n == self.unk_id
        num_special = self._tokenizer.num_special_tokens_to_add(False)
        num_tokens = len(tokens.ids_n) - num_special * len(tokens)
        comments = np.logical_or.reduceat(unknown_n, tokens.start_b).sum() if len(tokens) else 0
        return UnknownShare(
            tokens=int(unknown_n.sum()) / max(num_tokens, 1),
            comments=int(comments) / max(len(tokens), 1),
        )

    def to_json(self) -> str:
        """The whole codec as text; `from_json` gives back an equal one."""
        specials = dataclasses.asdict(self.specials)
        return json.dumps({"specials": specials, "tokenizer": self._tokenizer.to_str()})

    @classmethod
    def from_json(cls, text: str) -> TextCodec:
        """The codec that `to_json` wrote.

        Raises:
            UserError: the text is something else.
        """
        try:
            stored = json.loads(text)
            specials = Specials(**stored["specials"])
            tokenizer = Tokenizer.from_str(stored["tokenizer"])
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"not a stored text codec: {error}") from error
        return cls(tokenizer, specials)

    @classmethod
    def from_folder(cls, path: str | Path) -> TextCodec:
        """Tokenizer of a Hugging Face folder.

        Args:
            path: folder with tokenizer.json, or vocab.json and merges.txt (RoBERTa), or vocab.txt
                (BERT). Special tokens are those of tokenizer_config.json or
                special_tokens_map.json, else those of the kind of model.

        Raises:
            UserError: no such files, a damaged one, a special token that the vocabulary lacks, or
                another pad_token_id in config.json.
        """
        folder = Path(path)
        try:
            tokenizer, specials = _read_tokenizer(folder)
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{folder}: damaged tokenizer files: {error}") from error
        try:
            codec = cls(tokenizer, specials)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        config = _optional_json(folder / "config.json")
        if config.get("pad_token_id", codec.pad_id) != codec.pad_id:
            raise UserError(
                f"{folder / 'config.json'}: pad_token_id is {config['pad_token_id']}, but the "
                f"tokenizer's {codec.specials.pad} is {codec.pad_id}"
            )
        return codec

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> TextCodec:
        """Byte-level BPE with RoBERTa's special ids; the same texts give the same codec.

        Nothing is unknown to it, since every byte is a token. Few texts give a smaller vocabulary.

        Args:
            texts: what to learn the merges from; train comments only.
            vocab_size: ids at most, special tokens and the 256 bytes included.

        Raises:
            UserError: `vocab_size` is below 261.
        """
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        least = len(specials) + len(alphabet)
        if vocab_size < least:
            raise UserError(
                f"vocabulary of {vocab_size}: at least {least} needed for the special tokens and "
                "the bytes"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=specials,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(_as_roberta(tokenizer, ROBERTA), ROBERTA)


def _as_roberta(tokenizer: Tokenizer, specials: Specials) -> Tokenizer:
    """Adds what surrounds RoBERTa's byte-level BPE."""
    # As published: the blank before a <mask> belongs to it.
    _mark_special(tokenizer, specials, AddedToken("<mask>", special=True, lstrip=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _as_bert(tokenizer: Tokenizer, specials: Specials, options: Mapping[str, Any]) -> Tokenizer:
    """Adds what surrounds BERT's WordPiece; `options` are those of tokenizer_config.json."""
    _mark_special(tokenizer, specials, AddedToken("[MASK]", special=True))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _mark_special(tokenizer: Tokenizer, specials: Specials, mask: AddedToken) -> None:
    """Takes these tokens whole wherever a text holds them; adds none that has no id yet."""
    added = [AddedToken(token, special=True) for token in dataclasses.astuple(specials)]
    known = [token for token in (*added, mask) if tokenizer.token_to_id(token.content) is not None]
    tokenizer.add_special_tokens(known)


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, Specials]:
    """The tokenizer of a folder and its special tokens."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        usual = BERT if isinstance(tokenizer.model, models.WordPiece) else ROBERTA
        return tokenizer, _named_specials(folder, usual)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if vocab.is_file() and merges.is_file():
        specials = _named_specials(folder, ROBERTA)
        bpe = models.BPE.from_file(str(vocab), str(merges))
        return _as_roberta(Tokenizer(bpe), specials), specials
    words = folder / "vocab.txt"
    if words.is_file():
        specials = _named_specials(folder, BERT)
        pieces = models.WordPiece.from_file(str(words), unk_token=specials.unk)
        options = _optional_json(folder / "tokenizer_config.json")
        return _as_bert(Tokenizer(pieces), specials, options), specials
    raise UserError(
        f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json and merges.txt, or "
        "vocab.txt"
    )


def _named_specials(folder: Path, usual: Specials) -> Specials:
    """Special tokens by role, from the files that name them, else the usual ones."""
    named = _optional_json(folder / "special_tokens_map.json")
    named |= _optional_json(folder / "tokenizer_config.json")

    def token(role: str, *keys: str) -> str:
        found = next((named[key] for key in keys if named.get(key)), getattr(usual, role))
        return found["content"] if isinstance(found, dict) else found

    return Specials(
        cls=token("cls", "cls_token", "bos_token"),
        sep=token("sep", "sep_token", "eos_token"),
        pad=token("pad", "pad_token"),
        unk=token("unk", "unk_token"),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that folders may lack."""
    return read_json(path, "tokenizer file") if path.is_file() else {}


def _culprit(texts: Sequence[str]) -> str:
    """What is wrong with the first text that is none; empty if all are fine."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except (AttributeError, UnicodeError):
            return f"comment {index} is not a text of valid Unicode: {text!r}"
    return ""
