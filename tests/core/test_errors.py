"""Hints for misspelt names."""

import pytest

from jaxvsa.core.errors import UserError, nearest


@pytest.mark.smoke
def test_nearest_names_the_closest_known_name():
    assert nearest("lrr", ["seed", "lr", "warmup"]) == "; did you mean 'lr'?"


def test_nearest_stays_silent_when_nothing_is_close():
    assert nearest("batch", ["seed", "lr"]) == ""
    assert nearest("lr", []) == ""


def test_nearest_takes_any_iterable_and_keeps_its_order_on_ties():
    assert nearest("aab", iter(["aaa", "aac"])) == nearest("aab", {"aaa": 0, "aac": 1})


def test_user_error_is_caught_as_value_error():
    with pytest.raises(ValueError, match="no such file"):
        raise UserError("no such file")
