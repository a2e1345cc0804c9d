"""Rows one after another, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvsa.data.language import ragged
from jaxvsa.data.packing import pack_tokens, places, starts

pytestmark = pytest.mark.smoke

TOKENS = ragged([[5, 6, 7], [8], [], [9, 10]])


def test_tokens_of_every_group_one_row_after_another() -> None:
    index_b = np.array([3, 0, 2, 1])
    ids_gn, word_bl = pack_tokens(TOKENS, index_b, TOKENS.length_b[index_b], 5, 3, 2, -9)
    want = np.int32([[9, 10, 5, 6, 7], [8, -9, -9, -9, -9]])
    np.testing.assert_array_equal(ids_gn, want, strict=True)
    want = np.int32([[0, 1, -1], [2, 3, 4], [-1, -1, -1], [0, -1, -1]])
    np.testing.assert_array_equal(word_bl, want, strict=True)


def test_what_a_row_takes_beyond_its_tokens_is_padding() -> None:
    index_b = np.array([1, 3])
    ids_gn, word_bl = pack_tokens(TOKENS, index_b, np.array([2, 3]), 8, 3, 1, 0)
    assert ids_gn.tolist() == [[8, 0, 9, 10, 0, 0, 0, 0]]
    assert word_bl.tolist() == [[0, 1, -1], [2, 3, 4]]


def test_starts_of_a_rectangle_and_of_shared_rows() -> None:
    span_gr = np.array([[2, 1, 3], [1, 1, 2]])
    assert starts(span_gr, None, 8, 3).tolist() == [0, 2, 3, 0, 1, 2]
    assert starts(span_gr, None, 9, 3).tolist() == [0, 3, 6, 0, 3, 6]
    owner_gr = np.array([[4, 7, 4], [1, 2, 3]])
    assert starts(np.array([[2, 1, 2], [1, 1, 2]]), owner_gr, 8, 3).tolist() == [0, 2, 0, 0, 1, 2]
    assert places(np.array([4]), np.array([2]), np.arange(3)).tolist() == [[4, 5, -1]]
