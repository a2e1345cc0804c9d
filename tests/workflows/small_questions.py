"""Small sets of questions, an image model to start from in both forms, and runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxvsa.core.config import load_config
from jaxvsa.core.files import write_json
from jaxvsa.data.questions import QuestionSet, VideoQuestion
from jaxvsa.data.sources import clips
from jaxvsa.interop import blip, llama
from jaxvsa.interop.instructblip import PREFIX, projection_names
from jaxvsa.interop.names import write_leaves
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.layers.qformer import QFormerOptions
from jaxvsa.workflows import fit as fitting
from jaxvsa.workflows.prepare_questions import prepare_questions
from jaxvsa.workflows.runs import read_trained

SPEC = "configs/mtransllama.py"
SIZES = {"train": 24, "dev": 8, "test": 8}
SCRATCH = ("weights.base=", "weights.learn=all")
ROUTED = "model.routing.schedule=all"
"""Both layers are routed."""


def flags(root: Path, *more: str) -> list[str]:
    """Six short updates on other data; `more` without "--config."."""
    given = [
        f"data.root={root}", "train.steps=6", "train.eval_every=4", "train.save_every=2",
        "train.log_every=1", "train.batch_size=8", "train.eval_batch_size=8", "mesh.data=1",
        *more,
    ]  # fmt: skip
    return [f"--config.{override}" for override in given]


def config(variant: str, root: Path, *more: str) -> ConfigDict:
    return load_config(f"{SPEC}:{variant}", flags(root, *more))


def fit(variant: str, root: Path, run: Path, *more: str) -> list[Any]:
    return fitting.fit(config(variant, root, *more), run, Console(quiet=True))


def prepare_clips(found: clips.Clips, out: Path) -> Path:
    prepare_questions({"demo": found.questions}, out, "way", clips.WAYS, found.frames)
    return out


def asked(number: int, split: str, **changes: Any) -> VideoQuestion:
    """One question with a yes or a no; even numbers mean yes."""
    options = ("No! it is dull.", "Yes! it is fun.")
    label = int(number % 2 == 0)
    fields: dict[str, Any] = {
        "id": f"q{number}", "video": f"v{number}.mp4", "question": f"is it fun when < {label} >?",
        "answer": options[label], "context": (("Ann", "Hello."), ("Bob", f"Line {number % 3}.")),
        "options": options, "label": label, "split": split, "extra": {"speaker": "Ann"},
    }  # fmt: skip
    return VideoQuestion(**{**fields, **changes})


def folded(count: int = 16) -> dict[str, QuestionSet]:
    """Two folds of the same questions: protocols own_0 and own_1."""
    return {
        f"own_{fold}": QuestionSet(
            tuple(asked(n, "test" if n // 2 % 2 == fold else "train") for n in range(count))
        )
        for fold in range(2)
    }


def prepare_text(out: Path, sets: dict[str, QuestionSet] | None = None) -> Path:
    prepare_questions(sets or folded(), out, "fun", ("dull", "fun"))
    return out


def write_folder(run: Path, out: Path) -> Path:
    """The image model of a run as a Hugging Face folder of InstructBLIP."""
    trained = read_trained(run, "newest")
    model, params = trained.config["model"], trained.params
    vision, qformer, decoder = model["vision"], model["qformer"], model["decoder"]
    sizes = {**qformer, "vocab_size": trained.facts.words_size}
    tensors = {
        **_vision_names(params["vision"], vision),
        **blip.to_names(params["qformer"], QFormerOptions(**sizes)),
        **projection_names(params["project"]),
        **llama.to_names(params["decoder"], PREFIX),
    }
    out.mkdir()
    save_safetensors(out / "model.safetensors", tensors)
    write_json(out / "config.json", {
        "model_type": "instructblip", "num_query_tokens": qformer["num_queries"],
        "vision_config": {
            "image_size": vision["image_size"], "patch_size": vision["patch_size"],
            "hidden_size": vision["width"], "num_hidden_layers": vision["num_layers"],
            "num_attention_heads": vision["num_heads"], "layer_norm_eps": vision["norm_eps"],
            "intermediate_size": vision["mlp_width"],
        },
        "qformer_config": {
            "num_hidden_layers": qformer["num_layers"], "hidden_size": qformer["width"],
            "num_attention_heads": qformer["num_heads"], "vocab_size": sizes["vocab_size"],
            "intermediate_size": qformer["mlp_width"],
            "max_position_embeddings": qformer["max_positions"],
            "cross_attention_frequency": qformer["cross_every"],
            "layer_norm_eps": qformer["norm_eps"],
        },
        "text_config": text_config(decoder, trained.facts.vocab_size),
    })  # fmt: skip
    write_tokenizers(trained.codec, out)
    return out


def text_config(decoder: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": decoder["width"],
        "num_hidden_layers": decoder["num_layers"], "num_attention_heads": decoder["num_heads"],
        "num_key_value_heads": decoder["num_kv_heads"], "rope_theta": decoder["rope_theta"],
        "intermediate_size": decoder["mlp_width"], "rms_norm_eps": decoder["norm_eps"],
        "tie_word_embeddings": decoder["tied"],
    }  # fmt: skip


def write_tokenizers(codec: Any, out: Path) -> None:
    language = json.loads(codec.language.to_json())
    (out / "tokenizer.json").write_text(language["tokenizer"], encoding="utf-8")
    bos, eos, pad = language["names"]
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    write_json(out / "tokenizer_config.json", names)
    (out / "qformer_tokenizer").mkdir(exist_ok=True)
    words = json.loads(codec.words.to_json())
    path = out / "qformer_tokenizer" / "tokenizer.json"
    path.write_text(words["tokenizer"], encoding="utf-8")


def edit_tensor(folder: Path, name: str, scale: float = 1.5) -> np.ndarray:
    """Multiplies a stored tensor; returns what it was."""
    tensors = dict(load_safetensors(folder))
    before = np.array(tensors[name])
    save_safetensors(folder / "model.safetensors", {**tensors, name: before * scale})
    return before


def _vision_names(params: Any, options: dict[str, Any]) -> dict[str, np.ndarray]:
    named, side = "vision_model.embeddings.", options["patch_size"]
    patch = np.asarray(params["patch"]).reshape(side, side, 3, -1)
    return {
        **write_leaves(blip.vision_leaves(options["num_layers"]), params),
        f"{named}class_embedding": np.asarray(params["whole"])[None, None],
        f"{named}position_embedding": np.asarray(params["position"])[None],
        f"{named}patch_embedding.weight": np.moveaxis(patch.transpose(2, 0, 1, 3), -1, 0),
    }
