"""How well the rules over upstream's notes find what broke: on changes that came after the rules were written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from tasks.settings import load
from tasks.upstream import history, open_upstream
from tasks.upstream.notes import Assessed, assess_all
from tests.upstream.labelled import COUNTED, SPLIT, Labelled, judged, labelled, reference, warned

REPOSITORY = Path(__file__).parent.parent.parent
BUMP = 100
Z = 1.96

Judged = list[tuple[Labelled, Assessed]]


def wilson(hits: int, of: int) -> str:
    """`hits/of` with its share and Wilson's 95% interval (Wilson 1927)."""
    if not of:
        return "0/0"
    share, z2 = hits / of, Z * Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / of + z2 / of / 4) / (1 + z2)
    return f"{hits}/{of} = {share:.2f} [{middle - half:.2f}, {middle + half:.2f}]"


def recall(found: Judged) -> str:
    broke = [warned(told) for record, told in found if record.breaking]
    counted = [warned(told) for record, told in found if record.kind in COUNTED]
    return f"recall {wilson(sum(broke), len(broke))}; on {', '.join(COUNTED)} {wilson(sum(counted), len(counted))}"


def precision(found: Judged) -> str:
    right = [record.breaking for record, told in found if warned(told)]
    return f"precision {wilson(sum(right), len(right))}"


def main() -> Iterator[str]:
    """Lines of the report. Later: after b9000, labelled when the rules were written."""
    notes = open_upstream(load()).changes(0, history.CHANGELOG_END)
    bodies = {change.pull: change.body for change in notes.changes if change.pull}
    used = reference(REPOSITORY / "patches")
    records = labelled()
    for part in ("earlier", "later"):
        told, left_out = (
            judged([r for r in records if r.part == part and r.source == source], used, bodies)
            for source in ("changelog", "github")
        )
        yield f"{part} part, {len(told)} changes of the changelog: {recall(told)}; {precision(told)}"
        yield f"{part} part, {len(left_out)} changes that it leaves out, by title alone: {recall(left_out)}"
        yield f"{part} part, all: {recall(told + left_out)}"
        for record, found in told + left_out:
            if record.breaking and not warned(found):
                listed = f"; listed as naming {', '.join(found.touches)}" if found.touches else ""
                yield f"  missed ({record.kind}): #{record.pull} {record.title}: {record.reason}{listed}"
    bumps = [
        assess_all(history.between(list(notes.changes), low, low + BUMP), used)
        for low in range(SPLIT, history.CHANGELOG_END - BUMP, BUMP)
    ]
    told_of = [bump for bump in bumps if bump.changes]
    shown = [len(bump.shown) for bump in told_of]
    read = sum(len(bump.changes) for bump in told_of)
    yield (
        f"digest of a bump of {BUMP} builds, {len(told_of)} later ones with notes: {statistics.median(shown):g} listed "
        f"(median), at most {max(shown)}; {BUMP * sum(shown) / read:.0f} of each {BUMP} changes read"
    )
