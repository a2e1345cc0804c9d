"""Pickles read without their code: what is read, and what is refused before it can act."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.core.pickles import Named, SafeUnpickler, read_pickle

pytestmark = pytest.mark.smoke


def python2_array(
    values: np.ndarray, code: bytes = b"i8", order: bytes = b"<", fortran: bool = False
) -> bytes:
    """Opcodes of an array as Python 2 wrote it: protocol 2, content as a byte string."""
    raw = values.tobytes()
    shape = b"(" + b"".join(b"K" + bytes([n]) for n in values.shape) + b"t"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01" + shape + b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR"
        b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88" if fortran else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip


def write(path: Path, opcodes: bytes) -> Path:
    path.write_bytes(b"\x80\x02" + opcodes + b".")
    return path


def test_plain_containers_are_read(tmp_path):
    saved = {"train": [1, 2.5, None, True], 7: ("é", b"b", {"x"}), "empty": {}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        # Sets and bytes are calls of functions in old protocols.
        content = saved if protocol > 3 else {"train": [1, 2.5, None, True], 7: ("é", {})}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
        assert read_pickle(tmp_path / "a.pkl") == content


def test_text_of_python_2_is_utf8(tmp_path):
    text = "naïve".encode()
    assert read_pickle(write(tmp_path / "a.pkl", b"U" + bytes([len(text)]) + text)) == "naïve"


@pytest.mark.parametrize("values", [[3, -1, 2**40], [[1, 2, 3], [4, 5, 6]], []])
def test_arrays_of_python_2_are_read(tmp_path, values):
    array = np.array(values, "<i8")
    path = write(tmp_path / "a.p", b"]" + python2_array(array) + b"a")
    (got,) = read_pickle(path, arrays=True, encoding="latin1")
    np.testing.assert_array_equal(got.values, array)


def test_byte_order_and_fortran_order_are_kept(tmp_path):
    array = np.array([[1, 2, 3], [4, 5, 6]])
    big = python2_array(array.astype(">i4"), b"i4", b">")
    (tmp_path / "big.p").write_bytes(b"\x80\x02" + big + b".")
    turned = write(tmp_path / "turned.p", python2_array(array.T.copy().reshape(2, 3), fortran=True))
    for path in (tmp_path / "big.p", turned):
        got = read_pickle(path, arrays=True, encoding="latin1")
        np.testing.assert_array_equal(got.values, array)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_of_today_are_read(tmp_path, protocol):
    arrays = [np.arange(4), np.array([0.5, -1]), np.array([True, False]), np.float32([[1, 2]])]
    (tmp_path / "a.p").write_bytes(pickle.dumps(arrays, protocol))
    for got, want in zip(read_pickle(tmp_path / "a.p", arrays=True), arrays, strict=True):
        np.testing.assert_array_equal(got.values, want)
        assert got.values.dtype == want.dtype and not got.values.flags.writeable


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("name", ["os system", "posix system", "builtins eval", "numpy load"])
def test_code_is_refused_and_not_run(tmp_path, name, arrays):
    marker = tmp_path / "ran"
    command = f"touch {marker}".encode()
    call = b"c" + name.replace(" ", "\n").encode() + b"\n(U" + bytes([len(command)]) + command
    path = write(tmp_path / "a.pkl", call + b"tR")
    with pytest.raises(UserError, match=rf"a.pkl: the pickle names '{name.replace(' ', '.')}'"):
        read_pickle(path, arrays=arrays)
    assert not marker.exists()


def test_arrays_are_refused_where_none_belong(tmp_path):
    path = write(tmp_path / "a.pkl", python2_array(np.arange(3)))
    with pytest.raises(UserError, match=r"'numpy.core.multiarray._reconstruct', which is not read"):
        read_pickle(path, encoding="latin1")


def test_types_of_this_process_cannot_be_changed(tmp_path):
    # numpy's own unpickling sets the byte order of the type it is given.
    build = b"cnumpy\ndtype\n(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    with pytest.raises(UserError, match="sets attributes of a function"):
        read_pickle(write(tmp_path / "a.p", build), arrays=True)
    assert np.dtype(np.int64).byteorder == "="


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (python2_array(np.arange(3), b"O8"), r"an array of type 'O8', not of numbers"),
        (python2_array(np.arange(3), b"V8"), r"an array of type 'V8'"),
        (python2_array(np.arange(3), b"i8", b"?"), "no whole pickle"),
        (python2_array(np.arange(3))[:-9], "no whole pickle"),
        (
            python2_array(np.arange(3)).replace(b"(K\x03t", b"(K\x04t"),
            "no whole pickle .ValueError",
        ),
        (b"cnumpy.core.multiarray\n_reconstruct\n(K\x00tR", "no whole pickle .TypeError"),
        (b"cnumpy\nndarray\n(tR(K\x01(K\x00tNI0\nU\x00tb", "without a type of numbers"),
        (b"U\x01aQ", "no whole pickle .UnpicklingError"),
        (b"\x82\x01", "no whole pickle"),
        (b"", "no whole pickle"),
    ],
)
def test_a_damaged_pickle_is_named(tmp_path, opcodes, message):
    with pytest.raises(UserError, match=rf"a\.p: .*{message}"):
        read_pickle(write(tmp_path / "a.p", opcodes), arrays=True, encoding="latin1")


def test_missing_files_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.pkl"):
        with pytest.raises(UserError, match=rf"{path.name}: cannot read it .*; put the file"):
            read_pickle(path)


def test_a_reader_finds_its_own_names_and_no_others():
    pickled = b"\x80\x02cown\nname\n(K\x02K\x03tR."
    assert SafeUnpickler(pickled, {("own", "name"): pow}, "nothing else").load() == 8
    with pytest.raises(UserError, match=r"the pickle names 'own.name', which is not read: ask"):
        SafeUnpickler(pickled, {("own", "other"): pow}, "ask").load()
    with pytest.raises(UserError, match="calls something that is no function"):
        SafeUnpickler(pickled, {("own", "name"): 3}, "").load()
    named = SafeUnpickler(b"\x80\x02cown\nname\n.", {("own", "name"): 3}, "").load()
    assert isinstance(named, Named) and named.target == 3
