"""The image model that MTransLLAMA starts from: a Hugging Face folder, or a run of ours."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvsa.core import trees
from jaxvsa.core.errors import UserError
from jaxvsa.data.language import Codecs, LanguageCodec, read_codecs
from jaxvsa.data.text import TextCodec
from jaxvsa.interop.blip import read_vision
from jaxvsa.interop.instructblip import read_fields, read_weights
from jaxvsa.interop.names import Place
from jaxvsa.interop.roberta import check_vocab
from jaxvsa.interop.tensors import open_safetensors
from jaxvsa.systems.mtransllama.model import ModelOptions

FRESH = r"qformer/(.*/(lora_\w+|router_\w+)/.*|(query|frame)_position|.*/time_gate)"
"""Parameters that the image model does not have."""
WORDS = r"qformer/(word|position|layer_\d+/mlp_word/.*)"
"""Parameters that a Q-Former without text does not have."""


def read_base(
    config: Mapping[str, Any],
    base: str,
    fields: Mapping[str, Any],
    pixels: bool,
    place: Place | None = None,
) -> dict[str, Any]:
    """Parameters by path of the image model.

    Args:
        config: resolved.
        base: a Hugging Face folder, or a run.
        fields: of its config.json; {} for a run.
        pixels: the vision transformer is needed.
        place: see `interop.instructblip.read_weights`.
    """
    words_size = fields.get("qformer", {}).get("vocab_size", 0)
    options = ModelOptions.of(config["model"], words_size)
    if not fields:
        from jaxvsa.workflows.runs import read_trained  # which needs `questions`, which needs this

        found = trees.named(read_trained(base).params)
        kept = {"both": ("qformer", "project", "decoder"), "text": ("decoder",)}
        absent = FRESH if options.reads_words else f"{FRESH}|{WORDS}"
        parts = (*kept[options.variant], *(("vision",) if pixels else ()))
        return {
            path: leaf for path, leaf in found.items()
            if path.startswith(parts) and not re.fullmatch(absent, path)
        }  # fmt: skip
    qformer = None if options.variant == "text" else options.qformer
    return read_weights(base, fields, qformer, place, pixels)


def read_vision_model(base: str | Path) -> tuple[dict[str, Any], Any]:
    """Fields of `VisionOptions` and parameters of the vision transformer, on the host.

    Raises:
        UserError: `base` is no image model.
    """
    if is_run(base):
        from jaxvsa.workflows.runs import read_trained  # as above

        trained = read_trained(base)
        if "vision" not in trained.params:
            raise UserError(f"{base} has no vision transformer; name a run that was given frames")
        return dict(trained.config["model"]["vision"]), trained.params["vision"]
    fields = read_fields(base)
    if "vision" not in fields:
        raise UserError(f"{base} is a language model alone; name an InstructBLIP or BLIP-2 folder")
    layers = fields["vision"]["num_layers"]
    try:
        return fields["vision"], read_vision(open_safetensors(base), layers)
    except UserError as error:
        raise UserError(f"{base}: {error}") from error


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run of ours and not a Hugging Face folder."""
    return (Path(folder) / "checkpoints").is_dir()


def codec_of_run(base: str, config: dict[str, Any]) -> tuple[Codecs, tuple[int, int]]:
    """Tokenizers and table sizes of a run; its sizes become those of the model."""
    from jaxvsa.workflows.runs import read_about  # as above

    about = read_about(base)
    _check_base(base, about["config"], config["model"]["variant"])
    theirs, facts = about["config"]["model"], about["facts"]
    for section in ("vision", "decoder"):
        config["model"][section] = copy.deepcopy(theirs[section])
    for name in _SHAPE:
        config["model"]["qformer"][name] = theirs["qformer"][name]
    return read_codecs(about["codec"]), (facts["vocab_size"], facts["words_size"])


def _check_base(base: str, config: Mapping[str, Any], variant: str) -> None:
    """Refuses a run whose model has parts that an image model lacks: they would be lost.

    Variant "text" takes the language model alone.
    """
    why = ""
    if config["system"] != "mtransllama":
        why = f"is a run of {config['system']}"
    elif config["weights"]["learn"] != "all":
        why = "trained adapters on top of a model"
    elif variant == config["model"]["variant"] == "both":
        model = config["model"]
        has = {
            "low-rank changes": model["lora"]["rank"] > 0,
            "routing": model["routing"]["enabled"],
            "attention over frames": model["qformer"]["temporal"],
            "positions that learn": config["weights"]["positions"] != "none",
        }
        why = "".join(f"has {part}" for part in [name for name in has if has[name]][:1])
    if why:
        raise UserError(
            f"config.weights.base: {base} {why}; name an image model: a Hugging Face folder, or a "
            "run as of the variant demo_base"
        )


_SHAPE = (
    "num_layers", "width", "num_heads", "mlp_width", "num_queries", "max_positions", "cross_every",
    "norm_eps",
)  # fmt: skip


def codec_of_folder(
    base: str, fields: Mapping[str, Mapping[str, Any]], config: dict[str, Any]
) -> tuple[Codecs, tuple[int, int]]:
    """Likewise, of a Hugging Face folder."""
    model = config["model"]
    if "qformer" not in fields and model["variant"] == "both":
        raise UserError(
            f"config.weights.base: {base} is a language model alone; name an InstructBLIP or "
            "BLIP-2 folder, or use config.model.variant='text'"
        )
    for section, found in fields.items():
        model[section].update({k: v for k, v in found.items() if k != "vocab_size"})
    language = LanguageCodec.from_folder(base)
    size = fields["decoder"]["vocab_size"]
    check_vocab(language.vocab_size, size)
    words_size = fields.get("qformer", {}).get("vocab_size", 0)
    if model["variant"] == "both" and model["max_words"] and not words_size:
        raise UserError(
            f"config.weights.base: {base} is BLIP-2, whose Q-Former reads no text; set "
            "config.model.max_words=0"
        )
    if not words_size:
        return Codecs(language, TextCodec.train_bpe([], 261)), (size, 0)
    words = TextCodec.from_folder(Path(base) / "qformer_tokenizer")
    check_vocab(words.vocab_size, words_size)
    return Codecs(language, words), (size, words_size)
