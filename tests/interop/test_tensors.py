"""Safetensors in and out."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from jaxvsa.core.errors import UserError
from jaxvsa.interop.tensors import load_safetensors, save_safetensors

pytestmark = pytest.mark.smoke


def write_by_hand(path: Path, dtype: str, shape: list[int], data: bytes) -> None:
    header = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "stored,data,dtype",
    [
        ("F32", struct.pack("<4f", 1, -2, 0.5, 3), np.float32),
        ("BF16", bytes.fromhex("803f00c0003f4040"), ml_dtypes.bfloat16),
        ("I64", struct.pack("<4q", 1, -2, 0, 3), np.int64),
    ],
)
def test_load_reads_the_format(tmp_path: Path, stored: str, data: bytes, dtype: type) -> None:
    write_by_hand(tmp_path / "a.safetensors", stored, [2, 2], data)
    loaded = load_safetensors(tmp_path / "a.safetensors")["x"]
    assert loaded.dtype == dtype
    half = 0 if stored == "I64" else 0.5
    np.testing.assert_array_equal(loaded.astype(np.float64), [[1, -2], [half, 3]])


def test_save_and_load_give_back_what_was_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "transposed": rng.normal(size=(3, 5)).astype(np.float32).T,
        "strided": np.arange(20, dtype=np.int32)[::3],
        "half": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=4),
        "scalar": np.float32(2.5),
        "none": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False]),
    }
    save_safetensors(tmp_path / "new" / "a.safetensors", tensors, {"format": "np"})
    loaded = load_safetensors(tmp_path / "new" / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    with safetensors.safe_open(tmp_path / "new" / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "np"}


def write_shards(folder: Path) -> None:
    save_safetensors(folder / "one.safetensors", {"a": np.arange(3)})
    save_safetensors(folder / "two.safetensors", {"b": np.arange(4)})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_load_joins_the_shards_of_a_folder(tmp_path: Path) -> None:
    write_shards(tmp_path)
    loaded = load_safetensors(tmp_path)
    assert {name: len(array) for name, array in loaded.items()} == {"a": 3, "b": 4}


def test_load_refuses_broken_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_safetensors(tmp_path / "two.safetensors", {"c": np.arange(4)})
    with pytest.raises(UserError, match=r"two\.safetensors: no tensor 'b'"):
        load_safetensors(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"two\.safetensors: no such file"):
        load_safetensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="no 'weight_map'"):
        load_safetensors(tmp_path)


def test_load_refuses_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=r"a\.safetensors: no such file"):
        load_safetensors(path)
    save_safetensors(path, {"x": np.arange(100.0)})
    whole = path.read_bytes()
    for size in (0, 4, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.safetensors: not a whole safetensors file"):
            load_safetensors(path)
    write_by_hand(path, "F8_E4M3", [4], b"\0" * 4)
    with pytest.raises(UserError, match="tensor 'x' has type F8_E4M3"):
        load_safetensors(path)


@pytest.mark.parametrize(
    "found,hint",
    [
        ("notes.txt", "expected model.safetensors or model.safetensors.index.json$"),
        ("pytorch_model.bin", r"found \.bin files, .* save_pretrained\(.*=True\)$"),
        ("trained.pth", r"found \.pth or \.pt files: name the file, not its folder$"),
        ("video_7.npy", r"a folder of images or features, .*: name the folder with config\.json"),
        ("frame_1.png", r"a folder of images or features, .*: name the folder with config\.json"),
    ],
)
def test_load_says_what_the_folder_holds_instead(tmp_path: Path, found: str, hint: str) -> None:
    (tmp_path / found).touch()
    with pytest.raises(UserError, match=f"no weights; .*{hint}"):
        load_safetensors(tmp_path)
