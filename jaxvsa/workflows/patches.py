"""The frozen vision transformer, run once per clip: its outputs are stored and trained on.

Numbers are the same with and without: `MTransLLAMA.see` rounds as they are stored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import track

from jaxvsa.core import trees
from jaxvsa.core.config import build
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import check_free, digest_bytes
from jaxvsa.core.precision import Precision
from jaxvsa.data.corpus import Corpus
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.prepared import Prepared, write_prepared
from jaxvsa.data.question_batches import Clips
from jaxvsa.layers.vision import VisionOptions, VisionTransformer
from jaxvsa.systems.mtransllama.model import normalise
from jaxvsa.workflows.image_model import read_vision_model

FRAMES_AT_ONCE = 8


def encoder_name(params: Any, num_frames: int, precision: Precision) -> str:
    """What a cache is made by: weights, their types, and how many frames of a clip it holds."""
    parts = "".join(f"{path}{value}" for path, value in sorted(trees.digests(params).items()))
    types = f"{precision.param}/{precision.compute}"
    return f"vision transformer {digest_bytes(parts.encode())[:16]}, {types}, {num_frames} frames"


def make_patches(
    data: str | Path,
    weights: str | Path,
    out: str | Path,
    num_frames: int,
    precision: Precision,
    console: Console,
) -> Prepared:
    """Writes a prepared folder whose clips are patches instead of pixels.

    Args:
        data: prepared with frames.
        weights: the image model: a Hugging Face folder, or a run.
        out: a new folder.
        num_frames: frames of a clip that the model will read.
        precision: `config.model.frozen` of the model.
        console: where progress goes.

    Raises:
        UserError: the data has no frames, or of another size; `out` is in use.
    """
    check_free(out)  # now, not after hours
    prepared = Prepared.open(data)
    if prepared.manifest is None or prepared.manifest["dtype"] != "uint8":
        raise UserError(f"{data} holds no frames; prepare it with --frames DIR first")
    pixels = prepared.features()
    assert pixels is not None
    fields, params = read_vision_model(weights)
    options: VisionOptions = build(VisionOptions, fields, f"{weights}: vision")
    if pixels.width != 3 * options.image_size**2:
        raise UserError(
            f"{data} has frames of {pixels.width} values, {weights} reads {options.image_size} x "
            f"{options.image_size} x 3; resize them"
        )
    params = _stored(params, precision)
    table = _encode(pixels, options, params, num_frames, precision, console)
    manifest = table.describe(encoder_name(params, num_frames, precision))
    corpora = {
        protocol: Corpus(
            {split: prepared.comments(protocol, split) for split in splits},
            dict(prepared.labels),
            {"questions": prepared.report.get("questions", {})},
        )
        for protocol, splits in prepared.protocols.items()
    }
    return write_prepared(out, corpora, table, manifest)


def check_cache(found: str, root: Path, base: str, model: Mapping[str, Any]) -> None:
    """Refuses patches that other weights made, or for another number of frames.

    Args:
        found: the encoder in the manifest of the data.
        root: the data.
        base: the image model; "" from scratch.
        model: section `model` of the configuration.

    Raises:
        UserError: both are named.
    """
    if not base:
        raise UserError(
            f"{root} holds patches of '{found}'; name the weights that made them with "
            "--config.weights.base"
        )
    frozen: Precision = build(Precision, model["frozen"], "config.model.frozen")
    _, params = read_vision_model(base)
    wanted = encoder_name(_stored(params, frozen), model["num_frames"], frozen)
    if found != wanted:
        raise UserError(
            f"{root} was made by '{found}', the model reads '{wanted}'; make it again with "
            f"python -m jaxvsa.prepare patches --weights {base} --num-frames {model['num_frames']}"
        )


def see_frames(
    clips: Mapping[str, np.ndarray], encoder: str, base: str, model: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the vision transformer makes of a user's frames, as `make_patches` would store it.

    Args:
        clips: name -> uint8 (frames, side, side, 3).
        encoder: in the manifest of the data that the model was trained on.
        base: the image model.
        model: section `model` of the configuration.

    Returns:
        name -> bfloat16 (frames, patches, width), `model.num_frames` frames at most.

    Raises:
        UserError: frames of another size, or a base that is gone or another one.
    """
    frozen: Precision = build(Precision, model["frozen"], "config.model.frozen")
    fields, params = read_vision_model(base)
    options: VisionOptions = build(VisionOptions, fields, f"{base}: vision")
    params = _stored(params, frozen)
    if encoder_name(params, model["num_frames"], frozen) != encoder:
        raise UserError(
            f"{base} holds other weights than made the patches of the run, '{encoder}'; restore "
            "the original there, or give the patches themselves"
        )
    side = options.image_size
    for name, clip in clips.items():
        if clip.shape[1:] != (side, side, 3) or not len(clip):
            raise UserError(
                f"clip '{name}' is {clip.dtype} {clip.shape}; the model reads frames of "
                f"{(side, side, 3)}; resize them"
            )
    pixels = FeatureTable.from_counts(
        np.concatenate([clip.reshape(len(clip), -1) for clip in clips.values()]),
        np.array([len(clip) for clip in clips.values()]),
        list(clips),
    )
    quiet = Console(quiet=True)
    table = _encode(pixels, options, params, model["num_frames"], frozen, quiet)
    return {name: table.of(name).reshape(-1, options.num_tokens, options.width) for name in clips}


def _stored(params: Any, precision: Precision) -> Any:
    """Parameters in the type in which the model holds them."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, precision.param_dtype), params)


def _encode(
    pixels: FeatureTable,
    options: VisionOptions,
    params: Any,
    num_frames: int,
    precision: Precision,
    console: Console,
) -> FeatureTable:
    """The table of patches, clip by clip in the order of the pixels."""
    model = VisionTransformer(options, precision)

    @jax.jit
    def encode(params: Any, pixel_ni: jax.Array) -> jax.Array:
        side = options.image_size
        found_npf: Any = model.apply({"params": params}, normalise(pixel_ni, side))
        return found_npf.astype(jnp.bfloat16)

    clips = Clips(np.arange(len(pixels.row)), pixels, num_frames, 0, False)
    rows: list[np.ndarray] = []
    counts = []
    for g, chosen_t in enumerate(track(clips.chosen(), "frames", console=console)):
        count = min(int(pixels.count_g[g]), num_frames)
        frame_ti = pixels.values_nf[pixels.start_g[g] + chosen_t[:count]]
        for first in range(0, count, FRAMES_AT_ONCE):
            part_ni = frame_ti[first : first + FRAMES_AT_ONCE]
            full_ni = np.zeros((FRAMES_AT_ONCE, frame_ti.shape[1]), np.uint8)
            full_ni[: len(part_ni)] = part_ni
            found_npf = np.asarray(encode(params, full_ni))[: len(part_ni)]
            rows.append(found_npf.reshape(-1, options.width))
        counts.append(count * options.num_tokens)
    values_nf = np.concatenate(rows).astype(ml_dtypes.bfloat16)
    return FeatureTable.from_counts(values_nf, np.array(counts), list(pixels.row))
