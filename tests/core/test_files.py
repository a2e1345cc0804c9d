"""Files are complete or absent."""

import errno
import hashlib
import json
import os

import numpy as np
import pytest

from jaxvsa.core import files
from jaxvsa.core.errors import UserError


@pytest.mark.smoke
def test_json_comes_back_as_written(tmp_path):
    row = {"name": "naïve 😀", "lr": 5e-5, "third": 1 / 3, "list": [1, None, True]}
    files.write_json(tmp_path / "new" / "a.json", row)
    assert files.read_json(tmp_path / "new" / "a.json", "the row") == row
    assert "naïve 😀" in (tmp_path / "new" / "a.json").read_text(encoding="utf-8")


def test_json_takes_numpy_values_and_paths(tmp_path):
    row = {
        "count": np.int64(3),
        "f1": np.float32(0.5),
        "counts": np.eye(2, dtype=int),
        "at": tmp_path,
    }
    files.write_json(tmp_path / "a.json", row)
    want = {"count": 3, "f1": 0.5, "counts": [[1, 0], [0, 1]], "at": str(tmp_path)}
    assert files.read_json(tmp_path / "a.json", "the row") == want


def test_json_refuses_other_objects_and_keeps_the_old_file(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="set is not JSON"):
        files.write_json(tmp_path / "a.json", {1})
    assert files.read_json(tmp_path / "a.json", "the row") == 1


def test_read_json_names_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the label map .*no\.json: No such file"):
        files.read_json(tmp_path / "no.json", "the label map")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"the label map .*half\.json is not valid JSON: .*line 1"):
        files.read_json(tmp_path / "half.json", "the label map")
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "latin.json", "the label map")


def test_write_atomic_replaces_the_whole_content_and_leaves_nothing_else(tmp_path):
    files.write_atomic(tmp_path / "a", "long content")
    files.write_atomic(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["a"]


def test_write_atomic_keeps_the_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    files.write_atomic(tmp_path / "a", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*a: No space left on device"):
        files.write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_jsonl_rows_add_up_and_a_half_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"step": 1, "loss": 0.1})
    files.append_jsonl(path, {"step": 2, "loss": np.float32(2)})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert files.read_jsonl(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 2.0}]


def test_jsonl_names_the_damaged_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step":\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        files.read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1 is not a JSON object"):
        files.read_jsonl(path)


def test_cut_jsonl_keeps_rows_byte_for_byte_and_drops_the_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,  "x": 1e-5}\n{"step": 2}\n{"step": 3}\n{"st')
    files.cut_jsonl(path, lambda row: row["step"] <= 2)
    assert path.read_text() == '{"step":1,  "x": 1e-5}\n{"step": 2}\n'
    files.append_jsonl(path, {"step": 3})
    assert [row["step"] for row in files.read_jsonl(path)] == [1, 2, 3]
    files.cut_jsonl(tmp_path / "absent.jsonl", lambda row: True)
    assert not (tmp_path / "absent.jsonl").exists()


def test_staged_folder_appears_only_at_the_end(tmp_path):
    with files.staged_folder(tmp_path / "new" / "out") as staged:
        (staged / "inner").mkdir()
        (staged / "inner" / "a").write_text("1")
        assert not (tmp_path / "new" / "out").exists()
    assert (tmp_path / "new" / "out" / "inner" / "a").read_text() == "1"
    assert os.listdir(tmp_path / "new") == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_staged_folder_leaves_nothing_after_an_error(tmp_path, error):
    with pytest.raises(error), files.staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("1")
        raise error
    assert os.listdir(tmp_path) == []


def test_staged_folder_takes_an_empty_folder_and_refuses_a_full_one(tmp_path):
    (tmp_path / "out").mkdir()
    with files.staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("1")
    assert os.listdir(tmp_path / "out") == ["a"]
    refusal = "out already exists: choose another --out or delete it"
    with pytest.raises(UserError, match=refusal), files.staged_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    with (
        pytest.raises(UserError, match="a already exists"),
        files.staged_folder(tmp_path / "out/a"),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_digest_is_blake2b_of_the_concatenation():
    want = hashlib.blake2b(b"abcdef", digest_size=16).hexdigest()
    assert files.digest_bytes(b"abc", b"def") == files.digest_bytes(b"abcdef") == want
    assert files.digest_bytes(np.arange(3, dtype=np.uint8).data) == files.digest_bytes(b"\0\1\2")
    assert files.digest_bytes(b"abd") != files.digest_bytes(b"abc")


def test_json_round_trip_keeps_every_float(tmp_path):
    values = np.random.default_rng(0).standard_normal(100).tolist()
    files.write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_text()) == values
