"""torch.save files read without torch, and what is refused before it can act."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.interop.torch_file import read_torch_file, state_dict_of

pytestmark = pytest.mark.smoke

FLOATS = np.arange(6, dtype="<f4")
ARGS = (0, (2, 3), (3, 1), False, {})


class Name:
    """Pickles as the global `module.name`; the named thing need not exist."""

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """Pickles as the call of a global."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name, self.args = name, args

    def __reduce__(self) -> tuple:
        raise TypeError("written by Writer only")


class Storage:
    """Pickles as torch's persistent id of a storage of `size` values."""

    def __init__(self, size: int, kind: str = "torch FloatStorage", key: str = "0") -> None:
        self.size, self.kind, self.key = size, kind, key


class Writer(pickle._Pickler):
    """Writes `Name`, `Call` and `Storage` as torch's own pickles have them."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(b"c" + obj.name.replace(" ", "\n").encode() + b"\n")
        elif isinstance(obj, Call):
            self.save(Name(obj.name))
            self.save(obj.args)
            self.write(b"R")
        elif isinstance(obj, Storage):
            self.save(("storage", Name(obj.kind), obj.key, "cpu", obj.size))
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def pickled(obj: Any) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, 2).dump(obj)
    return buffer.getvalue()


def tensor(*args: Any, storage: Storage | None = None) -> Call:
    return Call("torch._utils _rebuild_tensor_v2", storage or Storage(6), *(args or ARGS))


def write(path: Path, obj: Any, records: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A file as torch.save writes it, with `obj` (or raw bytes) as its pickle."""
    records = {"data/0": FLOATS.tobytes(), "version": b"3\n", "byteorder": b"little"} | (
        records or {}
    )
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("a/data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
        for name, content in records.items():
            archive.writestr(f"a/{name}", content)
    return path


def test_tensor_by_hand(tmp_path: Path) -> None:
    saved = {
        "row": tensor(),
        "turned": tensor(0, (3, 2), (1, 3), False, {}),
        "part": tensor(4, (2,), (1,), False, {}),
        "scalar": tensor(5, (), (), False, {}),
        "empty": tensor(6, (0, 4), (4, 1), False, {}),
        "repeated": tensor(1, (2, 2), (0, 1), False, {}),
        "learned": Call("torch._utils _rebuild_parameter", tensor(), True, {}),
    }
    got = read_torch_file(write(tmp_path / "a.pt", saved))
    want = {
        "row": [[0, 1, 2], [3, 4, 5]],
        "turned": [[0, 3], [1, 4], [2, 5]],
        "part": [4, 5],
        "scalar": 5,
        "empty": np.zeros((0, 4)),
        "repeated": [[1, 2], [1, 2]],
        "learned": [[0, 1, 2], [3, 4, 5]],
    }
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], np.asarray(value, np.float32), err_msg=name)
        assert got[name].dtype == np.float32 and not got[name].flags.writeable


def test_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    state = Call("collections OrderedDict")
    assert read_torch_file(write(tmp_path / "a.pt", {"x": tensor()})).keys() == {"x"}
    for key in ("state_dict", "model", "model_state_dict"):
        saved = {key: {"module.x": tensor(), "module.y": tensor()}, "epoch": 3, "other": state}
        assert read_torch_file(write(tmp_path / "b.pt", saved)).keys() == {"x", "y"}


def test_prefix_stays_unless_every_name_has_it() -> None:
    state = {"module.x": FLOATS, "y": FLOATS}
    assert state_dict_of(state).keys() == {"module.x", "y"}


