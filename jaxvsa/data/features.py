"""Video features as one ragged table, its manifest, and the folder of files it comes from."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import ml_dtypes
import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import digest_bytes

DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
STORED: dict[str, np.dtype] = {**DTYPES, "uint8": np.dtype(np.uint8)}
"""What a table may hold: features, or the pixels of frames."""
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,3}$")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the features are: written beside them, kept in every checkpoint trained on them.

    Attributes:
        encoder: name of the network that made them.
        width: values per row.
        dtype: stored type, "float16" or "bfloat16"; "uint8" for pixels, a row for each frame.
        rows_per_s: rows per second of video, None if unknown.
        window: frames each row was computed from, None if unknown.
        stride: frames between two rows, None if unknown.
        num_videos: videos in the table.
        num_rows: rows of all videos together.
        digest: blake2b over counts and values, videos in the order of the table (sorted by name).
    """

    encoder: str
    width: int
    dtype: str
    rows_per_s: float | None
    window: int | None
    stride: int | None
    num_videos: int
    num_rows: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values, one per field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """The manifest `to_dict` wrote.

        Raises:
            UserError: a field is missing or unknown.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(values) != fields:
            odd = sorted(set(values) ^ fields)
            raise UserError(f"feature manifest: missing or unknown fields {odd}; prepare again")
        return cls(**values)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of all videos, one below the other without padding.

    Attributes:
        values_nf: (n,f), of a type of `STORED`, contiguous; video g owns `count_g[g]` rows from
            `start_g[g]`.
        start_g: int64, first row of each video.
        count_g: int32, rows of each video, at least 1.
        row: video name -> g, in the order of the table.
    """

    values_nf: np.ndarray
    start_g: np.ndarray
    count_g: np.ndarray
    row: dict[str, int]

    @classmethod
    def from_counts(
        cls, values_nf: np.ndarray, count_g: np.ndarray, videos: Sequence[str]
    ) -> FeatureTable:
        """The table of `videos`, whose rows lie one after another in `values_nf`."""
        count_g = np.asarray(count_g, np.int32)
        end_g = np.cumsum(count_g, dtype=np.int64)
        if len(videos) != len(count_g) or (end_g[-1] if len(end_g) else 0) != len(values_nf):
            raise ValueError(
                f"{len(videos)} videos and {count_g.sum()} counted rows for {len(values_nf)} rows"
            )
        return cls(values_nf, end_g - count_g, count_g, {v: g for g, v in enumerate(videos)})

    @property
    def width(self) -> int:
        """Values per row, f."""
        return self.values_nf.shape[1]

    @property
    def dtype(self) -> str:
        """Name of the stored type, a key of `STORED`."""
        return self.values_nf.dtype.name

    def of(self, video: str) -> np.ndarray:
        """Rows of one video, (t,f): a view."""
        g = self.row[video]
        return self.values_nf[self.start_g[g] : self.start_g[g] + self.count_g[g]]

    def rows(self, videos: Sequence[str], noun: str = "videos") -> np.ndarray:
        """Position g of each video in the table: int32 (b,).

        Args:
            videos: names.
            noun: what they name, for the error text.

        Raises:
            UserError: a video has no features here.
        """
        absent = sorted({video for video in videos if video not in self.row})
        if absent:
            raise UserError(
                f"{len(absent)} {noun} have no features in the table, first: {absent[:5]}"
            )
        return np.fromiter((self.row[video] for video in videos), np.int32, len(videos))

    def digest(self) -> str:
        """blake2b over counts and values in table order, as little-endian bytes."""
        size = self.values_nf.dtype.itemsize
        values_nf = np.ascontiguousarray(self.values_nf).view(f"u{size}")
        counts = self.count_g.astype("<i4", copy=False)
        return digest_bytes(counts.tobytes(), values_nf.astype(f"<u{size}", copy=False).data)

    def describe(
        self,
        encoder: str,
        rows_per_s: float | None = None,
        window: int | None = None,
        stride: int | None = None,
    ) -> Manifest:
        """The manifest of this table: what only the caller knows, and what the table says."""
        return Manifest(
            encoder=encoder,
            width=self.width,
            dtype=self.dtype,
            rows_per_s=rows_per_s,
            window=window,
            stride=stride,
            num_videos=len(self.row),
            num_rows=len(self.values_nf),
            digest=self.digest(),
        )


def even_rows(count_g: np.ndarray, num: int) -> np.ndarray:
    """Which `num` rows of each entry are read, int64 (g, num).

    The midpoints of `num` equal parts (MTransLLAMA specification, section 4); all rows in order if
    there are no more than `num`, the last one repeated.

    Args:
        count_g: int, rows of each entry, at least 1.
        num: at least 1.
    """
    count_g1 = np.asarray(count_g, np.int64)[:, None]
    even_gt = (2 * np.arange(num) + 1) * count_g1 // (2 * num)
    first_gt = np.minimum(np.arange(num), count_g1 - 1)
    return np.where(count_g1 > num, even_gt, first_gt)


def file_name(video: str, suffix: str = ".npy") -> str:
    """Feature file of a video: its name without a media extension, then `suffix`.

    Source: VC-CSA specification, section 3: "`video_file_id` without the last four characters".
    Chosen: only an extension is cut (`.mp4`, `.webm`), so own video names may have none.
    """
    return stem(video) + suffix


def stem(video: str) -> str:
    """Name of a video without a media extension."""
    return _EXTENSION.sub("", video)


