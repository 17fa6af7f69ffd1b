"""What tries to break the kit: mutated inputs, kills, full disks, bombs. Run from a checkout, never shipped.

The real inputs are made by the factories of `tests/`, which this makes importable.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
