"""From a read corpus and a folder of features to prepared data, and the tables that describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.corpus import SPLITS, UNSPLIT, Corpus
from jaxvsa.data.features import FeatureTable, Manifest, read_npy_folder
from jaxvsa.data.prepared import Prepared, write_prepared
from jaxvsa.data.sources.csmv import ENCODERS, read_release
from jaxvsa.data.sources.table import read_table
from jaxvsa.data.splits import by_video


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """A folder of `.npy` features and what is known of them; see `read_npy_folder` and `Manifest`.

    Attributes:
        folder: one file per video.
        encoder: name of the network.
        suffix: end of the file names.
        limit: rows kept per video, None for all.
        width: values per row if known beforehand.
        missing: "error", or "drop" the comments of videos without a file.
        dtype: stored type, "float16" or "bfloat16".
        rows_per_s: rows per second of video.
        window: frames per row.
        stride: frames between rows.
    """

    folder: Path
    encoder: str
    suffix: str = ".npy"
    limit: int | None = None
    width: int | None = None
    missing: Literal["error", "drop"] = "error"
    dtype: str = "float16"
    rows_per_s: float | None = None
    window: int | None = None
    stride: int | None = None


def feature_source(options: Mapping[str, Any]) -> FeatureSource | None:
    """The features that a command line names; None for `none`.

    Under "root" (the release), what is published of the encoder is the default.

    Args:
        options: fields of `FeatureSource`, only those given; others are ignored.

    Raises:
        UserError: no encoder; under "root", an encoder that is not of the release and no limit.
    """
    fields = [field.name for field in dataclasses.fields(FeatureSource)]
    given = {name: options[name] for name in fields if name in options}
    if given["folder"] == Path("none"):
        return None
    if "encoder" not in given:
        raise UserError("--features needs --encoder: the name of the network they come from")
    known = ENCODERS.get(given["encoder"])
    if "root" not in options:
        return FeatureSource(**given)
    if known is None and "limit" not in given:
        raise UserError(
            f"--limit is needed: '{given['encoder']}' is not an encoder of the release"
            f"{nearest(given['encoder'], ENCODERS)} ({', '.join(ENCODERS)}); none keeps all rows"
        )
    return FeatureSource(**{**(dataclasses.asdict(known) if known else {}), **given})


def read_source(options: Mapping[str, Any], features: FeatureSource | None) -> Corpus:
    """The corpus that a command line names: the release, or own data.

    Args:
        options: "strict", and either "root" (the release) or "labels" (names with commas) with
            "input" or the files "train", "dev", "test".
        features: None allows own data without the column video.

    Raises:
        UserError: both or neither of "input" and files per split; all that the source refuses.
    """
    if "root" in options:
        return read_release(options["root"], options["strict"])
    files = {split: options[split] for split in SPLITS if split in options}
    if ("input" in options) == bool(files):
        raise UserError("give either --input FILE, or --train FILE with --dev and --test")
    labels = [name.strip() for name in options["labels"].split(",")]
    source = files or options["input"]
    return read_table(source, labels, options["strict"], need_video=features is not None)


def prepare(
    corpus: Corpus, out: str | Path, source: FeatureSource | None = None, seed: int = 0
) -> Prepared:
    """Reads the features, splits by video and writes the folder that training opens.

    A corpus with splits is stored under the protocols "official" (its own splits) and "by_video"
    (left out if there are fewer than three videos); one without splits under "by_video" alone.

    Args:
        corpus: what a source read.
        out: a new folder.
        source: where the features are, None for text alone.
        seed: of the split by video.

    Raises:
        UserError: `out` is in use; everything `read_npy_folder` and `write_prepared` refuse.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):  # before minutes of reading
        raise UserError(f"{out} already exists: choose another --out or delete it")
    features, manifest = None, None
    if source is not None:
        corpus, features, manifest = _add_features(corpus, source)
    corpora = {} if UNSPLIT in corpus.splits else {"official": corpus}
    if not corpora or len(corpus.videos()) >= len(SPLITS):
        corpora["by_video"] = by_video(corpus, seed)
    return write_prepared(out, corpora, features, manifest)


