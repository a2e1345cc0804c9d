"""From a configuration to questions in batches; runs that are interrupted, and other devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from workflows import small_questions as small
from workflows.small_runs import arrays, assert_same_run
from workflows.trajectories import assert_same, trajectory

from jaxvsa.core import trees
from jaxvsa.core.config import to_plain
from jaxvsa.core.errors import UserError
from jaxvsa.data.questions import QuestionSet, VideoQuestion, llm_text, qformer_text
from jaxvsa.workflows.assemble import assemble, kind
from jaxvsa.workflows.evaluate import evaluate
from jaxvsa.workflows.prepare_questions import prepare_questions, read_questions
from jaxvsa.workflows.questions import Assembled
from jaxvsa.workflows.runs import read_trained


def opened(variant: str, root: Path, *more: str) -> Assembled:
    return assemble(to_plain(small.config(variant, root, *more)), root)


@pytest.fixture(scope="module")
def base(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the image model, which one test spoils and restores."""
    out = tmp_path_factory.mktemp("base") / "instructblip"
    shutil.copytree(image_folder, out)
    return out


@pytest.fixture(scope="module")
def tuned(clips_root: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of what the paper trains, on top of the image model."""
    run = tmp_path_factory.mktemp("runs") / "tuned"
    small.fit("demo", clips_root, run, f"weights.base={base}", small.ROUTED)
    return run


def test_every_text_and_frame_reaches_the_batch(clips_root: Path) -> None:
    data = opened("demo", clips_root, *small.SCRATCH)
    asked = read_questions(data.comments("dev"), "named")
    examples, codec = data.examples("dev"), data.codec
    sizes = {name: axis.largest(8) for name, axis in examples.axes().items()}
    batch = examples.batch(np.arange(8), np.ones(8, bool), sizes, 1)
    table = data.prepared.features()
    for b, question in enumerate(asked):
        prompt = batch["prompt_bn"][b, -batch["prompt_length_b"][b] :]
        assert prompt[0] == codec.language.bos_id
        assert codec.language.decode(prompt) == llm_text(question)
        answer = batch["answer_ba"][b, : batch["answer_length_b"][b]]
        assert answer[-1] == codec.language.eos_id
        assert codec.language.decode(answer) == question.answer
        words = batch["ids_gw"][0, batch["word_bl"][b][batch["word_bl"][b] >= 0]]
        assert codec.words.decode(words) == qformer_text(question)
        for c, option in enumerate(question.options):
            tokens = batch["choice_bcy"][b, c, : batch["choice_length_bc"][b, c]]
            assert codec.language.decode(tokens) == option
        assert batch["label_way_b"][b] == question.label
        pixels = table.values_nf[batch["frame_bt"][b]]
        np.testing.assert_array_equal(pixels, table.of(question.video))


def test_facts_are_those_of_the_data(clips_root: Path) -> None:
    facts = opened("demo", clips_root, *small.SCRATCH).facts
    assert facts.label_names == {"way": ("left", "right")}
    assert (facts.video, facts.feature_width, facts.feature_dtype) == ("pixels", 768, "uint8")
    text = opened("mustard_text", clips_root, "data.protocol=demo").facts
    assert (text.video, text.feature_width, text.feature_dtype) == ("", 0, "")
    assert type(facts).from_dict(vars(facts)) == facts


def test_dialogue_goes_where_the_configuration_says(text_root: Path) -> None:
    more = ("data.protocol=own_0", "data.vocab_size=261", "model.max_prompt=400")
    lengths = {}
    for mode in ("question", "full"):
        data = opened("mustard_text", text_root, *more, f"data.llm_text={mode}")
        lengths[mode] = data.examples("train").axes()["n"].need_b
        assert "l" not in data.examples("train").axes()
    assert (lengths["full"] > lengths["question"]).all()


LONG = ("data.protocol=own_0", "data.vocab_size=261", "model.max_prompt=20")


def test_question_beyond_the_limit_loses_its_beginning_and_is_counted(
    text_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened("mustard_text", text_root, *LONG)
    examples = data.examples("train")
    assert examples.axes()["n"].need_b.tolist() == [20] * 8
    batch = examples.batch(np.arange(2), np.ones(2, bool), {"n": 20, "a": 16}, 1)
    asked = read_questions(data.comments("train"), "named")
    for b in range(2):
        assert batch["prompt_bn"][b, 0] == data.codec.language.bos_id
        kept = data.codec.language.decode(batch["prompt_bn"][b])
        assert llm_text(asked[b], "full").endswith(kept) and len(kept) >= 18
    for _ in range(2):  # said once, however often it is read, and for each split
        data.examples("test")
    assert capsys.readouterr().err.splitlines() == [
        f"WARNING: 8 texts of {split} were too long for the language model and lost what was said "
        "first" for split in ("train", "test")
    ]  # fmt: skip


def test_question_beyond_the_limit_is_refused_if_asked_for(text_root: Path) -> None:
    data = opened("mustard_text", text_root, *LONG, "model.long=error")
    with pytest.raises(UserError, match=r"question 'q\d+': its text for the language .* is 20"):
        data.examples("train")


def test_words_beyond_the_limit_are_counted_for_the_qformer(
    clips_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*small.SCRATCH, "model.max_words=5", "data.vocab_size=261")
    data = opened("demo", clips_root, *more)
    assert data.examples("train").axes()["l"].need_b.tolist() == [5] * 24
    assert "24 texts of train were too long for the Q-Former" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"for the Q-Former has .*max_words is 5"):
        opened("demo", clips_root, *more, "model.max_prompt=64", "model.long=error").examples("dev")


def test_answer_beyond_the_limit_keeps_its_end_token(
    text_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened("mustard_text", text_root, *LONG, "model.max_answer=3")
    batch = data.examples("train").batch(np.arange(8), np.ones(8, bool), {"n": 20, "a": 3}, 1)
    eos = data.codec.language.eos_id
    assert (batch["answer_ba"][:, -1] == eos).all() and (batch["answer_length_b"] == 3).all()
    assert batch["choice_bcy"].shape == (8, 2, 3) and (batch["choice_bcy"][..., -1] == eos).all()
    # Each question's answer, and both that it offers.
    assert "24 texts of train were longer than config.model.max_ans" in capsys.readouterr().err


def test_splits_may_offer_other_numbers_of_answers(tmp_path: Path) -> None:
    """Four in train, two in test: a run with all its tables."""
    words = ("red", "blue", "green", "grey")
    asked = [
        VideoQuestion(
            id=f"{split}{n}", video=f"v{n}", question=f"which of {many}?", answer=words[n % many],
            options=words[:many], label=n % many, split=split,
        )
        for split, many in (("train", 4), ("test", 2)) for n in range(8)
    ]  # fmt: skip
    root = tmp_path / "data"
    prepare_questions({"own": QuestionSet(tuple(asked))}, root, "colour", words)
    more = ("data.protocol=own", "data.vocab_size=300")
    batch = opened("mustard_text", root, *more).examples("test").batch(
        np.arange(8), np.ones(8, bool), {"n": 16, "a": 8}, 1
    )  # fmt: skip
    assert batch["choice_bcy"].shape[:2] == (8, 4)
    assert ((batch["choice_length_bc"] > 0) == [True, True, False, False]).all()
    model, *_, chance = small.fit("mustard_text", root, tmp_path / "run", *more)
    assert chance.name == "chance" and chance.values == {"test/colour/accuracy": 0.5}
    assert {f"test/colour/f1/{word}" for word in words} <= model.values.keys()
    assert 0 <= model.values["test/colour/weighted_precision"] <= 1


def test_short_clip_repeats_its_last_frame_or_is_refused(clips_root: Path) -> None:
    more = (*small.SCRATCH, "model.num_frames=6")
    batch = (
        opened("demo", clips_root, *more)
        .examples("dev")
        .batch(np.arange(2), np.ones(2, bool), {"n": 64, "a": 8, "w": 128, "l": 64}, 1)
    )
    step_bt = np.diff(batch["frame_bt"], axis=1)
    assert step_bt.tolist() == [[1, 1, 1, 0, 0]] * 2
    data = opened("demo", clips_root, *more, "model.short=error")
    with pytest.raises(UserError, match=r"has 4 frames, config.model.num_frames is 6 \(40 such"):
        data.examples("dev")


@pytest.mark.parametrize(
    ("variant", "more", "match"),
    [
        ("demo", "data.root=", "config.data.root is empty; write the data once with"),
        ("demo", "data.protocol=dmo", "no protocol 'dmo'; did you mean 'demo'"),
        ("demo", "data.llm_text=answer", r"config\.data\.llm_text: .*'answer'"),
        ("demo", "data.speakers=anonymous", "the data has names alone; prepare MUStARD, or set"),
        ("demo", "data.shapes=0", r"config\.data\.shapes is 0; 1 is the least"),
        ("demo", "data.resident=maybe", r"config\.data\.resident: .*'maybe'"),
        ("demo", "data.vocab_size=260", "at least 261 needed"),
        ("demo", "model.num_frames=9", r"num_frames is 9; it must be from 1 to"),
        ("demo", "model.max_words=65", r"qformer\.max_positions is 64"),
        ("demo", "model.routing.routing=hard", "one mask alone masks nothing; use mixture or log"),
        ("demo", "model.vision.image_size=20", "has pixels of 768 values, .* reads 1200"),
        ("demo", "weights.learn=some", r"config\.weights\.learn: .*'some'"),
        (
            "demo",
            "weights.learn=adapters",
            "base is empty and .*'adapters': everything else would stay ran",
        ),
        ("demo", "weights.base=nowhere", "nowhere has no config.json; name a Hugging Face folder"),
        ("mustard_text", "weights.learn=adapters", "variant 'text' has no Q-Former; use 'all'"),
        ("mustard_text", "model.variant=both", "variant is 'both', but the data has no frames"),
        ("mustard_text", "model.max_prompt=0", "max_prompt is 0; 1 is the least"),
        ("mustard_text", "train.select_on=dev/all/micro_f1_sum", "has no dev split to select on"),
    ],
)
def test_bad_settings_are_one_line(
    clips_root: Path, text_root: Path, tmp_path: Path, variant: str, more: str, match: str
) -> None:
    root, given = clips_root, [*small.SCRATCH]
    if variant == "mustard_text":
        root, given = text_root, ["data.protocol=own_0"]
    with pytest.raises(UserError, match=match) as caught:
        small.fit(variant, root, tmp_path / "bad", *given, more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad" / "config.json").exists()


def test_comments_are_no_questions(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds comments, not questions"):
        small.fit("demo", root, tmp_path / "bad", *small.SCRATCH, "data.protocol=official")
    assert kind("mtransllama").__name__.endswith("questions")


def test_frozen_weights_are_those_of_the_base_and_not_stored(tuned: Path, image_run: Path) -> None:
    before, after = (trees.named(read_trained(run, "newest").params) for run in (image_run, tuned))
    stored = {path.partition("learn/")[2] for path in arrays(tuned) if "learn/" in path}
    assert stored and not any(path.endswith(("key/kernel", "mlp_in/kernel")) for path in stored)
    assert not any(path.startswith(("decoder/", "vision/", "project/")) for path in stored)
    for path, leaf in before.items():
        if path not in stored:
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    assert any(np.any(after[path]) for path in stored if path.endswith("/up"))


def test_interruption_is_invisible(
    tuned: Path, clips_root: Path, base: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(tuned, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "results.json").unlink()
    small.fit("demo", clips_root, cut, f"weights.base={base}", small.ROUTED)
    assert_same_run(tuned, cut)


def test_base_that_changed_since_is_refused(
    tuned: Path, clips_root: Path, base: Path, tmp_path: Path
) -> None:
    """On reading the run, and on resuming it."""
    cut = tmp_path / "cut"
    shutil.copytree(tuned, cut)
    (cut / "results.json").unlink()
    before = read_trained(tuned, "newest").params["decoder"]["word"]
    name = "language_model.model.embed_tokens.weight"
    np.testing.assert_array_equal(before, small.edit_tensor(base, name, 2.0))
    try:
        with pytest.raises(UserError, match="holds other weights than the run was trained with"):
            read_trained(tuned, "newest")
        with pytest.raises(UserError, match="frozen parameters are not those"):
            small.fit("demo", clips_root, cut, f"weights.base={base}", small.ROUTED)
    finally:
        small.edit_tensor(base, name, 0.5)
    np.testing.assert_array_equal(before, read_trained(tuned, "newest").params["decoder"]["word"])


def test_written_answers_stand_in_the_table_and_in_the_predictions(tuned: Path) -> None:
    rows = json.loads((tuned / "results.json").read_text())
    assert [row["name"].split(" (")[0] for row in rows] == [
        "mtransllama", "global majority", "video majority", "chance",
    ]  # fmt: skip
    values = rows[0]["values"]
    for split in ("dev", "test"):
        written, invalid = (
            values[f"{split}/way/{name}"] for name in ("written_accuracy", "invalid_rate")
        )
        assert 0 <= written <= 1 - invalid <= 1
        lines = (tuned / "predictions" / f"{split}.jsonl").read_text().splitlines()
        assert len(lines) == 8 and all("written" in json.loads(line) for line in lines)


def test_open_answers_are_trained_and_measured_as_texts(tmp_path: Path) -> None:
    texts = ("a red cube", "it left")
    asked = [
        small.asked(n, split, options=(), label=None, answer=texts[n % 2])
        for n, split in enumerate(["train"] * 6 + ["dev"] * 2 + ["test"] * 2)
    ]
    root = tmp_path / "prepared"
    prepare_questions({"official": QuestionSet(tuple(asked))}, root, "", ())
    rows = small.fit(
        "mustard_text", root, tmp_path / "run", "data.protocol=official", "train.steps=2",
        "train.batch_size=4", "data.vocab_size=261",
    )  # fmt: skip
    assert {"test/answer/exact_match", "test/answer/ROUGE-L"} <= rows[0].values.keys()
    assert (tmp_path / "run" / "predictions" / "test.jsonl").exists()


DEVICES = {
    "data": "--config.mesh.data=4",
    "fsdp": "--config.mesh.data=1 --config.mesh.fsdp=4 --config.data.resident=no",
}


def course(clips_root: Path, image_run: Path, tmp_path: Path, count: int, more: str) -> Any:
    given = small.flags(
        clips_root, f"weights.base={image_run}", "mesh.data=-1", small.ROUTED,
        "model.qformer.dropout=0.1",
    )  # fmt: skip
    return trajectory(clips_root, tmp_path, count, *given, *more.split(), spec=f"{small.SPEC}:demo")


@pytest.fixture(scope="module")
def alone(
    clips_root: Path, image_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Losses, gradients and predictions on one device."""
    return course(clips_root, image_run, tmp_path_factory.mktemp("one"), 1, "")


@pytest.mark.parametrize("name", DEVICES)
def test_device_count_is_invisible(
    name: str, clips_root: Path, image_run: Path, tmp_path: Path, alone: dict[str, np.ndarray]
) -> None:
    """Four devices and one; and clips that lie on the host, with frozen kernels in parts."""
    assert len(jax.devices()) >= 4
    found = course(clips_root, image_run, tmp_path, 4, DEVICES[name])
    assert found.keys() == alone.keys() and "probability/way" in found
    assert_same(found, alone)


def test_evaluation_gives_the_figures_of_the_run_again(tuned: Path, tmp_path: Path) -> None:
    """On all devices, while the run had one."""
    found = evaluate(tuned, "test", out=tmp_path)
    want = {row["name"]: row for row in json.loads((tuned / "results.json").read_text())}
    for row in found:
        before = want[row.name]["values"]
        assert row.values == {k: pytest.approx(v) for k, v in before.items() if "test/" in k}
    probabilities = [
        [
            json.loads(line)["way"]["probabilities"]["right"]
            for line in path.read_text().splitlines()
        ]
        for path in (tmp_path / "test.jsonl", tuned / "predictions" / "test.jsonl")
    ]
    np.testing.assert_allclose(*probabilities, rtol=1e-5, atol=1e-5)


def test_files_of_predictions(tuned: Path) -> None:
    assert {path.name for path in (tuned / "predictions").iterdir()} == {
        f"{split}{end}" for split in ("dev", "test")
        for end in (".jsonl", "-way-confusion.csv", "-way-confusion.png")
    }  # fmt: skip
