"""What a model wrote, measured: by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxvsa.data.questions import QuestionSet, VideoQuestion, lettered_options
from jaxvsa.metrics.answers import INVALID
from jaxvsa.workflows.answers import add_texts, measure_written, read_answer
from jaxvsa.workflows.prepare_questions import to_corpus

pytestmark = pytest.mark.smoke

NAMES = ("not funny", "funny")


def yes_no(number: int, label: int) -> VideoQuestion:
    options = ("No! it is not funny.", "Yes! it is funny.")
    return VideoQuestion(
        id=f"q{number}", video=f"v{number}", question="is it?", answer=options[label],
        options=options, label=label, split="test",
    )  # fmt: skip


def choice(number: int, label: int | None, texts: tuple[str, ...]) -> VideoQuestion:
    answer = lettered_options(texts)[label] if label is not None else "a red cube"
    return VideoQuestion(
        id=f"q{number}", video=f"v{number}", question="which?", answer=answer, options=texts,
        label=label, answer_prefix="Best option:(", split="test",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Yes! it is funny.", 1), ("no", 0), ("it is not funny", 0), ("well, funny", 1),
        ("", INVALID), ("maybe", INVALID),
    ],
)  # fmt: skip
def test_yes_and_no_are_read(text: str, want: int) -> None:
    assert read_answer(text, yes_no(0, 1), NAMES) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("B) a cube", 1), ("B", 1), ("(B", 1), ("A", 0), ("C) no such", INVALID),
        ("x y z", INVALID), ("", INVALID),
    ],
)  # fmt: skip
def test_letters_behind_the_prefix_are_read(text: str, want: int) -> None:
    """The prompt ends with "(", which the answer continues."""
    assert read_answer(text, choice(0, 0, ("a ball", "a cube")), ("A", "B")) == want


def test_options_that_begin_like_yes_and_no_are_read_as_options() -> None:
    asked = dataclasses.replace(choice(0, 1, ("not sure", "yellow")), answer_prefix="")
    assert read_answer("yellow", asked, ("A", "B")) == 1
    assert read_answer("Not sure.", asked, ("A", "B")) == 0
    assert read_answer("yes", asked, ("A", "B")) == INVALID
    lettered = choice(0, 1, ("no", "yes"))
    assert [read_answer(text, lettered, ("A", "B")) for text in ("B", "A) no")] == [1, 0]


def rows(*asked: VideoQuestion, task: str = "fun", names: tuple[str, ...] = NAMES):
    return to_corpus(QuestionSet(asked), task, names, {}).splits["test"]


def test_answer_that_cannot_be_read_is_wrong_and_counted() -> None:
    asked = [yes_no(0, 1), yes_no(1, 0), yes_no(2, 1), yes_no(3, 0)]
    texts = ["yes", "yes", "nothing to say here", "no"]
    values, errors, kept = measure_written(texts, rows(*asked), {"fun": NAMES}, "test")
    written = {name.removeprefix("test/fun/"): value for name, value in values.items()}
    assert written.pop("invalid_rate") == 0.25
    # Of two that are funny one is called so, of two others one: 1 of 2 and 1 of 1 said are right.
    want = {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5,
            "weighted_precision": 0.75, "weighted_recall": 0.5, "weighted_f1": 7 / 12}  # fmt: skip
    assert written == pytest.approx({f"written_{name}": value for name, value in want.items()})
    assert 0 < errors["test/fun/written_accuracy"] < 0.5 and kept == texts


def test_unreadable_answers_to_options_of_different_numbers() -> None:
    asked = [choice(0, 0, ("a", "b")), choice(1, 3, ("a", "b", "c", "d")), choice(2, 1, ("a", "b"))]
    names = ("A", "B", "C", "D")
    comments = rows(*asked, task="option", names=names)
    texts = ["A) a", "D) d", "C) c"]  # the last question has no C
    values, _, _ = measure_written(texts, comments, {"option": names}, "test")
    assert values["test/option/written_accuracy"] == pytest.approx(2 / 3)
    assert values["test/option/invalid_rate"] == pytest.approx(1 / 3)
    assert values["test/option/written_mvbench"] == pytest.approx(2 / 3)
    assert "test/option/written_precision" not in values


def test_open_answers_are_compared_as_texts() -> None:
    asked = [choice(0, None, ()), choice(1, None, ())]
    comments = rows(*asked, task="")
    values, errors, _ = measure_written(["a red cube", "a blue ball"], comments, {}, "dev")
    assert values["dev/answer/exact_match"] == 0.5 and errors == {}
    assert 0.5 < values["dev/answer/ROUGE-L"] < 1
    assert all(name.startswith("dev/answer/") for name in values)


def test_texts_stand_beside_the_predictions() -> None:
    predicted = [{"key": "a"}, {"key": "b"}]
    add_texts(predicted, ["x", "y"])
    assert predicted == [{"key": "a", "written": "x"}, {"key": "b", "written": "y"}]
    with pytest.raises(ValueError):
        add_texts(predicted, ["x"])


def test_labels_of_a_corpus_are_those_of_the_questions() -> None:
    found = rows(yes_no(0, 1), yes_no(1, 0))
    np.testing.assert_array_equal(found.labels["fun"], [1, 0])
