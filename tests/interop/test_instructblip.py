"""Hugging Face folders of InstructBLIP and BLIP-2: read back, and end to end against torch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxvsa.core.config import load_config, to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.instructblip import projection_names, read_fields, read_weights
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.layers.tokens import Words
from jaxvsa.layers.vision import VisionTransformer
from jaxvsa.systems.mtransllama.model import (
    PIXEL_MEAN,
    PIXEL_STD,
    Clip,
    ModelOptions,
    MTransLLAMA,
)
from jaxvsa.systems.mtransllama.system import Facts, build_model

VOCAB, WORDS, VISUAL, PAD = 41, 30, 40, 0
SIDE, QUERIES = 16, 4
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": SIDE, "patch_size": 4, "layer_norm_eps": 1e-6,
}  # fmt: skip
QFORMER = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64, "encoder_hidden_size": 32, "cross_attention_frequency": 2,
    "layer_norm_eps": 1e-12, "vocab_size": WORDS, "pad_token_id": PAD,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
}  # fmt: skip


def published(kind: str) -> Any:
    """A tiny model of transformers with random weights."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name = {"video": "InstructBlipVideo", "image": "InstructBlip", "blip-2": "Blip2"}[kind]
    parts = {
        "vision_config": getattr(hf, f"{name}VisionConfig")(**VISION),
        "qformer_config": getattr(hf, f"{name}QFormerConfig")(**QFORMER),
        "text_config": hf.LlamaConfig(**TEXT),
    }
    token = "video_token_index" if kind == "video" else "image_token_index"
    config = getattr(hf, f"{name}Config")(num_query_tokens=QUERIES, **parts, **{token: VISUAL})
    config._attn_implementation = "eager"
    model = getattr(hf, f"{name}ForConditionalGeneration")(config).eval()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            scale = "norm" in path.lower() and path.endswith("weight")
            leaf.copy_(0.2 * torch.randn(leaf.shape, generator=draw) + float(scale))
    return model


