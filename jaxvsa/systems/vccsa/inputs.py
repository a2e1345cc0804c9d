"""What the model reads: comments and their videos, packed by `data/comments.py`."""

from __future__ import annotations

import jax
from flax import struct


class Words(struct.PyTreeNode):
    """Comments, packed: the fields of `CommentExamples`.

    Attributes:
        ids_n: int32 token ids, padding between and behind the rows.
        word_bl: int32, where in n the tokens of a row lie; -1 behind its end. A row shorter than
            the published text length must keep at least one padding token, since padding takes
            part in the final maximum.
        length_b: int32, real tokens.
    """

    ids_n: jax.Array
    word_bl: jax.Array
    length_b: jax.Array


class Shots(struct.PyTreeNode):
    """Their videos, packed: the fields of `CommentExamples`.

    Attributes:
        video_mf: frame features, zeros where there is no frame.
        shot_bt: int32, where in m the rows of a video lie: its frames and min(`tower_margin`, what
            is left of the visual length) rows more; -1 behind.
        count_b: int32, real frames, at least 1.
    """

    video_mf: jax.Array
    shot_bt: jax.Array
    count_b: jax.Array
