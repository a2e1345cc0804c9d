"""Files and fields of a release: what is read, and that every wrong one is named."""

import math

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.release import Row, parse_json, read_release_file, read_rows

pytestmark = pytest.mark.smoke

ROW = Row(
    {
        "text": " a\n", "texts": ["a", "é"], "none": [], "zero": 0, "half": 0.5, "yes": True,
        "null": None, "blank": " \n", "half_character": "a\ud800", "mixed": ["a", 1],
        "blanks": ["a", ""], "minus": -1, "nan": math.nan, "inf": math.inf,
    },
    "file.json: key 'k'",
)  # fmt: skip


def test_fields_are_read_as_published():
    assert ROW.text("text") == " a\n"
    assert ROW.texts("texts") == ("a", "é") and ROW.texts("none") == ()
    assert ROW.items("mixed") == ["a", 1]
    assert (ROW.number("zero"), ROW.number("half")) == (0.0, 0.5)
    assert ROW.flag("yes") is True
    assert "zero" in ROW and "null" not in ROW and "absent" not in ROW


@pytest.mark.parametrize(
    ("method", "field", "message"),
    [
        ("text", "absent", "is missing or no text"),
        ("text", "zero", "is missing or no text"),
        ("text", "blank", "has an empty text"),
        ("text", "half_character", "holds half a character at 1"),
        ("texts", "text", "is missing or no list"),
        ("texts", "mixed", "is no list of texts"),
        ("texts", "blanks", "has an empty text"),
        ("items", "null", "is missing or no list"),
        ("number", "text", "is missing or no number"),
        ("number", "yes", "is missing or no number"),
        ("number", "minus", "is -1, not a finite number from 0"),
        ("number", "nan", "is nan, not a finite number"),
        ("number", "inf", "is inf, not a finite number"),
        ("flag", "zero", "is missing or neither true nor false"),
    ],
)
def test_a_wrong_field_is_named(method, field, message):
    with pytest.raises(UserError, match=f"^file.json: key 'k', field '{field}' {message}"):
        getattr(ROW, method)(field)


def test_rows_are_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"x": 1}, {"x": 2}]')
    assert [row.number("x") for row in read_rows(path)] == [1, 2]
    assert read_rows(path)[1].where == f"{path}: row 1"
    for content, message in (
        ("{}", "a.json: expected a list of objects; download it again"),
        ("[]", "a.json: expected a list of objects"),
        ('[{"x": 1}, 2]', "a.json: row 1: expected an object, found int"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_rows(path)


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    assert parse_json(b'{"a": [1, null]}', path) == {"a": [1, None]}
    for raw, message in (
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "a.json: key 'c' appears 2 times; keep one"),
        (b'{"a": ', "a.json: not valid JSON .*download it again"),
        (b'"\xff"', "a.json: not valid JSON"),
        (b"[" * 100_000, "a.json: not valid JSON"),
    ):
        with pytest.raises(UserError, match=message):
            parse_json(raw, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none: cannot read it .*; --root must hold the release"):
        read_release_file(tmp_path / "none")
