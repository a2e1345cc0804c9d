"""Classes read from generated answers, and their figures; an answer without a class is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np

from jaxvsa.metrics.confusion import Confusion, measures

INVALID = -1


def parse_yes_no(
    text: str,
    positive: Sequence[str] = ("sarcastic",),
    negative: Sequence[str] = ("not sarcastic",),
) -> int:
    """1 for yes, 0 for no, `INVALID` for neither; upper and lower case are the same.

    In this order: yes or no as the first word; the first yes or no anywhere; a name of the
    negative class; a name of the positive class.

    Source: MTransLLAMA specification, section 4, MUStARD, "Label from text".

    Args:
        text: the generated answer.
        positive: names of class 1, found as whole words.
        negative: names of class 0, looked for first, since they may contain the others.
    """
    text = text.lower().strip()
    found = re.match(r"\W*(yes|no)\b", text) or re.search(r"\b(yes|no)\b", text)
    if found:
        return int(found[1] == "yes")
    for label, names in ((0, negative), (1, positive)):
        if any(re.search(rf"\b{re.escape(name.lower())}\b", text) for name in names):
            return label
    return INVALID


def parse_option(text: str, options: Sequence[str]) -> int:
    """Index of the option that an answer names, or `INVALID`.

    In this order: a letter at the beginning, as `(B)`, `B)`, `B.`, `B:`, `(B` or `B` alone; the
    whole text of exactly one option, or of that option behind words like "Best option:"; a letter
    in parentheses anywhere. A letter beyond the options is invalid. Letters are upper case; the
    text of an option may differ in case and in a final full stop.

    Source: MTransLLAMA specification, section 4, MVBench: `\\(?([A-E])\\)?`, then the text.
    Deviation: a letter that begins a sentence, as in "A ball moves", is no option.

    Args:
        text: the generated answer, with or without the prefix that it began with.
        options: at most 26 texts.
    """
    text = re.sub(r"^\s*(best option|answer|option)\s*:\s*", "", text, flags=re.IGNORECASE).strip()
    found = re.match(r"\(\s*([A-Z])\b|([A-Z])\s*(?:[).:,]|$)", text)
    if found is None:
        same = [index for index, option in enumerate(options) if _plain(option) == _plain(text)]
        if len(same) == 1:
            return same[0]
        found = re.search(r"\(([A-Z])()\)", text)
    index = ascii_uppercase.index(found[1] or found[2]) if found else len(options)
    return index if index < len(options) else INVALID


def _plain(text: str) -> str:
    """Lower case, single spaces, no final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def mvbench_compat(text: str, answer: str) -> bool:
    """Whether MVBench's own evaluation counts an answer as right: the lenient mode.

    The first words, split at single spaces and in lower case, are compared: one must contain the
    other, full stops of the generated one aside.

    Source: MVBench's published evaluation, which asks with the answer begun by "(" and puts that
    before the generated text.
    Kept: a first word that is part of "(b)", such as "(" or nothing at all, is right.

    Args:
        text: the generated answer, "(" included; only its first line is read.
        answer: the right one, `(B) text`.
    """
    got = text.strip().partition("\n")[0].lower().split(" ")[0]
    want = answer.lower().split(" ")[0]
    return got.replace(".", "") in want or want in got


def count_answers(label_b: np.ndarray, predicted_b: np.ndarray, num_classes: int) -> Confusion:
    """Confusion counts with one more column, the last, for invalid answers.

    Args:
        label_b: int class index; -1 = unlabelled, which counts nowhere.
        predicted_b: int class index or `INVALID`.
        num_classes: without the one for invalid answers.

    Raises:
        ValueError: the arrays differ in length, or hold a class that does not exist.
    """
    label_b, predicted_b = np.asarray(label_b), np.asarray(predicted_b)
    if label_b.shape != predicted_b.shape or label_b.ndim != 1:
        raise ValueError(f"labels {label_b.shape} and answers {predicted_b.shape} differ")
    both_n = np.concatenate([label_b, predicted_b])
    if both_n.size and not (both_n.min() >= -1 and both_n.max() < num_classes):
        raise ValueError(f"classes run from 0 to {num_classes - 1}, or are -1")
    column_b = np.where(predicted_b == INVALID, num_classes, predicted_b)
    return Confusion.from_labels(label_b, column_b, num_classes + 1)


def answer_measures(confusion: Confusion, positive: int | None = None) -> dict[str, float]:
    """Figures of generated answers, each 0 to 1; zero divided by zero is 0.

    Source: accuracy is that of MTransLLAMA Tables III to V, precision and recall of the positive
    class those of its UR-FUNNY columns; the weighted figures are the "weighted avg" of
    scikit-learn's report, which MUStARD's published code prints.

    Args:
        confusion: from `count_answers`, merged over batches.
        positive: class of precision, recall and F1; None leaves these three out.

    Returns:
        "accuracy" (an invalid answer is wrong), "invalid_rate", "weighted_precision",
        "weighted_recall", "weighted_f1"; with `positive` also "precision", "recall", "f1".
    """
    counts_cc = np.asarray(confusion.counts_cc, np.int64)
    values = measures(counts_cc)
    total = max(int(counts_cc.sum()), 1)
    figures = {
        "accuracy": float(values["accuracy"]),
        "invalid_rate": float(counts_cc[:, -1].sum() / total),
    }
    for name in ("precision", "recall", "f1"):
        figures[f"weighted_{name}"] = float(values[f"weighted_{name}"])
        if positive is not None:
            figures[name] = float(values[f"{name}_c"][positive])
    return figures
