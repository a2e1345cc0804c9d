"""`prepare videocross` as a user runs it: files to a folder, leaks counted, mistakes in a line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from jaxvsa.core.errors import UserError
from jaxvsa.data.scored import RewardRows, ScoredVideo, Vote
from jaxvsa.data.sources.reward_demo import leaking_prompts, write_releases
from jaxvsa.data.videocross_files import open_videocross
from jaxvsa.prepare import main
from jaxvsa.workflows.videocross import READERS, read_sources
from jaxvsa.workflows.videocross_features import with_features


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments `--source` of three small files in the published formats."""
    files = write_releases(
        tmp_path_factory.mktemp("releases"), num_prompts=40, num_feedback=240, num_votes=20
    )
    return [f"--source={name}={path}" for name, path in files.items()]


def test_files_become_pairs_without_leaks(releases, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["videocross", *releases, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "same_prompt" in printed and f"--config.data.root={out}" in printed
    cross = open_videocross(out)
    assert sorted(cross.sources) == ["genai", "t2vqa", "videofeedback"]
    assert len(cross.videos) == 400 + 240 + 40
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json", "card.md", "pairs.jsonl", "videos.jsonl",
    ]  # fmt: skip
    assert main(["videocross", "--check", str(out)]) == 0
    again = tmp_path / "again"
    assert main(["videocross", *releases, "--out", str(again)]) == 0
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.slow
def test_published_sizes_fit_time_and_memory(tmp_path):
    """300,000 pairs of 43,000 videos and more: 9 s and .6 GiB measured, 300 s and 4 GiB allowed."""
    files = write_releases(tmp_path / "releases")
    flags = [f"--source={name}={path}" for name, path in files.items()]
    # Not `ru_maxrss`: it begins with what this process held when it started the other one.
    code = (
        "import sys; from jaxvsa.prepare import main; main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    argv = [sys.executable, "-c", code, "videocross", *flags, f"--out={tmp_path / 'out'}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout.split()[-1]) < 4 * 2**20  # KiB
    cross = open_videocross(tmp_path / "out")
    assert len(cross.pairs) == 300_000 and len(cross.videos) > 43_000


def test_check_finds_the_planted_leaks_and_exits_with_one(tmp_path, capsys):
    prompts = leaking_prompts(1)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for n, (split, prompt) in enumerate((s, p) for s, part in prompts.items() for p in part):
            row = {
                "pair_id": str(n), "split": split, "prompt_group": str(n), "prompt_a": prompt,
                "prompt_b": prompt, "video_a": f"{n}a", "video_b": f"{n}b",
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    (tmp_path / "videos.jsonl").write_text('{"video_id": "0a", "hash": null}\n')
    assert main(["videocross", "--check", str(tmp_path)]) == 1
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert {row[1].strip(): row[2].strip() for row in rows} == {
        "prompt": "20", "group": "0", "video": "0", "hash": "0", "pair": "0",
    }  # fmt: skip


def test_options_reach_the_builder(releases, tmp_path):
    out = tmp_path / "out"
    flags = ["--seed=3", "--budget=500", "--cap=2", "--mismatches=2", "--delta=t2vqa=4"]
    flags += ["--tie-eps=t2vqa=1", "--rater-sd=t2vqa=20", "--cross-source-mismatch"]
    main(["videocross", *releases, *flags, "--out", str(out)])
    cross = open_videocross(out)
    assert cross.card["settings"] == {
        "seed": 3, "budget": 500, "cap": 2, "mismatches": 2, "delta": {"t2vqa": 4},
        "tie_eps": {"t2vqa": 1}, "rater_sd": {"t2vqa": 20}, "cross_source_mismatch": True,
    }  # fmt: skip
    assert len(cross.pairs) == 500
    of_n = cross.pairs.source_n == cross.sources.index("t2vqa")
    # The smallest decided gap is 4 of 20 for one of 27 raters: Phi(.735) = .769.
    assert 0.768 < cross.pairs.weight_n[of_n].min() < 0.85
    assert np.all(cross.pairs.weight_n[~of_n] == 1)


def test_help_names_every_source_and_an_example(capsys):
    with pytest.raises(SystemExit) as left:
        main(["videocross", "--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0 and "example:\n  python -m jaxvsa.prepare videocross" in printed
    assert all(f"\n  {name} " in printed for name in READERS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=O"], "--out needs --source NAME=FILE; names: t2vqa"),
        (["--out=O", "--source=t2vq=x"], "did you mean 't2vqa'"),
        (["--out=O", "--source=t2vqa"], "--source t2vqa: expected NAME=FILE"),
        (["--out=O", "--source=t2vqa=none.txt"], "none.txt: cannot read it"),
        (["--check=none"], "none is no VideoCross: --check is a folder"),
        (["--check=none", "--features=f"], "--features goes with --out; --check reads the folder"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        main(["videocross", *flags])
    assert "\n" not in str(error.value)


def test_numbers_and_folders_are_checked(releases, tmp_path, capsys):
    with pytest.raises(UserError, match="--delta t2vqa=much: expected NAME=VALUE, a number"):
        main(["videocross", *releases, "--delta=t2vqa=much", f"--out={tmp_path / 'out'}"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="already exists"):
        main(["videocross", *releases, f"--out={tmp_path / 'full'}"])
    for flags, message in (
        (["--out=o", "--seed=-1"], "expected a whole number of at least 0"),
        (["--out=o", "--check=o"], "not allowed with"),
        (["--source=t2vqa=f"], "one of the arguments --out --check is required"),
        (["--out=o", "--sed=1"], "unknown flag --sed; did you mean '--seed'"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["videocross", *flags])
        assert left.value.code == 2 and message in capsys.readouterr().err


def _part() -> RewardRows:
    videos = tuple(
        ScoredVideo(f"{name}.mp4", "own", "cat", {"overall": score}, {"overall": (0, 9)})
        for name, score in (("a", 1.0), ("b", 9.0), ("c", 3.0))
    )
    votes = (Vote("own", "overall", "a.mp4", "c.mp4", "cat", "cat", 1, "f:1"),)
    return RewardRows(videos, votes)


def test_videos_without_features_are_an_error_or_dropped(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.npy").touch()
    with pytest.raises(
        UserError, match=r"1 of 3 videos have no feature file, first: c.npy; extract"
    ):
        with_features([_part()], tmp_path)
    (kept,) = with_features([_part()], tmp_path, missing="drop")
    assert [video.video_id for video in kept.videos] == ["a.mp4", "b.mp4"] and not kept.votes
    assert kept.report == {"missing_features": 1, "votes_missing_features": 1}
    with pytest.raises(UserError, match=r"3 of 3 videos .* first: a.bin, .*; check --features and"):
        with_features([_part()], tmp_path, suffix=".bin", missing="drop")
    with pytest.raises(UserError, match="no such folder; --features"):
        with_features([_part()], tmp_path / "none")


@pytest.fixture
def own(tmp_path):
    """Arguments for four own videos on one prompt, whose features are 5 rows of 2 values."""
    rows = [
        {"video_id": f"v{n}", "source": "own", "prompt": "a cat", "scores": {"overall": n},
         "score_range": {"overall": [0, 9]}, "feature_key": "third" if n == 3 else None}
        for n in range(4)
    ]  # fmt: skip
    path, folder = tmp_path / "scored.jsonl", tmp_path / "f"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()
    for n, name in enumerate(("v0", "v1", "v2", "third")):
        np.save(folder / f"{name}.npy", np.arange(10.0).reshape(5, 2) + 100 * n)
    return ["videocross", f"--source=scored={path}", f"--features={folder}", "--encoder=clip"]


def test_features_of_videos_are_stored(own, tmp_path, capsys):
    out = tmp_path / "out"
    main([*own, "--rows=2", "--dtype=bfloat16", f"--out={out}"])
    assert "clip, 2 rows at most: 8 rows of 2 bfloat16, 4 entries" in " ".join(
        capsys.readouterr().out.split()
    )
    cross = open_videocross(out)
    table = cross.features()
    assert table is cross.features() and cross.question_features() is None
    assert cross.manifest["encoder"] == "clip, 2 rows at most" and cross.question_manifest is None
    # The midpoints of two halves of five rows: the second and the fourth.
    np.testing.assert_array_equal(table.of("v0"), [[2, 3], [6, 7]])
    np.testing.assert_array_equal(table.of("v3"), np.array([[302, 303], [306, 307]], table.dtype))
    assert "| videos | clip, 2 rows at most | 4 | 8 | 2 bfloat16 |" in (out / "card.md").read_text()


def test_missing_features_stop_or_drop_their_videos(own, tmp_path):
    (tmp_path / "f/v1.npy").unlink()
    with pytest.raises(
        UserError, match=r"1 of 4 videos have no feature file, first: v1.npy; extract"
    ):
        main([*own, f"--out={tmp_path / 'out'}"])
    main([*own, "--missing=drop", f"--out={tmp_path / 'out'}"])
    cross = open_videocross(tmp_path / "out")
    assert cross.card["dropped"]["missing_features"] == 1 and list(cross.features().row) == [
        "v0", "v2", "v3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 3)), r"v2.npy: rows are 3 wide, expected 2 \(as in .*v0.npy\)"),
        (np.zeros((0, 2)), r"v2.npy: shape \(0, 2\) holds no features"),
        (np.full((5, 2), np.nan), "v2.npy: row 0 is not finite"),
        (np.full((5, 2), 1e9), "v2.npy: row 0 is too large for float16; use --dtype bfloat16"),
    ],
)
def test_features_refused(own, tmp_path, array, message):
    np.save(tmp_path / "f/v2.npy", array)
    with pytest.raises(UserError, match=message) as error:
        main([*own, f"--out={tmp_path / 'out'}"])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features=f"], "--features needs --encoder: the name of the network"),
        (["--encoder=x"], "--encoder needs --features; give both or neither"),
        (["--rows=3"], "--rows needs --features"),
        (["--question-rows=token"], "--question-rows needs --text-encoder"),
        (["--dtype=float16"], "--dtype needs --features or --text-encoder"),
        (["--text-encoder=none"], "none/config.json: not found"),
    ],
)
def test_flags_of_features_belong_together(own, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        main([*own[:2], *flags, f"--out={tmp_path / 'out'}"])


def test_unknown_dimensions_at_the_door(tmp_path):
    row = {
        "video_id": "v", "source": "own", "prompt": "cat", "scores": {"fun": 3, "overall": 4},
        "score_range": {"fun": [0, 9], "overall": [0, 9]},
    }  # fmt: skip
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    source = [f"scored={tmp_path / 'own.jsonl'}"]
    with pytest.raises(UserError, match=r"own.jsonl:1: unknown dimension 'fun'"):
        read_sources(source)
    assert read_sources(source, "drop")[0].report == {"unknown_dimension": 1}


def test_console_of_another_width_keeps_the_numbers(releases, tmp_path):
    from jaxvsa.workflows.videocross import card_tables

    main(["videocross", *releases, f"--out={tmp_path / 'out'}"])
    card = open_videocross(tmp_path / "out").card
    console = Console(width=200, record=True)
    for table in card_tables(card, tmp_path):
        console.print(table)
    text = console.export_text()
    assert f"{card['pairs']:,}" in text and "left out: " in text