Folders = Callable[[str], tuple[Any, Path]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Function: kind -> model of transformers, and the folder that it was saved in."""
    made: dict[str, tuple[Any, Path]] = {}

    def find(kind: str) -> tuple[Any, Path]:
        if kind not in made:
            model, folder = published(kind), tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            made[kind] = model, folder
        return made[kind]

    return find


def ours(folder: Path, num_frames: int, text: bool = True) -> tuple[MTransLLAMA, Any]:
    """The ablation "w/o MQT" without anything that learns, with the weights of the folder."""
    section = to_plain(load_config("configs/mtransllama.py:mustard"))["model"]
    fields = read_fields(folder)
    for name, found in fields.items():
        section[name] |= {k: v for k, v in found.items() if k != "vocab_size"}
    section["qformer"] |= {"temporal": False, "aggregate": "concat"}
    section["lora"]["rank"] = 0
    section["routing"]["enabled"] = False
    section["num_frames"] = num_frames
    section["max_words"] = 32 if text else 0
    section["frozen"] = {"param": "float32", "compute": "float32"}
    words = fields["qformer"]["vocab_size"]
    options = ModelOptions.of(section, words)
    size = fields["decoder"]["vocab_size"]
    facts = Facts({}, size, PAD, 2, words, "pixels", 3 * SIDE**2, "uint8")
    found = read_weights(folder, fields, options.qformer)
    rows = {
        "qformer/query_position": (QUERIES, options.qformer.width),
        "qformer/frame_position": (options.qformer.max_frames, options.qformer.width),
    }
    zeros = {path: np.zeros(shape, np.float32) for path, shape in rows.items()}
    return build_model(options, facts), nest({**found, **zeros})


@dataclasses.dataclass
class Asked:
    """Random questions; lengths differ, and everything real stands without gaps for torch."""

    pixels: np.ndarray
    words: np.ndarray
    keep_words: np.ndarray
    prompts: list[np.ndarray]
    answers: list[np.ndarray]

    @classmethod
    def draw(cls, num_frames: int) -> Asked:
        rng, rows = np.random.default_rng(num_frames), 3
        return cls(
            rng.integers(0, 256, (rows, num_frames, 3 * SIDE**2), dtype=np.uint8),
            rng.integers(1, WORDS, (rows, 7)),
            np.arange(7)[None] < np.array([7, 4, 5])[:, None],
            [rng.integers(3, VISUAL, n) for n in (6, 2, 4)],
            [rng.integers(3, VISUAL, n) for n in (4, 3, 1)],
        )

    def images(self) -> np.ndarray:
        """As torch reads them: normalised, colours first."""
        image = self.pixels.reshape(*self.pixels.shape[:2], SIDE, SIDE, 3) / 255
        image = (image - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
        return np.moveaxis(image, -1, -3).astype(np.float32)

    def padded(self, rows: list[np.ndarray], left: bool) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(rows), max(map(len, rows))), PAD)
        keep = np.zeros(ids.shape, bool)
        for place, row in enumerate(rows):
            at = slice(ids.shape[1] - len(row), None) if left else slice(len(row))
            ids[place, at], keep[place, at] = row, True
        return ids, keep


def our_logits(model: MTransLLAMA, params: Any, asked: Asked, text: bool = True) -> list[Any]:
    """Scores of every answer; the vision transformer's outputs are not rounded for storage."""
    vision = VisionTransformer(model.options.vision, model.options.frozen)

    @jax.jit
    def run(params: Any, images: Any, *rest: Any) -> Any:
        rows, frames = images.shape[:2]
        flat = images.reshape(-1, *images.shape[2:])
        patches = vision.apply({"params": params["vision"]}, flat)
        ids, keep, *given = rest
        words = None if ids is None else Words.rectangle(ids, keep)
        clip = Clip(None, patches.reshape(rows, frames, *patches.shape[1:]), words, np.arange(rows))
        return model.apply({"params": params}, clip, *given, True)

    prompts = asked.padded(asked.prompts, left=True)
    answers = asked.padded(asked.answers, left=False)
    words = (asked.words, asked.keep_words) if text else (None, None)
    images = np.moveaxis(asked.images(), -3, -1)
    found = run(params, images, *words, *prompts, *answers)
    return [
        np.asarray(row[: len(answer)]) for row, answer in zip(found, asked.answers, strict=True)
    ]


def their_logits(model: Any, asked: Asked, text: bool = True, video: bool = True) -> list[Any]:
    """Scores of every answer, from [visual tokens; prompt; answer; padding]."""
    torch = pytest.importorskip("torch")
    visual = QUERIES * asked.pixels.shape[1]
    rows = [
        np.concatenate([np.full(visual, VISUAL), prompt, answer])
        for prompt, answer in zip(asked.prompts, asked.answers, strict=True)
    ]
    ids, keep = asked.padded(rows, left=False)
    images = asked.images() if video else asked.images()[:, 0]
    more = {}
    if text:
        more = {"qformer_input_ids": torch.tensor(asked.words),
                "qformer_attention_mask": torch.tensor(asked.keep_words).long()}  # fmt: skip
    with torch.no_grad():
        found = model(
            pixel_values=torch.tensor(images), input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(keep).long(), **more,
        ).logits.numpy()  # fmt: skip
    first = [visual + len(prompt) - 1 for prompt in asked.prompts]
    return [
        row[at : at + len(answer)]
        for row, at, answer in zip(found, first, asked.answers, strict=True)
    ]


def assert_same(got: list[Any], want: list[Any]) -> None:
    assert np.ptp(want[0]) > 1
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


@pytest.mark.torch
def test_g_without_mqt_a_video_model_of_four_frames_end_to_end(folders: Folders) -> None:
    """Anchor G: pixels to scores of the answers, through the folder's own tensors."""
    theirs, folder = folders("video")
    asked = Asked.draw(4)
    assert_same(our_logits(*ours(folder, 4), asked), their_logits(theirs, asked))


@pytest.mark.torch
def test_g_image_models_end_to_end(folders: Folders) -> None:
    """One frame: InstructBLIP, and BLIP-2 whose Q-Former reads no text."""
    asked = Asked.draw(1)
    for kind, text in (("image", True), ("blip-2", False)):
        theirs, folder = folders(kind)
        want = their_logits(theirs, asked, text, video=False)
        assert_same(our_logits(*ours(folder, 1, text), asked, text), want)


@pytest.mark.torch
def test_stored_patches_are_the_vision_transformers_rounded_once(folders: Folders) -> None:
    torch = pytest.importorskip("torch")
    theirs, folder = folders("video")
    model, params = ours(folder, 4)
    asked = Asked.draw(4)
    with torch.no_grad():
        flat = torch.tensor(asked.images().reshape(-1, 3, SIDE, SIDE))
        want = theirs.vision_model(flat)[0].numpy().reshape(3, 4, 17, 32)
    got = jax.jit(lambda pixels: model.apply({"params": params}, pixels, method=model.see))(
        asked.pixels
    )
    assert got.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=1e-5)


