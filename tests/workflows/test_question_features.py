"""The frozen text encoder over questions: the same rows alone and in batches, long ones cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.data.pair_batches import mean_table
from jaxvsa.data.sources.reward_demo import write_releases
from jaxvsa.data.videocross_files import open_videocross
from jaxvsa.interop.roberta import read_encoder, to_names
from jaxvsa.interop.tensors import save_safetensors
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.text_encoder import TextEncoder
from jaxvsa.prepare import main
from jaxvsa.workflows import question_features
from jaxvsa.workflows.question_features import QuestionEncoder, encode_questions

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "quality", ":", "cat", "dog", "sea", "the")
CONFIG = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 6, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 10, "max_position_embeddings": 40,
    "type_vocab_size": 2, "layer_norm_eps": 1e-5, "pad_token_id": 0, "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
}  # fmt: skip
QUIET = Console(quiet=True)
ASKED = ["quality: the cat", "the dog", "sea " * 30, "quality: the sea the sea the sea " * 3]


def write_encoder(folder: Path, scale: float = 1.0) -> Path:
    """A BERT of random weights with a vocabulary of a few words."""
    folder.mkdir()
    names = {
        "vocab_size": "vocab_size", "width": "hidden_size", "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads", "mlp_width": "intermediate_size",
        "max_positions": "max_position_embeddings", "num_types": "type_vocab_size",
        "norm_eps": "layer_norm_eps", "pad_id": "pad_token_id",
    }  # fmt: skip
    fields: dict[str, Any] = {ours: CONFIG[theirs] for ours, theirs in names.items()}
    model = TextEncoder(
        **fields, kind="bert", dropout=0, attention_dropout=0, precision=Precision()
    )
    packing = Packing.rectangle(1, 2)
    sight = Sight.of(packing, packing.row_n >= 0, packing.row_n)
    made = jax.eval_shape(
        lambda: model.init(jax.random.key(0), packing.row_n, packing, sight, True)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), made["params"]
    )
    save_safetensors(folder / "model.safetensors", to_names(params))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def alone(folder: Path, text: str, longest: int) -> np.ndarray:
    """Outputs for one question without padding, (l,u)."""
    encoder = QuestionEncoder.open(folder, longest)
    ids_n = encoder.codec.encode([text], longest).ids_n
    fields, params = read_encoder(folder)
    packing = Packing.rectangle(1, len(ids_n))
    sight = Sight.of(packing, packing.row_n >= 0, packing.row_n)
    model = TextEncoder(**fields, precision=Precision())
    apply = jax.jit(lambda params: model.apply({"params": params}, ids_n, packing, sight, True))
    return np.asarray(apply(params))


@pytest.mark.parametrize("at_once", [64, 4096])
def test_rows_are_those_of_each_question_alone(folder, monkeypatch, at_once):
    monkeypatch.setattr(question_features, "TOKENS_AT_ONCE", at_once)
    encoder = QuestionEncoder.open(folder, 32)
    table, manifest, cut = encode_questions(encoder, ASKED, "token", "float16", QUIET)
    assert list(table.row) == sorted(ASKED) and cut == 0 and manifest.num_videos == 4
    assert [table.of(text).shape for text in ASKED] == [(6, 6), (4, 6), (32, 6), (26, 6)]
    for text in ASKED:
        np.testing.assert_allclose(table.of(text), alone(folder, text, 32), rtol=2e-3, atol=1e-3)
    mean, _, _ = encode_questions(encoder, ASKED, "mean", "float16", QUIET)
    assert mean.values_nf.shape == (4, 6) and mean.row == table.row
    np.testing.assert_allclose(mean.values_nf, mean_table(table).values_nf, rtol=2e-3, atol=2e-3)


def test_long_questions_lose_their_end_and_are_counted(folder):
    encoder = QuestionEncoder.open(folder, 20)
    table, _, cut = encode_questions(encoder, ASKED, "token", "bfloat16", QUIET)
    assert cut == 2 and table.dtype == "bfloat16"
    assert [len(table.of(text)) for text in ASKED] == [6, 4, 20, 20]
    np.testing.assert_allclose(
        table.of(ASKED[2]).astype(np.float32), alone(folder, ASKED[2], 20), rtol=2e-2, atol=2e-2
    )


def test_name_tells_weights_length_and_what_is_kept(folder, tmp_path):
    one = QuestionEncoder.open(folder, 20)
    other = QuestionEncoder.open(write_encoder(tmp_path / "other", 2.0), 20)
    names = [one.name("mean"), one.name("token"), other.name("mean")]
    names.append(QuestionEncoder.open(folder, 21).name("mean"))
    assert len(set(names)) == 4 and names[0].startswith("bert ")
    assert one.name("mean") == QuestionEncoder.open(folder, 20).name("mean")


@pytest.mark.parametrize("longest", [2, 41])
def test_lengths_that_the_model_has_no_positions_for(folder, longest):
    with pytest.raises(UserError, match=rf"--question-len {longest}: .* reads 3 to 40 tokens"):
        QuestionEncoder.open(folder, longest)


def test_values_that_cannot_be_stored(tmp_path):
    """Weights of the last norm are 1e6, and of the second folder not finite."""
    for name, factor, message in (
        ("large", 1e6, "outputs are too large for float16; use --dtype bfloat16"),
        ("broken", np.nan, "outputs are not finite; its weights are damaged"),
    ):
        folder = write_encoder(tmp_path / name)
        _, params = read_encoder(folder)
        params["layer_1"]["norm_mlp"]["scale"] *= np.float32(factor)
        save_safetensors(folder / "model.safetensors", to_names(params))
        encoder = QuestionEncoder.open(folder, 20)
        with pytest.raises(UserError, match=message):
            encode_questions(encoder, ASKED, "mean", "float16", QUIET)
    encoder = QuestionEncoder.open(tmp_path / "large", 20)
    table, _, _ = encode_questions(encoder, ASKED, "mean", "bfloat16", QUIET)
    assert np.isfinite(table.values_nf.astype(np.float32)).all()


def test_door_stores_the_features_of_all_questions(folder, tmp_path, capsys):
    files = write_releases(tmp_path / "r", num_prompts=8, num_feedback=24, num_votes=5)
    flags = [f"--source={name}={path}" for name, path in files.items()]
    flags += [f"--text-encoder={folder}", "--question-len=6"]
    main(["videocross", *flags, f"--out={tmp_path / 'mean'}"])
    printed = " ".join(capsys.readouterr().out.split())
    cross = open_videocross(tmp_path / "mean")
    table = cross.question_features()
    assert set(table.row) == set(cross.questions) and (table.count_g == 1).all()
    assert cross.features() is None and cross.question_manifest["width"] == 6
    assert "mean of 6 tokens at most" in cross.question_manifest["encoder"]
    cut = cross.card["questions_cut"]
    assert cut > 8 and f"questions that lost their end │ {cut} of {len(cross.questions)}" in printed
    main(["videocross", *flags, "--question-rows=token", f"--out={tmp_path / 'token'}"])
    found = open_videocross(tmp_path / "token")
    assert found.question_features().count_g.max() == 6
    assert found.card == cross.card and found.digest == cross.digest


@pytest.mark.real_data
def test_minilm_finds_what_means_the_same(minilm_path):
    encoder = QuestionEncoder.open(minilm_path, 64)
    texts = ["a cat sits on a mat", "a small cat sits on a rug", "rockets fly to the moon"]
    table, manifest, _ = encode_questions(encoder, texts, "mean", "float16", QUIET)
    assert manifest.width == 384
    unit_gf = table.values_nf.astype(np.float32)
    unit_gf /= np.linalg.norm(unit_gf, axis=1, keepdims=True)
    cat, rug, moon = (unit_gf[table.row[text]] for text in texts)
    assert cat @ rug > 0.6 and abs(cat @ moon) < 0.2
