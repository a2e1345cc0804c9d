"""Rows of different lengths one after another on an axis, for each group of a batch."""

from __future__ import annotations

import numpy as np

from jaxvsa.data.text import Tokens


def pack_tokens(
    tokens: Tokens, index_b: np.ndarray, span_b: np.ndarray, packed: int, longest: int,
    groups: int, pad_id: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ids of the rows `index_b`, int32 (g,n), and where in n each of them lies, int32 (b,l).

    Args:
        tokens: of all rows.
        index_b: which rows.
        span_b: what each takes, at least its tokens; what is left of it is padding.
        packed: n.
        longest: l.
        groups: g parts of consecutive rows.
        pad_id: where no token is.
    """
    length_b = tokens.length_b[index_b]
    start_b = starts(span_b.reshape(groups, -1), None, packed, longest)
    place_l = np.arange(longest)
    ids_gn = np.full((groups, packed), pad_id, np.int32)
    row_b, place = np.nonzero(place_l < length_b[:, None])
    group_b = np.repeat(np.arange(groups), len(index_b) // groups)
    source = tokens.start_b[index_b][row_b] + place
    ids_gn[group_b[row_b], start_b[row_b] + place] = tokens.ids_n[source]
    return ids_gn, places(start_b, span_b, place_l)


def starts(
    span_gr: np.ndarray, owner_gr: np.ndarray | None, packed: int, longest: int
) -> np.ndarray:
    """Where each row begins if the rows of a group lie one after another: int64 (b,).

    Rows of the same owner begin at the same place. An axis of the size of a rectangle is one: row
    after row, whatever the spans and owners, as its readers take it for granted.
    """
    span_gr = span_gr.astype(np.int64)
    if packed == longest * span_gr.shape[1]:
        return np.tile(np.arange(0, packed, longest), len(span_gr))
    if owner_gr is None:
        return (np.cumsum(span_gr, axis=1) - span_gr).reshape(-1)
    order_gr = np.argsort(owner_gr, axis=1, kind="stable")
    span_gr = np.take_along_axis(span_gr, order_gr, axis=1)
    owner_gr = np.take_along_axis(owner_gr, order_gr, axis=1)
    new_gr = np.ones_like(owner_gr, dtype=bool)
    new_gr[:, 1:] = owner_gr[:, 1:] != owner_gr[:, :-1]
    start_gr = np.empty_like(span_gr)
    sorted_gr = np.cumsum(span_gr * new_gr, axis=1) - span_gr
    np.put_along_axis(start_gr, order_gr, sorted_gr, axis=1)
    return start_gr.reshape(-1)


def places(start_b: np.ndarray, span_b: np.ndarray, place_l: np.ndarray) -> np.ndarray:
    """Places of the rows' elements, int32 (b,l), -1 behind them."""
    place_bl = start_b[:, None] + place_l
    return np.where(place_l < span_b[:, None], place_bl, -1).astype(np.int32)