@pytest.mark.torch
def test_projection_goes_back_under_its_published_names(folders: Folders) -> None:
    _, folder = folders("video")
    _, params = ours(folder, 4)
    stored = load_safetensors(folder)
    for name, array in projection_names(params["project"]).items():
        np.testing.assert_array_equal(array, stored[name])


@pytest.mark.torch
def test_fields_are_those_of_the_configuration(folders: Folders) -> None:
    found = read_fields(folders("video")[1])
    assert found["vision"] == {
        "image_size": 16, "patch_size": 4, "width": 32, "num_layers": 2, "num_heads": 4,
        "mlp_width": 64, "norm_eps": 1e-6,
    }  # fmt: skip
    assert found["qformer"]["vocab_size"] == WORDS and found["qformer"]["num_queries"] == QUERIES
    assert found["decoder"]["num_kv_heads"] == 2 and found["decoder"]["vocab_size"] == VOCAB
    assert read_fields(folders("blip-2")[1])["qformer"]["vocab_size"] == 0


@pytest.mark.torch
def test_vision_transformer_can_be_left_out(folders: Folders) -> None:
    _, folder = folders("video")
    fields = read_fields(folder)
    options = ours(folder, 4)[0].options.qformer
    whole, rest = (read_weights(folder, fields, options, None, need) for need in (True, False))
    assert {path for path in whole if not path.startswith("vision/")} == set(rest)
    assert any(path.startswith("vision/") for path in whole)


@pytest.mark.torch
def test_language_model_alone_is_read(folders: Folders, tmp_path: Path) -> None:
    theirs, whole = folders("video")
    theirs.language_model.save_pretrained(tmp_path)
    fields = read_fields(tmp_path)
    assert list(fields) == ["decoder"]
    options = ours(whole, 4)[0].options.qformer
    found = read_weights(tmp_path, fields, options)
    want = named({"decoder": ours(whole, 4)[1]["decoder"]})
    assert found.keys() == want.keys()
    for path, array in want.items():
        np.testing.assert_array_equal(found[path], array)


