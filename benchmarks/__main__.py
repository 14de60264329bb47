"""How fast jdistill is, beside rsl_rl: every measurement, one after the other, and the page that shows them.

    python -m benchmarks                  # measure everything into docs/*.json, about half an hour on two cores
    python -m benchmarks update scaling   # measure these two anew
    python -m benchmarks --page           # write docs/performance.md from the numbers that are there

Let nothing else run meanwhile. On a GPU the same command measures the GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.crazyflie import ROOT
from benchmarks.page import DOCS, page

MEASUREMENTS = {
    "update": [],
    "rsl_rl": ["--iterations", "40"],
    "collection": ["--evaluation"],
    "devices": [],
    "crazyflie": [],
    "scaling": [],
    "bridge": [],
}
"""Modules of this package, with their arguments."""


def main() -> int:
    """Measure, write the page, print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in MEASUREMENTS]:
        parser.error(f"no measurement {unknown[0]}, there are {', '.join(MEASUREMENTS)}")
    for name in [] if args.page else args.names or MEASUREMENTS:
        command = [sys.executable, "-m", f"benchmarks.{name}", *MEASUREMENTS[name], "--out", str(DOCS / f"{name}.json")]
        print(f"$ {' '.join(command[1:])}", flush=True)
        if status := subprocess.run(command, cwd=ROOT).returncode:
            return status
    text = page()
    (DOCS / "performance.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
