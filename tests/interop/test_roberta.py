"""RoBERTa and BERT folders; torch and transformers are the oracle of the text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.core.trees import named
from jaxvsa.data.text import TextCodec
from jaxvsa.interop.roberta import (
    check_vocab,
    from_names,
    read_encoder,
    stack_layers,
    to_names,
    unstack_layers,
)
from jaxvsa.interop.tensors import save_safetensors
from jaxvsa.layers.packed import Packing, Sight
from jaxvsa.layers.text_encoder import TextEncoder

CONFIG = {
    "model_type": "roberta",
    "vocab_size": 19,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "max_position_embeddings": 14,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "hidden_act": "gelu",
}
FIELDS = {
    "kind": "roberta",
    "vocab_size": 19,
    "width": 6,
    "num_layers": 2,
    "num_heads": 3,
    "mlp_width": 10,
    "max_positions": 14,
    "num_types": 2,
    "norm_eps": 1e-5,
    "pad_id": 1,
    "dropout": 0.1,
    "attention_dropout": 0.2,
}


def rectangle(ids_bl: np.ndarray, keep_bl: np.ndarray) -> tuple[Any, Packing, Sight]:
    """Arguments of our encoder for rows of one length."""
    packing = Packing.rectangle(*ids_bl.shape)
    sight = Sight.of(packing, jnp.asarray(keep_bl).reshape(-1), packing.row_n)
    return jnp.asarray(ids_bl).reshape(-1), packing, sight


def make_state(prefix: str = "") -> dict[str, np.ndarray]:
    encoder = TextEncoder(**FIELDS, precision=Precision())
    arrays = rectangle(np.ones((1, 2), np.int32), np.ones((1, 2), bool))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), *arrays, True))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
    )
    return to_names(params, prefix)


def write_folder(folder: Path, state: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_safetensors(folder / "model.safetensors", state)
    return folder


def test_names_and_layouts_are_the_published_ones() -> None:
    state = make_state("p.")
    assert len(state) == 5 + 2 * 16
    params = from_names(state, "p.")
    kernel = params["layer_1"]["mlp_in"]["kernel"]
    assert kernel.shape == (6, 10)
    np.testing.assert_array_equal(kernel.T, state["p.encoder.layer.1.intermediate.dense.weight"])
    key = state["p.encoder.layer.0.attention.self.key.bias"]
    np.testing.assert_array_equal(params["layer_0"]["key"]["bias"], key)
    norm = state["p.encoder.layer.1.attention.output.LayerNorm.weight"]
    np.testing.assert_array_equal(params["layer_1"]["norm_attention"]["scale"], norm)
    np.testing.assert_array_equal(
        params["position"]["embedding"], state["p.embeddings.position_embeddings.weight"]
    )


def test_layers_are_stacked_as_in_older_runs_and_come_back() -> None:
    params = from_names(make_state())
    stacked = stack_layers(params)
    assert stacked["layers"]["mlp_in"]["kernel"].shape == (2, 6, 10)
    np.testing.assert_array_equal(
        stacked["layers"]["key"]["bias"][1], params["layer_1"]["key"]["bias"]
    )
    again = unstack_layers(stacked)
    assert named(again).keys() == named(params).keys()
    for path, leaf in named(params).items():
        np.testing.assert_array_equal(named(again)[path], leaf)


def test_names_go_out_and_come_back() -> None:
    state = make_state("text_encoder.text_encoder.")
    other = {"heads.weight": np.zeros(3, np.float32)}
    params = from_names(state | other, "text_encoder.text_encoder.")
    again = to_names(params, "text_encoder.text_encoder.")
    assert again.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_folder_gives_fields_and_parameters(tmp_path: Path, prefix: str) -> None:
    bare, state = make_state(), make_state(prefix)
    state[f"{prefix}pooler.dense.weight"] = np.zeros((6, 6), np.float32)
    state[f"{prefix}embeddings.position_ids"] = np.arange(14)[None]
    state["lm_head.layer_norm.weight"] = np.zeros(6, np.float32)
    fields, params = read_encoder(write_folder(tmp_path, state))
    assert fields == FIELDS
    assert {type(value) for value in fields.values()} == {str, int, float}
    want = named(from_names(bare))
    assert named(params).keys() == want.keys()
    for path, leaf in named(params).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)


def test_folder_of_an_old_bert_in_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array.astype(ml_dtypes.bfloat16)
        for name, array in make_state().items()
    }
    old["cls.predictions.bias"] = np.zeros(19, np.float32)
    fields, params = read_encoder(write_folder(tmp_path, old, model_type="bert", pad_token_id=0))
    assert (fields["kind"], fields["pad_id"]) == ("bert", 0)
    for path, leaf in named(from_names(make_state())).items():
        read = named(params)[path]
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, leaf.astype(ml_dtypes.bfloat16), err_msg=path)


def test_folder_refuses_tensors_that_do_not_fit(tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    state = make_state()
    del state[name]
    with pytest.raises(UserError, match=rf"tensor '{name}' is missing"):
        read_encoder(write_folder(tmp_path, state))
    extra = make_state() | {"adapter.weight": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match=r"tensor 'adapter\.weight' has no place"):
        read_encoder(write_folder(tmp_path, extra))
    with pytest.raises(UserError, match=r"'embeddings\.word_embeddings\.weight' .*\(20, 6\)"):
        read_encoder(write_folder(tmp_path, make_state(), vocab_size=20))
    with pytest.raises(UserError, match=r"those of 2 layers, .* num_hidden_layers 3"):
        read_encoder(write_folder(tmp_path, make_state(), num_hidden_layers=3))
    ragged = make_state() | {name: np.zeros((6, 9), np.float32)}
    misfit = r"'encoder\.layer\.1\.output\.dense\.weight' makes .* \(9, 6\)"
    with pytest.raises(UserError, match=misfit):
        read_encoder(write_folder(tmp_path, ragged))


@pytest.mark.parametrize(
    "config,message",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known: 'roberta', 'bert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only 'gelu' is supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True; only False"),
        ({"pad_token_id": None}, "pad_token_id is None; expected int"),
        ({"hidden_size": 6.5}, "hidden_size is 6.5; expected int"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1'; expected float"),
    ],
)
def test_folder_refuses_other_models(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"config.json: {message}"):
        read_encoder(write_folder(tmp_path, make_state(), **config))


def test_folder_refuses_a_model_without_heads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="width 6 is not a multiple of num_heads 0"):
        read_encoder(write_folder(tmp_path, make_state(), num_attention_heads=0))


def test_folder_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/config\.json: not found"):
        read_encoder(tmp_path / "absent")
    (tmp_path / "video_7.npy").touch()
    with pytest.raises(UserError, match=r"config\.json: not found; expected a Hugging Face"):
        read_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match=r"no weights; .*images or features"):
        read_encoder(tmp_path)


def test_vocabularies_must_fit() -> None:
    check_vocab(50265, 50265)
    check_vocab(50265, 50304)
    with pytest.raises(UserError, match="50265 ids, but the text encoder's word table only 30522"):
        check_vocab(50265, 30522)


def batch(lengths: tuple[int, ...], padded: int, vocab: int, pad_id: int) -> tuple:
    keep_bl = np.arange(padded)[None] < np.array(lengths)[:, None]
    ids_bl = np.random.default_rng(0).integers(3, vocab, (len(lengths), padded))
    return np.where(keep_bl, ids_bl, pad_id).astype(np.int32), keep_bl


def write_model(folder: Path, model: Any) -> Path:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return write_folder(folder, state, **model.config.to_dict())


def apply_ours(folder: Path, ids_bl: np.ndarray, keep_bl: np.ndarray) -> np.ndarray:
    fields, params = read_encoder(folder)
    encoder = TextEncoder(**fields, precision=Precision())
    apply = jax.jit(encoder.apply, static_argnums=4)
    x_nu = apply({"params": params}, *rectangle(ids_bl, keep_bl), True)
    return np.asarray(x_nu).reshape(*ids_bl.shape, -1)


def apply_theirs(model: Any, ids_bl: np.ndarray, keep_bl: np.ndarray) -> Any:
    import torch

    keep = torch.tensor(keep_bl).long()
    return model(torch.tensor(ids_bl).long(), attention_mask=keep).last_hidden_state


def compare_gradients(folder: Path, model: Any, ids_bl: np.ndarray, keep_bl: np.ndarray) -> None:
    """Every gradient within 1e-4 of the largest value of its tensor; pad rows exactly zero."""
    import torch

    fields, params = read_encoder(folder)
    encoder = TextEncoder(**fields, precision=Precision())
    weight = np.random.default_rng(1).normal(size=(*ids_bl.shape, fields["width"]))
    if fields["kind"] == "bert":
        weight *= keep_bl[..., None]  # our pads all take position 0, theirs do not
    weight = weight.astype(np.float32)

    def loss(params: Any) -> jax.Array:
        x_nu = encoder.apply({"params": params}, *rectangle(ids_bl, keep_bl), True)
        return jnp.sum(x_nu.reshape(weight.shape) * weight)

    ours = to_names(jax.jit(jax.grad(loss))(params))
    (apply_theirs(model, ids_bl, keep_bl) * torch.tensor(weight)).sum().backward()
    theirs = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    assert theirs.keys() == ours.keys()
    for name, grad in theirs.items():
        # Softmax does not see the keys' bias: its gradient is rounding, small beside the queries'.
        size = np.abs(theirs[name.replace("key.bias", "query.bias")]).max()
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=1e-4 * size, err_msg=name)
    for table in ("word", "position") if fields["kind"] == "roberta" else ("word",):
        name = f"embeddings.{table}_embeddings.weight"
        assert not np.any(ours[name][fields["pad_id"]]), name


def make_theirs(kind: str, scale: float, **config: Any) -> Any:
    """A transformers model with noise on every parameter: no zero bias, no LayerNorm of ones."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config["attn_implementation"] = "eager"
    if kind == "roberta":
        made = transformers.RobertaConfig(**config)
        model = transformers.RobertaModel(made, add_pooling_layer=False)
    else:
        model = transformers.BertModel(transformers.BertConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.torch
@pytest.mark.parametrize("kind,pad_id", [("roberta", 1), ("bert", 0)])
def test_tiny_encoder_equals_transformers(tmp_path: Path, kind: str, pad_id: int) -> None:
    sizes = {name: value for name, value in CONFIG.items() if name != "model_type"}
    model = make_theirs(kind, 0.3, **{**sizes, "pad_token_id": pad_id})
    folder = write_model(tmp_path, model)
    ids_bl, keep_bl = batch((9, 4, 2, 1), 10, 19, pad_id)
    seen_bl = keep_bl if kind == "bert" else np.ones_like(keep_bl)
    got = apply_ours(folder, ids_bl, keep_bl)
    want = apply_theirs(model, ids_bl, keep_bl).detach().numpy()
    np.testing.assert_allclose(got[seen_bl], want[seen_bl], rtol=1e-5, atol=1e-5)
    compare_gradients(folder, model, ids_bl, keep_bl)


BASE = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}  # with noise of 0.03, torch's own float32 gradients are 3e-4 off its float64


