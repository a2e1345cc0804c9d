"""Low-rank changes merged, exported and read back; PEFT itself is the oracle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interop.qformer_oracle import (
    LORA,
    VISION_WIDTH,
    Video,
    apply,
    hf_frames,
    hf_model,
    inputs,
    make,
    random_params,
    without,
)

from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named
from jaxvsa.interop.peft import merged, read_adapters, save_adapters
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.layers.lora import LoraOptions

PLAIN = LoraOptions(0, 1.0, ())
# PEFT 0.21 asks transformers 5 for a property under its old name.
RENAMED = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is dep:FutureWarning")


def test_merged_is_the_same_model_without_changes() -> None:
    """Anchor I: attention over time off, since one kernel cannot hold two changes."""
    qformer = make(temporal=False)
    params, args = random_params(qformer), inputs(3)
    whole = merged(params, LORA)
    assert not [path for path in named(whole) if "lora_" in path]
    assert not whole["query_position"].any()
    got = apply(make(temporal=False, lora=PLAIN), whole, *args)
    np.testing.assert_allclose(got, apply(qformer, params, *args), rtol=1e-5, atol=1e-5)
    assert np.abs(got - apply(qformer, without(params, "lora_"), *args)).max() > 0.1


def test_merged_for_time_has_the_other_change() -> None:
    params = random_params(make())
    space, time = (merged(params, LORA, use) for use in ("space", "time"))
    dense = params["layer_1"]["attention"]["value"]
    change = dense["lora_time"]["down"] @ dense["lora_time"]["up"]
    got = time["layer_1"]["attention"]["value"]["kernel"]
    np.testing.assert_allclose(got, dense["kernel"] + 2 * change, rtol=1e-5, atol=1e-6)
    for name in ("query", "value"):
        both = (tree["layer_2"]["cross"][name]["kernel"] for tree in (space, time))
        np.testing.assert_array_equal(*both)
    with pytest.raises(ValueError, match="unknown use 'cross'"):
        merged(params, LORA, "cross")


def test_adapters_come_back(tmp_path: Path) -> None:
    qformer = make()
    params = random_params(qformer)
    written = save_adapters(tmp_path, params, LORA, base="some/model")
    assert written == [tmp_path, tmp_path / "time"]
    options, tree = read_adapters(tmp_path)
    assert options == LORA
    want = {path: leaf for path, leaf in named(params).items() if "lora_" in path}
    assert named(tree).keys() == want.keys()
    for path, leaf in named(tree).items():
        np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model" and config["r"] == 3


def test_only_the_sites_that_exist_are_written(tmp_path: Path) -> None:
    space = make(lora=LoraOptions(2, 2.0, ("space",)))
    assert save_adapters(tmp_path / "a", random_params(space), space.lora) == [tmp_path / "a"]
    assert read_adapters(tmp_path / "a")[0] == space.lora
    time = make(lora=LoraOptions(2, 2.0, ("time",)))
    written = save_adapters(tmp_path / "b", random_params(time), time.lora)
    assert written == [tmp_path / "b" / "time"]
    none = make(lora=PLAIN)
    with pytest.raises(UserError, match="no low-rank changes"):
        save_adapters(tmp_path / "c", random_params(none), PLAIN)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="configuration of the adapter"):
        read_adapters(tmp_path)
    save_adapters(tmp_path, random_params(make()), LORA)
    config_path = tmp_path / "adapter_config.json"
    config = json.loads(config_path.read_text())

    def expect(match: str, **changes: Any) -> None:
        config_path.write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=match):
            read_adapters(tmp_path)

    expect("peft_type is 'IA3'; only 'LORA' fits", peft_type="IA3")
    expect("use_dora is True", use_dora=True)
    expect("shape .*, r is 5", r=5)
    expect(r"differ in r or lora_alpha: \[\(3, 7.0\), \(3, 6.0\)\]", lora_alpha=7.0)
    config_path.write_text(json.dumps(config))
    file = tmp_path / "adapter_model.safetensors"
    name = "base_model.model.qformer.encoder.layer.0.attention.attention.key.lora_A.weight"
    save_safetensors(file, {**load_safetensors(file), name: np.zeros((3, 32), np.float32)})
    with pytest.raises(UserError, match=f"'{name}' changes something else"):
        read_adapters(tmp_path)


@pytest.mark.torch
@RENAMED
def test_peft_on_the_image_model_computes_the_same(tmp_path: Path) -> None:
    """Loaded by PEFT itself; the merged tensors in the plain model agree, too."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    qformer = make(temporal=False)
    params, args = without(random_params(qformer), "_position"), inputs(3)
    want = np.asarray(apply(qformer, params, *args))
    save_adapters(tmp_path, params, LORA, prefix="")
    model = peft.PeftModel.from_pretrained(hf_model(qformer, params), tmp_path)
    stored = {k for k in peft.get_peft_model_state_dict(model)}
    assert stored == load_safetensors(tmp_path / "adapter_model.safetensors").keys()
    got = hf_frames(model, params, args)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    plain = hf_frames(hf_model(qformer, params), params, args)
    assert np.abs(plain - want).max() > 0.1
    whole = merged(params, LORA)
    np.testing.assert_allclose(
        hf_frames(hf_model(qformer, whole), whole, args), want, rtol=0, atol=1e-5
    )
    with torch.no_grad():
        unloaded = model.merge_and_unload()
    theirs = unloaded.encoder.layer[0].crossattention.attention.value.weight.detach().numpy()
    ours = whole["layer_0"]["cross"]["value"]["kernel"].T
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@RENAMED
def test_two_adapters_of_peft_are_the_video_model(tmp_path: Path) -> None:
    """The oracle's own changes off; PEFT's adapters switched between space and time instead."""
    peft = pytest.importorskip("peft")
    qformer = make()
    params, args = random_params(qformer), inputs(4)
    save_adapters(tmp_path, params, LORA, prefix="")
    video = Video(qformer, params)
    video.leaf = {path: leaf for path, leaf in video.leaf.items() if "lora_" not in path}
    model = peft.PeftModel.from_pretrained(video.model, tmp_path)
    model.load_adapter(tmp_path / "time", "time")
    video.model = model.base_model.model

    def attend(i: int, block: str, use: str, x: Any, memory: Any, keep: Any, *_: Any) -> Any:
        model.set_adapter("time" if use == "time" else "default")
        layer = video.model.encoder.layer[i]
        bias = video.torch.zeros(keep.shape).masked_fill(~keep, -1e9)[:, None, None]
        if block == "cross":
            return layer.crossattention(x, encoder_hidden_states=memory)
        return layer.attention(x, attention_mask=bias)

    video.attend = attend  # type: ignore[method-assign]
    want = video(*args).detach().numpy()
    np.testing.assert_allclose(apply(qformer, params, *args), want, rtol=0, atol=5e-5)


@pytest.mark.torch
@RENAMED
def test_peft_finds_the_qformer_in_the_whole_model(tmp_path: Path) -> None:
    """Under the names of InstructBLIP, beside a vision transformer that stays as it is."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    qformer = make()
    params = random_params(qformer)
    save_adapters(tmp_path, params, LORA)
    whole = torch.nn.Module()
    whole.vision_model = transformers.InstructBlipVisionModel(
        transformers.InstructBlipVisionConfig(
            hidden_size=VISION_WIDTH, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, image_size=8, patch_size=4,
        )
    )  # fmt: skip
    whole.qformer = hf_model(qformer, params)
    model = peft.PeftModel(whole, peft.PeftConfig.from_pretrained(tmp_path))
    model.load_adapter(tmp_path, "default")
    trained = {k: v for k, v in model.named_parameters() if "lora_" in k}
    size = sum(v.numel() for v in trained.values())
    ours = [leaf for path, leaf in named(params).items() if re.search("lora_(space|cross)", path)]
    assert size == sum(leaf.size for leaf in ours)
    assert all(".qformer." in name for name in trained)
