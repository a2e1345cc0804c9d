"""What the user sees at the end."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from jaxvsa.evaluation.evaluator import flat_metrics
from jaxvsa.evaluation.tables import Row, print_figures, render, save_confusion
from jaxvsa.metrics.confusion import Confusion

pytestmark = pytest.mark.smoke

NAMES = {"opinion": ("positive", "neutral", "negative"), "emotion": ("joy", "fear")}
OPINION = np.array([[30, 10, 0], [5, 40, 5], [0, 5, 5]])
EMOTION = np.array([[80, 5], [10, 5]])


def _rows():
    states = {"opinion": Confusion(OPINION), "emotion": Confusion(EMOTION)}
    values = flat_metrics(states, "test", NAMES) | flat_metrics(states, "dev", NAMES)
    errors = {"test/opinion/accuracy": 0.0123, "test/emotion/f1/fear": 0.1}
    return [
        Row("model", values, errors),
        Row("majority of the video", {"test/opinion/accuracy": 0.5, "test/opinion/f1/neutral": 1}),
        Row("published", {"test/opinion/micro_f1": 0.7352}),
    ]


def _render(splits=("test",), **options):
    file = io.StringIO()
    render(_rows(), NAMES, splits, Console(file=file, **options))
    return file.getvalue()


def _line(text, start):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line


def _cells(text, start):
    return _line(text, start).split()


def test_render_shows_percent_and_errors_by_hand():
    text = _render()
    # Opinion: (30+40+5)/100 right, F1 60/75, 80/105, 10/20. Emotion: 85/100, F1 160/175, 10/25.
    want = ["75.00", "±1.23", "75.00", "68.73", "85.00", "85.00", "65.71"]
    assert _cells(text, "model")[1:] == want
    assert _cells(text, "majority of the video")[4:] == ["50.00", "-", "-", "-", "-", "-"]
    assert _cells(text, "published")[1:] == ["-", "73.52", "-", "-", "-", "-"]
    assert _cells(text, "opinion neutral")[2:] == ["50", "76.19", "100.00"]
    assert _cells(text, "emotion fear")[2:] == ["15", "40.00", "±10.00", "-"]


def test_render_without_a_terminal_wraps_and_cuts_nothing():
    assert _render(width=20) == _render(width=300)
    assert "majority of the video" in _render(width=20)


def test_render_keeps_the_decimal_points_of_a_column_below_each_other():
    text = _render()
    at = _line(text, "model").index("75.00 ±1.23")
    assert _line(text, "majority of the video")[at:].startswith("50.00 ")


def test_render_in_a_narrow_terminal_puts_tasks_below_each_other():
    wide = _render(width=160, force_terminal=True, color_system=None)
    narrow = _render(width=80, force_terminal=True, color_system=None)
    assert "test: opinion, emotion (%)" in wide
    assert "test: opinion (%)" in narrow and "test: emotion (%)" in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert _cells(narrow, "published")[1:] == ["-", "73.52", "-"]


def test_render_keeps_the_order_of_splits():
    text = _render(splits=("dev", "test"))
    assert 0 <= text.index("dev: opinion") < text.index("test: opinion")
    dev = text[: text.index("test: opinion")]
    assert "published" not in dev  # it has no figure there


def test_render_shows_names_as_they_are():
    names = {"mood": ("[/joy]", "[red]")}
    state = Confusion(np.array([[1, 1], [0, 2]]))
    file = io.StringIO()
    row = Row("run [1]", flat_metrics({"mood": state}, "dev", names))
    render([row], names, ["dev"], Console(file=file))
    assert _cells(file.getvalue(), "mood [/joy]")[2:] == ["2", "66.67"]
    assert _cells(file.getvalue(), "mood [red]")[2:] == ["2", "80.00"]
    assert _cells(file.getvalue(), "run [1]")[2:] == ["75.00", "75.00", "73.33"]


def test_save_confusion_writes_counts_and_a_picture(tmp_path):
    path_csv, path_png = tmp_path / "opinion.csv", tmp_path / "opinion.png"
    save_confusion(path_csv, path_png, OPINION, NAMES["opinion"], "opinion, test")
    with path_csv.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "positive", "neutral", "negative"],
            ["positive", "30", "10", "0"],
            ["neutral", "5", "40", "5"],
            ["negative", "0", "5", "5"],
        ]
    from matplotlib import image

    pixels = image.imread(path_png)
    assert min(pixels.shape[:2]) > 500
    assert pixels[..., :3].min() < 0.1 < 0.9 < pixels[..., :3].max()


def test_save_confusion_takes_any_names_and_many_classes(tmp_path):
    names = [f"$c_{{{i}$" for i in range(60)]
    counts_cc = np.eye(60, dtype=np.int64)
    counts_cc[3] = 0  # a class that never occurs
    save_confusion(tmp_path / "a.csv", tmp_path / "a.png", counts_cc, names, "$ many")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_save_confusion_refuses_names_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError):
        save_confusion(tmp_path / "a.csv", tmp_path / "a.png", OPINION, ("one",), "title")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 2), (40, 5)])
def test_columns_that_do_not_fit_go_into_tables_of_their_own(width, tables):
    groups = [{f"a{i}": f"first {i}" for i in range(4)}, {"b": "second"}]
    values = {name: 0.25 for group in groups for name in group}
    rows = [Row("a model with a name", values, dict.fromkeys(values, 0.01))]
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    print_figures("figures", rows, groups, console)
    printed = file.getvalue()
    assert printed.count("a model with a name") == tables
    assert printed.count("25.00 ±1.00") == 5 and "…" not in printed