@pytest.mark.torch
def test_base_size_output_equals_transformers(tmp_path: Path) -> None:
    model = make_theirs("roberta", 0.02, **BASE)
    folder = write_model(tmp_path, model)
    tokens = batch((16, 9), 16, 50265, 1)
    want = apply_theirs(model, *tokens).detach().numpy()
    np.testing.assert_allclose(apply_ours(folder, *tokens), want, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.slow
def test_base_size_gradients_equal_transformers(tmp_path: Path) -> None:
    model = make_theirs("roberta", 0.02, **BASE)
    compare_gradients(write_model(tmp_path, model), model, *batch((16, 9), 16, 50265, 1))


@pytest.mark.torch
@pytest.mark.real_data
def test_minilm_equals_transformers_on_real_comments(minilm_path: Path, csmv_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = read_comments(csmv_path, 64)
    codec = TextCodec.from_folder(minilm_path)
    tokens = codec.encode(texts, 512)
    check_vocab(codec.vocab_size, read_encoder(minilm_path)[0]["vocab_size"])
    batched = transformers.AutoTokenizer.from_pretrained(minilm_path)(
        texts, padding=True, return_tensors="pt"
    )
    keep_bl = batched["attention_mask"].numpy().astype(bool)
    ids_bl = batched["input_ids"].numpy().astype(np.int32)
    np.testing.assert_array_equal(ids_bl[keep_bl], tokens.ids_n)
    model = transformers.BertModel.from_pretrained(minilm_path, attn_implementation="eager").eval()
    want = apply_theirs(model, ids_bl, keep_bl).detach().numpy()
    got = apply_ours(minilm_path, ids_bl, keep_bl)
    np.testing.assert_allclose(got[keep_bl], want[keep_bl], rtol=0, atol=2e-5)


def read_comments(root: Path, count: int) -> list[str]:
    import zipfile

    with zipfile.ZipFile(root / "lable_data_dict.json.zip") as archive:
        rows = json.loads(archive.read(archive.namelist()[0]))
    names = json.loads((root / "dev_set.json").read_text())
    return [rows[name]["comment"] for name in names[:count]]
