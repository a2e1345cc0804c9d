"""UR-FUNNY v2: humour in TED talks, from three pickles of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError
from jaxvsa.core.pickles import read_pickle
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.questions import QuestionSet, VideoQuestion
from jaxvsa.data.release import Row

FOLDS, LANGUAGE, LABELS = "data_folds.pkl", "language_sdk.pkl", "humor_label_sdk.pkl"

# Chosen: the wording, after MTransLLAMA Fig. 5; the paper shows the prompt of MUStARD only.
QUESTION = "Pair with the past dialogue and video, is it humorous when < {line} >?"
ANSWERS = ("No! it is not humorous.", "Yes! it is humorous.")
SPEAKER = "Speaker"


def read_release(root: str | Path) -> QuestionSet:
    """Reads the punchlines under `root`; `label` is 1 for humorous, `options` are `ANSWERS`.

    The pickles may hold plain containers, text and numbers; anything else is refused, not run.

    Source: UR-FUNNY v2 release (Hasan et al., 2019); MTransLLAMA specification, section 4:
    7614, 980 and 994 punchlines.
    Chosen: a talk has one speaker, who is called `SPEAKER` in the dialogue lines and not named in
    the question. Blank context sentences are dropped.

    Args:
        root: folder with `data_folds.pkl`, `language_sdk.pkl` and `humor_label_sdk.pkl`.

    Returns:
        train, dev and test, each in the order of its fold. The report counts per split the
        "questions" and the "positives", and "unused" entries that no fold names.

    Raises:
        UserError: a file is missing, damaged or names a class; an id is in two folds or in a fold
            but not in the other files; a field or label is missing or wrong.
    """
    root = Path(root)
    folds = Row.of(read_pickle(root / FOLDS), str(root / FOLDS))
    language = Row.of(read_pickle(root / LANGUAGE), str(root / LANGUAGE))
    labels = Row.of(read_pickle(root / LABELS), str(root / LABELS))
    questions: dict[str, VideoQuestion] = {}
    for split in SPLITS:
        for key in folds.items(split):
            name = _name(key, f"{folds.where}, field '{split}'")
            if name in questions:
                raise UserError(
                    f"{folds.where}: id {name} is in '{questions[name].split}' and in '{split}'; "
                    "each belongs once to one fold"
                )
            for table in (language, labels):
                if key not in table:
                    raise UserError(
                        f"{table.where}: id {name} of {FOLDS} is not there; "
                        "all files must be of one release"
                    )
            row = Row.of(language.values[key], f"{language.where}: id {name}")
            questions[name] = _question(name, row, _label(labels, key, name), split)
    found = tuple(questions.values())
    report: dict[str, Any] = {
        split: {
            "questions": sum(question.split == split for question in found),
            "positives": sum(question.split == split and question.label == 1 for question in found),
        }
        for split in SPLITS
    }
    return QuestionSet(found, {**report, "unused": len(language.values) - len(found)})


def _name(key: Any, where: str) -> str:
    """The id as text; the release's videos are named by it."""
    if isinstance(key, bool) or not isinstance(key, int | str) or not str(key).strip():
        raise UserError(f"{where}: an id is neither text nor a number; download it again")
    return str(key)


def _label(labels: Row, key: Any, name: str) -> int:
    label = labels.values[key]
    if isinstance(label, bool) or label not in (0, 1):
        raise UserError(f"{labels.where}: id {name} has no label 0 or 1; download it again")
    return int(label)


def _question(name: str, row: Row, label: int, split: str) -> VideoQuestion:
    line = " ".join(row.text("punchline_sentence").split())
    context = [
        text for text in row.items("context_sentences") if not isinstance(text, str) or text.strip()
    ]
    sentences = Row({"context_sentences": context}, row.where).texts("context_sentences")
    return VideoQuestion(
        id=name,
        video=f"{name}.mp4",
        question=QUESTION.format(line=line),
        answer=ANSWERS[label],
        context=tuple((SPEAKER, text) for text in sentences),
        options=ANSWERS,
        label=label,
        split=split,
    )
