"""How long the series takes to classify on a full real tree."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tasks.patches import place_series, read_series
from tasks.settings import load
from tasks.sources import Sources
from tasks.upstream import find, open_upstream

TARGETS = ("b8672", "b9105", "b11434")
RUNS = 5


def main() -> Iterator[str]:
    """Lines of the report: seconds to classify, after the trees were imported once."""
    settings = load()
    upstream, sources = open_upstream(settings), Sources(settings.cache)
    patches = read_series(settings.patches)
    for tag in TARGETS:
        release = find(upstream.releases(), tag)
        start = time.monotonic()
        _, tree = sources.add(release, upstream.fetch(release))
        imported = time.monotonic() - start
        seconds = []
        for _ in range(RUNS + 1):  # the first one may fetch and import the trees that patches were exported on
            start = time.monotonic()
            placed = place_series(sources, patches, release, tree, upstream)
            seconds.append(time.monotonic() - start)
        files = len(sources.files(tree, "**/*"))
        told = ", ".join(f"{p.patch.path.stem} {p.result.status}" for p in placed)
        yield (
            f"{tag}, {files} files, {len(patches)} patches: median {statistics.median(seconds[1:]):.2f} s of {RUNS}, "
            f"first {seconds[0]:.2f} s (import {imported:.1f} s): {told}"
        )
