"""The one error a user can cause, and the hint that goes with a misspelt name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input, file, option or setting; doors print it as one line and exit with code 2.

    The message says what was wrong, names the file, key or field, and says what to do.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint to append to an error about an unknown name.

    Args:
        name: what the user wrote.
        known: the names that exist; order decides between equally close ones.

    Returns:
        `"; did you mean 'lr'?"`, or `""` if no known name is close (difflib ratio under 0.6).
    """
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
