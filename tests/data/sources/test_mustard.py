"""MUStARD: a small release of the same format, every way to break it, and the real counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import dialogue_text, llm_text
from jaxvsa.data.sources.mustard import ANSWERS, SPLITS, read_folds, read_release

pytestmark = pytest.mark.smoke


def clip(number: int) -> dict[str, Any]:
    """One entry: even numbers are sarcastic, every third is from Friends."""
    return {
        "utterance": f"What a day\n number {number}.",
        "speaker": "MEMBER-GIRL",
        "context": ["Hello, Sheldon.", "Hi."],
        "context_speakers": ["LEONARD", "SHELDON"],
        "show": "BBT" if number % 3 else "FRIENDS",
        "sarcasm": number % 2 == 0,
    }


CLIPS = {f"2_{number}": clip(number) for number in range(20)}
FOLDS = [
    {
        "fold": fold,
        "train": [n for n in range(20) if n % 5 != fold],
        "test": [n for n in range(19, -1, -1) if n % 5 == fold],
    }
    for fold in range(5)
]


def python2_folds(folds: list[dict[str, Any]]) -> bytes:
    """`split_indices.p` as Python 2 wrote it: protocol 0, content as an escaped byte string."""

    def array(values: list[int]) -> bytes:
        raw = repr(np.array(values, "<i8").tobytes())[1:].encode()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            + f"(I1\n(I{len(values)}\nt".encode()
            + b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
            + b"I00\nS" + raw + b"\ntb"
        )  # fmt: skip

    pairs = (b"(" + array(fold["train"]) + array(fold["test"]) + b"ta" for fold in folds)
    return b"(l" + b"".join(pairs) + b"."


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a release; `changed` replaces fields of clip 2_7, None removes one."""

    def write(clips: Any = None, folds: Any = None, **changed: Any) -> Path:
        row = {name: value for name, value in {**clip(7), **changed}.items() if value is not None}
        content = {**CLIPS, "2_7": row} if clips is None else clips
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "sarcasm_data.json").write_text(text)
        (tmp_path / "split_indices.json").write_text(json.dumps(folds or {"folds": FOLDS}))
        return tmp_path

    return write


def test_a_clip_by_hand(release):
    found = read_release(release(), fold=3)
    question = found.questions[8]
    assert (question.id, question.video) == ("2_8", "utterances_final/2_8.mp4")
    assert (question.split, question.fold, question.label) == ("test", 3, 1)
    assert question.options == ANSWERS
    assert question.answer == "Yes! it is sarcastic."
    assert found.questions[7].answer == "No! it is not sarcastic."
    assert question.context == (("Leonard", "Hello, Sheldon."), ("Sheldon", "Hi."))
    assert dialogue_text(question) == "Leonard: Hello, Sheldon.\nSheldon: Hi."
    assert llm_text(question) == (
        "Pair with the past dialogue and video, is it sarcastic when "
        "< Member-Girl: What a day number 8. >?"
    )
    assert question.extra == {"speaker": "MEMBER-GIRL", "show": "BBT"}


def test_released_folds_are_kept_in_the_order_of_the_clips(release):
    found = read_release(release(), fold=3)
    assert [question.id for question in found.split("test")] == ["2_3", "2_8", "2_13", "2_18"]
    assert found.splits() == ("train", "test") and len(found) == 20
    assert found.report == {
        "split": "released5", "fold": 3, "seed": 0,
        "train": {"questions": 16, "positives": 8}, "test": {"questions": 4, "positives": 2},
    }  # fmt: skip


def test_folds_of_python_2_are_those_of_the_json(release):
    root = release()
    path, want = read_folds(root)
    assert path.name == "split_indices.json"
    path.unlink()
    (root / "split_indices.p").write_bytes(python2_folds(FOLDS))
    path, got = read_folds(root)
    assert path.name == "split_indices.p" and got == want
    assert [question.id for question in read_release(root, fold=0).split("test")] == [
        "2_0", "2_5", "2_10", "2_15",
    ]  # fmt: skip


