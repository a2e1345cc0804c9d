"""Columns of comments: picking, joining and dropping keep them side by side."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvsa.data.corpus import Comments, Corpus, count_oddities

pytestmark = pytest.mark.smoke


def make(keys: str) -> Comments:
    """Comments `a`, `b`, ...: video in upper case, label = position in the alphabet."""
    return Comments(
        key=list(keys),
        video=[key.upper() for key in keys],
        text=[f"says {key}" for key in keys],
        labels={"mood": np.array([ord(key) - ord("a") for key in keys], np.int32)},
        extra={"tag": [f"#{key}" for key in keys]},
    )


def test_take_picks_every_column_in_the_given_order():
    taken = make("abcd").take(np.array([2, 0, 2]))
    assert taken.key == ["c", "a", "c"]
    assert taken.video == ["C", "A", "C"]
    assert taken.text == ["says c", "says a", "says c"]
    assert taken.extra == {"tag": ["#c", "#a", "#c"]}
    np.testing.assert_array_equal(taken.labels["mood"], np.array([2, 0, 2], np.int32))


def test_join_undoes_a_cut():
    whole = make("abcde")
    again = Comments.join([whole.take(range(2)), whole.take(range(2, 5))])
    assert (again.key, again.video, again.text) == (whole.key, whole.video, whole.text)
    assert again.extra == whole.extra
    np.testing.assert_array_equal(again.labels["mood"], whole.labels["mood"])
    assert again.labels["mood"].dtype == np.int32


def test_comments_refuse_columns_of_unequal_length():
    with pytest.raises(ValueError, match="column 'mood' has 1 rows, key has 2"):
        Comments(["a", "b"], ["A", "B"], ["", ""], {"mood": np.zeros(1, np.int32)})


def test_corpus_drops_videos_from_every_split_and_keeps_the_rest():
    corpus = Corpus({"train": make("abc"), "dev": make("cd")}, {"mood": tuple("abcd")}, {"n": 1})
    kept = corpus.without_videos({"C"})
    assert {split: part.key for split, part in kept.splits.items()} == {
        "train": ["a", "b"],
        "dev": ["d"],
    }
    assert (len(corpus), len(kept)) == (5, 3)
    assert corpus.videos() == ["A", "B", "C", "D"]
    assert kept.report == {"n": 1}


def test_oddities_count_blank_comments_and_repetitions_of_one_video():
    comments = Comments(
        key=list("abcdef"),
        video=["v", "v", "v", "w", "w", "w"],
        text=["nice", "nice", "nice", "nice", "", " \n"],
        labels={},
    )
    assert count_oddities(comments) == {"empty": 2, "duplicates": 2}
