"""Feature folders: what is read is what was saved, and every broken file is named."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable, Manifest, even_rows, file_name, read_npy_folder

pytestmark = pytest.mark.smoke


def save(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Writes `<name>.npy` files."""
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def rows(num: int, width: int = 3, start: int = 0) -> np.ndarray:
    """(num, width) float32: start, start + 1, ..."""
    return np.arange(start, start + num * width, dtype=np.float32).reshape(num, width)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos of 2, 1 and 4 rows."""
    return save(tmp_path / "npy", {"b": rows(2), "a": rows(1, start=50), "c": rows(4, start=90)})


def test_table_holds_the_videos_sorted_one_below_the_other(folder):
    table, report = read_npy_folder(folder, ["c.mp4", "b.mp4", "a.mp4", "b.mp4"])
    assert report == {"missing": [], "truncated": 0}
    assert table.row == {"a.mp4": 0, "b.mp4": 1, "c.mp4": 2}
    np.testing.assert_array_equal(table.start_g, [0, 1, 3])
    np.testing.assert_array_equal(table.count_g, [1, 2, 4])
    np.testing.assert_array_equal(
        table.values_nf, np.concatenate([rows(1, start=50), rows(2), rows(4, start=90)])
    )
    assert (table.start_g.dtype, table.count_g.dtype) == (np.int64, np.int32)
    assert table.values_nf.dtype == np.float16 and table.values_nf.flags.c_contiguous
    np.testing.assert_array_equal(table.of("b.mp4"), rows(2))
    np.testing.assert_array_equal(table.rows(["c.mp4", "a.mp4"]), np.array([2, 0], np.int32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit_files_come_back_bit_for_bit(tmp_path, dtype):
    saved = np.random.default_rng(0).normal(size=(5, 8)).astype(dtype)
    save(tmp_path, {"a": saved})
    table, _ = read_npy_folder(tmp_path, ["a"], dtype=np.dtype(dtype).name)
    assert table.values_nf.dtype == dtype
    np.testing.assert_array_equal(table.of("a").view(np.uint16), saved.view(np.uint16))


def test_limit_keeps_the_first_rows_and_counts_the_cut_videos(folder):
    table, report = read_npy_folder(folder, ["a", "b", "c"], limit=2)
    assert report["truncated"] == 1
    np.testing.assert_array_equal(table.count_g, [1, 2, 2])
    np.testing.assert_array_equal(table.of("c"), rows(4, start=90)[:2])


def test_rows_behind_the_limit_are_not_checked_as_they_are_not_read(tmp_path):
    broken = rows(3)
    broken[2] = np.nan
    table, _ = read_npy_folder(save(tmp_path, {"a": broken}), ["a"], limit=2)
    np.testing.assert_array_equal(table.of("a"), rows(3)[:2])


@pytest.mark.parametrize(
    ("video", "suffix", "name"),
    [
        ("6815001842360143109.mp4", ".npy", "6815001842360143109.npy"),
        ("6815001842360143109.mp4", "_r21d.npy", "6815001842360143109_r21d.npy"),
        ("clip.webm", ".npy", "clip.npy"),
        ("clip", ".npy", "clip.npy"),
        ("take.1.2", ".npy", "take.1.2.npy"),
    ],
)
def test_file_name_follows_the_release_and_spares_own_names(video, suffix, name):
    assert file_name(video, suffix) == name


def test_missing_files_are_counted_and_the_first_five_named(folder):
    videos = ["a", "b", *(f"x{i}" for i in range(7))]
    with pytest.raises(UserError, match=r"7 of 9 .* x0.npy, x1.npy, x2.npy, x3.npy, x4.npy; add"):
        read_npy_folder(folder, videos)


def test_missing_files_can_be_dropped(folder):
    table, report = read_npy_folder(folder, ["a", "x", "b"], missing="drop")
    assert report["missing"] == ["x"]
    assert list(table.row) == ["a", "b"]
    with pytest.raises(UserError, match=r"1 videos have no features in the table, first: .'x'."):
        table.rows(["a", "x"])


def test_a_video_whose_name_no_file_can_have_is_missing(folder):
    with pytest.raises(UserError, match=r"1 of 2 feature files are missing, first: vvv"):
        read_npy_folder(folder, ["a", "v" * 300])


def test_a_folder_without_any_of_the_files_is_refused_even_when_dropping(folder):
    with pytest.raises(UserError, match=r"2 of 2 feature files .*_r21d.npy; .*check --suffix"):
        read_npy_folder(folder, ["a", "b"], suffix="_r21d.npy", missing="drop")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}], object), "an object array"),
        (rows(2, width=4), "rows are 4 wide, expected 3 .as in .*a.npy"),
        (np.zeros((0, 3), np.float32), "holds no features"),
        (np.zeros((3,), np.float32), r"expected one array of shape \(rows, width\), found \(3,\)"),
        (np.zeros((2, 3), np.int64), "int64 values; features are float16"),
        (np.full((2, 3), np.inf, np.float32), "row 0 is not finite"),
        (np.array([[1, 2, 3], [1, np.nan, 3]], np.float16), "row 1 is not finite"),
        (np.array([[1, 2, 3], [1, 70000, 3]], np.float32), "row 1 is too large for float16; use"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(folder, array, message):
    np.save(folder / "bad.npy", array)
    with pytest.raises(UserError, match=f"bad.npy: .*{message}"):
        read_npy_folder(folder, ["a", "bad"])


def test_files_that_are_no_arrays_are_named(folder):
    (folder / "text.npy").write_text("no array")
    (folder / "cut.npy").write_bytes((folder / "c.npy").read_bytes()[:-8])
    (folder / "void.npy").write_bytes(b"")
    (folder / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    for video in ("text", "cut", "void", "zip"):
        with pytest.raises(UserError, match=f"{video}.npy: not a plain numeric .npy file"):
            read_npy_folder(folder, [video])


def test_an_expected_width_is_enforced(folder):
    with pytest.raises(UserError, match=r"rows are 3 wide, expected 1024"):
        read_npy_folder(folder, ["a"], width=1024)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such feature folder"):
        read_npy_folder(tmp_path / "nowhere", ["a"])


def test_digest_sees_values_and_counts_but_not_where_they_came_from(folder, tmp_path):
    table, _ = read_npy_folder(folder, ["a", "b", "c"])
    same, _ = read_npy_folder(folder, ["c", "a", "b"])
    assert table.digest() == same.digest()
    shifted = FeatureTable.from_counts(table.values_nf, np.array([2, 1, 4]), list("abc"))
    assert shifted.digest() != table.digest()
    changed = table.values_nf.copy()
    changed[3, 1] += 1
    assert FeatureTable.from_counts(changed, table.count_g, list("abc")).digest() != table.digest()


def test_manifest_describes_the_table_and_survives_json(folder):
    table, _ = read_npy_folder(folder, ["a", "b", "c"], dtype="bfloat16")
    manifest = table.describe("i3d", rows_per_s=3, window=16, stride=8)
    assert (manifest.encoder, manifest.width, manifest.dtype) == ("i3d", 3, "bfloat16")
    assert (manifest.num_videos, manifest.num_rows) == (3, 7)
    assert (manifest.rows_per_s, manifest.window, manifest.stride) == (3, 16, 8)
    assert manifest.digest == table.digest()
    assert Manifest.from_dict(manifest.to_dict()) == manifest
    with pytest.raises(UserError, match=r"unknown fields \['colour'\]"):
        Manifest.from_dict({**manifest.to_dict(), "colour": 1})


def test_table_refuses_counts_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"2 videos and 3 counted rows for 4 rows"):
        FeatureTable.from_counts(np.zeros((4, 2), np.float16), np.array([1, 2]), ["a", "b"])


def test_even_rows_are_midpoints_of_equal_parts():
    found = even_rows(np.array([1, 3, 4, 6, 16]), 3)
    assert found.tolist() == [[0, 0, 0], [0, 1, 2], [0, 2, 3], [1, 3, 5], [2, 8, 13]]
    assert found.dtype == np.int64


def test_cut_videos_keep_even_rows_and_files_have_names_of_their_own(folder):
    stems = {"x": "c", "y.mp4": "b"}
    table, report = read_npy_folder(folder, ["x", "y.mp4", "a"], limit=2, stems=stems, even=True)
    assert list(table.row) == ["a", "x", "y.mp4"] and report["truncated"] == 1
    np.testing.assert_array_equal(table.of("x"), rows(4, start=90)[[1, 3]])
    np.testing.assert_array_equal(table.of("y.mp4"), rows(2))
    with pytest.raises(UserError, match=r"1 of 2 feature files are missing, first: gone\.npy"):
        read_npy_folder(folder, ["x", "z"], stems={"z": "gone", **stems})
