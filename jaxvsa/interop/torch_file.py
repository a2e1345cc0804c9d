"""Tensors of a `torch.save` file as numpy arrays, without torch and without running its code.

A pickle can call anything it can import. This reader lets it name only what a saved state dict
needs (see `_ALLOWED`); any other name is refused before it is looked up.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.pickles import Named, SafeUnpickler

WRAPPERS = ("state_dict", "model", "model_state_dict")
_PARALLEL = "module."  # put before every name by DataParallel and DistributedDataParallel
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a .pt, .pth or .pkl file of torch 1.6 or later, by name.

    Whole checkpoints are unwrapped as `state_dict_of` says. Arrays are read-only views in the
    file's types and strides; bfloat16 is that of ml_dtypes.

    Raises:
        UserError: no such file; not torch's zip format; truncated or changed; a pickle that names
            anything but tensors and plain containers; a tensor outside its storage; no state dict.
    """
    path = Path(path)
    try:
        return state_dict_of(_read_object(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def state_dict_of(saved: Any) -> dict[str, np.ndarray]:
    """The state dict in what a training script saved.

    It is `saved` itself, if all its values are arrays, or the one entry of that kind under a key
    of `WRAPPERS`. A prefix `module.` goes if every name has it.

    Raises:
        UserError: there is no state dict, or more than one.
    """
    found = [saved] if _is_state_dict(saved) else []
    if not found and isinstance(saved, Mapping):
        found = [saved[key] for key in WRAPPERS if _is_state_dict(saved.get(key))]
    if len(found) != 1:
        keys = sorted(map(str, saved))[:8] if isinstance(saved, Mapping) else type(saved).__name__
        raise UserError(
            f"{len(found) or 'no'} state dicts found; expected tensors by name, alone or under "
            f"one of {list(WRAPPERS)}, but the file holds {keys}"
        )
    state = found[0]
    wrapped = all(name.startswith(_PARALLEL) for name in state)
    return {name.removeprefix(_PARALLEL) if wrapped else name: state[name] for name in state}


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items())
    )


def _read_object(path: Path) -> Any:
    """The pickled object: dicts, lists, tuples, numbers, text, None and arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            folder, record = _open_record(archive)
            if archive.NameToInfo.get(f"{folder}byteorder") and record("byteorder") != b"little":
                raise UserError("saved on a big-endian machine; save it again on another one")
            return _Reader(record("data.pkl"), record).load()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file") from error
    except IsADirectoryError as error:
        raise UserError("a folder, not a file") from error
    except zipfile.BadZipFile as error:
        raise UserError(
            "not a whole file of torch.save (torch 1.6 or later); copy it again, or load it with "
            "torch and save it again"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way; all of them mean the same
        raise UserError(f"damaged pickle ({type(error).__name__}: {error})") from error


def _open_record(archive: zipfile.ZipFile) -> tuple[str, Callable[[str], bytes]]:
    """The archive's folder (with its slash), and a function from a record's name to its bytes."""
    inner = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(inner) != 1:
        raise UserError("a zip file, but not of torch.save: it should hold one data.pkl")
    folder = inner[0].removesuffix("data.pkl")

    def record(name: str) -> bytes:
        info = archive.NameToInfo.get(folder + name)
        if info is None:
            raise UserError(f"record '{name}' is missing; copy the file again")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"record '{name}' is compressed, which torch.save never does")
        return archive.read(info)

    return folder, record


class _Dict(dict):
    """Stands for OrderedDict; what a state dict carries as attributes (versions) is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores `state`."""


class _Reader(SafeUnpickler):
    """Unpickler that resolves names from one fixed table and storages from the archive."""

    def __init__(self, pickled: bytes, record: Callable[[str], bytes]) -> None:
        super().__init__(pickled, _ALLOWED, _RULE)
        self._record = record
        self._storages: dict[str, np.ndarray] = {}

    def persistent_load(self, pid: Any) -> np.ndarray:
        """('storage', type, key, device, number of values) -> flat array."""
        kind, storage, key, _, size = pid
        dtype = storage.target if isinstance(storage, Named) else None
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise UserError(f"unknown kind of storage {pid!r}")
        if key not in self._storages:
            stored = self._record(f"data/{key}")
            if len(stored) != size * dtype.itemsize:
                raise UserError(f"storage '{key}' has {len(stored)} bytes, not {size} values")
            self._storages[key] = np.frombuffer(stored, dtype)
        if self._storages[key].dtype != dtype:
            raise UserError(f"storage '{key}' is used with two types")
        return self._storages[key]


def _rebuild_tensor(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    metadata: Any = None,
) -> np.ndarray:
    """A view of the storage; offset and stride count values, as in torch."""
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride) or metadata:
        raise UserError(f"a tensor of size {size}, stride {stride} and offset {offset} is not read")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.size:
        raise UserError(
            f"a tensor of size {size}, stride {stride} and offset {offset} leaves its storage of "
            f"{storage.size} values"
        )
    start = offset if math.prod(size) else 0
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[start:], size, steps, writeable=False)


def _rebuild_parameter(array: np.ndarray, requires_grad: bool, hooks: Any) -> np.ndarray:
    return array


_RULE = (
    "only tensors and plain containers are; load it with torch where you trust it and save the "
    "state dict alone"
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
