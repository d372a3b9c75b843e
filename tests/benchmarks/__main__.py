"""`make bench`: the measures, each printed with what it was measured on. Name sections to run only those.

The soak is long and runs only when it is named; a number after it is how many cycles.
"""

from __future__ import annotations

import os
import platform
import sys

from tests.benchmarks import (
    activator,
    building,
    contracts,
    gate,
    notes,
    patches,
    selftest,
    snapshot,
    soak,
    stages,
    start,
    surface,
    watch,
)  # fmt: skip

SECTIONS = {
    "start": start.main,
    "stages": stages.main,
    "patches": patches.main,
    "notes": notes.main,
    "building": building.main,
    "selftest": selftest.main,
    "surface": surface.main,
    "contracts": contracts.main,
    "snapshot": snapshot.main,
    "gate": gate.main,
    "activator": activator.main,
    "watch": watch.main,
}
LONG = {"soak": soak.main}


def main() -> None:
    chosen = [word for word in sys.argv[1:] if not word.isdecimal()] or list(SECTIONS)
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in chosen:
        print(f"\n## {name}", flush=True)
        for line in SECTIONS[name]() if name in SECTIONS else LONG[name](*numbers):
            print(line, flush=True)


if __name__ == "__main__":
    main()
