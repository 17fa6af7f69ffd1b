"""Where tests find what they run on: the checkout, its samples, and the data beside it, if it is there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SHARED = ROOT.parent / "shared"
CASES = SHARED / "cases"
DATA = SHARED / "data"
SARTORIUS = DATA / "sartorius"
CASES = SHARED / "cases"
