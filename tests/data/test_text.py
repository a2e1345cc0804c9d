"""Text codec: hand-made vocabularies, transformers as oracle, shares on real comments."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.text import TextCodec, Tokens

pytestmark = pytest.mark.smoke

COMMENTS = [
    "nice video 😂😂",
    "So nice, I love it!!",
    "",
    "why? 😭 no way…",
    "Größe über ALLES <mask> </s>",
    "love love love this video\nso much",
    "爱 it",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "nice", "wow", "##s", "!", "Nice"]
MERGES = ["n i", "c e", "ni ce"]


def rows(tokens: Tokens) -> list[list[int]]:
    parts = zip(tokens.start_b, tokens.length_b, strict=True)
    return [tokens.ids_n[start : start + length].tolist() for start, length in parts]


def write_bert(folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def write_roberta(folder: Path) -> Path:
    vocab = [*SPECIALS, "n", "i", "c", "e", "Ġ", "ni", "ce", "nice"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return folder


def test_wordpiece_of_a_vocabulary_by_hand(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_bert(tmp_path))
    assert (codec.pad_id, codec.unk_id, codec.vocab_size) == (0, 1, 10)
    tokens = codec.encode(["Nice WOWs!", "", "so nice 😂"], 16)
    assert rows(tokens) == [[2, 5, 6, 7, 8, 3], [2, 3], [2, 1, 5, 1, 3]]
    assert tokens.start_b.tolist() == [0, 6, 8] and tokens.length_b.tolist() == [6, 2, 5]
    assert [a.dtype for a in dataclasses.astuple(tokens)] == [np.int32, np.int64, np.int32]
    assert codec.decode(tokens.ids_n[:6]) == "nice wows!"
    cased = TextCodec.from_folder(write_bert(tmp_path, do_lower_case=False))
    assert rows(cased.encode(["Nice nice"], 16)) == [[2, 9, 5, 3]]


def test_byte_level_bpe_of_a_vocabulary_by_hand(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_roberta(tmp_path))
    assert (codec.pad_id, codec.unk_id, codec.vocab_size) == (1, 3, 13)
    tokens = codec.encode(["nice nice", "ice", ""], 16)
    assert rows(tokens) == [[0, 12, 9, 12, 2], [0, 6, 11, 2], [0, 2]]
    assert codec.decode(np.array([0, 12, 9, 12, 2])) == "nice nice"


def test_unknown_share_by_hand(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_bert(tmp_path))
    share = codec.unknown_share(codec.encode(["nice wow", "so nice 😂", ""], 16))
    assert (share.tokens, share.comments) == (2 / 5, 1 / 3)
    nothing = codec.unknown_share(codec.encode([], 16))
    assert (nothing.tokens, nothing.comments) == (0.0, 0.0)


def test_truncation_keeps_the_closing_token(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_roberta(tmp_path))
    assert rows(codec.encode(["nice nice", "ice", ""], 4)) == [[0, 12, 9, 2], [0, 6, 11, 2], [0, 2]]
    assert rows(codec.encode(["nice nice"], 5)) == [[0, 12, 9, 12, 2]]


def test_trained_codec_has_robertas_ids_and_loses_nothing() -> None:
    codec = TextCodec.train_bpe(COMMENTS, 300)
    vocab = json.loads(json.loads(codec.to_json())["tokenizer"])["model"]["vocab"]
    assert [vocab[token] for token in SPECIALS] == [0, 1, 2, 3, 4]
    assert (codec.pad_id, codec.unk_id) == (1, 3)
    assert codec.vocab_size == len(vocab) <= 300
    assert "Ġlove" in vocab and "Ġvideo" in vocab
    unseen = ["Ünseen 🫠 text\t\x00 \u202e", " leading", "trailing "]
    tokens = codec.encode(unseen, 99)
    assert [codec.decode(row) for row in rows(tokens)] == unseen
    assert codec.unknown_share(tokens).comments == 0


def test_trained_codec_is_the_same_in_every_process() -> None:
    code = (
        "import sys, json; from jaxvsa.data.text import TextCodec\n"
        "sys.stdout.write(TextCodec.train_bpe(json.loads(sys.stdin.read()), 400).to_json())"
    )
    texts = COMMENTS * 40
    for seed, threads in (("1", "1"), ("2", "4")):
        found = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        )
        assert found.stdout == TextCodec.train_bpe(reversed(texts), 400).to_json()


def test_json_gives_back_an_equal_codec(tmp_path: Path) -> None:
    for codec in (
        TextCodec.train_bpe(COMMENTS, 300),
        TextCodec.from_folder(write_bert(tmp_path / "bert")),
        TextCodec.from_folder(write_roberta(tmp_path / "roberta")),
    ):
        again = TextCodec.from_json(codec.to_json())
        assert again.to_json() == codec.to_json()
        assert (again.pad_id, again.unk_id) == (codec.pad_id, codec.unk_id)
        assert rows(again.encode(COMMENTS, 8)) == rows(codec.encode(COMMENTS, 8))


def test_settings_in_the_tokenizer_file_are_dropped(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_bert(tmp_path / "bert"))
    tokenizer = json.loads(json.loads(codec.to_json())["tokenizer"])
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tokenizer["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    tokenizer["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = TextCodec.from_folder(tmp_path)
    assert rows(found.encode(["nice wow wow"], 16)) == [[2, 5, 6, 6, 3]]
    kept = json.loads(json.loads(found.to_json())["tokenizer"])
    assert kept["truncation"] is None and kept["padding"] is None


def test_folder_may_name_its_own_specials(tmp_path: Path) -> None:
    folder = write_bert(tmp_path, pad_token={"content": "wow", "special": True}, unk_token="nice")
    codec = TextCodec.from_folder(folder)
    assert (codec.pad_id, codec.unk_id) == (6, 5)
    assert rows(codec.encode(["never"], 16)) == [[2, 5, 3]]


def test_folder_refuses_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer; expected tokenizer\.json, or vocab\.json"):
        TextCodec.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(UserError, match="damaged tokenizer files"):
        TextCodec.from_folder(tmp_path)
    folder = write_bert(tmp_path / "bert", pad_token="<pad>")
    with pytest.raises(UserError, match="the tokenizer has no token '<pad>', named as its pad"):
        TextCodec.from_folder(folder)
    write_bert(folder)
    (folder / "config.json").write_text('{"pad_token_id": 1}')
    with pytest.raises(UserError, match=r"pad_token_id is 1, but the tokenizer's \[PAD\] is 0"):
        TextCodec.from_folder(folder)


def test_folder_refuses_a_tokenizer_without_start_and_end(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_roberta(tmp_path))
    tokenizer = json.loads(json.loads(codec.to_json())["tokenizer"])
    tokenizer["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"an empty text as \[\], not as \['<s>', '</s>'\]"):
        TextCodec.from_folder(tmp_path)


def test_codec_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(write_bert(tmp_path))
    with pytest.raises(UserError, match="text length 2 leaves no room beside 2 special tokens"):
        codec.encode(["nice"], 2)
    with pytest.raises(UserError, match="comment 1 is not a text of valid Unicode: 'half"):
        codec.encode(["nice", "half \ud83d"], 16)
    with pytest.raises(UserError, match="comment 0 is not a text of valid Unicode: None"):
        codec.encode([None], 16)  # type: ignore[list-item]
    with pytest.raises(UserError, match="vocabulary of 260: at least 261 needed"):
        TextCodec.train_bpe(COMMENTS, 260)
    for text in ("", "{}", '{"specials": {}, "tokenizer": ""}', "[1]"):
        with pytest.raises(UserError, match="not a stored text codec"):
            TextCodec.from_json(text)


def compare_with_transformers(folder: Path, texts: list[str], max_len: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    want = theirs(texts, truncation=True, max_length=max_len)["input_ids"]
    codec = TextCodec.from_folder(folder)
    assert rows(codec.encode(texts, max_len)) == want
    assert (codec.pad_id, codec.unk_id) == (theirs.pad_token_id, theirs.unk_token_id)


@pytest.mark.torch
@pytest.mark.parametrize("max_len", [5, 64])
def test_ids_equal_transformers(tmp_path: Path, max_len: int) -> None:
    bert = write_bert(tmp_path / "bert", tokenizer_class="BertTokenizer")
    (bert / "config.json").write_text('{"model_type": "bert"}')
    compare_with_transformers(bert, [*COMMENTS, "Nice wows! [SEP]"], max_len)
    roberta = tmp_path / "roberta"
    roberta.mkdir()
    tokenizer = json.loads(json.loads(TextCodec.train_bpe(COMMENTS, 300).to_json())["tokenizer"])
    merges = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    (roberta / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (roberta / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "special": True}
    (roberta / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", "mask_token": mask})
    )
    (roberta / "config.json").write_text('{"model_type": "roberta"}')
    compare_with_transformers(roberta, COMMENTS, max_len)


def read_comments(root: Path, split: str) -> list[str]:
    with zipfile.ZipFile(root / "lable_data_dict.json.zip") as archive:
        stored = json.loads(archive.read(archive.namelist()[0]))
    return [stored[key]["comment"] for key in json.loads((root / f"{split}_set.json").read_text())]


@pytest.mark.torch
@pytest.mark.real_data
def test_minilm_ids_equal_transformers_on_real_comments(minilm_path: Path, csmv_path: Path) -> None:
    compare_with_transformers(minilm_path, read_comments(csmv_path, "dev"), 24)


@pytest.mark.real_data
def test_wordpiece_cannot_write_the_emoji_of_real_comments(
    minilm_path: Path, csmv_path: Path
) -> None:
    codec = TextCodec.from_folder(minilm_path)
    share = codec.unknown_share(codec.encode(read_comments(csmv_path, "train"), 512))
    assert share.comments == pytest.approx(0.3744, abs=5e-4)
    assert share.tokens == pytest.approx(0.0378, abs=5e-4)


@pytest.mark.real_data
def test_trained_codec_writes_every_real_comment(csmv_path: Path) -> None:
    codec = TextCodec.train_bpe(read_comments(csmv_path, "train"), 8000)
    assert codec.vocab_size == 8000
    unseen = read_comments(csmv_path, "dev")
    tokens = codec.encode(unseen, 512)
    assert codec.unknown_share(tokens).tokens == 0
    assert [codec.decode(row) for row in rows(tokens)] == unseen
