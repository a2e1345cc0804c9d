"""Preparing end to end: a small release and own data through the door, and the real comments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxvsa import prepare as door
from jaxvsa.core.errors import UserError
from jaxvsa.data.prepared import Prepared
from jaxvsa.data.sources.csmv import ENCODERS
from jaxvsa.workflows.prepare import feature_source, prepare, read_source

NUM_VIDEOS = 20


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """80 comments on 20 videos in the release's format; video g has g + 1 rows of width 3."""
    root = tmp_path / "CSMV"
    (root / "npy").mkdir(parents=True)
    rows = {
        f"k{i}": {
            "video_file_id": f"{i % NUM_VIDEOS}.mp4",
            "comment": f"comment {i}",
            "opinion_label": ("good", "bad", None)[2 if i == 0 else i % 2],
            "emotion_label": ("calm", "wild")[i // 2 % 2],
            "hashtag": "x",
        }
        for i in range(82)
    }
    keys = list(rows)
    files = {
        "lable_data_dict": rows,
        "train_set": keys[:56],
        "dev_set": keys[56:64],
        "test_set": keys[64:80],
        "opinion_label_map": {"good": 0, "bad": 1},
        "emotion_label_map": {"calm": 0, "wild": 1},
    }
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    for g in range(NUM_VIDEOS):
        np.save(root / "npy" / f"{g}.npy", np.full((g + 1, 3), g, np.float16))
    return root


def run(*options: object) -> None:
    """Calls the door."""
    door.main([str(option) for option in options])


def test_door_prepares_the_release_with_features(release, tmp_path, capsys):
    out = tmp_path / "out"
    run("csmv", "--root", release, "--features", release / "npy", "--encoder", "i3", "--limit", 15,
        "--rows-per-second", 2.5, "--window", 16, "--stride", 8, "--dtype", "bfloat16",
        "--out", out)  # fmt: skip
    prepared = Prepared.open(out)
    train = prepared.comments("official", "train")
    assert train.key == [f"k{i}" for i in range(1, 56)]  # k0 has a null label
    features = prepared.features()
    for row, video in zip(prepared.rows(train), train.video, strict=True):
        g = int(video.removesuffix(".mp4"))
        assert features.count_g[row] == min(g + 1, 15)
        np.testing.assert_array_equal(features.of(video), np.full((min(g + 1, 15), 3), g))
    manifest = {k: v for k, v in prepared.manifest.items() if k != "digest"}
    assert manifest == {
        "encoder": "i3",
        "width": 3,
        "dtype": "bfloat16",
        "rows_per_s": 2.5,
        "window": 16,
        "stride": 8,
        "num_videos": NUM_VIDEOS,
        "num_rows": sum(min(g + 1, 15) for g in range(NUM_VIDEOS)),
    }
    said = capsys.readouterr().out
    for line in (
        r"official │ train │ +56 │ +55 │",
        r"official │ test +│ +16 │ +16 │ 20.3 │ +16 │ +16 │ +100.00 %",
        r"by_video │ test .* 0 │ +0.00 %",
        r"rows read +│ +82",
        r"in no split \(unused\) +│ +2",
        r"null label \(dropped\) +│ +1",
        r"videos cut at 15 rows \(truncated\) +│ +5",
    ):
        assert re.search(line, said), line


def test_missing_features_stop_or_drop_their_comments(release, tmp_path):
    for g in (3, 7):
        (release / "npy" / f"{g}.npy").unlink()
    given = {"folder": release / "npy", "encoder": "own"}
    corpus = read_source({"root": release, "strict": False}, None)
    with pytest.raises(UserError, match=r"2 of 20 feature files are missing, first: 3.npy, 7.npy"):
        prepare(corpus, tmp_path / "out", feature_source(given))
    assert not (tmp_path / "out").exists()
    prepared = prepare(corpus, tmp_path / "out", feature_source({**given, "missing": "drop"}))
    for protocol in ("official", "by_video"):
        for split in ("train", "dev", "test"):
            videos = prepared.comments(protocol, split).video
            assert not {"3.mp4", "7.mp4"} & set(videos)
    report = prepared.report
    assert (report["missing"], report["missing_first"]) == (2, ["3.mp4", "7.mp4"])
    assert report["missing_comments"] == 8
    assert len(prepared.features().row) == NUM_VIDEOS - 2


def test_the_seed_moves_the_split_by_video_and_nothing_else(release, tmp_path):
    keys = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        run("csmv", "--root", release, "--features", "none", "--seed", seed, "--out", out)
        prepared = Prepared.open(out)
        keys.append([prepared.comments(p, "test").key for p in ("official", "by_video")])
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


def test_published_encoders_bring_their_limit_width_and_names():
    given = {"root": "CSMV", "folder": Path("f")}
    source = feature_source({**given, "encoder": "r2plus1d"})
    assert (source.limit, source.width, source.suffix) == (180, 512, "_r21d.npy")
    own = {"encoder": "videomaev2", "limit": None, "suffix": ".x.npy"}
    source = feature_source({**given, **own})
    assert (source.limit, source.width, source.suffix) == (None, 1408, ".x.npy")
    assert {name: (e.limit, e.rows_per_s) for name, e in ENCODERS.items()} == {
        "i3d": (180, 3),
        "r2plus1d": (180, 3),
        "videomaev2": (720, 12),
    }
    with pytest.raises(UserError, match=r"--limit is needed: 'i3' .* did you mean 'i3d'"):
        feature_source({**given, "encoder": "i3"})


def test_door_prepares_own_data_without_splits_by_video(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"comment": f"c{i}", "video": f"v{i % 10}", "mood": "ab"[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("table", "--input", path, "--labels", "mood", "--features", "none", "--out", tmp_path / "o")
    prepared = Prepared.open(tmp_path / "o")
    assert prepared.protocols == {"by_video": {"train": 28, "dev": 4, "test": 8}}
    assert prepared.labels == {"mood": ("a", "b")}
    assert "none: split by_video alone" in capsys.readouterr().out


def test_door_prepares_own_splits_with_features(tmp_path):
    (tmp_path / "npy").mkdir()
    for name, videos in {"train": "abcd", "dev": "e", "test": "f"}.items():
        lines = [f"nice,{video},{'up' if video in 'ace' else 'down'}" for video in videos]
        (tmp_path / f"{name}.csv").write_text("\n".join(["comment,video,mood", *lines]) + "\n")
        for video in videos:
            np.save(tmp_path / "npy" / f"{video}.npy", np.ones((2, 4), np.float32))
    files = [f"--{split}={tmp_path}/{split}.csv" for split in ("train", "dev", "test")]
    run("table", *files, "--labels", "mood", "--features", tmp_path / "npy", "--encoder", "own",
        "--out", tmp_path / "o")  # fmt: skip
    prepared = Prepared.open(tmp_path / "o")
    assert prepared.comments("official", "dev").video == ["e"]
    np.testing.assert_array_equal(prepared.rows(prepared.comments("official", "test")), [5])
    assert prepared.features().values_nf.shape == (12, 4)


def test_own_splits_with_two_videos_have_no_split_by_video(tmp_path, capsys):
    lines = ["comment,video,split,mood", "x,a,train,up", "y,a,train,down", "z,b,test,up"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    run("table", "--input", tmp_path / "rows.csv", "--labels", "mood", "--features", "none",
        "--out", tmp_path / "o")  # fmt: skip
    assert Prepared.open(tmp_path / "o").protocols == {"official": {"train": 2, "test": 1}}
    assert "left out: fewer than 3 videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "npy"], "--features needs --encoder"),
        (["--features", "none", "--out", "."], r". already exists: choose another --out"),
        (["--features", "npy", "--encoder", "i3d"], "npy: no such feature folder"),
    ],
)
def test_door_refuses_options_that_cannot_work(release, monkeypatch, options, message):
    monkeypatch.chdir(release)
    (release / "npy").rename(release / "elsewhere")
    with pytest.raises(UserError, match=message):
        run("csmv", "--out", "o", "--root", ".", *options)
    assert not (release / "o").exists()


def test_own_data_comes_from_one_file_or_from_files_per_split():
    for files in ({}, {"input": "a.csv", "train": "b.csv"}):
        with pytest.raises(UserError, match=r"give either --input FILE, or --train FILE"):
            read_source({"labels": "mood", "strict": False, **files}, None)


def test_table_features_keep_all_rows_unless_told():
    assert feature_source({"folder": Path("f"), "encoder": "i3d"}).limit is None


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_door_refuses_a_limit_that_is_no_number_of_rows(value, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("csmv", "--root", "r", "--features", "none", "--out", "o", f"--limit={value}")
    assert stopped.value.code == 2
    assert "expected a positive number of rows, or none" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "1.5"])
def test_door_refuses_a_seed_that_numpy_does_not_take(value, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("csmv", "--root", "r", "--features", "none", "--out", "o", f"--seed={value}")
    assert stopped.value.code == 2
    assert "--seed: expected a whole number of at least 0" in capsys.readouterr().err


@pytest.mark.real_data
def test_csmv_prepares_with_the_counts_of_its_readme(csmv_path, tmp_path, capsys):
    run("csmv", "--root", csmv_path, "--features", "none", "--out", tmp_path / "o")
    said = capsys.readouterr().out
    for line in (
        r"official │ train │ 75,086 │ 75,082 │ .* 8,190",
        r"official │ dev +│ +5,363 │ .* 3,896 │ +3,888 │ +99.85 %",
        r"official │ test +│ +5,364 │ .* 3,858 │ +3,851 │ +99.87 %",
        r"rows read +│ 95,603",
        r"in no split \(unused\) +│ +9,790",
        r"null label \(dropped\) +│ +5 ",
    ):
        assert re.search(line, said), line
    prepared = Prepared.open(tmp_path / "o")
    sizes = prepared.protocols["by_video"]
    for split, share in {"train": 70, "dev": 10, "test": 20}.items():
        assert abs(100 * sizes[split] / sum(sizes.values()) - share) <= 0.5
        assert len(prepared.comments("by_video", split)) == sizes[split]