def test_code_in_the_folds_is_refused_and_not_run(release):
    root = release()
    (root / "split_indices.json").unlink()
    command = f"touch {root / 'ran'}"
    (root / "split_indices.p").write_bytes(f"cos\nsystem\n(S'{command}'\ntR.".encode())
    with pytest.raises(UserError, match=r"split_indices.p: the pickle names 'os.system'"):
        read_release(root, fold=0)
    assert not (root / "ran").exists()


def test_stratified_folds_partition_the_clips(release):
    root, tests = release(), []
    for fold in range(5):
        found = read_release(root, "stratified5", fold=fold)
        assert found.report["train"] == {"questions": 16, "positives": 8}
        assert found.report["test"] == {"questions": 4, "positives": 2}
        tests += [question.id for question in found.split("test")]
    assert sorted(tests) == sorted(CLIPS)


def test_random_splits_depend_on_the_seed_alone(release):
    root = release()
    for split, fold in (("stratified5", 2), ("mustard_star", None)):
        first, again, other = (
            [
                question.split
                for question in read_release(root, split, fold=fold, seed=seed).questions
            ]
            for seed in (1, 1, 2)
        )
        assert first == again != other


def test_star_and_speaker_splits_by_hand(release):
    root = release()
    found = read_release(root, "mustard_star")
    assert found.splits() == ("train", "dev", "test")
    assert [found.report[split] for split in found.splits()] == [
        {"questions": 12, "positives": 6},
        {"questions": 4, "positives": 2},
        {"questions": 4, "positives": 2},
    ]
    found = read_release(root, "speaker_independent")
    assert [question.id for question in found.split("test")] == [f"2_{n}" for n in range(0, 20, 3)]
    assert all(question.fold is None for question in found.questions)


def test_speakers_are_numbered_as_they_appear(release):
    root = release(
        context=["a", "b", "c"], context_speakers=["ROSS", "PERSON", "ROSS"], speaker="PERSON"
    )
    question = read_release(root, "mustard_star", anonymize_speakers=True).questions[7]
    assert dialogue_text(question) == "Speaker 1: a\nSpeaker 2: b\nSpeaker 1: c"
    assert "< Speaker 2: What a day number 7. >?" in question.question
    assert question.extra["speaker"] == "PERSON"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"utterance": None}, "key '2_7', field 'utterance' is missing or no text; download"),
        ({"utterance": " "}, "key '2_7', field 'utterance' has an empty text"),
        ({"speaker": 3}, "field 'speaker' is missing or no text"),
        ({"context": "Hi."}, "field 'context' is missing or no list"),
        ({"context": ["Hi."]}, "2_7': 1 in 'context' but 2 in 'context_speakers'; every line"),
        ({"context": ["Hi.", ""]}, "field 'context' has an empty text"),
        ({"context_speakers": ["ROSS", None]}, "field 'context_speakers' is no list of texts"),
        ({"show": None}, "field 'show' is missing or no text"),
        ({"sarcasm": 1}, "field 'sarcasm' is missing or neither true nor false"),
        ({"clips": {"2_7": []}}, "key '2_7': expected an object, found list"),
        ({"clips": []}, "sarcasm_data.json: expected an object of utterances by clip"),
        ({"clips": "{"}, "sarcasm_data.json: not valid JSON .*download it again"),
        ({"clips": '{"a": 1, "a": 2}'}, "sarcasm_data.json: key 'a' appears 2 times"),
        ({"folds": {"folds": FOLDS[:4]}}, "split_indices.json: expected 5 folds with 'train' and"),
        ({"folds": [1]}, "split_indices.json: expected 5 folds"),
        ({"folds": {"folds": [{"train": [0]}] * 5}}, "expected 5 folds"),
        ({"folds": {"folds": [{"train": [0], "test": [1.0]}] * 5}}, "expected 5 folds"),
        ({"folds": {"folds": [{"train": [True], "test": [1]}] * 5}}, "expected 5 folds"),
        (
            {"folds": {"folds": [*FOLDS[:4], {**FOLDS[4], "test": [4, 9, 14, 20]}]}},
            "fold 4 does not place each of the 20 utterances once; it and sarcasm_data.json must",
        ),
        (
            {"folds": {"folds": [*FOLDS[:4], {**FOLDS[4], "train": [*range(20)]}]}},
            "fold 4 does not place each",
        ),
    ],
)
def test_a_broken_release_is_refused_by_file_and_key(release, changed, message):
    with pytest.raises(UserError, match=message):
        read_release(release(**changed), fold=0)


