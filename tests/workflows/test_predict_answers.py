"""A trained model answers questions about clips of one's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from workflows import small_questions as small

from jaxvsa import predict as door
from jaxvsa.core.errors import UserError
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.questions import VideoQuestion
from jaxvsa.interop.peft import CONFIG, read_adapters
from jaxvsa.workflows import predict_answers
from jaxvsa.workflows.export import to_adapters, to_published
from jaxvsa.workflows.predict import load, predict_file, predict_one
from jaxvsa.workflows.prepare_questions import ANONYMOUS, RECORD, read_question
from jaxvsa.workflows.runs import read_trained


@pytest.fixture(scope="module")
def tuned(clips_root: Path, image_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tuned"
    small.fit("demo", clips_root, run, f"weights.base={image_run}")
    return run


@pytest.fixture(scope="module")
def model(tuned: Path) -> predict_answers.Model:
    found = load(tuned)
    assert isinstance(found, predict_answers.Model)
    return found


def clips_of(root: Path) -> dict[str, np.ndarray]:
    table = Prepared.open(root).features()
    return {name: table.of(name).reshape(-1, 16, 16, 3) for name in table.row}


def test_answers_are_those_of_the_evaluation(
    clips_root: Path, tuned: Path, model: predict_answers.Model
) -> None:
    lines = (tuned / "predictions" / "test.jsonl").read_text().splitlines()
    want = [json.loads(line)["written"] for line in lines]
    comments = Prepared.open(clips_root).comments("demo", "test")
    asked = [
        VideoQuestion(key, video, text, "")
        for key, video, text in zip(comments.key, comments.video, comments.text, strict=True)
    ]
    assert model.answer(asked, clips_of(clips_root)) == want
    assert model.answer([]) == []


def test_door_prints_the_answer_to_one_question(
    clips_root: Path, tuned: Path, model: predict_answers.Model, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name, clip = next(iter(clips_of(clips_root).items()))
    np.save(tmp_path / "clip.npy", clip)
    question = "Is the square moving left or right?"
    given = ["--run", str(tuned), "--question", question]
    door.main([*given, "--video-features", str(tmp_path / "clip.npy")])
    asked = [VideoQuestion("1", name, question, "")]
    assert capsys.readouterr().out.strip() == model.answer(asked, {name: clip})[0]


def test_rows_of_a_file_are_answered(clips_root: Path, tuned: Path, tmp_path: Path) -> None:
    clips = clips_of(clips_root)
    for name in list(clips)[:2]:
        np.save(tmp_path / f"{name}.npy", clips[name])
    question = "Is the square moving left or right?"
    lines = [{"question": question, "video": name, "context": [["Ann", "Look!"]]}
             for name in list(clips)[:2]]  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert predict_file(tuned, source, tmp_path / "out.jsonl", tmp_path) == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["video"] for row in found] == list(clips)[:2]
    assert [row["key"] for row in found] == ["row-1", "row-2"]
    assert all(set(row) == {"key", "video", "question", "answer"} for row in found)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"qestion": "x"}, "row 1: no column 'question'; did you mean 'qestion'"),
        ({"question": " "}, "no column 'question'"),
        ({"question": "x", "context": "Ann: hi"}, r"'context' must be a list of \[speaker, text\]"),
        ({"question": "x", "context": [["Ann"]]}, "'context' must be a list"),
    ],
)
def test_rows_of_another_kind_are_refused(
    model: predict_answers.Model, row: dict, match: str
) -> None:
    with pytest.raises(UserError, match=match):
        predict_answers.answer_records(model, [("row 1", row)], None, ".npy")


@pytest.mark.parametrize(
    ("clip", "match"),
    [
        (np.zeros((4, 16, 16, 3), np.float32), r"the model reads pixels, uint8 \(frames, 16, 16"),
        (np.zeros((4, 3, 16, 16), np.uint8), r"uint8 \(4, 3, 16, 16\); the model reads pixels"),
        (np.zeros((4, 8, 32, 3), np.uint8), r"uint8 \(4, 8, 32, 3\); the model reads pixels"),
        (np.zeros((4, 8, 8, 3), np.uint8), r"uint8 \(4, 8, 8, 3\)"),
        (np.zeros((0, 16, 16, 3), np.uint8), r"uint8 \(0, 16, 16, 3\); the model reads pixels"),
        (np.zeros((4, 17, 32), np.uint8), "the model reads pixels"),
    ],
)
def test_clips_of_another_kind_are_refused(
    model: predict_answers.Model, clip: np.ndarray, match: str
) -> None:
    asked = [VideoQuestion("1", "clip", "Where?", "")]
    with pytest.raises(UserError, match=match):
        model.answer(asked, {"clip": clip})
    with pytest.raises(UserError, match="clip 'clip' is missing"):
        model.answer(asked)


def test_a_model_of_text_refuses_a_clip(tmp_path: Path) -> None:
    root = small.prepare_text(tmp_path / "text")
    small.fit("mustard_text", root, tmp_path / "run", "data.protocol=own_0", "data.vocab_size=300")
    said = (("Ann", "Hello."), ("Bob", "No."), ("Ann", "Yes."))
    asked = [VideoQuestion("1", "1", "is it fun?", "", context=said)]
    model = load(tmp_path / "run")
    assert isinstance(model.answer(asked)[0], str)
    # Trained without names: speakers are called by their order.
    numbered = tuple((f"Speaker {1 + (who == 'Bob')}", text) for who, text in said)
    want = model.answer([dataclasses.replace(asked[0], context=numbered)])
    model.config["data"]["speakers"] = "anonymous"
    assert model.answer(asked) == want
    found = predict_answers._extra(asked)
    assert read_question(found[ANONYMOUS][0]).context == numbered
    assert read_question(found[RECORD][0]).context == said
    with pytest.raises(UserError, match="reads no video; leave the clips out"):
        model.answer(asked, {"1": np.zeros((1, 16, 16, 3), np.uint8)})
    with pytest.raises(UserError, match="without a Q-Former"):
        to_adapters(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--input", "rows.jsonl"],
        ["--out", "out.jsonl"],
        ["--question", "x", "--input", "rows.jsonl", "--out", "out.jsonl"],
        ["--input", "a.jsonl", "--out", "b.jsonl", "--video-features", "clip.npy"],
    ],
)
def test_door_says_which_flags_belong_together(given: list[str]) -> None:
    with pytest.raises(UserError, match=r"--input FILE with --out FILE|--video-features belongs"):
        door.main(["--run", "nowhere", *given])


def test_a_damaged_clip_is_named(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"clip\.npy: not a plain numeric \.npy file"):
        predict_one(tuned, "Where?", tmp_path / "clip.npy")


def test_adapters_hold_the_changes_of_the_run(tuned: Path, tmp_path: Path) -> None:
    folders = to_adapters(tuned, tmp_path / "out")
    assert [folder.name for folder in folders] == ["out", "time"]
    options, changes = read_adapters(tmp_path / "out")
    trained = read_trained(tuned)
    assert options.rank == trained.config["model"]["lora"]["rank"]
    found = changes["layer_0"]["attention"]["query"]["lora_space"]["up"]
    want = trained.params["qformer"]["layer_0"]["attention"]["query"]["lora_space"]["up"]
    np.testing.assert_array_equal(found, want)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["peft_type"] == "LORA"
    with pytest.raises(UserError, match=r"is a run of mtransllama; .*convert adapters"):
        to_published(tuned, tmp_path / "x.safetensors")