def read_npy_folder(
    folder: str | Path,
    videos: Sequence[str],
    suffix: str = ".npy",
    limit: int | None = None,
    missing: Literal["error", "drop"] = "error",
    dtype: str = "float16",
    width: int | None = None,
    stems: Mapping[str, str] | None = None,
    even: bool = False,
) -> tuple[FeatureTable, dict[str, Any]]:
    """Reads the features of `videos` from a folder with one (rows, width) `.npy` file per video.

    Accepted types are float16, float32, float64, and bfloat16 as NumPy writes it (`V2`). The files
    are read twice, headers first, so that memory holds the table once. Files that belong to no
    video are left alone.

    Source: VC-CSA specification, section 3: only the first V rows are used.

    Args:
        folder: the folder, e.g. `CSMV/visual_feature/I3D`.
        videos: names; the table holds them sorted, each once.
        suffix: end of the file name, e.g. `_r21d.npy`.
        limit: rows kept per video, None for all.
        missing: "error" stops when a file is missing, "drop" leaves the video out.
        dtype: type of the table, a key of `DTYPES`.
        width: expected values per row; None takes the first file's.
        stems: video -> what its file is named after; a video that is not there, and None, is
            named after itself.
        even: of a video that is cut, rows are kept as `even_rows` chooses, not the first ones.

    Returns:
        The table and a report: "missing" (names), "truncated" (videos cut at `limit`).

    Raises:
        UserError: no such folder; file missing; object array, wrong type, shape or width; zero
            rows; values that are not finite, or not in `dtype`.
    """
    stem = dict(stems or {})
    paths = {
        video: Path(folder, file_name(stem.get(video, video), suffix))
        for video in sorted(set(videos))
    }
    found = {video: path for video, path in paths.items() if os.path.isfile(path)}
    absent = [video for video in paths if video not in found]
    if not found or (absent and missing == "error"):
        _refuse_missing(Path(folder), [paths[video].name for video in absent], len(paths))
    shapes = _read_shapes(list(found.values()), width)
    most = np.iinfo(np.int32).max if limit is None else limit
    count_g = np.minimum([shape[0] for shape in shapes], most).astype(np.int32)
    values_nf = np.empty((int(count_g.sum(dtype=np.int64)), shapes[0][1]), DTYPES[dtype])
    table = FeatureTable.from_counts(values_nf, count_g, list(found))
    for video, path in found.items():
        _fill(table.of(video), path, even)
    truncated = sum(shape[0] > most for shape in shapes)
    return table, {"missing": absent, "truncated": truncated}


def _refuse_missing(folder: Path, absent: Sequence[str], num: int) -> NoReturn:
    """Says which of `num` files are missing, or that the folder is."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such feature folder; check --features")
    cure = ", or drop their comments (prepare: --missing drop)" if len(absent) < num else ""
    raise UserError(
        f"{folder}: {len(absent)} of {num} feature files are missing, "
        f"first: {', '.join(absent[:5])}; add them, or check --suffix{cure}"
    )


def _read_shapes(paths: Sequence[Path], width: int | None) -> list[tuple[int, ...]]:
    """(rows, width) of each file; the width is the one expected, or the first file's."""
    shapes = [_load(path).shape for path in paths]
    source = "the encoder's width" if width is not None else f"as in {paths[0]}"
    for path, shape in zip(paths, shapes, strict=True):
        if shape[1] != (width or shapes[0][1]):
            raise UserError(
                f"{path}: rows are {shape[1]} wide, expected {width or shapes[0][1]} ({source}); "
                "one folder holds the features of one encoder"
            )
    return shapes


def _load(path: Path) -> np.ndarray:
    """The file as a memory map of shape (rows, width), floating point, at least one row."""
    rows_tf = load_npy(path)
    if rows_tf.ndim != 2:
        raise UserError(f"{path}: expected one array of shape (rows, width), found {rows_tf.shape}")
    kind = rows_tf.dtype
    if kind != ml_dtypes.bfloat16 and (kind.kind != "f" or kind.itemsize > 8):
        raise UserError(f"{path}: {rows_tf.dtype} values; features are float16, 32, 64 or bfloat16")
    if 0 in rows_tf.shape:
        raise UserError(
            f"{path}: shape {rows_tf.shape} holds no features; extract them again or remove the "
            "file and use --missing drop"
        )
    return rows_tf


def load_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file as a memory map; bfloat16 is known, which NumPy writes as `V2`.

    Raises:
        UserError: it is missing, damaged, an archive, or holds Python objects.
    """
    try:
        with Path(path).open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("a zip archive such as .npz")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing") from error
    except (ValueError, OSError, EOFError) as error:
        why = str(error).split("\n")[0]
        # What NumPy says of both is how to read them unsafely.
        known = {"Python objects": "an object array", "pickled": "no header of such a file"}
        why = next((text for sign, text in known.items() if sign in why), why)
        raise UserError(
            f"{path}: not a plain numeric .npy file ({why}); write it with numpy.save"
        ) from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and not array.dtype.names:
        array = array.view(ml_dtypes.bfloat16)
    return array


def _fill(out_tf: np.ndarray, path: Path, even: bool) -> None:
    """Casts rows of a feature file into `out_tf` and refuses what is not finite."""
    rows_tf = _load(path)
    kept_t = even_rows(np.array([len(rows_tf)]), len(out_tf))[0] if even else slice(len(out_tf))
    rows_tf = rows_tf[kept_t]
    with np.errstate(over="ignore"):
        out_tf[...] = rows_tf
    bad_t = np.flatnonzero(~np.isfinite(out_tf).all(axis=1))
    if not len(bad_t):
        return
    if np.isfinite(rows_tf[bad_t]).all():
        raise UserError(
            f"{path}: row {bad_t[0]} is too large for {out_tf.dtype}; use --dtype bfloat16"
        )
    raise UserError(f"{path}: row {bad_t[0]} is not finite; extract it again")
