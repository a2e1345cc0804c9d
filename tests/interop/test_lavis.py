"""LAVIS checkpoints: published names, files as torch writes them, what is left over or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interop.qformer_oracle import PATCHES, VISION_WIDTH, hf_model, make, random_params

from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named
from jaxvsa.interop.blip import read_projection, read_qformer, read_vision, sizes_of, to_names
from jaxvsa.interop.lavis import from_lavis, modern, read_lavis

# Per layer, as the modules of LAVIS are nested: its name, ours of the same tensor.
QFORMER = {
    "attention.self.query": "attention.attention.query",
    "attention.self.key": "attention.attention.key",
    "attention.self.value": "attention.attention.value",
    "attention.output.dense": "attention.output.dense",
    "attention.output.LayerNorm": "attention.output.LayerNorm",
    "crossattention.self.query": "crossattention.attention.query",
    "crossattention.self.key": "crossattention.attention.key",
    "crossattention.self.value": "crossattention.attention.value",
    "crossattention.output.dense": "crossattention.output.dense",
    "crossattention.output.LayerNorm": "crossattention.output.LayerNorm",
    "intermediate.dense": "intermediate.dense",
    "output.dense": "output.dense",
    "output.LayerNorm": "output.LayerNorm",
    "intermediate_query.dense": "intermediate_query.dense",
    "output_query.dense": "output_query.dense",
    "output_query.LayerNorm": "output_query.LayerNorm",
}
BLOCK = {
    "norm1.weight": "layer_norm1.weight", "norm1.bias": "layer_norm1.bias",
    "attn.qkv.weight": "self_attn.qkv.weight",
    "attn.proj.weight": "self_attn.projection.weight",
    "attn.proj.bias": "self_attn.projection.bias",
    "norm2.weight": "layer_norm2.weight", "norm2.bias": "layer_norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight", "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight", "mlp.fc2.bias": "mlp.fc2.bias",
}  # fmt: skip
INPUTS = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}  # fmt: skip
RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def published_qformer(text: bool = True) -> dict[str, np.ndarray]:
    """What a trained checkpoint holds: Q-Former, queries, projection, the last LayerNorm."""
    qformer = make(vocab_size=31 if text else 0)
    tensors = to_names(random_params(qformer, text), qformer.options, prefix="")
    found = {"query_tokens": tensors["query_tokens"]}
    bert = "Qformer.bert."
    for i in range(4):
        for theirs, hf in QFORMER.items():
            for kind in ("weight", "bias"):
                name = f"encoder.layer.{i}.{hf}.{kind}"
                if name in tensors:
                    found[f"{bert}encoder.layer.{i}.{theirs}.{kind}"] = tensors[name]
    norm = "embeddings.layernorm" if text else "layernorm"
    for kind in ("weight", "bias"):
        found[f"{bert}embeddings.LayerNorm.{kind}"] = tensors[f"{norm}.{kind}"]
    if text:
        for name in ("word", "position"):
            whole = f"embeddings.{name}_embeddings.weight"
            found[bert + whole] = tensors[whole]
        found[f"{bert}embeddings.position_ids"] = np.arange(12)[None]
    assert len(found) == len(tensors) + text  # every tensor of the model, and a buffer
    found |= {"llm_proj.weight": draw(9, 32), "llm_proj.bias": draw(9)}
    return found | {"ln_vision.weight": draw(8), "ln_vision.bias": draw(8)}


def published_vision(prefix: str, blocks: int) -> dict[str, np.ndarray]:
    """A vision transformer of width 8, 4 by 4 patches of 2 by 2 pixels."""
    found = {
        "cls_token": draw(1, 1, 8), "pos_embed": draw(1, 17, 8),
        "patch_embed.proj.weight": draw(8, 3, 2, 2), "patch_embed.proj.bias": draw(8),
    }  # fmt: skip
    wide = {"attn.qkv.weight": (24, 8), "attn.proj.weight": (8, 8), "mlp.fc1.weight": (20, 8),
            "mlp.fc1.bias": (20,), "mlp.fc2.weight": (8, 20)}  # fmt: skip
    for i in range(blocks):
        each = {name: draw(*wide.get(name, (8,))) for name in BLOCK}
        each |= {"attn.q_bias": draw(8), "attn.v_bias": draw(8)}
        found |= {f"blocks.{i}.{name}": array for name, array in each.items()}
    return {prefix + name: array for name, array in found.items()}


@pytest.mark.parametrize(
    "lavis,hf",
    [
        ("Qformer.bert.encoder.layer.3.attention.self.query.weight",
         "qformer.encoder.layer.3.attention.attention.query.weight"),
        ("Qformer.bert.encoder.layer.2.crossattention.self.key.bias",
         "qformer.encoder.layer.2.crossattention.attention.key.bias"),
        ("Qformer.bert.encoder.layer.0.attention.output.dense.weight",
         "qformer.encoder.layer.0.attention.output.dense.weight"),
        ("Qformer.bert.embeddings.LayerNorm.weight", "qformer.embeddings.layernorm.weight"),
        ("llm_proj.weight", "language_projection.weight"),
        ("ln_vision.bias", "vision_model.post_layernorm.bias"),
        ("query_tokens", "query_tokens"),
        ("visual_encoder.blocks.38.attn.proj.bias",
         "vision_model.encoder.layers.38.self_attn.projection.bias"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("llm_model.model.norm.weight", "language_model.model.norm.weight"),
    ],
)  # fmt: skip
def test_names(lavis: str, hf: str) -> None:
    assert modern(lavis) == hf and modern(hf) == hf


@pytest.mark.parametrize("text", [True, False])
def test_every_tensor_finds_its_place(text: bool) -> None:
    state = published_qformer(text)
    found = from_lavis(state)
    qformer = make(vocab_size=31 if text else 0)
    assert sizes_of(found)["qformer"]["vocab_size"] == (31 if text else 0)
    got = named(read_qformer(found, qformer.options))
    want = named(random_params(qformer, text))
    new = {path for path in want if "lora_" in path or path.endswith(("y_position", "e_position"))}
    assert got.keys() == want.keys() - new
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    np.testing.assert_array_equal(read_projection(found)["kernel"], state["llm_proj.weight"].T)


@pytest.mark.parametrize("prefix", ["visual_encoder.", ""])
def test_the_bias_of_the_vision_transformer_is_put_together(prefix: str) -> None:
    """Queries and values have one, keys have none; blocks after the last that runs go."""
    state = published_vision(prefix, 3) | {"ln_vision.weight": draw(8), "ln_vision.bias": draw(8)}
    params = read_vision(from_lavis(state, num_vision_layers=2), 2)
    bias_nc = params["blocks"]["qkv"]["bias"]
    assert bias_nc.shape == (2, 24)
    for i in range(2):
        at = f"{prefix}blocks.{i}.attn."
        want = [state[f"{at}q_bias"], np.zeros(8, np.float32), state[f"{at}v_bias"]]
        np.testing.assert_array_equal(bias_nc[i], np.concatenate(want))
        kernel = params["blocks"]["out"]["kernel"][i]
        np.testing.assert_array_equal(kernel, state[f"{at}proj.weight"].T)
    np.testing.assert_array_equal(params["whole"], state[f"{prefix}cls_token"].ravel())


def test_the_heads_of_the_pretraining_are_left_out_and_nothing_else() -> None:
    heads = {
        "temp": draw(1)[0], "itm_head.weight": draw(2, 32), "vision_proj.bias": draw(4),
        "text_proj.weight": draw(4, 32), "Qformer.cls.predictions.bias": draw(31),
        "head.weight": draw(3, 8), "norm.bias": draw(8), "fc_norm.weight": draw(8),
    }  # fmt: skip
    state = published_qformer()
    assert from_lavis({**state, **heads}).keys() == from_lavis(state).keys()
    for name in ("audio_proj.weight", "Qformer2.bert.x", "temperature", "norm1.weight"):
        with pytest.raises(UserError, match=f"'{name}' is none of BLIP-2"):
            from_lavis({**state, name: draw(2)})


def test_what_is_missing_is_named() -> None:
    state = published_vision("", 2)
    del state["blocks.1.attn.v_bias"]
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.v_bias' is missing, though"):
        from_lavis(state)
    state = published_qformer()
    del state["Qformer.bert.encoder.layer.2.crossattention.self.key.bias"]
    name = "qformer.encoder.layer.2.crossattention.attention.key.bias"
    with pytest.raises(UserError, match=f"'{name}' is missing"):
        read_qformer(from_lavis(state), make().options)


@pytest.mark.torch
def test_files_as_torch_writes_them(tmp_path: Path) -> None:
    """Two files, one wrapped as LAVIS does; the Q-Former then computes what transformers does."""
    torch = pytest.importorskip("torch")
    trained, vision = published_qformer(), published_vision("", 40)

    def tensors(state: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
        return {name: torch.tensor(array).to(dtype) for name, array in state.items()}

    torch.save({"model": tensors(trained, torch.float32), "epoch": 3}, tmp_path / "trained.pth")
    torch.save(tensors(vision, torch.float16), tmp_path / "vision.pth")
    found = read_lavis(tmp_path / "trained.pth", tmp_path / "vision.pth")
    sizes = sizes_of(found)
    assert sizes["vision"]["num_layers"] == 39 and sizes["vision"]["image_size"] == 8
    assert sizes["projection"] == {"width": 9}
    assert found["vision_model.encoder.layers.0.mlp.fc1.weight"].dtype == np.float16
    qformer = make()
    model = hf_model(qformer, read_qformer(found, qformer.options))
    oracle = hf_model(qformer, random_params(qformer))
    frames = torch.ones(1, PATCHES, VISION_WIDTH)
    query = torch.tensor(trained["query_tokens"])
    ids = torch.tensor([[3, 4]])
    with torch.no_grad():
        got, want = (
            m(input_ids=ids, query_embeds=query, encoder_hidden_states=frames).last_hidden_state
            for m in (model, oracle)
        )
    np.testing.assert_array_equal(got, want)
    with pytest.raises(UserError, match=r"vision\.pth: tensor '.*' is in another file, too"):
        read_lavis(tmp_path / "vision.pth", tmp_path / "vision.pth")


def test_wrong_paths_are_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "frame_1.png").touch()
    with pytest.raises(UserError, match=r"a folder; LAVIS weights are single \.pth files, name"):
        read_lavis(tmp_path)
    (tmp_path / "page.pth").write_text("<!doctype html>")
    with pytest.raises(UserError, match=r"page\.pth: not a whole file of torch\.save"):
        read_lavis(tmp_path / "page.pth")
    with pytest.raises(UserError, match=r"gone\.pth: no such file"):
        read_lavis(tmp_path / "gone.pth")
