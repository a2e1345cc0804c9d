"""The synthetic rewards: what is written, from which seed, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.scored import DIMENSIONS
from jaxvsa.data.sources.reward_demo import bt_cosine
from jaxvsa.data.videocross_files import OpenVideoCross, count_leaks, open_videocross
from jaxvsa.workflows import rewards_demo
from jaxvsa.workflows.rewards_demo import Sizes, ensure_rewards, rewards_facts, write_rewards

SMALL = Sizes(graded=(80, 16, 16), across=(0, 20, 30), prompts=(30, 8, 10), votes=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rewards") / "out"
    write_rewards(out, 3, SMALL)
    return out


def cells(cross: OpenVideoCross) -> dict[tuple[str, str], int]:
    """(source, split) -> pairs."""
    found: dict[tuple[str, str], int] = {}
    for cell in cross.card["counts"]:
        key = (cell["source"], cell["split"])
        found[key] = found.get(key, 0) + cell["pairs"]
    return found


def test_every_source_has_its_pairs_and_nothing_leaks(root):
    cross = open_videocross(root)
    found = cells(cross)
    assert {split for source, split in found if source == "across"} == {"dev", "test"}
    assert found["across", "dev"] == 20 and found["across", "test"] == 30
    assert [found["aligned", split] for split in SPLITS] == [90, 24, 30]
    assert all(found[source, split] > 50 for source in ("mos", "levels") for split in ("train",))
    assert all(found[source, split] > 10 for source in ("mos", "levels") for split in SPLITS)
    assert not any(count_leaks(root).values())
    assert len(cross.prompts) == len(set(cross.groups)) == 2 * 28 + 48
    dimensions = {DIMENSIONS[d] for d in np.unique(cross.pairs.dimension_n)}
    assert dimensions == {"visual_aesthetics", "text_alignment"}
    of_n = cross.pairs.source_n == cross.sources.index("across")
    for n in np.flatnonzero(of_n).tolist():
        sides = (cross.pairs.video_a_n[n], cross.pairs.video_b_n[n])
        assert {cross.videos[g].source for g in sides} == {"mos", "levels"}


def test_features_of_everything_are_there(root):
    cross = open_videocross(root)
    videos, questions = cross.features(), cross.question_features()
    assert videos.width == questions.width == 24
    assert len(videos.row) == len(cross.videos) == 2 * 112 + 2 * 3 * 48
    assert sorted(questions.row) == sorted(cross.questions) and len(questions.row) == 1 + 48
    assert cross.manifest["encoder"] == cross.question_manifest["encoder"] == "synthetic"
    # The vectors are those of the generator: the first vote of the first prompt.
    drawn = bt_cosine(3, 30, 18, 3, 3.0)["train"]
    np.testing.assert_array_equal(
        videos.of("aligned_train_00000b")[0], drawn.video_bvf[0, 1].astype(np.float16)
    )


def test_facts_are_the_accuracies_of_the_truth(root):
    facts = rewards_facts(root)
    assert facts["seed"] == 3 and facts["tie_k"] == 3.0 and facts["slope"] == 6.0
    bayes = facts["bayes"]
    assert bayes["test"]["across"] == bayes["dev"]["across"] == 1.0
    assert "across" not in bayes["train"]
    drawn = bt_cosine(3, 30, 18, 3, 3.0)["train"]
    decided_b = drawn.answer_b != 0
    right_b = np.sign(drawn.logit_b) == drawn.answer_b
    assert bayes["train"]["aligned"] == pytest.approx(right_b[decided_b].mean())
    assert 0.9 < bayes["train"]["mos"] <= 1 and 0.9 < bayes["train"]["levels"] <= 1


def test_same_seed_gives_the_same_files_and_another_does_not(root, tmp_path):
    write_rewards(tmp_path / "same", 3, SMALL)
    for name in ("card.json", "pairs.jsonl", "videos.jsonl"):
        assert (tmp_path / "same" / name).read_bytes() == (root / name).read_bytes()
    write_rewards(tmp_path / "other", 4, SMALL)
    one, other = open_videocross(root), open_videocross(tmp_path / "other")
    assert one.digest != other.digest and one.manifest["digest"] != other.manifest["digest"]
    assert one.digest == open_videocross(tmp_path / "same").digest


def test_demo_is_made_once_and_that_of_another_seed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rewards_demo, "Sizes", lambda: SMALL)
    assert ensure_rewards(tmp_path, "own", 0) == Path("own") and not list(tmp_path.iterdir())
    found = ensure_rewards(tmp_path, "demo", 5)
    before = (found / "card.json").stat().st_mtime_ns
    assert ensure_rewards(tmp_path, "demo", 5) == found == tmp_path / "data" / "prepared"
    assert (found / "card.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is the demo of seed 5, not of seed 6; choose another"):
        ensure_rewards(tmp_path, "demo", 6)
