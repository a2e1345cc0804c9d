"""A tiny LLaMA in both libraries: settings, random tensors, and torch's model of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvsa.core.precision import Precision
from jaxvsa.interop.llama import fields_of, to_names
from jaxvsa.layers.decoder import Decoder

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
# Not zero: their beam search takes a zero for no padding at all.
PAD, EOS = 28, 2


def make(config: dict[str, Any]) -> Decoder:
    return Decoder(**fields_of(config), remat=True, precision=Precision())


def random_state(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    decoder = make(config)
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), method=everything))["params"]
    rng = np.random.default_rng(seed)
    return to_names(
        jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    )


def everything(decoder: Decoder) -> jax.Array:
    ids_bl = jnp.zeros((1, 2), jnp.int32)
    return decoder.logits(decoder(decoder.embed(ids_bl), ids_bl == 0)[0])


def torch_model(config: dict[str, Any], state: dict[str, np.ndarray]) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    own = {k: v for k, v in config.items() if k not in ("model_type", "rope_theta")}
    own["rope_parameters"] = {
        "rope_theta": config["rope_theta"], "rope_type": "default", **config.get("rope_scaling", {})
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**own, attn_implementation="eager", pad_token_id=PAD,
                                 bos_token_id=1, eos_token_id=EOS)
    ).eval()  # fmt: skip
    tensors = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model