def test_test_folds_that_overlap_are_refused(release):
    larger = {"train": FOLDS[0]["train"][1:], "test": [*FOLDS[0]["test"], 1]}
    with pytest.raises(UserError, match=r"split_indices.json: an utterance is in two test folds"):
        read_release(release(folds={"folds": [larger, *FOLDS[1:]]}), fold=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "released"}, "unknown split 'released'; did you mean 'released5'.*; known:"),
        ({"fold": 5}, "'released5' has folds 0 to 4, not 5; choose one"),
        ({"fold": None}, "has folds 0 to 4, not None"),
        ({"fold": True}, "has folds 0 to 4, not True"),
        ({"split": "mustard_star", "fold": 0}, "'mustard_star' has no folds; leave fold 0 out"),
    ],
)
def test_wrong_splits_and_folds_are_refused(release, options, message):
    with pytest.raises(UserError, match=message):
        read_release(release(), **options)


def test_missing_files_are_named(release, tmp_path):
    with pytest.raises(UserError, match=r"sarcasm_data.json: cannot read it .*; --root must hold"):
        read_release(tmp_path, fold=0)
    (release() / "split_indices.json").unlink()
    with pytest.raises(UserError, match=r"split_indices.json: no such file, nor split_indices.p"):
        read_release(tmp_path, fold=0)


def test_splits_that_the_clips_do_not_allow_are_refused(release):
    few = {key: CLIPS[key] for key in list(CLIPS)[:9]}
    with pytest.raises(UserError, match="only 4 utterances answer 'No! it is not"):
        read_release(release(clips=few), "mustard_star")
    with pytest.raises(UserError, match="'show' is FRIENDS everywhere or nowhere"):
        read_release(release(clips={"2_1": CLIPS["2_1"]}), "speaker_independent")


@pytest.mark.real_data
def test_mustard_counts_are_those_of_its_readme(mustard_path):
    found = read_release(mustard_path, fold=0)
    assert len(found) == 690
    assert Counter(question.label for question in found.questions) == {0: 345, 1: 345}
    assert Counter(question.extra["show"] for question in found.questions) == {
        "FRIENDS": 356, "BBT": 280, "GOLDENGIRLS": 40, "SARCASMOHOLICS": 14,
    }  # fmt: skip
    assert len({question.extra["speaker"] for question in found.questions}) == 21
    assert Counter(len(question.context) for question in found.questions) == {
        1: 138, 2: 123, 3: 184, 4: 74, 5: 69, 6: 54, 7: 31, 8: 12, 9: 4, 11: 1,
    }  # fmt: skip
    assert found.questions[0].question == (
        "Pair with the past dialogue and video, is it sarcastic when "
        "< Sheldon: It's just a privilege to watch your mind at work. >?"
    )


@pytest.mark.real_data
def test_mustard_splits_have_the_known_sizes(mustard_path):
    folds = [read_release(mustard_path, fold=fold) for fold in range(5)]
    assert [len(found.split("test")) for found in folds] == [138] * 5
    assert [found.report["test"]["positives"] for found in folds] == [74, 71, 63, 76, 61]
    for fold in range(5):
        found = read_release(mustard_path, "stratified5", fold=fold, seed=fold)
        assert found.report["train"] == {"questions": 552, "positives": 276}
        assert found.report["test"] == {"questions": 138, "positives": 69}
    star = read_release(mustard_path, "mustard_star").report
    assert star["train"] == {"questions": 414, "positives": 207}
    assert star["dev"] == star["test"] == {"questions": 138, "positives": 69}
    shows = read_release(mustard_path, "speaker_independent").report
    assert shows["test"] == {"questions": 356, "positives": 152}
    assert shows["train"] == {"questions": 334, "positives": 193}


@pytest.mark.real_data
def test_mustard_without_names_asks_without_names(mustard_path):
    assert set(SPLITS) == {"released5", "stratified5", "mustard_star", "speaker_independent"}
    for question in read_release(mustard_path, fold=0, anonymize_speakers=True).questions:
        assert question.question.count("< Speaker ") == 1
        assert all(speaker.startswith("Speaker ") for speaker, _ in question.context)
