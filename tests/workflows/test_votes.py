"""Any model's outputs against people's votes: published margins, thresholds, pairs of models."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from workflows.small_votes import SCORES, VOTES, genai, run, scores_file, six_votes, write

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json
from jaxvsa.metrics.clustered import linearised_error
from jaxvsa.workflows.votes import score_votes

PEOPLE = np.repeat([0, 1, 2, 3], [325, 375, 138, 231])
PUBLISHED = ("[[A>B]]", "[[B>A]]", "[[A=B=Good]]", "[[A=B=Bad]]")


def _model() -> np.ndarray:
    """GPT-4o's margins: 482 of 700 right, 75 ties there; 50 of 369 ties, 36 with their kind."""
    said = PEOPLE.copy()
    said[220:325] = np.repeat([1, 2], [68, 37])
    said[325 + 262 : 700] = np.repeat([0, 3], [75, 38])
    said[700:838] = np.repeat([2, 3, 0], [16, 4, 118])
    said[838:] = np.repeat([3, 2, 1], [20, 10, 201])
    return said


def _shuffled() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """People's and the model's votes in an order that mixes classes; prompts of up to 14 votes."""
    order = np.random.default_rng(0).permutation(len(PEOPLE))
    prompts = [f"prompt {n // 5}" for n in range(len(PEOPLE))]
    return PEOPLE[order], _model()[order], prompts


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    """People's votes, and a model's in the form in which GenAI-Bench publishes them."""
    folder = tmp_path_factory.mktemp("published")
    people, said, prompts = _shuffled()
    results = [
        {
            "idx": n,
            "prompt": prompt,
            "response": "...",
            "model_vote": PUBLISHED[one],
            "human_vote": VOTES[vote],
        }
        for n, (vote, one, prompt) in enumerate(zip(people, said, prompts, strict=True))
    ]
    return {
        "votes": write(folder / "votes.json", genai(people, prompts)),
        "results": write(folder / "gpt4o.jsonl", results),
    }


def test_published_margins_are_found(published):
    report = score_votes([published["results"]], published["votes"])
    assert report["counts"] == {"left": 325, "right": 375, "tie": 138, "both_bad": 231}
    assert (report["pairs"], report["decided"], report["prompts"]) == (1069, 700, 214)
    (model,) = report["models"]
    assert model["values"]["without_ties"] == pytest.approx(482 / 700)
    assert model["values"]["with_ties"] == pytest.approx(532 / 1069)
    assert model["values"]["four_way"] == pytest.approx(518 / 1069)
    assert (model["says"], model["zero"]) == ("votes", "wrong")
    people, said, prompts = _shuffled()
    credit = np.where(people < 2, (people == said).astype(float), np.nan)
    want = linearised_error(credit, prompts)
    assert model["errors"]["without_ties"] == pytest.approx(want)
    assert model["values"]["without_ties/low"] < 482 / 700 < model["values"]["without_ties/high"]
    half = score_votes([published["results"]], published["votes"], zero="half")
    assert half["models"][0]["values"]["without_ties"] == pytest.approx((482 + 37.5) / 700)


def test_published_results_are_votes_of_people_too(published):
    report = score_votes([published["results"]], published["results"])
    assert report["models"][0]["values"]["four_way"] == pytest.approx(518 / 1069)


def test_baselines_of_the_benchmark(published):
    """A6 and CA2: always right 53.57 and 35.08, always tie 34.52, random 50.0 and 35.5 +- .8."""
    report = score_votes([published["results"]], published["votes"])
    of = {row["name"]: row["values"] for row in report["baselines"]}
    assert of["always right"]["without_ties"] == pytest.approx(375 / 700)
    assert of["always right"]["with_ties"] == pytest.approx(375 / 1069)
    assert of["always left"]["four_way"] == pytest.approx(325 / 1069)
    assert of["always tie"] == {"with_ties": pytest.approx(369 / 1069), "without_ties": 0}
    assert of["random voter"]["without_ties"] == 0.25 and of["random voter"]["four_way"] == 0.25
    assert of["random voter"]["with_ties"] == pytest.approx((700 / 4 + 369 / 2) / 1069)
    assert of["random scorer"]["without_ties"] == 0.5
    assert of["random scorer"]["with_ties_oracle"] == pytest.approx(0.3552, abs=0.003)
    half = score_votes([published["results"]], published["votes"], zero="half")
    assert half["baselines"][3]["values"]["without_ties"] == 0.5


