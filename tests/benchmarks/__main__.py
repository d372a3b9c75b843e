"""`make bench`: the measures, each printed with what it was measured on. Name sections to run only those.

The soak, the cycles on the fake Modal and the suite are long and run only when they are named. What follows one of them
is for it: how many cycles, which breaks of the suite.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks import (
    activator,
    building,
    contracts,
    faults,
    gate,
    messages,
    modal,
    notes,
    patches,
    refused,
    restore,
    rollback,
    selftest,
    series,
    setups,
    snapshot,
    soak,
    stages,
    start,
    suite,
    surface,
    trees,
    watch,
)  # fmt: skip
from tests.benchmarks.released import NoRelease

SECTIONS = {
    "start": start.main,
    "refused": refused.main,
    "stages": stages.main,
    "patches": patches.main,
    "series": series.main,
    "notes": notes.main,
    "trees": trees.main,
    "building": building.main,
    "selftest": selftest.main,
    "surface": surface.main,
    "contracts": contracts.main,
    "snapshot": snapshot.main,
    "gate": gate.main,
    "activator": activator.main,
    "rollback": rollback.main,
    "faults": faults.main,
    "restore": restore.main,
    "watch": watch.main,
    "messages": messages.main,
    "setups": setups.main,
    "workers": modal.starts,
    "verdicts": modal.verdicts,
}
LONG: dict[str, Callable[[Sequence[str]], Iterator[str]]] = {
    "soak": lambda words: soak.main(*map(int, words)),
    "modal": lambda words: modal.main(*map(int, words)),
    "suite": lambda words: suite.main(*words),
}


def asked(words: Sequence[str]) -> Iterator[tuple[str, Iterator[str]]]:
    """(name, lines) of each section that is named."""
    for at, word in enumerate(words):
        if word in LONG:
            yield word, LONG[word](words[at + 1 :])
            return
        yield word, SECTIONS[word]()


def main() -> None:
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, lines in asked(sys.argv[1:] or list(SECTIONS)):
        print(f"\n## {name}", flush=True)
        try:
            for line in lines:
                print(line, flush=True)
        except NoRelease as error:
            print(error)


if __name__ == "__main__":
    main()
