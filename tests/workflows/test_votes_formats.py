"""Any model's outputs against people's votes: formats and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflows.small_votes import SCORES, genai, pair, run, scores_file, six_votes, write

from jaxvsa.core.errors import UserError
from jaxvsa.data.votes import read_person_votes
from jaxvsa.workflows.votes import score_votes


@pytest.fixture
def small(tmp_path) -> Path:
    return six_votes(tmp_path)


def test_votes_by_sides_may_be_turned(small, tmp_path):
    rows = [
        {"left": f"r{n}.mp4", "right": f"m1/l{n}.mp4", "vote": vote}
        for n, vote in enumerate(["B", "left", "a", "[[A>>B]]", "tie", "same"])
    ]
    report = score_votes([write(tmp_path / "v.csv", rows[::-1])], small)
    (model,) = report["models"]
    # Turned round they say A, B, B, B: three of four, and both ties.
    assert model["values"]["without_ties"] == 3 / 4
    assert model["values"]["with_ties"] == 5 / 6
    assert "four_way" not in model["values"]  # a tie of three classes is neither good nor bad


def test_rewards_as_predict_writes_them_are_scores(small, tmp_path):
    rows = [{"key": name, "video": name, "reward": score} for name, score in SCORES.items()]
    rewards = write(tmp_path / "rewards.jsonl", rows)
    found, want = (
        score_votes([path], small)["models"][0]["values"]
        for path in (rewards, scores_file(tmp_path / "s.csv"))
    )
    assert found == want


def test_rows_in_order_need_no_names(small, tmp_path):
    votes = ["leftvote", "rightvote", "", "rightvote", "bothbad_vote", "bothbad_vote"]
    path = write(tmp_path / "v.jsonl", [{"vote": vote} for vote in votes])
    (model,) = score_votes([path], small)["models"]
    assert model["values"]["without_ties"] == 2 / 4 and model["unread"] == 1
    assert (model["values"]["with_ties"], model["values"]["four_way"]) == (4 / 6, 3 / 6)
    short = write(tmp_path / "short.jsonl", [{"vote": "A"}] * 5)
    with pytest.raises(UserError, match="5 rows, but 6 votes"):
        score_votes([short], small)
    other = write(tmp_path / "o.jsonl", [{"vote": "A", "prompt": "a cat"}] * 6)
    with pytest.raises(UserError, match=r"o.jsonl:4: is about another prompt than .*votes.jsonl:4"):
        score_votes([other], small)
    missing = write(tmp_path / "m.jsonl", [{"vote": "A", "idx": n} for n in range(1, 6)])
    with pytest.raises(UserError, match=r"1 pairs of the votes have no vote: .*votes.jsonl:1"):
        score_votes([missing], small)
    assert score_votes([missing], small, missing="drop")["models"][0]["pairs"] == 5


def test_pairs_of_videocross_by_split_source_and_dimension(tmp_path):
    dynamic = {"dimension": "dynamism", "question": None, "source": "videofeedback"}
    rows = [
        pair(0, "test"),
        pair(1, "test", answer="B"),
        pair(2, "test", answer="tie", prompt_group="dog"),
        pair(3, "test", **dynamic, video_a="a0", video_b="b0"),
        pair(4, "train"),
        pair(5, "dev", answer="tie"),
    ]
    votes = write(tmp_path / "pairs.jsonl", rows)
    values = {"a0": 2, "b0": 1, "a1": 2, "b1": 1, "a2": 1, "b2": 1, "a4": 1, "b4": 1}
    overall = [{"video": v, "score": s, "dimension": "MOS"} for v, s in values.items()]
    more = [
        {"video": v, "score": s, "dimension": "dynamic degree"} for v, s in [("a0", 0), ("b0", 3)]
    ]
    scores = write(tmp_path / "s.jsonl", overall + more)
    dev = scores_file(tmp_path / "dev.csv", {"a5": 0.5, "b5": 0.1})
    report = score_votes([scores], votes, [dev], votes)
    (model,) = report["models"]
    assert report["prompts"] == 2  # groups, though the prompt is one
    assert report["pairs"] == 4 and report["counts"] == {"left": 2, "right": 1, "tie": 1}
    assert model["values"]["without_ties"] == 1 / 3
    assert model["dev"] == {"eps": pytest.approx(0.4), "rho": None}
    parts = model["parts"]
    assert set(parts) == {
        "source t2vqa", "source videofeedback", "dimension overall", "dimension dynamism",
    }  # fmt: skip
    assert parts["source t2vqa"]["values"]["without_ties"] == 1 / 2
    assert parts["dimension dynamism"]["values"]["with_ties"] == 0
    by_id = write(tmp_path / "v.csv", [{"pair_id": f"p{n}", "vote": "tie"} for n in range(4)])
    (voter,) = score_votes([by_id], votes)["models"]
    assert voter["values"]["with_ties"] == 1 / 4 and voter["zero"] == "wrong"
    with pytest.raises(UserError, match="has no vote of the split dev, but of: train 1"):
        only = write(tmp_path / "only.jsonl", rows[4:5])
        score_votes([scores], only, split="dev")


def test_a_foreign_prompt_needs_scores_by_prompt(tmp_path):
    row = pair(0, "test", kind="mismatch", prompt_b="a dog")
    votes = write(tmp_path / "pairs.jsonl", [row])
    plain = scores_file(tmp_path / "s.csv", {"a0": 1, "b0": 2})
    with pytest.raises(UserError, match=r"asks about another prompt .* needs a column 'prompt'"):
        score_votes([plain], votes)
    rows = [
        {"video": video, "prompt": prompt, "score": score}
        for video, prompt, score in [("a0", "A cat.", 1), ("b0", "a cat", 0), ("b0", "a dog", 2)]
    ]
    (model,) = score_votes([write(tmp_path / "p.csv", rows)], votes)["models"]
    assert model["values"]["without_ties"] == 1


def test_videoalign_table_has_a_vote_for_each_dimension(tmp_path):
    rows = [
        {"path_A": "x/1.mp4", "path_B": "x/2.mp4", "prompt": "a cat", "VQ": "A", "TA": "same"},
        {"path_A": "x/3.mp4", "path_B": "x/4.mp4", "prompt": "a dog", "VQ": "B", "TA": ""},
    ]
    votes = write(tmp_path / "bench.csv", rows)
    people = read_person_votes(votes)
    assert people.answer_b.tolist() == [1, 0, -1] and not people.four_classes
    scores = scores_file(
        tmp_path / "s.csv", {f"x/{n}.mp4": s for n, s in enumerate([0, 3, 1, 2, 1])}
    )
    (model,) = score_votes([scores], votes)["models"]
    assert model["values"]["without_ties"] == 1 / 2
    assert not any("four_way" in name for name in model["values"])
    assert model["parts"]["dimension visual_aesthetics"]["values"]["without_ties"] == 1 / 2
    assert model["parts"]["dimension text_alignment"]["values"]["without_ties"] is None


BAD = [
    ("s.csv", "video,score\nl0.mp4,1\nl0.mp4,2\n", "s.csv:3: 'l0.mp4' was already scored at"),
    ("s.csv", "video,score\nl0.mp4,nan\n", "s.csv:2, field 'score' is 'nan', not a finite"),
    ("s.csv", "video,score\nl0.mp4,x\n", "s.csv:2, field 'score' is 'x', not a finite"),
    ("s.csv", "video,score\n", "s.csv is empty"),
    ("s.csv", "", "s.csv is empty; give a file with rows"),
    ("s.csv", "video,scor\na,1\n", "no column 'score' or 'vote'; did you mean 'score'"),
    ("s.csv", "vidio,score\na,1\n", "no column 'video'; did you mean 'video'"),
    ("s.csv", "video,score,score\na,1,2\n", "s.csv:1: the column 'score' is there twice"),
    ("s.csv", "video,score\na,1,2\n", "s.csv:2: expected 2 fields"),
    ("s.csv", 'video,"score\na,1\n', "no CSV (unexpected end of data); correct it"),
    ("s.csv", 'video,score\na,"1\n', "no CSV (unexpected end of data); correct it"),
    ("s.csv", "video,score,vote\na,1,A\n", "both 'score' and 'vote'"),
    ("s.csv", "video,score,dimension\na,1,dynamc\n", "unknown dimension 'dynamc'; did you"),
    ("s.csv", "left,right,vote\nl0.mp4,r0.mp4,leftvot\n", "unknown vote 'leftvot'; did you"),
    ("s.csv", "left,right,vote\nl0.mp4,r0.mp4,A\nr0.mp4,l0.mp4,A\n", "s.csv:3: the pair 'genai"),
    ("s.jsonl", "{]\n", "s.jsonl:1: not valid JSON"),
    ("s.txt", "video,score\na,1\n", "s.txt: expected a .csv, .jsonl or .json file; rename it"),
    ("s.csv", None, "s.csv: cannot read it (No such file or directory)"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_scores_are_one_line_and_exit_code_two(tmp_path, capsys, name, content, message):
    votes = write(tmp_path / "v.jsonl", genai([0, 1], ["a", "b"]))
    scores = tmp_path / name
    if content is not None:
        scores.write_text(content)
    assert run("--scores", scores, "--votes", votes) == 2
    found = capsys.readouterr().err
    assert message in found and found.startswith("error: ") and found.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("v.jsonl", "vote_type", "vote_typ", "v.jsonl:1: no votes: of the columns vote_type, "),
        ("v.jsonl", "vote_type", "vote_typ", "did you mean 'vote_type'"),
        ("v.jsonl", "rightvote", "rightvot", "v.jsonl:2, field 'vote_type' is 'rightvot'; did you"),
        ("v.csv", "", "", "v.csv:2: no votes"),
    ],
)
def test_bad_votes_are_one_line_and_exit_code_two(tmp_path, capsys, name, old, new, message):
    votes = write(tmp_path / name, genai([0, 1], ["a", "b"]))
    votes.write_text(votes.read_text().replace(old, new))
    assert run("--scores", scores_file(tmp_path / "s.csv"), "--votes", votes) == 2
    found = capsys.readouterr().err
    assert message in found and found.startswith("error: ") and found.count("\n") == 1


def test_ambiguous_names_and_repeated_pairs_are_refused(tmp_path):
    rows = genai([0, 1], ["a", "b"])
    rows[1]["left_video"], rows[1]["left_model"] = "l0.mp4", "m3"
    votes = write(tmp_path / "v.json", rows)
    scores = scores_file(tmp_path / "s.csv", {"l0.mp4": 1.0})
    with pytest.raises(UserError, match=r"'l0.mp4' may be genai/m1/l0.mp4 or genai/m3/l0.mp4"):
        score_votes([scores], votes)
    full = {"m1/l0.mp4": 1, "m3/l0.mp4": 0, "r0.mp4": 0, "r1.mp4": 1}
    (model,) = score_votes([scores_file(tmp_path / "f.csv", full)], votes)["models"]
    assert model["values"]["without_ties"] == 1
    twice = write(tmp_path / "pairs.jsonl", [pair(0, "test"), pair(0, "test")])
    with pytest.raises(UserError, match=r"pairs.jsonl:2: pair 'p0' was already at .*jsonl:1"):
        score_votes([scores], twice)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--scores", "s", "--votes", "v", "--step", "3"), "--step does not go with --scores"),
        (("--scores", "s", "--votes", "v", "--process-id", "0"), "--process-id does not go with"),
        (("--run", "r", "--zero", "half"), "--zero does not go with --run"),
        (("--run", "r", "--dev-votes", "v"), "--dev-votes does not go with --run"),
        (("--run", "r", "--scores", "s"), "give either --run RUN, or --scores FILE"),
        (("--scores", "s"), "--scores needs --votes FILE"),
        (("--scores", "s", "--votes", "v", "--missing", "skip"), "invalid choice: 'skip'"),
    ],
)
def test_flags_of_the_other_way_are_refused(argv, message, capsys):
    assert run(*argv) == 2
    found = capsys.readouterr().err
    assert message in found and found.count("\n") == 1


def test_unknown_votes_of_a_model_may_count_as_wrong(small, tmp_path):
    votes = ["leftvote", "I prefer A", "rightvote", "rightvote", "tievote", None]
    path = write(tmp_path / "v.jsonl", [{"vote": vote} for vote in votes])
    (model,) = score_votes([path], small, missing="wrong")["models"]
    assert model["values"]["without_ties"] == 3 / 4 and model["unread"] == 2
    assert model["values"]["four_way"] == 4 / 6


def test_several_people_may_vote_on_one_pair(tmp_path):
    rows = genai([0, 1, 0], ["a", "a", "b"])
    rows[1] |= {name: rows[0][name] for name in ("left_video", "right_video")}
    votes = write(tmp_path / "votes.jsonl", rows)
    once = [{"left": "l0.mp4", "right": "r0.mp4", "vote": "A"},
            {"left": "l2.mp4", "right": "r2.mp4", "vote": "B"}]  # fmt: skip
    (model,) = score_votes([write(tmp_path / "once.csv", once)], votes)["models"]
    assert model["values"]["without_ties"] == 1 / 3
    in_order = [once[0], once[0] | {"vote": "B"}, once[1] | {"vote": "A"}]
    (model,) = score_votes([write(tmp_path / "order.csv", in_order)], votes)["models"]
    assert model["values"]["without_ties"] == 1