def tables(prepared: Prepared) -> list[Table]:
    """What prepare found, for the terminal: the splits of every protocol, then the oddities."""
    report = prepared.report
    splits = Table(title=f"Comments in {prepared.root}")
    for name in ("protocol", "split"):
        splits.add_column(name)
    for name in ("listed", "used", "%", "videos", "in train", "comments of those"):
        splits.add_column(name, justify="right")
    for protocol, leaks in report["splits"].items():
        total = sum(row["comments"] for row in leaks.values())
        listed = report["listed"] if protocol == "official" else {}
        for split, row in leaks.items():
            splits.add_row(protocol, split, *_split_cells(row, listed.get(split), total))
        splits.add_section()
    found = Table(title="Found", show_header=False)
    found.add_column()
    found.add_column(justify="right")
    for text, value in _oddities(report, prepared.manifest):
        found.add_row(text, value)
    return [splits, found]


def _add_features(corpus: Corpus, source: FeatureSource) -> tuple[Corpus, FeatureTable, Manifest]:
    """The features of the corpus' videos; comments of dropped videos leave the corpus."""
    table, found = read_npy_folder(
        source.folder,
        corpus.videos(),
        suffix=source.suffix,
        limit=source.limit,
        missing=source.missing,
        dtype=source.dtype,
        width=source.width,
    )
    kept = corpus.without_videos(set(found["missing"]))
    report = {
        **corpus.report,
        "missing": len(found["missing"]),
        "missing_first": found["missing"][:5],
        "missing_comments": len(corpus) - len(kept),
        "truncated": found["truncated"],
        "limit": source.limit,
    }
    manifest = table.describe(
        source.encoder, source.rows_per_s, window=source.window, stride=source.stride
    )
    return dataclasses.replace(kept, report=report), table, manifest


def _split_cells(row: dict[str, Any], listed: int | None, total: int) -> list[str]:
    """Cells of one split: listed, used, share, videos, and what train has seen of them."""
    cells = ["" if listed is None else f"{listed:,}", f"{row['comments']:,}"]
    cells += [f"{100 * row['comments'] / total:.1f}", f"{row['videos']:,}"]
    if "videos_in_train" in row:
        share = 100 * row["comments_in_train"] / max(row["comments"], 1)
        cells += [f"{row['videos_in_train']:,}", f"{share:.2f} %"]
    return cells


def _oddities(report: dict[str, Any], manifest: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Lines of the second table."""
    lines = [
        ("rows read", f"{report['rows']:,}"),
        ("rows in no split (unused)", f"{report['unused']:,}"),
        ("null label (dropped)", f"{report['null']:,}"),
        ("empty comment (kept)", f"{report['empty']:,}"),
        ("duplicate of video and comment (kept)", f"{report['duplicates']:,}"),
    ]
    if report.get("ignored"):
        lines.append(("columns ignored", ", ".join(report["ignored"])))
    if "by_video" in report["splits"]:
        lines.append(("seed of the split by_video", str(report["by_video_seed"])))
    else:
        lines.append(("split by_video", "left out: fewer than 3 videos"))
    if "official" not in report["splits"]:
        lines.append(("splits in the data", "none: split by_video alone"))
    if manifest is None:
        return [*lines, ("features", "none")]
    some = f" ({', '.join(report['missing_first'])})" if report["missing"] else ""
    return [
        *lines,
        (
            "features",
            f"{manifest['encoder']}, {manifest['num_rows']:,} rows of {manifest['width']} "
            f"{manifest['dtype']}, {manifest['num_videos']:,} videos",
        ),
        (
            "videos without a feature file",
            f"{report['missing']:,}{some}; {report['missing_comments']:,} comments dropped",
        ),
        (f"videos cut at {report['limit']} rows (truncated)", f"{report['truncated']:,}")
        if report["limit"]
        else ("rows of a video that are kept (--limit)", "all"),
    ]
