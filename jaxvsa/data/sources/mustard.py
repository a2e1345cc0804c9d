"""MUStARD: sarcasm in sitcom dialogues, the release's two files and four ways to split them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.core.pickles import StoredArray, read_pickle
from jaxvsa.data.questions import QuestionSet, VideoQuestion, spoken_line
from jaxvsa.data.release import CURE, Row, parse_json, read_release_file

ANNOTATIONS = "sarcasm_data.json"
FOLD_FILES = ("split_indices.json", "split_indices.p")
NUM_FOLDS = 5

# Source: MTransLLAMA Fig. 5. Chosen: the negative answer, which the paper does not give.
QUESTION = "Pair with the past dialogue and video, is it sarcastic when < {line} >?"
ANSWERS = ("No! it is not sarcastic.", "Yes! it is sarcastic.")

FOLDED = ("released5", "stratified5")

Cut = list[str]  # the split of each utterance


def read_release(
    root: str | Path,
    split: str = "released5",
    *,
    fold: int | None = None,
    seed: int = 0,
    anonymize_speakers: bool = False,
) -> QuestionSet:
    """Reads the annotations under `root`; `label` is 1 for sarcastic, `options` are `ANSWERS`.

    Splits:
        released5: the five folds of the release, train and test. They are not balanced: 74, 71,
            63, 76 and 61 of 138 test utterances are sarcastic.
        stratified5: five random folds with the same share of both classes, 276/276 and 69/69, the
            statistics of MTransLLAMA Table I.
        mustard_star: random train, dev and test with 207/207, 69/69 and 69/69. The paper's own
            partition is not published.
        speaker_independent: test is Friends, train the other shows, as the published code has it.

    Source: MUStARD release (Castro et al., 2019); MTransLLAMA specification, section 4.
    Chosen: speakers are written with a capital, as in Fig. 5. `video` is the file in the release's
    archive of clips. `extra` keeps "speaker" (as published, also with `anonymize_speakers`) and
    "show".

    Args:
        root: folder with `sarcasm_data.json`; for released5 also `split_indices.json` or the
            release's own `split_indices.p`.
        split: see above.
        fold: 0 to 4 for the two splits in folds, None for the others.
        seed: of the two random splits.
        anonymize_speakers: speakers are called "Speaker 1", "Speaker 2", ... in order of
            appearance within each dialogue; names that are mentioned in the texts stay.

    Returns:
        The questions in the order of the file. The report counts per split the "questions" and
        the "positives".

    Raises:
        UserError: file, field, split or fold is missing or wrong.
    """
    root = Path(root)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{nearest(split, SPLITS)}; known: {list(SPLITS)}")
    _check_fold(split, fold)
    path = root / ANNOTATIONS
    rows = parse_json(read_release_file(path), path)
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path}: expected an object of utterances by clip; download it again")
    questions = [
        _question(key, Row.of(row, f"{path}: key '{key}'"), anonymize_speakers)
        for key, row in rows.items()
    ]
    cut = SPLITS[split](root, questions, fold or 0, seed)
    placed = tuple(
        dataclasses.replace(question, split=name, fold=fold)
        for question, name in zip(questions, cut, strict=True)
    )
    return QuestionSet(placed, {"split": split, "fold": fold, "seed": seed, **_count(placed)})


def _check_fold(split: str, fold: int | None) -> None:
    if split not in FOLDED and fold is not None:
        raise UserError(f"split '{split}' has no folds; leave fold {fold} out")
    if split in FOLDED and (type(fold) is not int or not 0 <= fold < NUM_FOLDS):
        raise UserError(f"split '{split}' has folds 0 to {NUM_FOLDS - 1}, not {fold}; choose one")


def _question(key: str, row: Row, anonymize_speakers: bool) -> VideoQuestion:
    """The record of one clip; its split is set later."""
    texts, speakers = row.texts("context"), row.texts("context_speakers")
    if len(texts) != len(speakers):
        raise UserError(
            f"{row.where}: {len(texts)} in 'context' but {len(speakers)} in 'context_speakers'; "
            "every line has one speaker"
        )
    speaker, label = row.text("speaker"), int(row.flag("sarcasm"))
    names = _names([*speakers, speaker], anonymize_speakers)
    line = spoken_line(names[speaker], row.text("utterance"))
    return VideoQuestion(
        id=key,
        video=f"utterances_final/{key}.mp4",
        question=QUESTION.format(line=line),
        answer=ANSWERS[label],
        context=tuple((names[who], text) for who, text in zip(speakers, texts, strict=True)),
        options=ANSWERS,
        label=label,
        extra={"speaker": speaker, "show": row.text("show")},
    )


def _names(speakers: Sequence[str], anonymous: bool) -> dict[str, str]:
    """Published name -> name in the text."""
    order = dict.fromkeys(speakers)
    if anonymous:
        return {name: f"Speaker {number}" for number, name in enumerate(order, 1)}
    return {name: name.title() for name in order}


def _count(questions: Sequence[VideoQuestion]) -> dict[str, dict[str, int]]:
    """Per split: questions, and sarcastic ones."""
    counts: dict[str, dict[str, int]] = {}
    for question in questions:
        found = counts.setdefault(question.split, {"questions": 0, "positives": 0})
        found["questions"] += 1
        found["positives"] += int(question.label == 1)
    return counts


def _released(root: Path, questions: Sequence[VideoQuestion], fold: int, seed: int) -> Cut:
    """The release's folds."""
    path, folds = read_folds(root)
    whole = set(range(len(questions)))
    for number, (train, test) in enumerate(folds):
        if {*train, *test} != whole or len(train) + len(test) != len(whole):
            raise UserError(
                f"{path}: fold {number} does not place each of the {len(whole)} utterances once; "
                f"it and {ANNOTATIONS} must be of one release"
            )
    if sum(len(test) for _, test in folds) != len(whole):
        raise UserError(f"{path}: an utterance is in two test folds; download it again")
    tested = set(folds[fold][1])
    return ["test" if position in tested else "train" for position in range(len(questions))]


