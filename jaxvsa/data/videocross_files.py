"""A folder of VideoCross: written, read back, searched for leaks.

DIR/card.json     what there is, and what was left out and why
DIR/card.md       the same for the eye
DIR/videos.jsonl  a video a line, sorted by id, with its group of prompts
DIR/pairs.jsonl   a pair a line, train first
DIR/videos/       if given: features of the videos, as in prepared data
DIR/questions/    if given: features of the questions, likewise
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import digest_bytes, read_json, staged_folder, write_json
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.features import FeatureTable, Manifest
from jaxvsa.data.pairs import KINDS, Pairs
from jaxvsa.data.prompts import near_duplicates, prompt_key
from jaxvsa.data.scored import ANSWERS, DIMENSIONS, RewardRow, ScoredVideo, read_objects
from jaxvsa.data.tables import read_table, write_table
from jaxvsa.data.videocross import VideoCross

FORMAT = 1
KEYS = {"videos": "video", "questions": "question"}
"""Stored features -> field of a record that says whose they are."""
_NAMES = {answer: name for name, answer in ANSWERS.items()}
_BLOCK = 10_000


Features = tuple[FeatureTable, Manifest]


@dataclasses.dataclass(frozen=True, eq=False)
class OpenVideoCross(VideoCross):
    """A VideoCross in a folder, with the features that were stored beside it.

    Attributes:
        root: the folder.
        stored: "videos" and "questions", as far as they are there -> manifest and files.
    """

    root: Path
    stored: Mapping[str, Mapping[str, Any]]

    @property
    def manifest(self) -> dict[str, Any] | None:
        """`Manifest.to_dict()` of the features of videos; None if there are none."""
        return self._manifest("videos")

    @property
    def question_manifest(self) -> dict[str, Any] | None:
        """`Manifest.to_dict()` of the features of questions; None if there are none."""
        return self._manifest("questions")

    def features(self) -> FeatureTable | None:
        """Features by `ScoredVideo.video_id`, None if prepared without; read once and kept.

        Raises:
            UserError: a record file is missing, damaged or of another digest.
        """
        return self._features

    def question_features(self) -> FeatureTable | None:
        """Features by text of the question, None if prepared without; read once and kept.

        Raises:
            UserError: a record file is missing, damaged or of another digest.
        """
        return self._question_features

    @functools.cached_property
    def digest(self) -> str:
        """blake2b over pairs, their order and what they refer to; not over the features."""
        columns = (getattr(self.pairs, name) for name in Pairs.__dataclass_fields__)
        numbers = [np.ascontiguousarray(column).tobytes() for column in columns]
        lists = (self.sources, self.questions, self.prompts, self.groups, self.ids)
        texts = json.dumps([*lists, [video.to_row() for video in self.videos]], sort_keys=True)
        return digest_bytes(texts.encode(), *numbers)

    def _manifest(self, name: str) -> dict[str, Any] | None:
        return dict(self.stored[name]["manifest"]) if name in self.stored else None

    @functools.cached_property
    def _features(self) -> FeatureTable | None:
        return self._read("videos")

    @functools.cached_property
    def _question_features(self) -> FeatureTable | None:
        return self._read("questions")

    def _read(self, name: str) -> FeatureTable | None:
        if name not in self.stored:
            return None
        manifest = Manifest.from_dict(self.stored[name]["manifest"])
        files = self.stored[name]["files"]
        return read_table(self.root, name, files, manifest, KEYS[name], "card.json")


def write_videocross(
    out: str | Path,
    cross: VideoCross,
    features: Features | None = None,
    question_features: Features | None = None,
) -> None:
    """Writes `out`, a new folder that appears only when it is complete.

    Args:
        out: the folder; must not exist, or be empty.
        cross: what to write.
        features: by `ScoredVideo.video_id`, with their manifest.
        question_features: by text of the question, with their manifest.

    Raises:
        UserError: `out` is in use or cannot be written; a video or question has no features.
    """
    videos = [video.video_id for video in cross.videos]
    given = (("videos", features, videos), ("questions", question_features, cross.questions))
    for name, found, entries in given:
        if found is not None:
            found[0].rows(entries, name)
    with staged_folder(out) as folder:
        _write_lines(folder / "videos.jsonl", _video_lines(cross))
        _write_lines(folder / "pairs.jsonl", _pair_lines(cross))
        stored = {}
        for name, found, _ in given:
            if found is not None:
                table, manifest = found
                text = f"Features of {name}, rows unpadded."
                files = write_table(folder, name, text, table, KEYS[name])
                stored[name] = {"manifest": manifest.to_dict(), "files": files}
        card = {**cross.card, "features": stored} if stored else cross.card
        (folder / "card.md").write_text(card_text(card), encoding="utf-8")
        write_json(folder / "card.json", {"format": FORMAT, **card})


def open_videocross(root: str | Path) -> OpenVideoCross:
    """Reads a folder that `write_videocross` wrote; its features when they are asked for.

    Raises:
        UserError: no such folder, or another format; a file or field is missing or wrong; other
            numbers of pairs or videos than the card's; a group of prompts or a video in two splits.
    """
    root = Path(root)
    if not (root / "card.json").is_file():
        why = "it has no card.json" if root.is_dir() else "there is no such folder"
        raise UserError(
            f"{root} is no VideoCross: {why}; check the path, or write it with python -m "
            "jaxvsa.prepare videocross"
        )
    card = read_json(root / "card.json", "the data card")
    if not isinstance(card, dict) or card.pop("format", None) != FORMAT:
        raise UserError(f"{root}/card.json: not of format {FORMAT}; prepare again")
    stored = card.pop("features", {})
    videos = [_read_video(row) for row in read_objects(root / "videos.jsonl")]
    reader = _Reader({video.video_id: g for g, video in enumerate(videos)})
    rows = [reader.row(row) for row in read_objects(root / "pairs.jsonl")]
    for name, count in (("videos", len(videos)), ("pairs", len(rows))):
        if card.get(name) != count:
            raise UserError(
                f"{root}/{name}.jsonl has {count:,} rows, but card.json counts {card.get(name)}; "
                "the file is cut or was changed: prepare again"
            )
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    names = list(Pairs.__dataclass_fields__)
    pairs = Pairs.of(len(rows), **dict(zip(names, columns, strict=True)))
    lists = (reader.sources, reader.questions, reader.prompts, reader.groups.values())
    sources, questions, prompts, groups = (tuple(one) for one in lists)
    return OpenVideoCross(
        tuple(videos), sources, questions, prompts, groups, pairs, tuple(reader.ids), card,
        root, stored,
    )  # fmt: skip


def count_leaks(root: str | Path) -> dict[str, int]:
    """What two splits share, searched anew in the files of a folder.

    Source: A5, step 8.

    Returns:
        "prompt": prompts of dev and test with an equal or near-duplicate prompt (`NEAR`) in a split
        before theirs; "group", "video", "hash", "pair": names of groups of prompts, ids of videos,
        hashes of files and ids of pairs that are in more than one split.

    Raises:
        UserError: a file or field is missing or wrong.
    """
    root = Path(root)
    videos = root / "videos.jsonl"
    hashes = {row.text("video_id"): row.maybe("hash") for row in read_objects(videos)}
    seen: dict[str, dict[str, int]] = {
        name: {} for name in ("prompt", "group", "video", "hash", "pair")
    }
    for row in read_objects(root / "pairs.jsonl"):
        bit = 1 << row.choice("split", _SPLITS)
        _mark(seen["pair"], row.text("pair_id"), bit)
        _mark(seen["group"], row.text("prompt_group"), bit)
        for side in "ab":
            name = row.text(f"video_{side}")
            _mark(seen["video"], name, bit)
            _mark(seen["prompt"], row.text(f"prompt_{side}"), bit)
            _mark(seen["group"], row.maybe(f"group_{side}"), bit)
            _mark(seen["hash"], hashes.get(name), bit)
    counts = {
        name: sum(bits & (bits - 1) > 0 for bits in found.values()) for name, found in seen.items()
    }
    return {**counts, "prompt": count_prompt_leaks(seen["prompt"])}


def count_prompt_leaks(splits: Mapping[str, int]) -> int:
    """Prompts with an equal or near-duplicate prompt in a split before theirs.

    Args:
        splits: prompt -> bits of the splits that it is in: 1 train, 2 dev, 4 test.
    """
    keys: dict[str, int] = {}
    for prompt, bits in splits.items():
        _mark(keys, prompt_key(prompt), bits)
    own = list(keys.values())
    near = list(own)
    for first, second in near_duplicates(list(keys)).tolist():
        near[first] |= own[second]
        near[second] |= own[first]
    return sum(
        any(mine & bit and around & (bit - 1) for bit in (2, 4))
        for mine, around in zip(own, near, strict=True)
    )


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    totals: Counter = Counter()
    for cell in card["counts"]:
        totals[cell["source"], cell["dimension"], cell["kind"], cell["split"]] += cell["pairs"]
    rows = [
        [*row, *(f"{totals[(*row, split)]:,}" for split in SPLITS)]
        for row in sorted({key[:3] for key in totals})
    ]
    lines = [
        "# VideoCross",
        "",
        f"{card['pairs']:,} pairs of {card['videos']:,} videos; {card['prompts']:,} prompts in "
        f"{card['prompt_groups']:,} groups. Seed {card['settings']['seed']}.",
        "",
        f"A is the answer to {100 * card['a_share']:.2f} % of the decided pairs (limit 50 ± "
        f"{100 * card['a_share_limit']:.2f}); ties are {100 * card['tie_share']:.2f} % of all.",
        "",
        f"| source | dimension | kind | {' | '.join(SPLITS)} |",
        f"|---|---|---|{'---:|' * len(SPLITS)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *_feature_lines(card.get("features", {})),
        "| left out | rows |",
        "|---|---:|",
        *(f"| {reason} | {count:,} |" for reason, count in card["dropped"].items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _feature_lines(stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of the features that are stored, if there are any."""
    rows = []
    for name, found in stored.items():
        one = Manifest.from_dict(found["manifest"])
        rows.append(
            f"| {name} | {one.encoder} | {one.num_videos:,} | {one.num_rows:,} | {one.width} "
            f"{one.dtype} |"
        )
    head = ["| features of | encoder | entries | rows | values |", "|---|---|---:|---:|---|"]
    return [*head, *rows, ""] if rows else []


