"""What is said of the labelled series on real trees against what is true of them, and how long it takes."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tasks.patches import Placed, place_series, read_series
from tasks.patches.series import SERIES
from tasks.settings import load
from tasks.sources import Sources
from tasks.upstream import Upstream, find, open_upstream
from tests.patches.labelled import Case, cases, file_of

MANY = 30


def main() -> Iterator[str]:
    """Lines of the report: each case with what was wrong about it, the counts, and the seconds of one long series."""
    settings = load()
    upstream, sources = open_upstream(settings), Sources(settings.cache)
    counts: Counter[str] = Counter()
    for case in cases():
        trees = [tree(sources, upstream, build) for build in (case.exported, case.target)]
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            (placed,) = place(case, sources, upstream, trees, Path(folder))
        fault = case.fault(placed, sources)
        kind = "wrong" if fault else "undecided" if placed.result.status == "undecided" else "right"
        counts[kind] += 1
        said = f"{placed.result.status}{f', {fault}' if fault else ''}"
        yield f"{kind:<9} {case.id}: {said}; {time.monotonic() - began:.1f} s"
    yield ", ".join(f"{n} {kind}" for kind, n in counts.most_common()) + f" of {counts.total()}"
    yield long_series(sources, upstream)


def tree(sources: Sources, upstream: Upstream, build: int) -> str:
    """Upstream's tree of a build, fetched once."""
    if known := sources.upstream_tree(build):
        return known
    release = find(upstream.releases(), f"b{build}")
    return sources.add(release, upstream.fetch(release))[1]


def place(case: Case, sources: Sources, upstream: Upstream, trees: list[str], folder: Path) -> list[Placed]:
    """The patch of a case on its target."""
    name = f"0001-{case.id}.patch"
    (folder / SERIES).write_text(f"{name}\n")
    (folder / name).write_bytes(file_of(case, sources, trees[0]))
    release = find(upstream.releases(), f"b{case.target}")
    return place_series(sources, read_series(folder), release, trees[1], upstream)


def long_series(sources: Sources, upstream: Upstream) -> str:
    """How long a series of MANY patches from all these builds takes on the newest of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some = [case for case in cases() if case.target == max(c.target for c in cases())]
        files = {f"{n:04}-{some[n % len(some)].id}.patch": some[n % len(some)] for n in range(MANY)}
        (folder / SERIES).write_text("".join(f"{file}\n" for file in files))
        for file, case in files.items():
            (folder / file).write_bytes(file_of(case, sources, tree(sources, upstream, case.exported)))
        target = some[0].target
        began = time.monotonic()
        release = find(upstream.releases(), f"b{target}")
        placed = place_series(sources, read_series(folder), release, tree(sources, upstream, target), upstream)
        late = sum("the patches before it took more than" in p.result.evidence for p in placed)
        return f"a series of {len(placed)} patches on b{target}: {time.monotonic() - began:.1f} s, {late} not in time"
