"""Prepared data: two tensorflow-datasets (comments, videos) and `data.json`, written and read.

    ROOT/data.json                               what is here; written last
    ROOT/comments/1.0.0/comments-*.array_record* a record per comment, in the order of the source
    ROOT/videos/1.0.0/videos-*.array_record*     a record per video, sorted by name

`tfds.builder_from_directory(ROOT / "comments/1.0.0")` reads them as well; its splits are those of
the first protocol, and every comment carries its split under every protocol. We read the same files
with the ArrayRecord reader and the `tf.train.Example` that tensorflow-datasets ships: 85,808 CSMV
comments take about 1.3 s, through `data_source[...]` 5 to 6 s.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.files import digest_bytes, read_json, staged_folder, write_json
from jaxvsa.data.corpus import SPLITS, Comments, Corpus
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.records import write_records
from jaxvsa.data.splits import leak_report
from jaxvsa.data.tables import described, read_table, records, write_table

FORMAT = 1
VIDEOS = "Features of videos, rows unpadded."


def write_prepared(
    out: str | Path,
    corpora: Mapping[str, Corpus],
    features: FeatureTable | None = None,
    manifest: Manifest | None = None,
) -> Prepared:
    """Writes `out`, a new folder that appears only when it is complete.

    Args:
        out: the folder; must not exist, or be empty.
        corpora: protocol ("official", "by_video") -> corpus. All hold the same comments, labels and
            extra columns; the first gives the order.
        features: of every video of the corpora, or None for text alone.
        manifest: describes `features`.

    Returns:
        The folder, opened.

    Raises:
        UserError: `out` is in use or cannot be written; a text is no valid Unicode.
    """
    if (features is None) != (manifest is None):
        raise ValueError("features and manifest come together")
    first = next(iter(corpora.values()))
    comments = first.comments()
    _check_unicode(comments)
    split_b = {name: _split_of(corpus, comments.key) for name, corpus in corpora.items()}
    info = {
        "format": FORMAT,
        "labels": first.label_names,
        "extra": sorted(comments.extra),
        "protocols": {
            name: {split: len(part) for split, part in corpus.splits.items()}
            for name, corpus in corpora.items()
        },
        "num_comments": len(comments),
        "manifest": manifest.to_dict() if manifest else None,
        "report": {
            **{key: value for corpus in corpora.values() for key, value in corpus.report.items()},
            "splits": {name: leak_report(corpus) for name, corpus in corpora.items()},
        },
        "digest": _digest(comments, split_b),
    }
    with staged_folder(out) as folder:
        files = {"comments": _write_comments(folder, first, comments, split_b)}
        if features is not None:
            files["videos"] = write_table(folder, "videos", VIDEOS, features)
        write_json(folder / "data.json", {**info, "files": files})
    return Prepared.open(out)


class Prepared:
    """A folder written by `write_prepared`.

    Attributes:
        root: the folder.
        labels: task -> class names in index order.
        manifest: `Manifest.to_dict()` of the features, None without features.
        report: what prepare found, with `leak_report` of each protocol under "splits".
        protocols: protocol -> {split: number of comments}.
        digest: blake2b over comments, labels and splits.
    """

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self.root = root
        self.labels = {task: tuple(names) for task, names in info["labels"].items()}
        self.manifest: dict[str, Any] | None = info["manifest"]
        self.report: dict[str, Any] = info["report"]
        self.protocols: dict[str, dict[str, int]] = info["protocols"]
        self.digest: str = info["digest"]
        self._files: dict[str, dict[str, int]] = info["files"]
        self._extra: list[str] = info["extra"]

    @classmethod
    def open(cls, root: str | Path) -> Prepared:
        """Reads `data.json`; the records are read when they are asked for.

        Raises:
            UserError: not a prepared folder, or one of another format version.
        """
        root = Path(root)
        if not (root / "data.json").is_file():
            raise UserError(f"{root} is not prepared: run python -m jaxvsa.prepare --help")
        info = read_json(root / "data.json", "the description of prepared data")
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            found = info.get("format") if isinstance(info, dict) else None
            raise UserError(
                f"{root}/data.json: format {found!r}, this version reads {FORMAT}; prepare again"
            )
        try:
            return cls(root, info)
        except KeyError as error:
            raise UserError(f"{root}/data.json: no entry {error}; prepare again") from error

    def comments(self, protocol: str, split: str) -> Comments:
        """The comments of one split, in the order of the source.

        Raises:
            UserError: unknown protocol or split; a record file is missing or damaged.
        """
        for name, known in (("protocol", self.protocols), ("split", self.protocols.get(protocol))):
            value = protocol if name == "protocol" else split
            if value not in (known or {}):
                raise UserError(
                    f"{self.root}: no {name} '{value}'{nearest(value, known or {})}; "
                    f"prepared: {list(known or {})}"
                )
        comments, split_b = self._comments
        return comments.take(np.flatnonzero(split_b[protocol] == SPLITS.index(split)))

    def features(self) -> FeatureTable | None:
        """The features of all videos, None if prepared without; read once and kept.

        Raises:
            UserError: a record file is missing or damaged.
        """
        return self._features

    def rows(self, comments: Comments) -> np.ndarray:
        """Row of each comment's video in `features()`, int32 (b,); -1 if there are no features."""
        if self._features is None:
            return np.full(len(comments), -1, np.int32)
        return self._features.rows(comments.video)

    @functools.cached_property
    def _comments(self) -> tuple[Comments, dict[str, np.ndarray]]:
        """All comments, and protocol -> int8 (b,) index into `SPLITS`."""
        extra = self._extra
        texts: dict[str, list[str]] = {
            name: [] for name in ("key", "video", "text", *(f"extra/{x}" for x in extra))
        }
        ints: dict[str, list[int]] = {
            **{f"labels/{task}": [] for task in self.labels},
            **{f"splits/{protocol}": [] for protocol in self.protocols},
        }
        with described(self.root / "comments", "data.json"):
            for record in records(self.root, self._files["comments"]):
                for name, words in texts.items():
                    words.append(record[name].bytes_list.value[0].decode())
                for name, numbers in ints.items():
                    numbers.append(record[name].int64_list.value[0])
            comments = Comments(
                key=texts["key"],
                video=texts["video"],
                text=texts["text"],
                labels={task: np.array(ints[f"labels/{task}"], np.int32) for task in self.labels},
                extra={name: texts[f"extra/{name}"] for name in extra},
            )
            split_b = {name: np.array(ints[f"splits/{name}"], np.int8) for name in self.protocols}
            for task, names in self.labels.items():
                if len(comments) and int(comments.labels[task].max()) >= len(names):
                    raise ValueError(f"more classes of {task} than {list(names)}")
            if _digest(comments, split_b) != self.digest:
                raise ValueError("other digest")
        return comments, split_b

    @functools.cached_property
    def _features(self) -> FeatureTable | None:
        if self.manifest is None:
            return None
        manifest = Manifest.from_dict(self.manifest)
        return read_table(self.root, "videos", self._files["videos"], manifest)


