"""Lets the tests of this folder import their helpers: `from systems.clevereward import arrays`."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parents[2])
if TESTS not in sys.path:  # last, so that it hides nothing
    sys.path.append(TESTS)
