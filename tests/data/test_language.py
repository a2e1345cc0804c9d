"""Tokenizers of language models: ids, what is stored, every bad folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxvsa.core.errors import UserError
from jaxvsa.data.language import Codecs, LanguageCodec, cut_left, ragged, read_codecs
from jaxvsa.data.text import TextCodec

pytestmark = pytest.mark.smoke

WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, "yes": 3, "no": 4, "it": 5, "is": 6}


def tokenizer(**more: int) -> Tokenizer:
    found = Tokenizer(models.WordLevel({**WORDS, **more}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_special_tokens(["<s>", "</s>"])
    return found


def codec(**more: int) -> LanguageCodec:
    return LanguageCodec(tokenizer(**more), "<s>", "</s>", "[PAD]")


def test_prompts_are_opened_and_answers_closed() -> None:
    assert codec().prompts(["it is", ""]) == [[0, 5, 6], [0]]
    assert codec().answers(["yes it", ""]) == [[3, 5, 1], [1]]


def test_padding_is_the_end_where_the_tokenizer_has_none() -> None:
    assert (codec().bos_id, codec().eos_id, codec().pad_id, codec().vocab_size) == (0, 1, 1, 7)
    assert codec(**{"[PAD]": 9}).pad_id == 9 and codec(**{"[PAD]": 9}).vocab_size == 10


def test_text_ends_at_the_closing_token() -> None:
    assert codec().decode([3, 5, 1, 4, 4]) == "yes it"
    assert codec().decode([3, 5]) == "yes it"
    assert codec().decode([1]) == ""


def test_trained_codec_gives_back_every_text() -> None:
    texts = ["Yes! it is sarcastic.", "a naïve 🐶", "two  blanks"]
    found = LanguageCodec.train_bpe(texts, 300)
    for text, ids in zip(texts, found.answers(texts), strict=True):
        assert ids[-1] == found.eos_id and found.decode(ids) == text
    assert found.vocab_size <= 300
    assert found.to_json() == LanguageCodec.train_bpe(texts, 300).to_json()


def test_stored_codecs_are_equal() -> None:
    both = Codecs(codec(), TextCodec.train_bpe(["a b a b"], 270))
    read = read_codecs(both.to_json())
    assert read.to_json() == both.to_json()
    assert read.language.prompts(["it is"]) == [[0, 5, 6]]
    assert (
        read.words.encode(["a b"], 9).ids_n.tolist() == both.words.encode(["a b"], 9).ids_n.tolist()
    )


@pytest.mark.parametrize("text", ["", "[1]", "{}", json.dumps({"language": "{}", "words": "{}"})])
def test_stored_text_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_codecs(text)


def folder(path: Path, config: dict[str, Any] | None = None, **more: int) -> Path:
    (path / "tokenizer.json").write_text(tokenizer(**more).to_str())
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_folder_names_its_special_tokens(tmp_path: Path) -> None:
    config = {"bos_token": "<unk>", "eos_token": {"content": "</s>"}, "pad_token": "no"}
    found = LanguageCodec.from_folder(folder(tmp_path, config))
    assert (found.bos_id, found.eos_id, found.pad_id) == (2, 1, 4)


def test_folder_without_names_has_the_usual_ones(tmp_path: Path) -> None:
    for config in (None, {"bos_token": None, "pad_token": None}):
        found = LanguageCodec.from_folder(folder(tmp_path, config))
        assert (found.bos_id, found.eos_id, found.pad_id) == (0, 1, 1)


def test_bad_folders_are_one_line(tmp_path: Path) -> None:
    def refuse(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            LanguageCodec.from_folder(tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)

    refuse("has no tokenizer.json; write one with transformers")
    (tmp_path / "tokenizer.json").write_text("{")
    refuse("damaged")
    folder(tmp_path, {"bos_token": "<bos>"})
    refuse("no token '<bos>', named as its bos_token")
    folder(tmp_path, {"eos_token": "<eos>"})
    refuse("no token '<eos>', named as its eos_token")


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be encoded"):
        codec().prompts(["\ud800"])


def test_long_rows_keep_the_opening_token_and_their_end() -> None:
    rows = [[0, 1, 2, 3, 4], [0, 1, 2], [0]]
    assert cut_left(rows, 3) == ([[0, 3, 4], [0, 1, 2], [0]], 1)
    assert cut_left(rows, 5) == (rows, 0)
    assert cut_left(rows, 1) == ([[0], [0], [0]], 2)


def test_ragged_rows() -> None:
    found = ragged([[4, 5], [], [6]])
    assert found.ids_n.tolist() == [4, 5, 6]
    assert found.start_b.tolist() == [0, 2, 2] and found.length_b.tolist() == [2, 0, 1]
    assert len(ragged([])) == 0


def test_blank_between_words_survives_a_byte_level_tokenizer() -> None:
    found = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "Ġ": 3, "Ġa": 4}, [("Ġ", "a")]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    codec = LanguageCodec(found, "<s>", "</s>", "<pad>")
    assert codec.answers(["a a"]) == [[2, 4, 1]] and codec.decode([2, 4, 1]) == "a a"