def _write_comments(
    folder: Path, corpus: Corpus, comments: Comments, split_b: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Writes the data set `comments`; its splits are those of `corpus`."""
    import tensorflow_datasets as tfds

    text, member = tfds.features.Text, tfds.features.ClassLabel
    spec = {
        "key": text(),
        "video": text(),
        "text": text(),
        "labels": {t: member(names=names) for t, names in corpus.label_names.items()},
        "splits": {protocol: member(names=SPLITS) for protocol in split_b},
    }
    if comments.extra:
        spec["extra"] = {name: text() for name in comments.extra}

    def examples(start: int, stop: int) -> Iterator[dict[str, Any]]:
        for b in range(start, stop):
            example = {
                "key": comments.key[b],
                "video": comments.video[b],
                "text": comments.text[b],
                "labels": {task: label_b[b] for task, label_b in comments.labels.items()},
                "splits": {protocol: of_b[b] for protocol, of_b in split_b.items()},
            }
            if comments.extra:
                example["extra"] = {name: column[b] for name, column in comments.extra.items()}
            yield example

    parts: dict[str, Iterable[dict[str, Any]]] = {}
    start = 0
    for split, part in corpus.splits.items():
        if len(part):
            parts[split] = examples(start, start + len(part))
        start += len(part)
    return write_records(folder, "comments", "Comments with labels and splits.", spec, parts)


def _split_of(corpus: Corpus, keys: list[str]) -> np.ndarray:
    """Index into `SPLITS` of each key, int8 (b,)."""
    of = {k: SPLITS.index(split) for split, part in corpus.splits.items() for k in part.key}
    if len(of) != len(corpus) or of.keys() != set(keys):
        raise ValueError("the protocols do not hold the same comments, each once")
    return np.fromiter((of[key] for key in keys), np.int8, len(keys))


def _digest(comments: Comments, split_b: Mapping[str, np.ndarray]) -> str:
    """blake2b over texts, labels and splits in order."""
    texts = [comments.key, comments.video, comments.text, comments.extra]
    ints = {**comments.labels, **{f"splits/{name}": of_b for name, of_b in split_b.items()}}
    numbers = [np.asarray(ints[name], "<i4").tobytes() for name in sorted(ints)]
    return digest_bytes(json.dumps(texts, sort_keys=True).encode(), *numbers)


def _check_unicode(comments: Comments) -> None:
    """JSON can smuggle in half a surrogate pair, which no UTF-8 file can hold."""
    for name in ("key", "video", "text"):
        for key, value in zip(comments.key, getattr(comments, name), strict=True):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise UserError(
                    f"comment {key!r}: its {name} has half a surrogate pair; repair the text"
                )
