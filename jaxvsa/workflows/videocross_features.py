"""Features that `prepare videocross` stores: of videos from files, of questions by an encoder."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import DTYPES, Manifest, file_name, read_npy_folder
from jaxvsa.data.scored import RewardRows
from jaxvsa.data.videocross import VideoCross
from jaxvsa.data.videocross_files import Features

# flag -> the flag without which it says nothing
_NEEDS = {
    "encoder": "features", "suffix": "features", "missing": "features", "rows": "features",
    "question_len": "text_encoder", "question_rows": "text_encoder",
}  # fmt: skip
_DEFAULTS = {
    "suffix": ".npy", "missing": "error", "dtype": "float16", "question_len": 64,
    "question_rows": "mean",
}  # fmt: skip


def add_features(parser: argparse.ArgumentParser) -> None:
    """The flags, all optional; one that is not given is None."""
    add = parser.add_argument_group("features, stored in the folder").add_argument
    add("--features", type=Path, metavar="DIR",
        help="of videos: a .npy file (rows, width) each, see below")  # fmt: skip
    add("--encoder", help="name of the network that they come from")
    add("--suffix", help="end of the files' names (.npy)")
    add("--missing", choices=("error", "drop"), help="on videos without a file (error)")
    add("--rows", type=_positive, help="most rows kept of a video, evenly chosen (all)")
    add("--text-encoder", type=Path, metavar="DIR",
        help="of questions: the folder of a RoBERTa or BERT, which is run over them")  # fmt: skip
    add("--question-len", type=_positive, metavar="TOKENS", help="longest question (64)")
    add("--question-rows", choices=("mean", "token"),
        help="kept of a question: the mean of its tokens, or a row for each (mean)")  # fmt: skip
    add("--dtype", choices=tuple(DTYPES), help="type in which features are stored (float16)")


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What a command line says of features.

    Chosen: a question keeps the mean of its tokens, which is all that a model with
    `model.pool_text` "mean", the default, reads; a row for each token takes some twenty times the
    space. Training reads rows of tokens as well, and takes the mean itself.

    Attributes:
        features: folder of the videos' files, None without.
        encoder: name of the network that made them.
        suffix: end of the files' names.
        missing: "error", or "drop" videos without a file.
        rows: most rows of a video, None for all.
        text_encoder: folder of the encoder of questions, None without.
        question_len: most tokens of a question.
        question_rows: "mean" or "token".
        dtype: stored type.
    """

    features: Path | None
    encoder: str | None
    suffix: str
    missing: str
    rows: int | None
    text_encoder: Path | None
    question_len: int
    question_rows: Any
    dtype: str

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Given:
        """From arguments by name, None where a flag is absent.

        Raises:
            UserError: no encoder of the videos' features; a flag without the one it belongs to.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name, other in _NEEDS.items():
            if args[name] is not None and args[other] is None:
                raise UserError(f"{_flag(name)} needs {_flag(other)}; give both or neither")
        if args["features"] is not None and args["encoder"] is None:
            raise UserError("--features needs --encoder: the name of the network they come from")
        if args["dtype"] is not None and args["features"] is args["text_encoder"] is None:
            raise UserError("--dtype needs --features or --text-encoder; without, none are stored")
        given = {name: args[name] for name in names if args[name] is not None}
        return cls(**{**dict.fromkeys(names), **_DEFAULTS, **given})

    def of_videos(self, parts: Sequence[RewardRows]) -> tuple[list[RewardRows], Features | None]:
        """The rows whose videos have features, and these.

        Raises:
            UserError: what `with_features` and `read_npy_folder` refuse.
        """
        if self.features is None or self.encoder is None:
            return list(parts), None
        kept = with_features(parts, self.features, self.suffix, self.missing)
        videos = list({video.video_id for part in kept for video in part.videos})
        table, _ = read_npy_folder(
            self.features, videos, self.suffix, self.rows, dtype=self.dtype, stems=_stems(parts),
            even=True,
        )  # fmt: skip
        return kept, (table, table.describe(name_rows(self.encoder, self.rows)))

    def open_encoder(self) -> Any:
        """The `QuestionEncoder`, None without.

        Raises:
            UserError: what it refuses.
        """
        if self.text_encoder is None:
            return None
        from jaxvsa.workflows.question_features import QuestionEncoder  # with JAX

        return QuestionEncoder.open(self.text_encoder, self.question_len)

    def of_questions(
        self, encoder: Any, cross: VideoCross, console: Console
    ) -> tuple[VideoCross, Features | None]:
        """The features of all questions; the card counts those that were cut.

        Raises:
            UserError: what `encode_questions` refuses.
        """
        if encoder is None:
            return cross, None
        from jaxvsa.workflows.question_features import encode_questions

        table, manifest, cut = encode_questions(
            encoder, cross.questions, self.question_rows, self.dtype, console
        )
        card = {**cross.card, "questions_cut": cut}
        return dataclasses.replace(cross, card=card), (table, manifest)


def name_rows(encoder: str, rows: int | None) -> str:
    """What features are made by, if at most `rows` rows of a video were kept."""
    return encoder if rows is None else f"{encoder}, {rows} rows at most"


def most_rows(name: str) -> int | None:
    """The limit that `name_rows` wrote into a name; None without one."""
    found = re.fullmatch(r".*, (\d+) rows at most", name)
    return int(found[1]) if found else None


def with_features(
    parts: Sequence[RewardRows], folder: Path, suffix: str = ".npy", missing: str = "error"
) -> list[RewardRows]:
    """The rows whose videos have a feature file, `feature_key` or the id with `suffix`.

    Args:
        parts: of the readers.
        folder: of the files.
        suffix: end of their names.
        missing: "drop" leaves videos and their votes out and counts them as "missing_features" and
            "votes_missing_features"; "error" stops.

    Raises:
        UserError: no such folder; a video without a file; or all of them.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --features is the folder of feature files")
    stems = _stems(parts)
    files = {name: file_name(stem, suffix) for name, stem in stems.items()}
    known = {name for name, file in files.items() if os.path.isfile(folder / file)}
    absent = sorted(stems.keys() - known)
    if absent and (missing == "error" or not known):
        cure = "extract them, or leave them out with --missing drop"
        raise UserError(
            f"{folder}: {len(absent)} of {len(stems)} videos have no feature file, first: "
            f"{', '.join(files[name] for name in absent[:5])}; "
            f"{cure if known else 'check --features and --suffix'}"
        )
    found = []
    for part in parts:
        videos = tuple(video for video in part.videos if video.video_id in known)
        votes = tuple(vote for vote in part.votes if {vote.video_a, vote.video_b} <= known)
        report = {
            **part.report,
            "missing_features": len(part.videos) - len(videos),
            "votes_missing_features": len(part.votes) - len(votes),
        }
        found.append(RewardRows(videos, votes, part.benchmark, report))
    return found


def feature_notes(cross: VideoCross, *stored: Features | None) -> list[tuple[str, str]]:
    """What was stored, for the terminal: a name and a text each."""
    names = ("features of videos", "features of questions")
    lines = [(name, describe(found[1])) for name, found in zip(names, stored, strict=True) if found]
    if "questions_cut" in cross.card:
        cut = cross.card["questions_cut"]
        lines.append(("questions that lost their end", f"{cut:,} of {len(cross.questions):,}"))
    return lines


def describe(manifest: Manifest) -> str:
    """One line about features."""
    return (
        f"{manifest.encoder}: {manifest.num_rows:,} rows of {manifest.width} {manifest.dtype}, "
        f"{manifest.num_videos:,} entries"
    )


def _stems(parts: Sequence[RewardRows]) -> dict[str, str]:
    """Id of each video -> name of its features; a row that gives a key counts before others."""
    stems: dict[str, str] = {}
    for video in (video for part in parts for video in part.videos):
        if video.feature_key or video.video_id not in stems:
            stems[video.video_id] = video.feature_key or video.video_id
    return stems


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return int(text)
