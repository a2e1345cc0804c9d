"""Feature tables as tensorflow-datasets: a record for each entry, its rows without padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import STORED, FeatureTable, Manifest
from jaxvsa.data.records import read_records, write_records

# tensorflow-datasets keeps a split in memory up to 1000 MiB and needs TensorFlow beyond that.
PART_BYTES = 256 << 20


def write_table(
    folder: Path, name: str, description: str, table: FeatureTable, key: str = "video"
) -> dict[str, int]:
    """Writes the data set `folder/<name>`; bfloat16 as its bits in uint16, for ArrayRecord's sake.

    Args:
        folder: an existing folder.
        name: of the data set, lower case.
        description: one sentence, stored beside the records.
        table: of a type of `STORED`.
        key: field that holds the name of an entry.

    Returns:
        Path relative to `folder` -> number of records, in reading order.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    import tensorflow_datasets as tfds

    stored = np.dtype(np.uint16) if table.dtype == "bfloat16" else table.values_nf.dtype
    spec = {
        key: tfds.features.Text(),
        "values": tfds.features.Tensor(shape=(None, table.width), dtype=stored, encoding="bytes"),
    }

    def examples(entries: list[str]) -> Iterator[dict[str, Any]]:
        for entry in entries:
            yield {key: entry, "values": table.of(entry).view(stored)}

    per_row = table.width * stored.itemsize
    part_g = np.cumsum(table.count_g, dtype=np.int64) * per_row // PART_BYTES
    entries: dict[int, list[str]] = {}
    for entry, part in zip(table.row, part_g.tolist(), strict=True):
        entries.setdefault(part, []).append(entry)
    parts: dict[str, Iterable[dict[str, Any]]] = {
        f"part_{i:04d}": examples(names) for i, names in enumerate(entries.values())
    }
    return write_records(folder, name, description, spec, parts)


def read_table(
    root: Path,
    name: str,
    files: Mapping[str, int],
    manifest: Manifest,
    key: str = "video",
    described_by: str = "data.json",
) -> FeatureTable:
    """The table that `write_table` wrote.

    Args:
        root: the folder.
        name: of the data set.
        files: what `write_table` returned.
        manifest: of the table.
        key: as it was written.
        described_by: file of the folder that holds the manifest, for error texts.

    Raises:
        UserError: a file is missing, damaged, or not what the manifest says.
    """
    dtype = STORED[manifest.dtype]
    values_nf = np.empty((manifest.num_rows, manifest.width), dtype)
    entries: list[str] = []
    counts: list[int] = []
    end = 0
    with described(root / name, described_by):
        for record in records(root, files):
            raw = record["values"].bytes_list.value[0]
            rows_tf = np.frombuffer(raw, dtype).reshape(-1, manifest.width)
            values_nf[end : end + len(rows_tf)] = rows_tf
            end += len(rows_tf)
            entries.append(record[key].bytes_list.value[0].decode())
            counts.append(len(rows_tf))
        table = FeatureTable.from_counts(values_nf, np.array(counts, np.int32), entries)
        if table.digest() != manifest.digest:
            raise ValueError("other digest")
    return table


def records(root: Path, files: Mapping[str, int]) -> Iterator[Mapping[str, Any]]:
    """Fields of every record of the files of one data set, in order."""
    for path, count in files.items():
        yield from read_records(root / path, count)


@contextlib.contextmanager
def described(path: Path, by: str) -> Iterator[None]:
    """Tells readable records of another data set: a missing field, another shape or digest.

    Args:
        path: of the data set.
        by: file that describes it.

    Raises:
        UserError: in place of such an IndexError or ValueError.
    """
    try:
        yield
    except UserError:
        raise
    except (IndexError, ValueError) as error:
        raise UserError(
            f"{path} is not what {by} describes ({error}); prepare the data again"
        ) from error
