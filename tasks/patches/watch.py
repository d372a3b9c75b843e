"""The series on the newest upstream, night by night: people are told on the day that a patch breaks, and by what.

Each look is one line of the ledger, which the next one goes by: what fitted then is where the search for the culprit
begins, and what was broken then has been told.
"""

from __future__ import annotations

from tasks.patches import blame, place_series, read_series
from tasks.patches.classify import Placed
from tasks.platforms import Platform
from tasks.release import Event, UpstreamRelease
from tasks.report import fenced, markdown_table
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.stage import Row, stage
from tasks.store import Store
from tasks.upstream import open_upstream

LOOKED, BROKE, MENDED = "patches_looked", "patches_broke", "patches_mended"


@stage("patches", "patches on the newest upstream", ledger=False)
def look(row: Row, platform: Platform, settings: Settings) -> list[Placed]:
    """What becomes of the series on the newest release that upstream has, whatever the settings let an upgrade take.

    Raises what upstream and `place_series` raise.
    """
    upstream, sources = open_upstream(settings), Sources(settings.cache)
    release = upstream.releases()[-1]
    row.progress(0, 2, f"fetching the source of {release.tag}")
    _, tree = sources.add(release, upstream.fetch(release))
    patches = read_series(settings.patches)
    before = last_look(platform.store)
    placed = place_series(sources, patches, release, tree, upstream)
    placed = blame(
        sources, placed, release, upstream, _last_good(before, placed), lambda what: row.progress(1, 2, what)
    )
    event = _event(before, placed, release)
    platform.store.log(event)
    rows = [(p.result.file, p.result.title, p.result.status, p.result.evidence) for p in placed]
    details = (f"\n\n{p.result.file}:\n{fenced(p.result.detail, 'diff')}" for p in placed if p.result.status.blocked)
    row.done(event.summary, markdown_table(("patch", "title", "status", "evidence"), rows) + "".join(details))
    return placed


def last_look(store: Store) -> Event | None:
    """The latest look in the ledger; None before the first."""
    return next((e for e in reversed(store.ledger()) if e.kind in (LOOKED, BROKE, MENDED)), None)


def _last_good(before: Event | None, placed: list[Placed]) -> int | None:
    """The build of the last look, where the patch that is broken now fitted, and all before it."""
    names = [one.patch.name for one in placed]
    at = next((n for n, one in enumerate(placed) if one.result.status.blocked), 0)
    fitted = before is not None and set(names[: at + 1]) <= set(before.detail["fitting"])
    return int(before.detail["build"]) if before and fitted else None


def _event(before: Event | None, placed: list[Placed], release: UpstreamRelease) -> Event:
    """The look as a line of the ledger: told to people when something else is broken than at the last one."""
    broken = {one.patch.name: one.result for one in placed if one.result.status.blocked}
    known = set(before.detail["broken"]) if before else set()
    new = [name for name in broken if name not in known]
    if new:
        kind = BROKE
        told = [f"{name} is {broken[name].status}: {broken[name].evidence.splitlines()[-1]}" for name in new]
        summary = f"on {release.tag} {'; '.join(told)}"
    else:
        kind = MENDED if known and not broken else LOOKED
        fitting = f"all {len(placed)} patches fit" if not broken else f"{', '.join(broken)} still broken"
        summary = f"{fitting} on {release.tag}"
    detail = {
        "upstream": release.tag,
        "build": release.build,
        "broken": sorted(broken),
        "fitting": [one.patch.name for one in placed if one.patch.name not in broken],
    }
    return Event(kind=kind, summary=summary, detail=detail)
