"""VideoCross: closed forms through the builder, splits, drops, what a swap of sides changes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.pairs import KINDS, Pairs, pair_ids
from jaxvsa.data.prompts import prompt_key
from jaxvsa.data.scored import DIMENSIONS, RewardRows, ScoredVideo, Vote
from jaxvsa.data.scored_pairs import Settings
from jaxvsa.data.sources.reward_demo import leaking_prompts
from jaxvsa.data.sources.scored_jsonl import read_pairs, read_scored
from jaxvsa.data.videocross import VideoCross, build
from jaxvsa.data.videocross_files import (
    count_leaks,
    count_prompt_leaks,
    open_videocross,
    write_videocross,
)

ONLY_SAME = Settings(mismatches=0, cap=0)


def scored(*rows: tuple[str, str, float], source: str = "own", name: str = "dynamism", **more: Any):
    """Videos of (id, prompt, score) on a scale from 0 to 10."""
    return RewardRows(
        tuple(
            ScoredVideo(v, source, prompt, {name: score}, {name: (0.0, 10.0)}, **more)
            for v, prompt, score in rows
        )
    )


def vote(
    a: str, b: str, answer: int, prompt: str = "a cat", prompt_b: str | None = None, **more: Any
) -> RewardRows:
    """One vote and its videos."""
    values = {"source": "people", "dimension": "overall", "where": "votes:7", **more}
    other = prompt_b or prompt
    videos = (ScoredVideo(a, values["source"], prompt), ScoredVideo(b, values["source"], other))
    cast = Vote(video_a=a, video_b=b, answer=answer, prompt_a=prompt, prompt_b=other, **values)
    return RewardRows(videos, (cast,))


def words(number: int) -> str:
    """A prompt that shares no shingle with another number's."""
    return f"{number:05d} " * 3 + f"{number * 7919:09d}"