@pytest.mark.parametrize(
    "saved, message",
    [
        ({"epoch": 3}, r"no state dicts found; .*the file holds \['epoch'\]"),
        ({"model": {"x": FLOATS}, "state_dict": {"x": FLOATS}}, "2 state dicts found"),
        ([FLOATS], "no state dicts found; .*the file holds list"),
        ({}, "no state dicts found"),
    ],
)
def test_anything_but_one_state_dict_is_refused(saved: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_dict_of(saved)


@pytest.mark.parametrize("name", ["os system", "posix system", "builtins eval", "torch.load x"])
def test_code_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    saved = {"x": tensor(), "y": Call(name, f"touch {marker}")}
    with pytest.raises(UserError, match=rf"a\.pt: the pickle names '{name.replace(' ', '.')}'"):
        read_torch_file(write(tmp_path / "a.pt", saved))
    assert not marker.exists()


def test_the_malicious_pickle_would_run_elsewhere(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickled(Call("os system", f"touch {marker}")))
    assert marker.exists()


def test_allowed_names_cannot_be_changed_by_a_file(tmp_path: Path) -> None:
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(UserError, match="sets attributes of a function"):
        read_torch_file(write(tmp_path / "a.pt", build))


@pytest.mark.parametrize(
    "bad, message",
    [
        (tensor(1, (2, 3), (3, 1), False, {}), "leaves its storage of 6 values"),
        (tensor(0, (2, 3), (4, 1), False, {}), "leaves its storage"),
        (tensor(-1, (2,), (1,), False, {}), "offset -1 is not read"),
        (tensor(0, (2,), (-1,), False, {}), r"stride \(-1,\) and offset 0 is not read"),
        (tensor(0, (2, 3), (1,), False, {}), "is not read"),
        (tensor(0, (2.0,), (1,), False, {}), "is not read"),
        (tensor(0, (10**18, 10**18), (0, 0), False, {}), "damaged pickle"),
        (tensor(0, (2,), (1,), False, {}, {"neg": True}), "is not read"),
        (tensor(storage=Storage(7)), "storage '0' has 24 bytes, not 7 values"),
        (tensor(storage=Storage(6, key="1")), "record 'data/1' is missing"),
        (tensor(storage=Storage(6, "torch QInt8Storage")), "names 'torch.QInt8Storage'"),
        ((tensor(), tensor(storage=Storage(6, "torch IntStorage"))), "used with two types"),
        (Call("torch FloatStorage"), "calls something that is no function"),
        (Call("torch._utils _rebuild_tensor_v2", 3), "damaged pickle .TypeError"),
    ],
)
def test_bad_tensor_is_refused(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_torch_file(write(tmp_path / "a.pt", {"x": bad}))


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"x": tensor()})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.pt: not a whole file of torch.save"):
        read_torch_file(path)
    at = whole.index(FLOATS.tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(UserError, match="not a whole file"):
        read_torch_file(path)
    with pytest.raises(UserError, match="damaged pickle"):
        read_torch_file(write(path, pickled({"x": tensor()})[:-9]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"x": 1}))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for name, message in (
        ("plain.pkl", "not a whole file of torch.save"),
        ("other.zip", "a zip file, but not of torch.save"),
        ("none.pt", "none.pt: no such file"),
        ("", "a folder, not a file"),
    ):
        with pytest.raises(UserError, match=message):
            read_torch_file(tmp_path / name)
    packed = write(tmp_path / "a.pt", {"x": tensor()}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="record 'byteorder' is compressed"):
        read_torch_file(packed)
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(write(tmp_path / "a.pt", {"x": tensor()}, {"byteorder": b"big"}))


@pytest.mark.torch
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_files_of_torch_are_read(tmp_path: Path, key: str | None) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    parallel = {f"module.{name}": value for name, value in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    whole = {key: parallel, "optimizer": optimizer.state_dict(), "epoch": 2, "best": 0.5}
    torch.save(module.state_dict() if key is None else whole, tmp_path / "a.pkl")
    got = read_torch_file(tmp_path / "a.pkl")
    assert list(got) == list(module.state_dict())
    for name, want in module.state_dict().items():
        np.testing.assert_array_equal(got[name], want.numpy(), err_msg=name)


@pytest.mark.torch
def test_types_and_views_of_torch_are_kept(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24).reshape(2, 3, 4)
    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
    saved = {name: base.to(getattr(torch, name)) for name in (*names, "uint8", "bool")}
    saved |= {"turned": base.mT, "part": base[1:, ::2, 1:3], "wide": base[:, :1].expand(2, 5, 4)}
    saved["parameter"] = torch.nn.Parameter(base.float())
    torch.save(saved, tmp_path / "a.pt")
    got = read_torch_file(tmp_path / "a.pt")
    for name, value in saved.items():
        want = value.detach()
        if name == "bfloat16":
            assert got[name].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(got[name].astype(np.float32), want.float().numpy())
        else:
            assert got[name].dtype == want.numpy().dtype
            np.testing.assert_array_equal(got[name], want.numpy(), err_msg=name)