_SPLITS = {name: number for number, name in enumerate(SPLITS)}
_KINDS = {name: number for number, name in enumerate(KINDS)}
_DIMENSIONS = {name: number for number, name in enumerate(DIMENSIONS)}


def _mark(found: dict[str, int], name: str | None, bits: int) -> None:
    if name is not None:
        found[name] = found.get(name, 0) | bits


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    """Lines in blocks: a full disk is the operating system's error, which `staged_folder` tells."""
    with path.open("w", encoding="utf-8") as file:
        block: list[str] = []
        for line in lines:
            block.append(line)
            if len(block) == _BLOCK:
                file.write("".join(block))
                block.clear()
        file.write("".join(block))


def _video_lines(cross: VideoCross) -> Iterator[str]:
    groups = zip(cross.prompts, cross.groups, strict=True)
    key = {prompt_key(prompt): group for prompt, group in groups}
    for video in cross.videos:
        row = {**video.to_row(), "prompt_group": key[prompt_key(video.prompt)]}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _pair_lines(cross: VideoCross) -> Iterator[str]:
    """Rows of `pairs.jsonl`; every text is made JSON once."""
    videos = [_json(video.video_id) for video in cross.videos]
    questions, prompts, groups, sources = (
        [_json(text) for text in texts]
        for texts in (cross.questions, cross.prompts, cross.groups, cross.sources)
    )
    columns = (getattr(cross.pairs, name).tolist() for name in Pairs.__dataclass_fields__)
    for one, *row in zip(cross.ids, *columns, strict=True):
        question, dimension, source, kind, split, a, b, text_a, text_b, asked, answer, *rest = row
        gap, weight = rest
        yield (
            f'{{"pair_id": "{one}", "question": {questions[question]}, '
            f'"dimension": "{DIMENSIONS[dimension]}", "source": {sources[source]}, '
            f'"prompt_group": {groups[asked]}, "group_a": {groups[text_a]}, '
            f'"group_b": {groups[text_b]}, "prompt_a": {prompts[text_a]}, '
            f'"prompt_b": {prompts[text_b]}, "video_a": {videos[a]}, "video_b": {videos[b]}, '
            f'"answer": "{_NAMES[answer]}", "gap": {"null" if gap != gap else f"{gap:.6g}"}, '
            f'"weight": {weight:.6g}, "kind": "{KINDS[kind]}", "split": "{SPLITS[split]}"}}\n'
        )


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _read_video(row: RewardRow) -> ScoredVideo:
    values = {name: row.values.get(name) for name in ScoredVideo.__dataclass_fields__}
    for name in ("video_id", "source", "prompt"):
        values[name] = row.text(name)
    values["scores"] = values["scores"] or {}
    values["score_range"] = {
        name: tuple(ends) for name, ends in (values["score_range"] or {}).items()
    }
    return ScoredVideo(**values)  # type: ignore[arg-type]


