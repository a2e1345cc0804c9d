"""LLaMA folders; torch and transformers are the oracle of the decoder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvsa.core.errors import UserError
from jaxvsa.core.precision import Precision
from jaxvsa.interop.llama import fields_of, read_decoder, to_names
from jaxvsa.interop.tensors import open_safetensors, save_safetensors
from jaxvsa.layers.decoder import Decoder, RopeScaling
from jaxvsa.layers.generate import greedy

CONFIG = {
    "model_type": "llama", "vocab_size": 29, "hidden_size": 16, "intermediate_size": 20,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def make(config: dict[str, Any]) -> Decoder:
    return Decoder(**fields_of(config), remat=True, precision=Precision())


def random_state(config: dict[str, Any]) -> dict[str, np.ndarray]:
    decoder = make(config)
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), method=everything))["params"]
    rng = np.random.default_rng(1)
    return to_names(
        jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    )


def everything(decoder: Decoder) -> jax.Array:
    ids_bl = jnp.zeros((1, 2), jnp.int32)
    return decoder.logits(decoder(decoder.embed(ids_bl), ids_bl == 0)[0])


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


def torch_model(config: dict[str, Any], state: dict[str, np.ndarray]) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    own = {k: v for k, v in config.items() if k not in ("model_type", "rope_theta")}
    own["rope_parameters"] = {
        "rope_theta": config["rope_theta"], "rope_type": "default", **config.get("rope_scaling", {})
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**own, attn_implementation="eager", pad_token_id=0,
                                 bos_token_id=1, eos_token_id=2)
    ).eval()  # fmt: skip
    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model


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
    keep_bl[0, : 5 if side == "left" else -5 or None] = side != "left"
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


@functools.partial(jax.jit, static_argnums=0)
def generate(decoder: Decoder, params: Any, ids_bl: Any, keep_bl: Any) -> jax.Array:
    def whole(module: Decoder) -> jax.Array:
        cache = module.new_cache(len(ids_bl), ids_bl.shape[1] + 20)
        x_bld, cache = module(module.embed(ids_bl), keep_bl, cache)

        def step(token_b: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            return decoder.apply({"params": params}, token_b, cache, method=one)

        first_bv = module.logits(x_bld[:, -1:])[:, 0]
        return greedy(step, first_bv, cache, num_tokens=20, eos_id=2, pad_id=0)

    return decoder.apply({"params": params}, method=whole)


def one(module: Decoder, token_b: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    x_bld, cache = module(module.embed(token_b[:, None]), jnp.ones((len(token_b), 1), bool), cache)
    return module.logits(x_bld)[:, 0], cache


@pytest.mark.torch
def test_greedy_tokens_equal_transformers() -> None:
    torch = pytest.importorskip("torch")
    state = random_state(CONFIG)
    model, decoder = torch_model(CONFIG, state), make(CONFIG)
    ids_bl = np.random.default_rng(5).integers(3, 29, (4, 6))
    keep_bl = np.arange(6)[None] >= np.array([0, 2, 4, 1])[:, None]
    ids_bl = np.where(keep_bl, ids_bl, 0)
    want = model.generate(
        torch.tensor(ids_bl), attention_mask=torch.tensor(keep_bl.astype(np.int64)),
        max_new_tokens=20, do_sample=False,
    )[:, 6:].numpy()  # fmt: skip
    got = np.asarray(generate(decoder, read_decoder(state, fields_of(CONFIG)), ids_bl, keep_bl))
    np.testing.assert_array_equal(got[:, : want.shape[1]], want)
    assert (got[:, want.shape[1] :] == 0).all()
    assert len(np.unique(want)) > 4  # it says something
