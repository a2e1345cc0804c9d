"""Lets the tests of this folder import their helpers: `from systems.vccsa import golden, plain`.

The folder of the tests and the folder of the benchmarks go to the end of the search path, so that
they can hide nothing that is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

for folder in (ROOT / "tests", ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