class _Reader:
    """Rows of `pairs.jsonl` as numbers, and the lists that these refer to."""

    def __init__(self, videos: dict[str, int]) -> None:
        self.videos = videos
        self.sources: dict[str, int] = {}
        self.questions: dict[str, int] = {}
        self.prompts: dict[str, int] = {}
        self.groups: dict[int, str] = {}
        self.ids: list[str] = []
        self._split: dict[tuple[str, str], str] = {}

    def row(self, row: RewardRow) -> tuple[float, ...]:
        """Values of the columns of `Pairs`."""
        split, values = row.text("split"), []
        for side in "ab":
            name = row.text(f"video_{side}")
            if name not in self.videos:
                raise UserError(f"{row.where}: no video '{name}' in videos.jsonl; prepare again")
            group = row.text(f"group_{side}")
            self._one_split(row, split, ("video", name), ("group", group))
            prompt = self._place(self.prompts, row.text(f"prompt_{side}"))
            self.groups.setdefault(prompt, group)
            values.append((self.videos[name], prompt))
        (a, text_a), (b, text_b) = values
        self.ids.append(row.text("pair_id"))
        asked = text_a if self.groups[text_a] == row.text("prompt_group") else text_b
        return (
            self._place(self.questions, row.text("question")),
            row.choice("dimension", _DIMENSIONS),
            self._place(self.sources, row.text("source")),
            row.choice("kind", _KINDS),
            row.choice("split", _SPLITS),
            *(a, b, text_a, text_b, asked),
            row.choice("answer", ANSWERS),
            row.real("gap") if "gap" in row else np.nan,
            row.real("weight", low=0.0),
        )

    def _one_split(self, row: RewardRow, split: str, *names: tuple[str, str]) -> None:
        for kind, name in names:
            first = self._split.setdefault((kind, name), split)
            if first != split:
                raise UserError(
                    f"{row.where}: a pair of {split}, but its {kind} '{name}' is in {first} too; "
                    "prepare videocross --check counts such leaks"
                )

    @staticmethod
    def _place(known: dict[str, int], name: str) -> int:
        return known.setdefault(name, len(known))
