"""Tries to break the kit; prints a table, and exit code 1 where something broke.

python -m torture --seconds N  mutated inputs of every kind, given to the real commands
python -m torture --kills N    kills at random moments while every kind of output is written
python -m torture --disturb    full disks, read-only and vanishing folders, two runs on one output
python -m torture --bombs      small files that claim to be large

Case n of a kind is the same for the same seed, whatever else is run. An input that breaks the contract is
kept in --keep, with the command line and what it said.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

from pathlib import Path

from torture import ROOT
from torture.isolation import cut_off


def parse() -> argparse.Namespace:
    """The command line."""
    from torture.kinds import KINDS

    parser = argparse.ArgumentParser(
        prog="python -m torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seconds", type=float, metavar="N")
    what.add_argument("--kills", type=int, metavar="N")
    what.add_argument("--disturb", action="store_true")
    what.add_argument("--bombs", action="store_true")
    add("--seed", type=int, default=0)
    add(
        "--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}"
    )
    add("--acts", nargs="+", default=[], metavar="ACT", help="to kill or disturb; default: all")
    add("--first", type=int, default=0, metavar="N", help="begin with case N of each kind")
    add("--keep", type=Path, default=ROOT / "out" / "torture", metavar="DIR", help="default: %(default)s")
    return parser.parse_args()


def main() -> int:
    """Torture, print what came of it; 1 where something broke."""
    from torture import bombs, disturbances, inputs, kills

    arguments = parse()
    if arguments.kills:
        killed = kills.kill_often(arguments.kills, arguments.seed, arguments.acts)
        print(kills.table(killed))
        return any(result.faults for result in killed.values())
    if arguments.disturb:
        disturbed = disturbances.disturb(arguments.seed, arguments.acts)
        print(disturbances.table(disturbed))
        return any(result.faults for result in disturbed.values())
    if arguments.bombs:
        print(bombs.HEAD)
        return any(blown.faults for blown in bombs.blow_up())
    report = inputs.torture(
        arguments.only, arguments.seed, arguments.first, arguments.seconds, arguments.keep
    )
    print(report.table())
    return report.failures > 0


if __name__ == "__main__":
    cut_off()
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a library that everything imports prints of itself at a usual end
