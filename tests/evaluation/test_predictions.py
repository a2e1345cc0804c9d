"""Prediction rows and the file that holds them."""

import json

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.corpus import Comments
from jaxvsa.evaluation.predictions import prediction_rows, score_predictions, write_predictions
from jaxvsa.metrics.confusion import Confusion

pytestmark = pytest.mark.smoke

NAMES = {"opinion": ("positive", "neutral", "negative")}


def _comments(text, label_b):
    keys = [f"k{i}" for i in range(len(text))]
    videos = [f"v{i // 2}" for i in range(len(text))]
    return Comments(keys, videos, text, {"opinion": np.array(label_b, np.int32)})


def test_prediction_rows_by_hand():
    probs_bc = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]], np.float32)
    rows = prediction_rows(_comments(["wow 🔥\n", ""], [1, -1]), {"opinion": probs_bc}, NAMES)
    assert rows == [
        {
            "key": "k0",
            "video": "v0",
            "comment": "wow 🔥\n",
            "opinion": {
                "label": "neutral",
                "predicted": "neutral",
                "probabilities": {"positive": 0.1, "neutral": 0.7, "negative": 0.2},
            },
        },
        {
            "key": "k1",
            "video": "v0",
            "comment": "",
            "opinion": {
                "label": None,
                "predicted": "positive",
                "probabilities": {"positive": 0.4, "neutral": 0.2, "negative": 0.4},
            },
        },
    ]


def test_predictions_need_no_labels():
    comments = Comments(["k"], ["v"], ["text"], {})
    (row,) = prediction_rows(comments, {"opinion": np.eye(3)[:1]}, NAMES)
    assert row["opinion"]["label"] is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_file_gives_back_the_same_figures_and_floats(tmp_path, dtype):
    rng = np.random.default_rng(0)
    probs_bc = rng.dirichlet(np.ones(3), size=300).astype(dtype)
    label_b = rng.integers(-1, 3, size=300).astype(np.int32)
    text = ["line\u2028separator \x85 and\r\nnewlines", "ünï😀", ""] * 100
    path = tmp_path / "predictions.jsonl"
    rows = prediction_rows(_comments(text, label_b), {"opinion": probs_bc}, NAMES)
    write_predictions(path, rows)
    states, names = score_predictions(path)
    want = Confusion.from_batch(probs_bc, label_b, np.ones(300, bool))
    np.testing.assert_array_equal(states["opinion"].counts_cc, want.counts_cc)
    np.testing.assert_equal(states["opinion"].compute(), want.compute())
    assert names == NAMES
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["comment"] for row in read] == text
    back = np.array([list(row["opinion"]["probabilities"].values()) for row in read], dtype)
    np.testing.assert_array_equal(back, probs_bc)


def test_predictions_refuse_what_would_be_lost(tmp_path):
    comments = _comments(["a"], [0])
    with pytest.raises(UserError, match="cannot be named 'comment'"):
        prediction_rows(comments, {"comment": np.eye(3)[:1]}, {"comment": "abc"})
    with pytest.raises(ValueError, match=r"'opinion': .* \(2, 3\), expected \(1, 3\)"):
        prediction_rows(comments, {"opinion": np.eye(3)[:2]}, NAMES)
    write_predictions(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match="holds no predictions"):
        score_predictions(tmp_path / "empty.jsonl")