def edited(folder: Path, out: Path, **changes: Any) -> Path:
    """A copy of a folder whose config.json has other values; a dot leads into a section."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        holder = config
        for section in sections:
            holder = holder[section]
        if value is None:
            del holder[last]
        else:
            holder[last] = value
    (out / "config.json").write_text(json.dumps(config))
    return out


def refuse(folder: Path, match: str, options: Any = None) -> None:
    with pytest.raises(UserError, match=match) as caught:
        fields = read_fields(folder)
        read_weights(folder, fields, options)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.torch
def test_what_a_configuration_leaves_out_is_as_in_the_published_classes(tmp_path: Path) -> None:
    """Files of transformers 4 hold of nested sections what differs from their classes."""
    transformers = pytest.importorskip("transformers")
    whole = transformers.InstructBlipConfig(
        vision_config=transformers.InstructBlipVisionConfig().to_dict(),
        qformer_config=transformers.InstructBlipQFormerConfig().to_dict(),
        text_config=transformers.LlamaConfig().to_dict(),
    ).to_dict()
    kinds = {"qformer_config": {}, "vision_config": {}, "text_config": {"model_type": "llama"}}
    bare = {"model_type": "instructblip", **kinds}
    found = []
    for name, config in {"whole": whole, "bare": bare}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        found.append(read_fields(tmp_path / name))
    assert found[0] == found[1]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "llava"}, "model_type 'llava'; known: instructblip, instructblipvideo, bl"),
        ({"text_config__model_type": "opt"}, "model_type 'opt'; known: 'llama'"),
        ({"text_config__attention_bias": True}, "attention_bias is true"),
        ({"vision_config": None}, "config.json: no 'vision_config'"),
        ({"text_config": 3}, "config.json: 'text_config' is no section"),
        ({"qformer_config": None}, "config.json: no 'qformer_config'"),
        ({"num_query_tokens": 5}, r"'query_tokens' has shape \(4, 48\), expected \(5, 48\)"),
        ({"text_config__vocab_size": 50}, r"has shape \(41, 48\), config.json says \(50, 48\)"),
        ({"vision_config__num_hidden_layers": 3}, "layers.2.* is missing"),
        ({"qformer_config__num_hidden_layers": 3}, "encoder.layer.3.* has no place"),
        ({"text_config__num_hidden_layers": 1}, "model.layers.1.* has no place"),
    ],
)
def test_configuration_that_does_not_fit_is_one_line(
    folders: Folders, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    _, folder = folders("video")
    options = ours(folder, 4)[0].options.qformer
    more = {"num_query_tokens": "num_queries", "qformer_config__num_hidden_layers": "num_layers"}
    for key, field in more.items():
        if key in changes:
            options = dataclasses.replace(options, **{field: changes[key]})
    refuse(edited(folder, tmp_path / "bad", **changes), match, options)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("without", "extra", "match"),
    [
        ("language_projection.bias", "", "'language_projection.bias' is missing"),
        ("query_tokens", "", "'query_tokens' is missing"),
        ("vision_model.post_layernorm.weight", "", "post_layernorm.weight' is missing"),
        ("vision_model.embeddings.class_embedding", "", "class_embedding' is missing"),
        ("language_model.lm_head.weight", "", "lm_head.weight' is missing"),
        ("", "audio.weight", "'audio.weight' has no place in the model"),
        ("", "qformer.audio.weight", "'qformer.audio.weight' has no place in the model"),
        ("", "vision_model.audio.weight", "'vision_model.audio.weight' has no place"),
        ("", "language_model.audio.weight", "'language_model.audio.weight' has no place"),
        ("", "language_projection.audio", "'language_projection.audio' has no place"),
    ],
)
def test_tensor_that_is_missing_or_left_over_is_named(
    folders: Folders, tmp_path: Path, without: str, extra: str, match: str
) -> None:
    _, folder = folders("video")
    options = ours(folder, 4)[0].options.qformer
    bad = edited(folder, tmp_path / "bad")
    tensors = dict(load_safetensors(folder))
    if without:
        del tensors[without]
    if extra:
        tensors[extra] = np.zeros(2, np.float32)
    save_safetensors(bad / "model.safetensors", tensors)
    refuse(bad, match, options)


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "has no config.json; name a Hugging Face folder of instructblip")
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.jpg").write_bytes(b"")
    refuse(images, "has no config.json; name a Hugging Face folder")
    (images / "config.json").write_text("[1]")
    refuse(images, "model_type None; known")
    (images / "config.json").write_text("{")
    refuse(images, "config.json")
    text = {"model_type": "llama", **TEXT}
    (images / "config.json").write_text(json.dumps(text))
    refuse(images, "looks like a folder of images or features, not of a model")
