"""Tables of features as records: what is read is what was written, and damage is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.tables import described, read_table, write_table

NAMES = ["overall quality: ein Käse", "a", "b"]


def make(dtype: type = np.float16) -> FeatureTable:
    """Entries of 3, 1 and 2 rows."""
    values_nf = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    return FeatureTable.from_counts(values_nf, np.array([3, 1, 2]), NAMES)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("part_bytes", [1 << 20, 16])
def test_table_comes_back_bit_for_bit(tmp_path, monkeypatch, dtype, part_bytes):
    monkeypatch.setattr("jaxvsa.data.tables.PART_BYTES", part_bytes)
    table = make(dtype)
    files = write_table(tmp_path, "questions", "Some.", table, "question")
    assert sum(files.values()) == 3 and all((tmp_path / name).is_file() for name in files)
    assert len(files) == (1 if part_bytes > 16 else 3)
    again = read_table(tmp_path, "questions", files, table.describe("x"), "question")
    assert again.row == table.row and again.values_nf.dtype == dtype
    np.testing.assert_array_equal(again.count_g, table.count_g)
    np.testing.assert_array_equal(again.values_nf.view(np.uint16), table.values_nf.view(np.uint16))


@pytest.mark.parametrize(
    "changes", [{"digest": "0"}, {"num_rows": 7}, {"num_rows": 5}, {"width": 5}]
)
def test_another_table_than_described_is_refused(tmp_path, changes):
    files = write_table(tmp_path, "questions", "Some.", make(), "question")
    wrong = dataclasses.replace(make().describe("x"), **changes)
    with pytest.raises(UserError, match=r"questions is not what card.json describes .*prepare"):
        read_table(tmp_path, "questions", files, wrong, "question", "card.json")


def test_lost_and_damaged_files_are_named(tmp_path: Path):
    files = write_table(tmp_path, "videos", "Some.", make())
    (name,) = files
    manifest = make().describe("x")
    with pytest.raises(UserError, match=r"holds 3 records, expected 4"):
        read_table(tmp_path, "videos", {name: 4}, manifest)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"array_record.* is missing; prepare the data again"):
        read_table(tmp_path, "videos", files, manifest)


def test_only_errors_of_what_is_read_are_told_so():
    told = pytest.raises(UserError, match=r"x is not what d.json describes .no.; prepare")
    with told, described(Path("x"), "d.json"):
        raise ValueError("no")
    with pytest.raises(UserError, match=r"^mine$"), described(Path("x"), "d.json"):
        raise UserError("mine")
    with pytest.raises(KeyError), described(Path("x"), "d.json"):
        json.loads("{}")["x"]
