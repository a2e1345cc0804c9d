"""Writes the golden numbers of the Q-Former: `python tests/interop/make_golden.py`.

See golden.py for what they are. Needs the parity extra.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from interop import golden

if __name__ == "__main__":
    given = golden.start()
    golden.FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(golden.FILE, **given, **golden.compute(given))
    print(f"{golden.FILE}: {golden.FILE.stat().st_size:,} bytes")
