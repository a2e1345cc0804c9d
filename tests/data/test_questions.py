"""The record of a question, and the texts that a model reads of it."""

import dataclasses

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import (
    QuestionSet,
    VideoQuestion,
    dialogue_text,
    lettered_options,
    llm_text,
    qformer_text,
    spoken_line,
)

pytestmark = pytest.mark.smoke

# MTransLLAMA Fig. 5.
QUESTION = VideoQuestion(
    id="1_60",
    video="1_60.mp4",
    question="is it sarcastic?",
    answer="Yes!",
    context=(("Leonard", " I never would\n have. "), ("Sheldon", "My apologies.")),
    options=("No!", "Yes!"),
    label=1,
)
ALONE = dataclasses.replace(QUESTION, context=())


def test_texts_by_hand():
    dialogue = "Leonard: I never would have.\nSheldon: My apologies."
    assert spoken_line("A", "b\t c") == "A: b c"
    assert dialogue_text(QUESTION) == dialogue
    assert qformer_text(QUESTION) == f"{dialogue}\nis it sarcastic?"
    assert qformer_text(QUESTION, fused=False) == ""
    assert llm_text(QUESTION) == "is it sarcastic?"
    assert llm_text(QUESTION, "full") == f"{dialogue}\nis it sarcastic?"


def test_texts_without_context_are_the_question():
    assert dialogue_text(ALONE) == ""
    assert qformer_text(ALONE) == llm_text(ALONE) == llm_text(ALONE, "full") == "is it sarcastic?"


def test_the_language_model_begins_with_the_prefix_of_the_answer():
    asked = dataclasses.replace(ALONE, answer_prefix="Best option:(")
    assert llm_text(asked) == "is it sarcastic?\nBest option:("
    assert qformer_text(asked) == "is it sarcastic?"


def test_options_have_letters():
    assert lettered_options(["yes", "no"]) == ("(A) yes", "(B) no")
    assert lettered_options([]) == ()
    with pytest.raises(ValueError, match="zip"):
        lettered_options(["x"] * 27)


def test_splits_keep_their_order():
    parts = [
        dataclasses.replace(ALONE, id=str(number), split=split)
        for number, split in enumerate(["test", "train", "test", "train"])
    ]
    found = QuestionSet(tuple(parts))
    assert len(found) == 4
    assert found.splits() == ("train", "test")
    assert [question.id for question in found.split("test")] == ["0", "2"]
    with pytest.raises(UserError, match=r"no split 'dev'; known: \['train', 'test'\]"):
        found.split("dev")
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        found.split("tset")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "val"}, "1_60: unknown split 'val'"),
        ({"label": 2}, "1_60: label 2 of 2 options"),
        ({"label": -1}, "label -1 of 2"),
        ({"options": ()}, "label 1 of 0"),
        ({"start_s": 0.0}, "a start and an end, or neither"),
    ],
)
def test_a_record_refuses_what_does_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUESTION, **changed)


def test_an_unknown_text_is_refused():
    with pytest.raises(ValueError, match=r"unknown llm_text 'all'; known: .*'full'"):
        llm_text(QUESTION, "all")
