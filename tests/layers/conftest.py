"""Lets the tests of this folder import helpers: `from interop import qformer_oracle`."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]

if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))  # at the end: it can hide nothing that is installed
