"""LLaMA folders; torch and transformers are the oracle of the decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from interop.llama_oracle import CONFIG, LLAMA3, make, random_state, torch_model
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvsa.core.errors import UserError
from jaxvsa.interop.llama import fields_of, read_decoder, to_names
from jaxvsa.interop.tensors import open_safetensors, save_safetensors
from jaxvsa.layers.decoder import Decoder, RopeScaling


def test_fields_of_old_and_new_configs() -> None:
    fields = fields_of(CONFIG)
    assert fields["num_kv_heads"] == 2 and fields["rope_theta"] == 1000.0
    assert fields["rope_scaling"] == RopeScaling() and not fields["tied"]
    new = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    fields = fields_of({**new, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert fields["rope_theta"] == 5e5
    assert fields["rope_scaling"] == RopeScaling(8.0, 1.0, 4.0, 16)
    old = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    assert fields_of(old)["num_kv_heads"] == 4


@pytest.mark.parametrize(
    "change,match",
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 8}, "head_dim 8 is not 4"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type 'linear'"),
    ],
)
def test_models_that_do_not_fit_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        fields_of({**CONFIG, **change})


def test_shards_go_straight_to_their_devices(tmp_path: Path) -> None:
    """Two files with an index, in bfloat16; every device reads only its part."""
    state = {k: v.astype(ml_dtypes.bfloat16) for k, v in random_state(CONFIG).items()}
    names = sorted(state)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_safetensors(tmp_path / file, {name: state[name] for name in part})
    index = {name: file for file, part in files.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))

    def place(path: str, shape: tuple[int, ...]) -> tuple[NamedSharding, Any]:
        spec = PartitionSpec(None, "fsdp") if path.startswith("layers/") else PartitionSpec()
        return NamedSharding(mesh, spec), jnp.bfloat16

    params = read_decoder(open_safetensors(tmp_path), fields_of(CONFIG), place=place)
    gate = params["layers"]["gate"]["kernel"]
    assert gate.shape == (2, 16, 20) and gate.dtype == jnp.bfloat16
    assert gate.addressable_shards[0].data.shape == (2, 4, 20)
    again = to_names(jax.device_get(params))
    assert again.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_tensors_missing_or_left_over_are_named() -> None:
    state = random_state(CONFIG)
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        rest = {k: v for k, v in state.items() if k != name}
        with pytest.raises(UserError, match=f"'{name}' is missing"):
            read_decoder(rest, fields_of(CONFIG))
    with pytest.raises(UserError, match=r"'model.layers.2.mlp.up_proj.weight' has no place"):
        read_decoder({**state, "model.layers.2.mlp.up_proj.weight": state["lm_head.weight"]},
                     fields_of(CONFIG))  # fmt: skip
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)}
    read_decoder({**state, **buffer}, fields_of(CONFIG))
    with pytest.raises(UserError, match=r"config\.json says"):
        read_decoder(state, fields_of({**CONFIG, "vocab_size": 30}))


CASES = pytest.mark.parametrize(
    "change",
    [{}, {"num_key_value_heads": 4, "tie_word_embeddings": True}, {"rope_scaling": LLAMA3}],
    ids=["grouped", "tied", "llama3"],
)
PADDED = pytest.mark.parametrize("side", ["left", "right"])


@pytest.mark.torch
@CASES
@PADDED
def test_logits_and_gradients_equal_transformers(change: dict[str, Any], side: str) -> None:
    """Embeddings in; the gradient with respect to them is what the visual tokens get."""
    torch = pytest.importorskip("torch")
    config = {**CONFIG, **change}
    state = random_state(config)
    model, decoder = torch_model(config, state), make(config)
    params = read_decoder(state, fields_of(config))
    rng = np.random.default_rng(2)
    x_bld = rng.normal(size=(2, 20, 16)).astype(np.float32)
    weight_blv = rng.normal(size=(2, 20, 29)).astype(np.float32)
    keep_bl = np.ones((2, 20), bool)
    keep_bl[0] = np.arange(20) >= 5 if side == "left" else np.arange(20) < 15
    weight_blv *= keep_bl[..., None]

    def total(x_bld: Any) -> tuple[jax.Array, jax.Array]:
        def whole(module: Decoder) -> jax.Array:
            return module.logits(module(x_bld, jnp.asarray(keep_bl))[0])

        logits_blv = decoder.apply({"params": params}, method=whole)
        return jnp.sum(logits_blv * weight_blv), logits_blv

    (_, got), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(x_bld))
    inputs = torch.tensor(x_bld, requires_grad=True)
    position_bl = torch.tensor(np.maximum(keep_bl.cumsum(1) - 1, 0))
    want = model(
        inputs_embeds=inputs, attention_mask=torch.tensor(keep_bl.astype(np.int64)),
        position_ids=position_bl,
    ).logits  # fmt: skip
    (want * torch.tensor(weight_blv)).sum().backward()
    np.testing.assert_allclose(
        np.asarray(got)[keep_bl], want.detach().numpy()[keep_bl], rtol=1e-4, atol=1e-4
    )
    assert inputs.grad is not None
    np.testing.assert_allclose(
        np.asarray(grad)[keep_bl], inputs.grad.numpy()[keep_bl], rtol=1e-4, atol=1e-4
    )
