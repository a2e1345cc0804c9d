"""Pairs as columns: ids, sides, duplicates, contradictions, votes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from jaxvsa.data.pairs import KINDS, Pairs, pair_ids, seeded_order, without_duplicates


def pairs(*rows: tuple[int, int, int, str], **columns: Any) -> Pairs:
    """Rows of (video A, video B, answer, kind)."""
    a, b, answer, kind = (list(column) for column in zip(*rows, strict=True))
    values = {
        "question_n": 0, "dimension_n": 4, "source_n": 0, "split_n": 0, "prompt_a_n": a,
        "prompt_b_n": b, "asked_n": 0, "gap_n": np.nan, "weight_n": 1, **columns,
    }  # fmt: skip
    kinds = [KINDS.index(name) for name in kind]
    return Pairs.of(len(a), video_a_n=a, video_b_n=b, answer_n=answer, kind_n=kinds, **values)


def test_id_is_that_of_the_specification_whatever_side_is_a():
    two = pairs((0, 1, 1, "native"), (1, 0, -1, "native"))
    text = "how?\x1ftext_alignment\x1fé\x1fü"
    assert pair_ids(two, ["how?"], ["ü", "é"]) == [hashlib.sha1(text.encode()).hexdigest()] * 2


def test_order_follows_seed_and_id_alone():
    ids = [str(n) for n in range(100)]
    order = seeded_order(ids, 0)
    np.testing.assert_array_equal(seeded_order(ids[::-1], 0), order[::-1])
    assert (seeded_order(ids, 1) != order).all()


def test_swap_turns_answer_and_prompts():
    found = pairs((5, 7, 1, "native"), (6, 8, 0, "native")).swap(np.array([True, True]))
    assert found.video_a_n.tolist() == [7, 8] == found.prompt_a_n.tolist()
    assert found.answer_n.tolist() == [-1, 0]


def test_equal_rows_become_one_and_contradictions_none():
    found, report = without_duplicates(
        pairs(
            (0, 1, 1, "cross_prompt"), (1, 0, -1, "same_prompt"),
            (2, 3, 1, "same_prompt"), (3, 2, 1, "same_prompt"), (2, 3, 0, "same_prompt"),
            (4, 5, 0, "mismatch"),
        )
    )  # fmt: skip
    assert report == {"duplicate": 1, "contradiction": 3}
    assert found.video_a_n.tolist() == [0, 4] and found.answer_n.tolist() == [1, 0]
    assert found.kind_n[0] == KINDS.index("same_prompt")


def test_other_question_or_dimension_is_another_pair():
    rows = [(0, 1, 1, "native")] * 3
    found, report = without_duplicates(
        pairs(*rows, question_n=[0, 1, 1], dimension_n=[4, 4, 5], weight_n=[0.5, 1, 1])
    )
    assert len(found) == 3 and report == {"duplicate": 0, "contradiction": 0}
    assert sorted(found.weight_n.tolist()) == [0.5, 1, 1]


@pytest.mark.parametrize(
    ("votes", "answer", "weight"),
    [
        ((1, 1, -1), 1, 1 / 3),
        ((-1, -1), -1, 1),
        ((1, -1), 0, 1),
        ((0, 0, 1), 0, 1),
        ((1, 1, 0), 1, 1),
    ],
)
def test_votes_are_counted(votes, answer, weight):
    rows = [(0, 1, vote, "native") for vote in votes]
    found, report = without_duplicates(pairs(*rows))
    assert found.answer_n.tolist() == [answer]
    np.testing.assert_allclose(found.weight_n, [weight])
    assert report == {"duplicate": len(votes) - 1, "contradiction": 0}


def test_scores_give_way_to_votes():
    found, report = without_duplicates(pairs((0, 1, 1, "same_prompt"), (1, 0, 1, "native")))
    assert found.answer_n.tolist() == [-1] and found.kind_n.tolist() == [0]
    assert report == {"duplicate": 1, "contradiction": 0}


def test_refuses_unknown_columns():
    with pytest.raises(ValueError, match="unknown columns"):
        pairs((0, 1, 1, "native"), more_n=0)
