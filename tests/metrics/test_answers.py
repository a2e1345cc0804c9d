"""Generated answers: what they say, and the figures by hand and beside scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from jaxvsa.metrics.answers import (
    INVALID,
    answer_measures,
    count_answers,
    mvbench_compat,
    parse_option,
    parse_yes_no,
)
from jaxvsa.metrics.confusion import Confusion

pytestmark = pytest.mark.smoke

OPTIONS = ("Yes", "A ball moves.", "no ball")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes! it is sarcastic.", 1),
        ("No! it is not sarcastic.", 0),
        ("  YES", 1),
        ("no", 0),
        ("'No', it is sarcastic", 0),
        ("!!! yes and no", 1),
        ("I say no, not yes", 0),
        ("It is not sarcastic.", 0),
        ("It is Sarcastic", 1),
        ("Not sarcastic, or sarcastic?", 0),
        ("nobody knows, yesterday", INVALID),
        ("unsarcastic", INVALID),
        ("not humorous", INVALID),
        ("", INVALID),
        ("eyes, nose; yes", 1),
    ],
)
def test_yes_and_no_by_hand(text, label):
    assert parse_yes_no(text) == label


def test_names_of_classes_can_be_chosen():
    names = {"positive": ("humorous", "funny"), "negative": ("not humorous", "not funny")}
    assert parse_yes_no("that was FUNNY", **names) == 1
    assert parse_yes_no("that was not humorous", **names) == 0
    assert parse_yes_no("sarcastic", **names) == INVALID
    assert parse_yes_no("(c++)", positive=("(c",), negative=()) == INVALID  # names are no patterns


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("(B) A ball moves.", 1),
        ("(B", 1),
        ("B) A ball", 1),
        (" C.", 2),
        ("A", 0),
        ("Best option:(C) no ball", 2),
        ("Best option: (A", 0),
        ("Answer: (B) A ball moves.", 1),
        ("Answer: B", 1),
        ("The answer is (C).", 2),
        ("a ball moves", 1),
        ("A ball  MOVES.", 1),
        ("yes.", 0),
        ("Answer: no ball", 2),
        ("(D) something", INVALID),
        ("E", INVALID),
        ("A ball", INVALID),
        ("ball", INVALID),
        ("b", INVALID),
        ("", INVALID),
    ],
)
def test_options_by_hand(text, index):
    assert parse_option(text, OPTIONS) == index


def test_every_written_option_is_found():
    for index, letter in enumerate("ABC"):
        for form in ("({})", "{})", "{}.", "({}) {}", "{}: {}"):
            assert parse_option(form.format(letter, OPTIONS[index]), OPTIONS) == index
        assert parse_option(OPTIONS[index], OPTIONS) == index


def test_an_ambiguous_text_is_invalid():
    assert parse_option("yes", ("Yes", "yes.")) == INVALID


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("(B) red", True),
        ("(b) blue", True),
        ("(B.", True),
        ("(B)\n(A)", True),
        ("(B)-red", True),
        ("(A) red", False),
        ("red", False),
        ("(", True),
        ("", True),
        ("B", True),
        ("(A)(B)", True),
    ],
)
def test_the_lenient_mode_compares_first_words(text, right):
    assert mvbench_compat(text, "(B) red") is right


def test_figures_by_hand():
    # true 1 1 1 0 0 and one without a label; answers 1 0 invalid 0 1.
    confusion = count_answers(np.array([1, 1, 1, 0, 0, -1]), np.array([1, 0, -1, 0, 1, 1]), 2)
    np.testing.assert_array_equal(confusion.counts_cc, [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    figures = answer_measures(confusion, positive=1)
    assert figures == pytest.approx(
        {
            "accuracy": 2 / 5,
            "invalid_rate": 1 / 5,
            "precision": 1 / 2,
            "recall": 1 / 3,
            "f1": 2 / 5,
            "weighted_precision": 1 / 2,
            "weighted_recall": 2 / 5,
            "weighted_f1": (2 * 1 / 2 + 3 * 2 / 5) / 5,
        }
    )
    assert set(answer_measures(confusion)) == {
        "accuracy", "invalid_rate", "weighted_precision", "weighted_recall", "weighted_f1",
    }  # fmt: skip


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    label_b, answer_b = rng.integers(3, size=200), rng.integers(-1, 3, size=200)
    figures = answer_measures(count_answers(label_b, answer_b, 3), positive=2)
    want = precision_recall_fscore_support(
        label_b, answer_b, labels=[0, 1, 2], average="weighted", zero_division=0
    )
    for name, value in zip(("precision", "recall", "f1"), want, strict=False):
        assert figures[f"weighted_{name}"] == pytest.approx(value)
    want = precision_recall_fscore_support(label_b, answer_b, labels=[2], zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), want, strict=False):
        assert figures[name] == pytest.approx(value[0])
    assert figures["accuracy"] == pytest.approx(np.mean(label_b == answer_b))
    assert figures["invalid_rate"] == pytest.approx(np.mean(answer_b == INVALID))


def test_batches_add_up():
    label_b, answer_b = np.array([0, 1, 1, 0]), np.array([0, -1, 1, 1])
    parts = [count_answers(label_b[at], answer_b[at], 2) for at in (slice(0, 1), slice(1, 4))]
    merged = Confusion.empty(3).merge(parts[0]).merge(parts[1])
    assert answer_measures(merged, 1) == answer_measures(count_answers(label_b, answer_b, 2), 1)


def test_no_answers_give_zeros():
    assert set(answer_measures(Confusion.empty(3), positive=1).values()) == {0.0}


@pytest.mark.parametrize(
    ("label", "answer"), [([0, 1], [0]), ([0], [2]), ([2], [0]), ([0], [-2]), ([[0]], [[0]])]
)
def test_arrays_that_do_not_fit_are_refused(label, answer):
    with pytest.raises(ValueError, match=r"differ|classes run from 0 to 1"):
        count_answers(np.array(label), np.array(answer), 2)
