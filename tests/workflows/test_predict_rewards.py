"""Rewards of a user's own rows are those of the run, and bad rows are one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workflows import small_rewards as small
from workflows.test_question_features import write_encoder

import jaxvsa
from jaxvsa import predict as door
from jaxvsa import prepare
from jaxvsa.core.errors import UserError

WIDTH = 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos with scores, their features, an encoder, and a run of two updates on them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "features").mkdir()
    rng, rows = np.random.default_rng(0), []
    for n in range(72):
        rows.append(
            {
                "video_id": f"v{n}", "source": "own", "prompt": f"number {n // 6} " * (1 + n % 2),
                "scores": {"text_alignment": n % 6 + 1, "dynamism": (5 * n) % 6 + 1},
                "score_range": {"text_alignment": [1, 6], "dynamism": [1, 6]},
                "split": ("train", "train", "dev", "test")[n // 6 % 4],
            }
        )  # fmt: skip
        np.save(folder / "features" / f"v{n}.npy", rng.normal(size=(2, WIDTH)).astype("f4"))
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "scored.jsonl").write_text("".join(lines))
    write_encoder(folder / "encoder")
    prepare.main([
        "videocross", f"--source=scored={folder / 'scored.jsonl'}",
        f"--features={folder / 'features'}", "--encoder=net",
        f"--text-encoder={folder / 'encoder'}", "--question-len=16", f"--out={folder / 'data'}",
    ])  # fmt: skip
    small.fit("btt", folder / "data", folder / "run", "train.steps=2")
    return folder


def ask(home: Path, rows: list[dict[str, Any]], out: Path, *more: str) -> list[dict[str, Any]]:
    source = out.with_suffix(".in.jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = more or (f"--features={home / 'features'}", f"--text-encoder={home / 'encoder'}")
    door.main([f"--run={home / 'run'}", f"--input={source}", f"--out={out}", *flags])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rewards_are_those_of_the_run(home: Path, tmp_path: Path) -> None:
    lines = (home / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    known = [json.loads(line) for line in lines]
    names = ("question", "dimension", "video_a", "video_b")
    found = ask(
        home, [{name: row[name] for name in names} for row in known], tmp_path / "out.jsonl"
    )
    assert len(found) == len(known) > 20
    for mine, theirs in zip(found, known, strict=True):
        for name in ("reward_a", "reward_b", "p_a", "p_b", "p_tie"):
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5)
    alone = [{"video": row["video_a"], "question": row["question"]} for row in known[:3]]
    model = jaxvsa.load(home / "run")
    for row, theirs in zip(
        model.reward(alone, home / "features", home / "encoder"), known, strict=False
    ):
        assert row["reward"] == pytest.approx(theirs["reward_a"], abs=1e-5)


def test_rows_of_a_video_are_those_of_training(home: Path, tmp_path: Path) -> None:
    """What `prepare --rows` left out is left out again: other rows have another mean."""
    prepare.main([
        "videocross", f"--source=scored={home / 'scored.jsonl'}", "--rows=1",
        f"--features={home / 'features'}", "--encoder=net",
        f"--text-encoder={home / 'encoder'}", "--question-len=16", f"--out={tmp_path / 'data'}",
    ])  # fmt: skip
    small.fit("btt", tmp_path / "data", tmp_path / "run", "train.steps=2")
    lines = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    known = [json.loads(line) for line in lines]
    rows = [{"video": row["video_a"], "question": row["question"]} for row in known]
    found = jaxvsa.load(tmp_path / "run").reward(rows, home / "features", home / "encoder")
    for mine, theirs in zip(found, known, strict=True):
        assert mine["reward"] == pytest.approx(theirs["reward_a"], abs=1e-5)


def test_dimension_and_prompt_make_the_question(home: Path, tmp_path: Path) -> None:
    rows = [
        {"key": "a", "video": "v1", "dimension": "TA", "prompt": "a red cat"},
        {"key": "b", "video": "v1", "dimension": "dynamic degree"},
    ]
    found = ask(home, rows, tmp_path / "out.jsonl")
    assert [row["key"] for row in found] == ["a", "b"]
    assert found[0]["question"] == "text-video alignment: a red cat"
    assert found[1]["question"].startswith("dynamism: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "line 1: no column 'video_a'"),
        ({"video": 7, "question": "q"}, "line 1: 'video' is 7, no text; write it as a name"),
        ({"video": "v1"}, "line 1: no column 'dimension'"),
        ({"video": "v1", "dimension": "TA"}, "line 1: no column 'prompt'; text_alignment asks"),
        ({"video": "v1", "dimension": "fun"}, "line 1: unknown dimension 'fun'"),
        ({"video": "v1", "question": " "}, "'question' is empty"),
        ({"video": "v999", "question": "q"}, "1 of 1 feature files are missing, first: v999.npy"),
    ],
)
def test_bad_rows_are_one_line(
    home: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ask(home, [row], tmp_path / "out.jsonl")
    assert "\n" not in str(caught.value)


def test_encoder_and_features_must_be_those_of_training(home: Path, tmp_path: Path) -> None:
    row, features = {"video": "v1", "question": "q"}, f"--features={home / 'features'}"
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="name their folder with --features"):
        ask(home, [row], out, f"--text-encoder={home / 'encoder'}")
    with pytest.raises(UserError, match="name the folder of that encoder with --text-encoder"):
        ask(home, [row], out, features)
    other = write_encoder(tmp_path / "other", 2.0)
    with pytest.raises(UserError, match=r"the model was trained on .*; name the folder"):
        ask(home, [row], out, features, f"--text-encoder={other}")
    assert not out.exists()


def test_synthetic_questions_cannot_be_asked(home: Path, tmp_path: Path) -> None:
    root = small.write(tmp_path / "rewards")
    small.fit("demo", root, tmp_path / "run", "train.steps=2", "train.eval_every=2")
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "v.npy", np.zeros((1, 24), "f4"))
    model = jaxvsa.load(tmp_path / "run")
    row = {"video": "v", "question": "q"}
    with pytest.raises(UserError, match="'synthetic', which no encoder makes"):
        model.reward([row], folder, home / "encoder")


def test_flag_belongs_to_reward_models(trained_run: Path, home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    source = tmp_path / "rows.jsonl"
    source.write_text('{"comment": "hi", "video": "v1.mp4"}\n')
    with pytest.raises(UserError, match="is no reward model; leave it out"):
        door.main([
            f"--run={run}", f"--input={source}", f"--out={tmp_path / 'out.jsonl'}",
            f"--text-encoder={home / 'encoder'}",
        ])  # fmt: skip
