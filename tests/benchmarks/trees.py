"""How well the reader of upstream's trees finds what broke, and how long it takes for a pair."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tasks.settings import load
from tests.benchmarks.notes import wilson
from tests.upstream.labelled_trees import DECOY, Labelled, Verdict, compared, judged, labelled, reference

REPOSITORY = Path(__file__).parent.parent.parent


def main() -> Iterator[str]:
    """Lines of the report: of each pair of builds, then of all."""
    settings = reference(REPOSITORY / "patches", load().cache)
    pairs: dict[tuple[int, int], list[Labelled]] = defaultdict(list)
    for record in labelled():
        pairs[record.low, record.high].append(record)
    verdicts: list[Verdict] = []
    for (low, high), records in sorted(pairs.items()):
        compared(settings, low, high)  # fetches what is not here
        began = time.process_time()
        found = compared(settings, low, high)
        verdicts += (own := list(judged(records, found)))
        yield (
            f"b{low} -> b{high}: {found.seconds:.1f} s, {time.process_time() - began:.1f} s of a core, "
            f"{len(found.changes)} differences; {told(own)}"
        )
    yield f"all: {told(verdicts)}"
    for each in verdicts:
        if not each.right:
            what = "raised" if each.record.kind == DECOY else "missed"
            yield f"  {what} {each.record.id} {each.record.kind}: {each.record.name}"


def told(verdicts: list[Verdict]) -> str:
    """Recall and how many decoys are raised, with Wilson's intervals."""
    breaks = [each for each in verdicts if each.record.kind != DECOY]
    decoys = [each for each in verdicts if each.record.kind == DECOY]
    return (
        f"breaks told {wilson(sum(v.right for v in breaks), len(breaks))}, "
        f"shown {sum(v.shown for v in breaks)}; decoys raised {wilson(sum(v.shown for v in decoys), len(decoys))}"
    )
