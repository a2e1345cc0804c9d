"""Features beside the pairs of a VideoCross: stored, read back, refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.scored import RewardRows, ScoredVideo
from jaxvsa.data.videocross import VideoCross, build
from jaxvsa.data.videocross_files import count_leaks, open_videocross, write_videocross


@pytest.fixture(scope="module")
def cross() -> VideoCross:
    """Ten prompts with four videos each, scored in one dimension whose question has the prompt."""
    rng = np.random.default_rng(0)
    videos = [
        ScoredVideo(
            f"v{n:02d}", "own", f"{n // 4:05d} " * 3, {"overall": float(score)},
            {"overall": (0.0, 10.0)}, split=("train", "dev", "test")[min(n // 24, 2)],
        )
        for n, score in enumerate(rng.uniform(0, 10, 40))
    ]  # fmt: skip
    return build([RewardRows(tuple(videos))])


def tables(cross: VideoCross) -> tuple[FeatureTable, FeatureTable]:
    """Two rows for each video, one for each question."""
    rng = np.random.default_rng(0)
    found = []
    for names, rows in (([video.video_id for video in cross.videos], 2), (cross.questions, 1)):
        values_nf = rng.normal(size=(rows * len(names), 3)).astype(np.float16)
        counts = np.full(len(names), rows)
        found.append(FeatureTable.from_counts(values_nf, counts, sorted(names)))
    return found[0], found[1]


def test_features_lie_beside_the_pairs(cross, tmp_path):
    videos, questions = tables(cross)
    given = (videos, videos.describe("clip")), (questions, questions.describe("bert"))
    write_videocross(tmp_path / "out", cross, *given)
    found = open_videocross(tmp_path / "out")
    assert found.card == json.loads(json.dumps(cross.card))
    assert (found.manifest, found.question_manifest) == tuple(m.to_dict() for _, m in given)
    for got, want in ((found.features(), videos), (found.question_features(), questions)):
        assert got.row == want.row
        np.testing.assert_array_equal(got.values_nf, want.values_nf)
    assert found.features() is found.features()
    assert "| questions | bert |" in (tmp_path / "out/card.md").read_text()
    assert not any(count_leaks(tmp_path / "out").values())
    write_videocross(tmp_path / "bare", cross)
    bare = open_videocross(tmp_path / "bare")
    assert bare.features() is bare.question_features() is bare.manifest is None
    assert bare.digest == found.digest and not (tmp_path / "bare/videos").exists()
    assert "features" not in json.loads((tmp_path / "bare/card.json").read_text())


def test_features_of_other_videos_and_damaged_ones_are_refused(cross, tmp_path):
    videos, _ = tables(cross)
    less = FeatureTable.from_counts(
        videos.values_nf[:20], np.full(10, 2), [f"v{n:02d}" for n in range(10, 20)]
    )
    with pytest.raises(UserError, match=r"30 videos have no features in the table, first: .'v00'"):
        write_videocross(tmp_path / "out", cross, (less, less.describe("clip")))
    with pytest.raises(UserError, match=r"questions have no features in the table"):
        write_videocross(tmp_path / "out", cross, None, (videos, videos.describe("bert")))
    assert not (tmp_path / "out").exists()
    wrong = dataclasses.replace(videos.describe("clip"), digest="0")
    write_videocross(tmp_path / "out", cross, (videos, wrong))
    with pytest.raises(UserError, match=r"videos is not what card.json describes .other digest"):
        open_videocross(tmp_path / "out").features()


def test_digest_tells_other_pairs(cross, tmp_path):
    answers = cross.pairs.answer_n.copy()
    answers[3] = answers[3] == 0
    other = dataclasses.replace(cross, pairs=dataclasses.replace(cross.pairs, answer_n=answers))
    digests = []
    for number, written in enumerate((cross, other)):
        write_videocross(tmp_path / str(number), written)
        digests.append(open_videocross(tmp_path / str(number)).digest)
    assert digests[0] != digests[1]