def test_door_prints_the_published_numbers(published, tmp_path, capsys):
    argv = ("--scores", published["results"], "--votes", published["votes"], "--out", tmp_path)
    assert run(*argv) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.strip().startswith("gpt4o  ")][:1]
    cells = line.split()
    # Without ties, with ties, the oracle's eps that a voter does not have, four-way.
    assert [cells[n] for n in (1, 3, 5, 6)] == ["68.86", "49.77", "-", "48.46"]
    assert "1,069 votes on 214 prompts (325 left, 375 right, 138 tie, 231 both bad)" in printed
    assert "on decided pairs a tie vote is wrong" in printed
    report = read_json(tmp_path / "report.json", "report")
    assert report["models"][0]["values"]["without_ties"] == pytest.approx(482 / 700)
    rows = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert len(rows) == 1069 and rows[0]["vote"] in VOTES
    assert sum(float(row["gpt4o with_ties"]) for row in rows) == 532
    assert sum(float(row["gpt4o without_ties"] or 0) for row in rows) == 482


def test_one_missing_vote_is_wrong_and_never_a_tie(published, tmp_path):
    """CA1: Gemini's 500 of 1069 need its missing vote to be wrong."""
    rows = [json.loads(line) for line in published["results"].read_text().splitlines()]
    at = next(n for n, row in enumerate(rows) if row["human_vote"] == "tievote"
              and row["model_vote"] == "[[A=B=Good]]")  # fmt: skip
    rows[at]["model_vote"] = None
    path = write(tmp_path / "one.jsonl", rows)
    (model,) = score_votes([path], published["votes"])["models"]
    assert model["values"]["with_ties"] == pytest.approx(531 / 1069)
    assert model["values"]["four_way"] == pytest.approx(517 / 1069)
    assert (model["unread"], model["absent"], model["coverage"]) == (1, 0, 1)


def test_two_models_are_compared_by_prompt(published, tmp_path, capsys):
    rows = [json.loads(line) for line in published["results"].read_text().splitlines()]
    worse = [row | {"model_vote": "[[A>B]]"} if n < 300 else row for n, row in enumerate(rows)]
    other = write(tmp_path / "other.jsonl", worse)
    report = score_votes([published["results"], other], published["votes"])
    found = {one["figure"]: one for one in report["comparisons"]}
    people, said, prompts = _shuffled()
    mine = (people == said).astype(float)
    theirs = (people == np.where(np.arange(len(said)) < 300, 0, said)).astype(float)
    of = found["four_way"]
    assert of["value"] == pytest.approx(np.mean(mine - theirs))
    assert of["error"] == pytest.approx(linearised_error(mine - theirs, prompts))
    assert of["only_first"] == np.sum(mine > theirs)
    assert of["only_second"] == np.sum(mine < theirs)
    assert set(found) == {"without_ties", "with_ties", "four_way"}
    argv = ["--scores", published["results"], "--scores", other, "--votes", published["votes"]]
    assert run(*argv) == 0
    assert "gpt4o minus other, four-way: +" in capsys.readouterr().out
    with pytest.raises(UserError, match="is given twice"):
        score_votes([other, other], published["votes"])


@pytest.fixture
def small(tmp_path) -> Path:
    return six_votes(tmp_path)


def test_scores_by_hand(small, tmp_path):
    report = score_votes([scores_file(tmp_path / "s.csv")], small)
    (model,) = report["models"]
    assert (model["says"], model["zero"]) == ("scores", "half")
    assert model["values"]["without_ties"] == 2.5 / 4
    # Ties up to .1: 0 and 2 right, 4 and 5 right; 3 is read as a tie.
    assert model["values"]["with_ties_oracle"] == 4 / 6
    assert model["oracle"] == {"eps": pytest.approx(0.1), "rho": pytest.approx(0.65)}
    assert model["values"]["four_way_oracle"] == 4 / 6
    assert "with_ties" not in model["values"]
    strict = score_votes([scores_file(tmp_path / "s.csv")], small, zero="wrong")
    assert strict["models"][0]["values"]["without_ties"] == 2 / 4
    assert model["position_bias"] == pytest.approx(0.5 - 0.75)


