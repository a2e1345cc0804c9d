"""Weights in and out: runs, published state dicts, Hugging Face folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import staged_folder, write_json
from jaxvsa.core.trees import num_values
from jaxvsa.interop import vccsa
from jaxvsa.interop.peft import save_adapters
from jaxvsa.interop.roberta import read_encoder, to_names
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.interop.torch_file import read_torch_file
from jaxvsa.layers.lora import LoraOptions
from jaxvsa.training.loop import Memory
from jaxvsa.training.state import start
from jaxvsa.workflows.demo import DEMO
from jaxvsa.workflows.fit import prepare_run, saved
from jaxvsa.workflows.runs import describe, read_trained

TORCH = (".bin", ".pkl", ".pt", ".pth")


def to_published(run: str | Path, out: str | Path, step: str | int = "best") -> int:
    """Writes the parameters of a run as the state dict of the published code.

    Beside `out` a .json of the same name says what they are: step, labels in index order,
    resolved configuration, manifest of the features.

    Args:
        run: folder of the run.
        out: a .safetensors file.
        step: "best", "newest" or a number of updates.

    Returns:
        the number of tensors.

    Raises:
        UserError: no such run or step; a model that the published code does not have.
    """
    out = _safetensors(out)
    trained = read_trained(run, step)
    if trained.system.name != "vccsa":
        cure = (
            "its low-rank changes go out with python -m jaxvsa.convert adapters"
            if trained.system.name == "mtransllama"
            else "no code with weights of that kind was published"
        )
        raise UserError(f"{run} is a run of {trained.system.name}; {cure}")
    state = vccsa.to_published(trained.params)
    manifest = trained.manifest
    record = {
        "system": trained.system.name,
        "step": trained.step,
        "labels": trained.facts.label_names,
        "features": None if manifest is None else manifest.to_dict(),
        "config": trained.config,
    }
    save_safetensors(out, state, {"format": "pt"})
    write_json(out.with_suffix(".json"), record)
    return len(state)


def to_adapters(run: str | Path, out: str | Path, step: str | int = "best") -> list[Path]:
    """Writes the low-rank changes of a run of MTransLLAMA as adapters of PEFT.

    Args:
        run: folder of the run.
        out: a folder; see `interop.peft`.
        step: "best", "newest" or a number of updates.

    Returns:
        the folders written.

    Raises:
        UserError: no such run or step; a model without low-rank changes.
    """
    trained = read_trained(run, step)
    if "qformer" not in trained.params:
        raise UserError(f"{run} is a run without a Q-Former, whose adapters these would be")
    lora = build(LoraOptions, trained.config["model"]["lora"], "config.model.lora")
    base = trained.config["weights"]["base"] or None
    return save_adapters(out, trained.params["qformer"], lora, base=base)


def from_published(
    source: str | Path, config: ConfigDict, data: str | Path, run: str | Path
) -> int:
    """Makes a run at step 0 of a published state dict.

    It can be evaluated, predict, and be trained further: `train` with the same configuration
    goes on from it.

    Args:
        source: a .safetensors file, or one of torch.save.
        config: from `core.config.load_config`; `weights.text` names the folder that the state
            dict's tokenizer comes from.
        data: the prepared folder, of which labels, features and train comments are read.
        run: a new folder.

    Returns:
        the number of parameters.

    Raises:
        UserError: a tensor is missing, left over or of another shape than the configuration makes
            it; a configuration that cannot hold the text encoder. Then there is no folder.
    """
    run, config = Path(run), ConfigDict(config)
    config.data.root = str(data)
    _check_sections(config)
    state = read_state(source)
    with staged_folder(run) as folder:
        setup = prepare_run(config, folder)
        like = jax.eval_shape(lambda state: state.params(), setup.abstract)
        try:
            params = vccsa.from_published(state, like)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        _, rng = jax.random.split(jax.random.key(config.seed))
        first = start(setup.system, setup.tx, jax.device_put(params), rng)
        assembled = setup.data
        record = describe(
            assembled.config, assembled.facts, assembled.codec, assembled.manifest, first.held
        )
        setup.folder.begin(assembled.config, assembled.record())
        checkpoints = setup.folder.checkpoints()
        memory = dataclasses.asdict(Memory())
        checkpoints.save(0, saved(first), {**record, "memory": memory, "stream": None})
        checkpoints.close()
    return num_values(params)


def text_to_published(source: str | Path, out: str | Path) -> int:
    """Writes the text encoder of a Hugging Face folder under its names in the published code.

    Returns:
        the number of tensors.

    Raises:
        UserError: not the folder of a RoBERTa or BERT.
    """
    out = _safetensors(out)
    fields, params = read_encoder(source)
    state = to_names(params, vccsa.TEXT)
    save_safetensors(out, state, {"format": "pt"})
    write_json(out.with_suffix(".json"), fields)
    return len(state)


def read_state(source: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a file of safetensors or torch.

    Raises:
        UserError: neither, or damaged.
    """
    suffix = Path(source).suffix
    if suffix == ".safetensors":
        return load_safetensors(source)
    if suffix in TORCH:
        return read_torch_file(source)
    raise UserError(f"{source}: expected a file that ends in .safetensors, {', '.join(TORCH)}")


def _check_sections(config: Mapping[str, Any]) -> None:
    """Refuses what would give a run that is not the published model."""
    weights = config["weights"]
    if config["data"]["root"] == DEMO:
        raise UserError(f"--data {DEMO}: name a folder written by `python -m jaxvsa.prepare`")
    if not weights["text"]:
        raise UserError(
            "config.weights.text is empty; name the Hugging Face folder whose tokenizer the "
            "weights were trained with"
        )
    if weights["freeze_text"]:
        raise UserError(
            "config.weights.freeze_text keeps the text encoder out of checkpoints, but that of a "
            "state dict is found nowhere else; leave it False"
        )


def _safetensors(out: str | Path) -> Path:
    """The path of a file to write, checked before minutes of work."""
    if Path(out).suffix != ".safetensors":
        raise UserError(f"--out {out}: the name must end in .safetensors")
    return Path(out)
