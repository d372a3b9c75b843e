"""`make bench`: the measures, each printed with what it was measured on. Name sections to run only those."""

from __future__ import annotations

import os
import platform
import sys

from tests.benchmarks import activator, building, contracts, gate, notes, patches, snapshot, stages, surface, watch

SECTIONS = {
    "stages": stages.main,
    "patches": patches.main,
    "notes": notes.main,
    "building": building.main,
    "surface": surface.main,
    "contracts": contracts.main,
    "snapshot": snapshot.main,
    "gate": gate.main,
    "activator": activator.main,
    "watch": watch.main,
}


def main() -> None:
    chosen = sys.argv[1:] or list(SECTIONS)
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in chosen:
        print(f"\n## {name}", flush=True)
        for line in SECTIONS[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