def test_threshold_of_dev_is_honest(small, tmp_path):
    dev_votes = write(tmp_path / "dev.jsonl", genai([2, 0, 3], ["x", "y", "z"]))
    dev = {"l0.mp4": 0.9, "r0.mp4": 0.5, "l1.mp4": 1, "r1.mp4": 0, "l2.mp4": 0.1, "r2.mp4": 0.1}
    dev_scores = scores_file(tmp_path / "dev.csv", dev)
    scores = scores_file(tmp_path / "s.csv")
    report = score_votes([scores], small, [dev_scores], dev_votes)
    (model,) = report["models"]
    assert model["dev"]["eps"] == pytest.approx(0.4) and model["dev"]["rho"] == pytest.approx(0.7)
    # Up to .4 is a tie: 0 and 2 right, 4 and 5 right; with a mean under .7 all ties are bad.
    assert model["values"]["with_ties"] == 4 / 6
    assert model["values"]["four_way"] == 3 / 6
    assert model["values"]["with_ties_oracle"] == 4 / 6
    votes = write(tmp_path / "v.jsonl", [{"vote": "A"}] * 3)
    for argv, message in [
        (([scores], small, [dev_scores]), "add --dev-votes"),
        (([scores], small, [], dev_votes), "add --dev-scores"),
        (([scores], small, [dev_scores] * 2, dev_votes), "given 2 times, --scores 1 times"),
        (([scores], small, [votes], dev_votes), "it has one and its --dev-scores the other"),
        (([], small), "--votes needs --scores"),
    ]:
        with pytest.raises(UserError, match=message):
            score_votes(*argv)


def test_missing_scores_stop_or_are_wrong_or_dropped(small, tmp_path, capsys):
    some = {name: score for name, score in SCORES.items() if name not in ("r0.mp4", "l5.mp4")}
    path = scores_file(tmp_path / "s.csv", some | {"other.mp4": 1.0})
    with pytest.raises(UserError, match=r"2 videos of the votes .*: genai/m2/r0.mp4, "):
        score_votes([path], small)
    (wrong,) = score_votes([path], small, missing="wrong")["models"]
    assert wrong["values"]["without_ties"] == 1.5 / 4
    assert (wrong["absent"], wrong["coverage"], wrong["unused_rows"]) == (2, 1, 1)
    assert run("--scores", path, "--votes", small, "--missing", "drop") == 0
    printed = capsys.readouterr().out
    assert "2 of 6 pairs have no score and were dropped; 66.67 % are covered" in printed
    (dropped,) = score_votes([path], small, missing="drop")["models"]
    assert dropped["values"]["without_ties"] == 1.5 / 3
    none = scores_file(tmp_path / "none.csv", {"other.mp4": 1.0})
    with pytest.raises(UserError, match=r"no pair of .* is left"):
        score_votes([none], small, missing="drop")
    with pytest.raises(UserError, match=r"12 videos .*genai/m1/l2.mp4, \.\.\.; add them"):
        score_votes([none], small)


def test_only_ties_are_null_and_not_a_division_by_zero(tmp_path, capsys):
    votes = write(tmp_path / "v.jsonl", genai([2, 3], ["a", "b"]))
    scores = scores_file(tmp_path / "s.csv", dict(list(SCORES.items())[:4]))
    argv = ("--scores", scores, "--votes", votes, "--out", tmp_path / "out")
    assert run(*argv) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["models"][0]["values"]["without_ties"] is None
    assert report["decided"] == 0 and report["models"][0]["position_bias"] is None
    assert report["models"][0]["values"]["with_ties_oracle"] == 1
    assert "nan" not in capsys.readouterr().out


def test_tables_reach_a_reader(published, tmp_path):
    file = io.StringIO()
    score_votes([published["results"]], published["votes"], console=Console(file=file))
    text = file.getvalue()
    for row in ("gpt4o", "always left", "always right", "always tie", "random voter"):
        assert row in text
    assert "random scorer" in text and "95 % intervals" in text
