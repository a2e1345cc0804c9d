"""Protobuf messages by hand; the examples of the encoding's own documentation."""

import pytest

from jaxvsa.core.protobuf import every, fields, numbers, one, text

pytestmark = pytest.mark.smoke


def test_fields_by_hand():
    """150 in field 1, "testing" in 2, four and eight bytes in 3 and 4, 1 in field 16."""
    raw = bytes.fromhex("089601120774657374696e671d01020304210102030405060708800101")
    found = dict(fields(raw))
    assert (found[1], found[16]) == (150, 1)
    assert bytes(found[2]) == b"testing" and text(raw, 2) == "testing"
    assert (len(found[3]), len(found[4])) == (4, 8)


def test_repeated_and_absent_fields():
    raw = bytes.fromhex("08010802320603 8e02 9ea705".replace(" ", ""))
    assert every(raw, 1) == [1, 2] and one(raw, 1) == 1
    assert numbers(one(raw, 6)) == [3, 270, 86942] and numbers(7) == [7]
    assert one(raw, 9, 5) == 5 and text(raw, 9) == "" and every(raw, 9) == []


@pytest.mark.parametrize("raw", ["12077465", "08", "0896"])
def test_message_that_is_cut_off(raw):
    with pytest.raises(IndexError):
        list(fields(bytes.fromhex(raw)))
