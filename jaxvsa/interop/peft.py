"""Low-rank changes of a Q-Former <-> adapters of PEFT, or merged into plain weights.

PEFT knows a layer, not its uses: one adapter holds one change per layer, and the active one acts
whenever the layer runs. `QFormer` runs its self-attention twice, over space and over time, each
with a change of its own, so its changes are two adapters:

    folder/       adapter_model.safetensors   changes over space and of the patches: "default"
                  adapter_config.json
    folder/time/  the same two files          changes over time: "time"

The first alone, in PEFT on the image model of transformers, computes what `QFormer` does with
`temporal=False`. That model never attends over time; code that adds it (the same attention module,
run over the frames of each query) switches with `model.set_adapter("time")` and back to "default".
Both are never active at once: PEFT would add them up. Routers, gates and positions are no low-rank
changes and are in neither.

Source: PEFT, `LoraConfig` and `PeftModel.save_pretrained`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, write_json
from jaxvsa.core.trees import named, nest
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.layers.lora import LoraOptions, merge

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TIME = "time"
_ADAPTERS = {"": ("space", "cross"), TIME: ("time",)}  # folder -> the sites whose changes it holds
_BLOCKS = {"attention": "attention", "cross": "crossattention"}  # ours -> theirs
_HALVES = {"down": "lora_A", "up": "lora_B"}
_OURS = re.compile(r"layer_(\d+)/(attention|cross)/(query|value)/lora_(space|time|cross)/(down|up)")
_THEIRS = re.compile(
    r"encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.(query|value)"
    r"\.lora_([AB])\.weight"
)
# Settings under which PEFT computes something else than x A B alpha / r.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
    "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
}  # fmt: skip


def merged(params: Mapping[str, Any], lora: LoraOptions, use: str = "space") -> dict[str, Any]:
    """Parameters of a `QFormer` without changes (rank 0) that computes what `use` does.

    With "space", and `temporal=False`, the two models are equal, and `blip.to_names` gives the
    image model of transformers: the changes are added to the kernels, and the positions of the
    queries to the queries. Kernels that are shared over space and time cannot hold both changes;
    "time" gives those of attention over time.

    Args:
        params: of `QFormer`; routers, gates and positions of frames stay as they are.
        lora: its field.
        use: "space" or "time".

    Raises:
        ValueError: another use.
    """
    if use not in ("space", "time"):
        raise ValueError(f"unknown use '{use}'; known: space, time")

    def walk(node: Any, use: str) -> Any:
        if not isinstance(node, Mapping):
            return np.asarray(node)
        if any(key.startswith("lora_") for key in node):
            return {key: np.asarray(leaf) for key, leaf in merge(dict(node), use, lora).items()}
        return {key: walk(child, "cross" if key == "cross" else use) for key, child in node.items()}

    found = walk(params, use)
    found["queries"] = found["queries"] + found["query_position"].astype(found["queries"].dtype)
    found["query_position"] = np.zeros_like(found["query_position"])
    return found


def save_adapters(
    folder: str | Path,
    params: Mapping[str, Any],
    lora: LoraOptions,
    *,
    prefix: str = "qformer.",
    base: str | None = None,
) -> list[Path]:
    """Writes the adapters that exist (see above); the folders that `PeftModel` can load.

    Args:
        folder: for "default"; "time" goes into a folder within.
        params: of `QFormer`.
        lora: its field.
        prefix: of the Q-Former within the model that PEFT wraps: "qformer." in
            `InstructBlipForConditionalGeneration` and its video twin, "" in
            `InstructBlipQFormerModel`.
        base: name or path of that model, for `adapter_config.json`.

    Raises:
        UserError: there is no low-rank change, or a file cannot be written.
    """
    written = []
    for name, sites in _ADAPTERS.items():
        tensors = adapter_tensors(params, sites, prefix)
        if not tensors:
            continue
        blocks = sorted({match[1] for match in map(_block, tensors) if match})
        modules = (
            rf"{re.escape(prefix)}encoder\.layer\.\d+\.({'|'.join(blocks)})"
            r"\.attention\.(query|value)"
        )
        config = {
            **_PLAIN, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0,
            "target_modules": modules, "base_model_name_or_path": base, "task_type": None,
            "inference_mode": True,
        }  # fmt: skip
        save_safetensors(Path(folder) / name / WEIGHTS, tensors, {"format": "pt"})
        write_json(Path(folder) / name / CONFIG, config)
        written.append(Path(folder) / name)
    if not written:
        raise UserError("the model has no low-rank changes; lora.rank or lora.sites is empty")
    return written


def _block(name: str) -> re.Match[str] | None:
    return re.search(r"\.\d+\.(attention|crossattention)\.", name)


def adapter_tensors(
    params: Mapping[str, Any], sites: tuple[str, ...], prefix: str = "qformer."
) -> dict[str, np.ndarray]:
    """The changes of these sites under the names and in the layouts of PEFT."""
    found = {}
    for path, leaf in named(params).items():
        match = _OURS.fullmatch(path)
        if match is None or match[4] not in sites:
            continue
        layer, block, name, _, half = match.groups()
        module = f"{prefix}encoder.layer.{layer}.{_BLOCKS[block]}.attention.{name}"
        found[f"base_model.model.{module}.{_HALVES[half]}.weight"] = np.asarray(leaf).T
    return found


def read_adapters(
    folder: str | Path, prefix: str = "qformer."
) -> tuple[LoraOptions, dict[str, Any]]:
    """The way back: options, and a tree of the changes to be laid over parameters of `QFormer`.

    Adapters that PEFT trained on an image model fit, too: they have changes over space.

    Args:
        folder: of "default"; "time" is looked for within.
        prefix: as in `save_adapters`.

    Raises:
        UserError: no adapter; a setting under which PEFT computes something else; tensors of other
            modules, or of another rank than the configuration says; two adapters that differ in
            rank or scale.
    """
    leaves: dict[str, np.ndarray] = {}
    sizes, sites = {}, set()
    for name in _ADAPTERS:
        at = Path(folder) / name
        if name and not at.is_dir():
            continue
        config = read_json(at / CONFIG, "configuration of the adapter")
        for key, value in _PLAIN.items():
            if config.get(key, value) not in (value, None):
                raise UserError(f"{at / CONFIG}: {key} is {config[key]!r}; only {value!r} fits")
        sizes[at] = config.get("r"), config.get("lora_alpha")
        for theirs, array in load_safetensors(at / WEIGHTS).items():
            path, site = _path_of(theirs, prefix, name, at / WEIGHTS)
            if sizes[at][0] != array.shape[0 if path.endswith("down") else 1]:
                raise UserError(f"{at / WEIGHTS}: '{theirs}' has shape {array.shape}, r is "
                                f"{sizes[at][0]}")  # fmt: skip
            leaves[path] = array.T
            sites.add(site)
    if len(set(sizes.values())) > 1:
        raise UserError(f"{folder}: its adapters differ in r or lora_alpha: {[*sizes.values()]}")
    rank, alpha = next(iter(sizes.values()))
    ordered = tuple(site for site in ("space", "time", "cross") if site in sites)
    return LoraOptions(rank, float(alpha), ordered), nest(leaves)


def _path_of(name: str, prefix: str, folder: str, file: Path) -> tuple[str, str]:
    """Our path of a tensor of PEFT, and its site."""
    match = _THEIRS.fullmatch(name.removeprefix(f"base_model.model.{prefix}"))
    if match is None or (folder == TIME and match[2] == "crossattention"):
        raise UserError(
            f"{file}: tensor '{name}' changes something else than the query or value of an "
            f"attention of '{prefix}'"
        )
    layer, block, projection, half = match.groups()
    site = folder or ("cross" if block == "crossattention" else "space")
    ours = "cross" if block == "crossattention" else "attention"
    return f"layer_{layer}/{ours}/{projection}/lora_{site}/{'down' if half == 'A' else 'up'}", site
