"""Files of a published release: read whole, parsed strictly, checked field by field."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvsa.core.errors import UserError

CURE = "--root must hold the release's files"


def read_release_file(path: Path) -> bytes:
    """Bytes of a file of the release.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); {CURE}") from error


def parse_json(raw: bytes, path: Path) -> Any:
    """JSON in which no key may appear twice: Python would silently keep the last one.

    Args:
        raw: the text in UTF-8.
        path: where it stood, for the error text.

    Raises:
        UserError: no JSON, or a repeated key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key, count = collections.Counter(name for name, _ in pairs).most_common(1)[0]
            raise UserError(f"{path}: key '{key}' appears {count} times; keep one")
        return found

    try:
        return json.loads(raw, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from error


def read_rows(path: Path) -> list[Row]:
    """The objects in a JSON list, at least one.

    Raises:
        UserError: the file is missing or holds anything else.
    """
    rows = parse_json(read_release_file(path), path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a list of objects; download it again")
    return [Row.of(row, f"{path}: row {number}") for number, row in enumerate(rows)]


@dataclasses.dataclass(frozen=True)
class Row:
    """One entry of a release's file; every way to read a field checks it first.

    Attributes:
        values: field -> value as parsed.
        where: file and key, which begin the error text.
    """

    values: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> Row:
        """The entry, if it is an object.

        Raises:
            UserError: it is something else.
        """
        if not isinstance(value, dict):
            raise UserError(
                f"{where}: expected an object, found {type(value).__name__}; download it again"
            )
        return cls(value, where)

    def __contains__(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None

    def text(self, field: str) -> str:
        """A text that is not blank, as published.

        Raises:
            UserError: missing, no text, blank, or not writable as UTF-8.
        """
        if not isinstance(self.values.get(field), str):
            raise self._wrong(field, "is missing or no text")
        return self._checked(field, self.values[field])

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, none blank; it may be empty.

        Raises:
            UserError: missing, no list of texts, or a text as in `text`.
        """
        found = self.items(field)
        if not all(isinstance(text, str) for text in found):
            raise self._wrong(field, "is no list of texts")
        return tuple(self._checked(field, text) for text in found)

    def items(self, field: str) -> list[Any]:
        """A list of anything.

        Raises:
            UserError: missing or no list.
        """
        found = self.values.get(field)
        if not isinstance(found, list | tuple):
            raise self._wrong(field, "is missing or no list")
        return list(found)

    def number(self, field: str) -> float:
        """A finite number, 0 or more.

        Raises:
            UserError: missing, no such number.
        """
        found = self.values.get(field)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._wrong(field, "is missing or no number")
        if not (math.isfinite(found) and found >= 0):
            raise self._wrong(field, f"is {found}, not a finite number from 0")
        return float(found)

    def flag(self, field: str) -> bool:
        """True or false.

        Raises:
            UserError: missing or something else, a number included.
        """
        found = self.values.get(field)
        if not isinstance(found, bool):
            raise self._wrong(field, "is missing or neither true nor false")
        return found

    def _checked(self, field: str, text: str) -> str:
        if not text.strip():
            raise self._wrong(field, "has an empty text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._wrong(field, f"holds half a character at {error.start}") from error
        return text

    def _wrong(self, field: str, what: str) -> UserError:
        return UserError(f"{self.where}, field '{field}' {what}; download the file again")