def random_rows(seed: int = 0) -> list[RewardRows]:
    """Three sources: 60 prompts with 5 videos, 200 videos with levels, a few votes."""
    rng = np.random.default_rng(seed)
    one = [(f"a{n}", words(n // 5), float(rng.uniform(0, 10))) for n in range(300)]
    two = [(f"b{n}", words(100 + n // 4), float(rng.integers(1, 5))) for n in range(200)]
    votes = [
        vote(f"c{n}", f"d{n}", int(rng.integers(-1, 2)), words(200 + n), split=None)
        for n in range(20)
    ]
    return [scored(*one, name="overall"), scored(*two, source="levels"), *votes]


def kinds(cross: VideoCross) -> Counter:
    """Number of pairs of each kind."""
    return Counter(KINDS[kind] for kind in cross.pairs.kind_n.tolist())


def rows_of(cross: VideoCross) -> dict[str, tuple]:
    """Id of a pair -> what does not depend on which side is A."""
    found = {}
    for name, a, b, answer, split in zip(
        cross.ids, cross.pairs.video_a_n.tolist(), cross.pairs.video_b_n.tolist(),
        cross.pairs.answer_n.tolist(), cross.pairs.split_n.tolist(), strict=True,
    ):  # fmt: skip
        better = {1: cross.videos[a].video_id, -1: cross.videos[b].video_id, 0: None}[answer]
        found[name] = (better, split)
    return found


def test_closed_form_of_distinct_scores():
    rows = [(f"v{n}", words(n // 10), 0.03 * n) for n in range(300)]
    part = scored(*rows, source="own", name="overall")
    cross = build([part], dataclasses.replace(ONLY_SAME, delta={"own": 0}, tie_eps={"own": 0}))
    assert len(cross.pairs) == 30 * 45 and (cross.pairs.answer_n != 0).all()
    assert kinds(cross) == {"same_prompt": 1350} and cross.card["dropped"] == {}


def test_closed_form_of_levels():
    levels = np.repeat([1.0, 2, 3, 4], [3, 2, 4, 1])
    part = scored(*((f"v{n}", "a cat", s) for n, s in enumerate(levels)), source="videofeedback")
    cross = build([part], ONLY_SAME)
    assert np.sum(cross.pairs.answer_n != 0) == 35 and np.sum(cross.pairs.answer_n == 0) == 10
    assert cross.card["tie_share"] == pytest.approx(10 / 45)


def test_thresholds_gap_and_question_of_t2vqa():
    rows = [("v0", "A Cat.", 50.0), ("v1", "A Cat.", 58.4), ("v2", "A Cat.", 51.0)]
    part = RewardRows(
        tuple(ScoredVideo(v, "t2vqa", p, {"overall": s}, {"overall": (0, 100)}) for v, p, s in rows)
    )
    cross = build([part], ONLY_SAME)
    assert cross.questions == ("overall quality: A Cat.",)
    assert cross.card["dropped"] == {"gap_between_tie_eps_and_delta": 1}
    found = dict(zip(np.abs(cross.pairs.answer_n).tolist(), cross.pairs.gap_n, strict=True))
    assert found == {1: pytest.approx(8.4 / 16.6), 0: pytest.approx(1 / 16.6)}


def test_everything_holds_on_three_sources():
    cross = build(random_rows())
    pairs = cross.pairs
    assert set(kinds(cross)) == set(KINDS)
    assert len(set(cross.ids)) == len(pairs) == cross.card["pairs"]
    assert pair_ids(pairs, cross.questions, [v.video_id for v in cross.videos]) == list(cross.ids)
    # No comparison across sources, no video in two splits, no group in two splits.
    split_of: dict[tuple[str, str], int] = {}
    for n in range(len(pairs)):
        a, b = cross.videos[pairs.video_a_n[n]], cross.videos[pairs.video_b_n[n]]
        assert a.source == b.source == cross.sources[pairs.source_n[n]]
        dimension, kind = DIMENSIONS[pairs.dimension_n[n]], KINDS[pairs.kind_n[n]]
        better, worse = (a, b) if pairs.answer_n[n] > 0 else (b, a)
        if kind in ("same_prompt", "cross_prompt") and pairs.answer_n[n]:
            assert better.scores[dimension] > worse.scores[dimension]
        if kind == "mismatch":
            assert better.scores[dimension] >= 5 and better.prompt != worse.prompt
            assert cross.questions[pairs.question_n[n]].endswith(better.prompt)
        for video in (a, b):
            for key in (("video", video.video_id), ("prompt", video.prompt)):
                assert split_of.setdefault(key, pairs.split_n[n]) == pairs.split_n[n]
    assert abs(cross.card["a_share"] - 0.5) <= cross.card["a_share_limit"]
    assert sum(cell["pairs"] for cell in cross.card["counts"]) == len(pairs)


def test_same_rows_and_seed_give_the_same_pairs_and_another_seed_does_not():
    one, two = build(random_rows()), build(random_rows())
    assert one.ids == two.ids and one.card == two.card
    np.testing.assert_array_equal(one.pairs.video_a_n, two.pairs.video_a_n)
    assert build(random_rows(), Settings(seed=1)).ids != one.ids


def test_swapped_votes_change_nothing():
    votes = random_rows()[2:]
    turned = [
        dataclasses.replace(part, votes=tuple(
            dataclasses.replace(v, video_a=v.video_b, video_b=v.video_a, answer=-v.answer)
            for v in part.votes
        ))
        for part in votes
    ]  # fmt: skip
    assert rows_of(build(votes)) == rows_of(build(turned))


def test_budget_keeps_votes_then_same_prompt_then_mismatches():
    whole = kinds(build(random_rows()))
    budget = whole["native"] + whole["same_prompt"] + 5
    cross = build(random_rows(), Settings(budget=budget))
    assert kinds(cross) == {
        "native": whole["native"], "same_prompt": whole["same_prompt"], "mismatch": 5,
    }  # fmt: skip
    assert cross.card["dropped"]["budget"] == sum(whole.values()) - budget
    assert set(cross.ids) <= set(build(random_rows()).ids)


def test_rows_near_a_benchmark_are_dropped_and_its_own_are_test():
    bench = dataclasses.replace(
        vote("x", "y", 1, "a very small cat that runs over a wet street", source="bench"),
        benchmark=True,
    )
    near = "A very small cat that runs over a wet street!"
    rows = [("v0", near, 1.0), ("v1", near, 9.0), ("w0", "two boats", 1.0), ("w1", "two boats", 9)]
    cross = build([scored(*rows), bench, vote("p", "q", 1, near, split="train")], ONLY_SAME)
    assert cross.card["dropped"] == {"benchmark_prompt": 3}
    assert kinds(cross) == {"native": 1, "same_prompt": 1}
    (at,) = np.flatnonzero(cross.pairs.kind_n == 0)
    assert SPLITS[cross.pairs.split_n[at]] == "test"


def test_videos_of_one_hash_are_one_and_unite_their_prompts():
    one = scored(("v0", "a cat", 1.0), ("v1", "a cat", 9.0), hash="00")
    two = scored(("w0", "two boats", 1.0), ("w1", "two boats", 8.0))
    three = scored(("a9", "a castle", 3.0), hash="00")
    with pytest.raises(UserError, match="no pair is left: same_video 1; loosen that filter"):
        build([one], ONLY_SAME)
    cross = build([one, two, three], ONLY_SAME)
    assert [video.video_id for video in cross.videos] == ["a9", "w0", "w1"]
    of = dict(zip(cross.prompts, cross.groups, strict=True))
    assert of["a cat"] == of["a castle"] != of["two boats"]


def test_same_video_on_both_sides_is_dropped_and_counted():
    cross = build([vote("x", "x", 1), vote("y", "z", 1)])
    assert cross.card["dropped"] == {"same_video": 1} and len(cross.pairs) == 1


def test_declared_splits_hold_for_near_duplicates():
    rows = [scored((f"v{n}", "a cat", float(n)), split="test") for n in (0, 9)]
    free = scored(("v5", "A cat!", 5.0))
    other = scored(("v7", "a cat", 7.0), split="train")
    cross = build([*rows, free, other], ONLY_SAME)
    assert cross.card["dropped"] == {"declared_split": 1}
    assert len(cross.pairs) == 3 and set(cross.pairs.split_n.tolist()) == {SPLITS.index("test")}


def test_pair_across_splits_is_an_error_if_declared_and_dropped_if_not():
    test = scored(("v0", "a cat", 1.0), ("v1", "a cat", 9.0), split="test")
    train = scored(("w0", "two boats", 1.0), ("w1", "two boats", 9.0), split="train")
    with pytest.raises(UserError, match="votes:7: a pair of train, but the prompt 'a cat', or one"):
        build([test, train, vote("x", "y", 1, "a cat", split="train")])
    mixed = vote("x", "y", 1, "a cat", prompt_b="two boats")
    assert build([test, train, mixed], ONLY_SAME).card["dropped"]["across_splits"] == 1


def test_reliability_of_a_label_becomes_its_weight():
    part = scored(("v0", "a cat", 1.0), ("v1", "a cat", 4.0), n_raters=9)
    cross = build([part], dataclasses.replace(ONLY_SAME, rater_sd={"own": 6.0}))
    # se = 6 / 3; Phi(3 / (sqrt 2 * 2)).
    want = 0.5 * (1 + math.erf(3 / (math.sqrt(2) * 2) / math.sqrt(2)))
    np.testing.assert_allclose(cross.pairs.weight_n, [want], rtol=1e-6)
    tie = scored(("v0", "a cat", 1.0), ("v1", "a cat", 4.0), ("v2", "a cat", 4.0), n_raters=9)
    cross = build([tie], dataclasses.replace(ONLY_SAME, rater_sd={"own": 6.0}))
    np.testing.assert_allclose(sorted(cross.pairs.weight_n), [want, want, 1], rtol=1e-6)
    bare = scored(("v0", "a cat", 1.0), ("v1", "a cat", 4.0))
    with pytest.raises(UserError, match="--rater-sd own: its rows have no n_raters"):
        build([bare], dataclasses.replace(ONLY_SAME, rater_sd={"own": 6.0}))


def test_mismatches_stay_in_their_source_unless_told_otherwise():
    one = scored(("v0", words(1), 9.0), ("v1", words(1), 9.0), name="overall", split="train")
    two = scored(
        ("w0", words(2), 1.0), ("w1", words(2), 2.0), source="b", name="overall", split="train"
    )
    settings = Settings(delta={"own": 1, "b": 0.5})
    assert "mismatch" not in kinds(build([one, two], settings))
    wide = build([one, two], dataclasses.replace(settings, cross_source_mismatch=True))
    assert kinds(wide)["mismatch"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(delta={"t2vq": 1}), "--delta: no source 't2vq'.*read: own"),
        (Settings(tie_eps={"own": 99}), "source 'own': tie_eps 99 must lie from 0 to delta"),
        (Settings(delta={"own": -1}), "--delta own=-1: give a finite number from 0"),
        (Settings(rater_sd={"own": 0}), "--rater-sd own=0: give a finite number above 0"),
        (Settings(budget=0), "no pair is left: budget 1; loosen that filter"),
        (Settings(delta={"own": 50}), "no pair is left: gap_between_tie_eps_and_delta 1"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build([scored(("v0", "a cat", 1.0), ("v1", "a cat", 9.0))], settings)


def test_one_prompt_with_too_many_videos_is_refused(monkeypatch):
    monkeypatch.setattr("jaxvsa.data.scored_pairs.MOST_PAIRS", 2)
    with pytest.raises(UserError, match="source 'own' has 3 pairs of one prompt in dynamism"):
        build([scored(*((f"v{n}", "a cat", float(n)) for n in range(3)))])


def test_ids_must_be_unique_and_votes_need_their_videos():
    part = scored(("v0", "a cat", 1.0))
    with pytest.raises(UserError, match="video 'v0' is scored by own and again by own"):
        build([part, part])
    lonely = dataclasses.replace(vote("x", "y", 1), videos=())
    with pytest.raises(UserError, match="votes:7: no video 'x'; list it in a scored file"):
        build([lonely])


def test_folder_comes_back(tmp_path):
    cross = build(random_rows())
    write_videocross(tmp_path / "out", cross)
    found = open_videocross(tmp_path / "out")
    assert found.ids == cross.ids and found.card == json.loads(json.dumps(cross.card))
    assert found.videos == cross.videos == read_scored(tmp_path / "out/videos.jsonl").videos
    assert len(read_pairs(tmp_path / "out/pairs.jsonl").votes) == len(cross.pairs)
    for name in Pairs.__dataclass_fields__:
        mine, read = getattr(cross.pairs, name), getattr(found.pairs, name)
        texts = {
            "question_n": "questions", "source_n": "sources", "prompt_a_n": "prompts",
            "prompt_b_n": "prompts", "asked_n": "groups",
        }.get(name)  # fmt: skip
        if texts:
            left, right = getattr(cross, texts), getattr(found, texts)
            assert [left[n] for n in mine] == [right[n] for n in read]
        else:
            np.testing.assert_allclose(read, mine, rtol=1e-5)
    assert count_leaks(tmp_path / "out") == dict.fromkeys(
        ("prompt", "group", "video", "hash", "pair"), 0
    )
    assert "| levels | dynamism | cross_prompt |" in (tmp_path / "out/card.md").read_text()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leak_check_finds_exactly_the_planted_prompts(seed):
    """CA3, G5: 20; equal keys alone would find 12, equal prompts none."""
    prompts = leaking_prompts(seed)
    splits = {**dict.fromkeys(prompts["train"], 1), **dict.fromkeys(prompts["test"], 4)}
    assert len(splits) == 420 and count_prompt_leaks(splits) == 20
    keys = {prompt_key(prompt) for prompt in prompts["train"]}
    assert sum(prompt_key(prompt) in keys for prompt in prompts["test"]) == 12


def _plant(root: Path, prompts: dict[str, list[str]]) -> None:
    """A folder split by prompt as given, whatever leaks."""
    rows = [
        {
            "pair_id": f"{split}{n}", "split": split, "prompt_group": f"{split}{n}",
            "prompt_a": prompt, "prompt_b": prompt, "video_a": f"{prompt} 1",
            "video_b": f"{prompt} 2",
        }
        for split, part in prompts.items()
        for n, prompt in enumerate(part)
    ]  # fmt: skip
    root.mkdir()
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    videos = sorted({row[side] for row in rows for side in ("video_a", "video_b")})
    lines = [json.dumps({"video_id": v, "hash": v[:-2].upper()}) + "\n" for v in videos]
    (root / "videos.jsonl").write_text("".join(lines))


def test_leaks_are_counted_by_kind(tmp_path):
    _plant(tmp_path / "a", {"train": ["a cat", "two boats"], "dev": ["A CAT"], "test": ["a cat"]})
    # Both held-out prompts have the key of a train prompt; one text, two ids and a hash are shared.
    assert count_leaks(tmp_path / "a") == {
        "prompt": 1, "group": 0, "video": 2, "hash": 1, "pair": 0,
    }  # fmt: skip


def test_builder_leaves_no_planted_leak(tmp_path):
    prompts = leaking_prompts(0)
    rows = [
        (f"{n} {side}", prompt, 9.0 * side)
        for n, prompt in enumerate(prompts["train"] + prompts["test"])
        for side in (0, 1)
    ]
    cross = build([scored(*rows)])
    assert len(cross.prompts) == 408 and len(set(cross.groups)) == 400
    write_videocross(tmp_path / "out", cross)
    assert not any(count_leaks(tmp_path / "out").values())


def test_opening_refuses_what_is_damaged(tmp_path):
    root = tmp_path / "out"
    with pytest.raises(UserError, match="is no VideoCross: there is no such folder"):
        open_videocross(root)
    write_videocross(root, build(random_rows()))
    lines = (root / "pairs.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[0])

    def refused(message: str, **changed: Any) -> None:
        text = "".join([json.dumps({**row, **changed}) + "\n", *lines[1:], lines[0]])
        (root / "pairs.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            open_videocross(root)

    (root / "pairs.jsonl").write_text("".join(lines[:-1]))  # cut behind a whole line
    with pytest.raises(UserError, match=r"pairs.jsonl has .* rows, but card.json counts"):
        open_videocross(root)
    refused(
        r"pairs.jsonl:\d+: a pair of train, but its (video|group) .* is in test too", split="test"
    )
    refused("pairs.jsonl:1, field 'answer' is 'C'", answer="C")
    refused("pairs.jsonl:1: no video 'nobody' in videos.jsonl", video_a="nobody")
    (root / "card.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match="not of format 1; prepare again"):
        open_videocross(root)
    with pytest.raises(UserError, match="already exists"):
        write_videocross(root, build(random_rows()))
