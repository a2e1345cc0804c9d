"""Reads protobuf messages without their schema: numbered fields of integers and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_FIXED = {1: 8, 5: 4}


def fields(raw: memoryview | bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of every field: int for a varint, else bytes as they are.

    Raises:
        IndexError: the message is cut off.
    """
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        size = _FIXED.get(wire)
        if size is None:
            size, at = _varint(raw, at)
        if at + size > len(raw):
            raise IndexError("the message is cut off")
        yield key >> 3, raw[at : at + size]
        at += size


def every(raw: memoryview | bytes, number: int) -> list[Any]:
    """All values of a repeated field."""
    return [value for field, value in fields(raw) if field == number]


def one(raw: memoryview | bytes, number: int, default: Any = b"") -> Any:
    """The first value of a field, or `default`."""
    return next((value for field, value in fields(raw) if field == number), default)


def text(raw: memoryview | bytes, number: int) -> str:
    """A field of text, "" if it is not there."""
    return bytes(one(raw, number)).decode()


def numbers(raw: memoryview | bytes | int) -> list[int]:
    """A repeated integer field, packed or single."""
    if isinstance(raw, int):
        return [raw]
    found, at = [], 0
    while at < len(raw):
        value, at = _varint(raw, at)
        found.append(value)
    return found


def _varint(raw: memoryview | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
