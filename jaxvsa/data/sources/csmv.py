"""The CSMV release as published: one label dictionary, three split files, two label maps."""

from __future__ import annotations

import collections
import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS, Comments, Corpus, count_oddities
from jaxvsa.data.release import parse_json, read_release_file

DICTIONARY = "lable_data_dict.json"  # the release's own spelling
TASKS = ("opinion", "emotion")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One of the release's feature folders.

    Attributes:
        width: values per row.
        limit: rows of a video that the published code reads.
        rows_per_s: rows per second of video.
        suffix: end of the file names.
    """

    width: int
    limit: int
    rows_per_s: float
    suffix: str


# Source: VC-CSA specification, section 3, "Published configuration".
ENCODERS = {
    "i3d": Encoder(width=1024, limit=180, rows_per_s=3, suffix=".npy"),
    "r2plus1d": Encoder(width=512, limit=180, rows_per_s=3, suffix="_r21d.npy"),
    "videomaev2": Encoder(width=1408, limit=720, rows_per_s=12, suffix=".npy"),
}


def read_release(root: str | Path, strict: bool = False) -> Corpus:
    """Reads the annotations under `root`; the dictionary may be inside its zip.

    Only rows that a split file names are checked and used. A row whose opinion or emotion is null
    is dropped and counted.

    Source: CSMV release (MSA-CRVI), files as published; VC-CSA specification, section 4.
    Deviation: the published code turns a missing label into all classes at once (section 3, quirk
    9); such rows are dropped here.

    Args:
        root: folder with `lable_data_dict.json` (or `.zip`), `{train,dev,test}_set.json`,
            `{opinion,emotion}_label_map.json`.
        strict: a null label is an error.

    Returns:
        The corpus under the official protocol. Its report counts "rows" of the dictionary,
        "unused" rows that no split names, "listed" keys per split, "null", "empty" (kept) and
        "duplicates": comments that repeat an earlier one of the same video.

    Raises:
        UserError: file missing or no JSON; a repeated key in the dictionary or the splits; a key
            in a split but not in the dictionary; an unknown label; a missing or mistyped field.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root is the folder with {DICTIONARY}")
    names = {task: _read_label_map(root / f"{task}_label_map.json") for task in TASKS}
    keys = {split: _read_keys(root / f"{split}_set.json") for split in SPLITS}
    _refuse_shared_keys(keys)
    where, rows = _read_dictionary(root)
    nulls: list[str] = []
    splits = {
        split: _select(part, rows, names, f"{where} (listed in {split}_set.json)", nulls)
        for split, part in keys.items()
    }
    if nulls and strict:
        raise UserError(
            f"{where}: {len(nulls)} listed comments have a null label, first: {nulls[:5]}; "
            "label them, or leave out --strict to drop them"
        )
    listed = {split: len(part) for split, part in keys.items()}
    report = {
        "rows": len(rows),
        "unused": len(rows) - sum(listed.values()),
        "listed": listed,
        "null": len(nulls),
        **count_oddities(Comments.join(list(splits.values()))),
    }
    return Corpus(splits, names, report)


def _read_dictionary(root: Path) -> tuple[Path, dict[str, Any]]:
    """The label dictionary, plain or zipped, and the file it was found in."""
    plain, zipped = root / DICTIONARY, root / f"{DICTIONARY}.zip"
    if not plain.is_file() and zipped.is_file():
        try:
            with zipfile.ZipFile(zipped) as archive:
                raw = archive.read(DICTIONARY)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UserError(
                f"{zipped}: cannot read {DICTIONARY} from it ({error}); download it again"
            ) from error
        rows = parse_json(raw, zipped)
        plain = zipped
    else:
        rows = parse_json(read_release_file(plain), plain)
    if not isinstance(rows, dict):
        raise UserError(f"{plain}: expected an object of comments by key")
    return plain, rows


def _read_label_map(path: Path) -> tuple[str, ...]:
    """Label names of one task in index order."""
    names = parse_json(read_release_file(path), path)
    if not isinstance(names, dict) or sorted(map(repr, names.values())) != sorted(
        map(repr, range(len(names)))
    ):
        raise UserError(f"{path}: expected label names numbered 0, 1, 2, ... without a gap")
    return tuple(sorted(names, key=names.__getitem__))


def _read_keys(path: Path) -> list[str]:
    """Keys of one split, in file order, each once."""
    keys = parse_json(read_release_file(path), path)
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path}: expected a list of comment keys")
    repeated = [key for key, count in collections.Counter(keys).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} keys are listed twice, first: {repeated[:5]}; "
            "list each comment once"
        )
    return keys


def _refuse_shared_keys(keys: Mapping[str, Sequence[str]]) -> None:
    """No comment may be in two splits."""
    seen: dict[str, str] = {}
    for split, part in keys.items():
        for key in part:
            if key in seen:
                raise UserError(
                    f"key '{key}' is in {seen[key]}_set.json and in {split}_set.json; "
                    "a comment belongs to one split"
                )
            seen[key] = split


def _select(
    keys: Sequence[str],
    rows: Mapping[str, Any],
    names: Mapping[str, tuple[str, ...]],
    where: str,
    nulls: list[str],
) -> Comments:
    """The labelled comments among `keys`; keys with a null label are appended to `nulls`."""
    index = {task: {name: i for i, name in enumerate(known)} for task, known in names.items()}
    kept: list[str] = []
    labels: dict[str, list[int]] = {task: [] for task in names}
    for key in keys:
        row = _check_row(key, rows, where)
        found = {task: row[f"{task}_label"] for task in names}
        if None in found.values():
            nulls.append(key)
            continue
        for task, label in found.items():
            if label not in index[task]:
                raise UserError(
                    f"{where}: key '{key}', {task}_label: unknown label {label!r}"
                    f"{nearest(str(label), names[task])}; known: {list(names[task])}"
                )
            labels[task].append(index[task][label])
        kept.append(key)
    return Comments(
        key=kept,
        video=[rows[key]["video_file_id"] for key in kept],
        text=[rows[key]["comment"] for key in kept],
        labels={task: np.array(values, np.int32) for task, values in labels.items()},
        extra={"hashtag": [rows[key]["hashtag"] for key in kept]},
    )


def _check_row(key: str, rows: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row of `key`, with every field present and of its type; labels may be null."""
    if key not in rows:
        raise UserError(
            f"{where}: key '{key}' is not in the dictionary; both must be of one release"
        )
    row = rows[key]
    fields = ("video_file_id", "comment", "hashtag", *(f"{task}_label" for task in TASKS))
    for field in fields:
        value = row.get(field, 0) if isinstance(row, dict) else 0
        if not isinstance(value, str) and not (value is None and field.endswith("_label")):
            raise UserError(f"{where}: key '{key}', field '{field}' is missing or no text")
    if not row["video_file_id"]:
        raise UserError(f"{where}: key '{key}', field 'video_file_id' is empty")
    return row