def read_folds(root: str | Path) -> tuple[Path, list[tuple[list[int], list[int]]]]:
    """The release's five folds as (train, test) positions in `sarcasm_data.json`.

    `split_indices.json` is read if it is there, otherwise `split_indices.p`, which Python 2 wrote.

    Returns:
        The file that was read, and its folds.

    Raises:
        UserError: neither file is there, or it holds anything else than five pairs of positions.
    """
    paths = [Path(root) / name for name in FOLD_FILES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{paths[0]}: no such file, nor {FOLD_FILES[1]} beside it; {CURE}")
    try:
        if path.suffix == ".json":
            content = parse_json(read_release_file(path), path)
            pairs = [(fold["train"], fold["test"]) for fold in content["folds"]]
        else:
            pairs = [
                (train, test) for train, test in read_pickle(path, arrays=True, encoding="latin1")
            ]
        folds = [(_positions(train), _positions(test)) for train, test in pairs]
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        folds = []
    if len(folds) != NUM_FOLDS:
        raise UserError(
            f"{path}: expected {NUM_FOLDS} folds with 'train' and 'test' positions; "
            "download it again"
        )
    return path, folds


def _positions(values: Any) -> list[int]:
    """A list of whole numbers."""
    found: Any = values.values.tolist() if isinstance(values, StoredArray) else values
    if not isinstance(found, list) or any(type(value) is not int for value in found):
        raise TypeError("no positions")
    return found


def _parts(questions: Sequence[VideoQuestion], seed: int) -> list[int]:
    """Random part, 0 to 4, of each question; every part has the same share of both classes."""
    rng = np.random.default_rng(seed)
    label_b = np.array([question.label for question in questions])
    part_b = np.zeros(len(questions), np.int64)
    for label in range(len(ANSWERS)):
        at_n = rng.permutation(np.flatnonzero(label_b == label))
        if len(at_n) < NUM_FOLDS:
            raise UserError(
                f"only {len(at_n)} utterances answer '{ANSWERS[label]}'; a stratified split needs "
                f"{NUM_FOLDS} of each kind"
            )
        for part, chosen_n in enumerate(np.array_split(at_n, NUM_FOLDS)):
            part_b[chosen_n] = part
    return part_b.tolist()


def _stratified(root: Path, questions: Sequence[VideoQuestion], fold: int, seed: int) -> Cut:
    return ["test" if part == fold else "train" for part in _parts(questions, seed)]


def _star(root: Path, questions: Sequence[VideoQuestion], fold: int, seed: int) -> Cut:
    names = ("train", "train", "train", "dev", "test")
    return [names[part] for part in _parts(questions, seed)]


def _by_speaker(root: Path, questions: Sequence[VideoQuestion], fold: int, seed: int) -> Cut:
    cut = ["test" if question.extra["show"] == "FRIENDS" else "train" for question in questions]
    if len(set(cut)) < 2:
        raise UserError(
            f"{root / ANNOTATIONS}: field 'show' is FRIENDS everywhere or nowhere; "
            "split speaker_independent needs both"
        )
    return cut


SPLITS: Mapping[str, Callable[[Path, Sequence[VideoQuestion], int, int], Cut]] = {
    "released5": _released,
    "stratified5": _stratified,
    "mustard_star": _star,
    "speaker_independent": _by_speaker,
}
