"""Safetensors files in and out as numpy arrays; bfloat16 without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, write_atomic

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def load_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name, from one file or from a folder as Hugging Face writes it.

    Args:
        path: a .safetensors file, or a folder with `model.safetensors` or with
            `model.safetensors.index.json` and the files it names.

    Raises:
        UserError: file missing, truncated or of an unknown type; a shard without a tensor that
            the index promises.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in _files(Path(path)):
        tensors |= _load_file(file)
    _check_promises(Path(path), tensors)
    return tensors


class Stored:
    """A tensor in a safetensors file of which only what is indexed is read.

    Attributes:
        shape: as stored.
        dtype: numpy type, bfloat16 of ml_dtypes included.
    """

    def __init__(self, path: Path, name: str, data: Any) -> None:
        """`data`: the library's slice of this tensor."""
        kind = data.get_dtype()
        if kind not in _DTYPES:
            raise _unknown_type(path, name, kind)
        self.shape, self.dtype = tuple(data.get_shape()), np.dtype(_DTYPES[kind])
        self._data = data

    def __getitem__(self, index: Any) -> np.ndarray:
        """The part of the tensor that slices (no steps) name."""
        return self._data[index]


def open_safetensors(path: str | Path) -> dict[str, Stored]:
    """Tensors by name, none of them read yet; for weights larger than memory.

    Args:
        path: as in `load_safetensors`.

    Raises:
        UserError: as in `load_safetensors`.
    """
    tensors: dict[str, Stored] = {}
    for file in _files(Path(path)):
        try:
            handle = safetensors.safe_open(file, "numpy")
            names = list(handle.keys())
            tensors |= {name: Stored(file, name, handle.get_slice(name)) for name in names}
        except FileNotFoundError as error:
            raise UserError(f"{file}: no such file") from error
        except safetensors.SafetensorError as error:
            raise _not_whole(file, error) from error
    _check_promises(Path(path), tensors)
    return tensors


def save_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one file, complete or not at all; `metadata` is text in its header."""
    # The library writes memory as it lies: a transposed view would come back scrambled.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    write_atomic(path, safetensors.numpy.save(dense, dict(metadata) if metadata else None))


def _load_file(path: Path) -> dict[str, np.ndarray]:
    try:
        stored = safetensors.deserialize(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except safetensors.SafetensorError as error:
        raise _not_whole(path, error) from error
    return {name: _to_array(path, name, entry) for name, entry in stored}


def _to_array(path: Path, name: str, entry: dict) -> np.ndarray:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise _unknown_type(path, name, entry["dtype"])
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _files(path: Path) -> list[Path]:
    """The files that hold the tensors of a file or folder."""
    if not path.is_dir():
        return [path]
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if not (path / INDEX).exists():
        raise UserError(f"{path}: no weights; expected {WEIGHTS} or {INDEX}{_hint(path)}")
    return [path / file for file in sorted(set(_weight_map(path).values()))]


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX, "index of the weights")
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / INDEX}: no 'weight_map'; it should name a file per tensor")
    return files


def _check_promises(path: Path, tensors: Mapping[str, Any]) -> None:
    if not path.is_dir() or (path / WEIGHTS).exists():
        return
    for name, file in _weight_map(path).items():
        if name not in tensors:
            raise UserError(f"{path / file}: no tensor '{name}', which {INDEX} promises")


def _not_whole(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a whole safetensors file ({error}); copy or download it again")


def _unknown_type(path: Path, name: str, kind: str) -> UserError:
    return UserError(f"{path}: tensor '{name}' has type {kind}; known: {sorted(_DTYPES)}")


def _hint(folder: Path) -> str:
    """What the folder holds instead and what to do, where that explains the mistake."""
    found = {file.suffix for file in folder.iterdir()}
    if ".bin" in found:
        return (
            "; found .bin files, which run code when loaded: load the model once with "
            "transformers where you trust it, and save_pretrained(..., safe_serialization=True)"
        )
    if found & {".pth", ".pt"}:
        return "; found .pth or .pt files: name the file, not its folder"
    if found & {".npy", ".jpg", ".jpeg", ".png", ".mp4"}:
        return (
            "; this looks like a folder of images or features, not of a model: name the folder "
            f"with config.json and {WEIGHTS}"
        )
    return ""
