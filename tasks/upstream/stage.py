"""Which upstream release to go to, and what changed on the way that could break us."""

from __future__ import annotations

from tasks.platforms import Platform
from tasks.release import UpstreamRelease
from tasks.report import markdown_table
from tasks.settings import Settings
from tasks.stage import Row, stage
from tasks.upstream import Upstream, choose, newer, notes, open_upstream
from tasks.upstream.between import between
from tasks.upstream.notes import Assessment

NEWER_SHOWN = 40


def changed(source: Upstream, settings: Settings, production: int | None, target: UpstreamRelease) -> Assessment | None:
    """What changed on the way from production's build to the target; None when it is no way forward."""
    if production is None or target.build <= production:
        return None
    return between(source, settings, production, target)


@stage("upstream", "read upstream")
def read(
    row: Row, platform: Platform, settings: Settings, to: str | None
) -> tuple[UpstreamRelease | None, Assessment | None]:
    """The upstream release to go to, and what changed on the way; None when production has the newest eligible one.

    Raises BadInput for a build that upstream does not have, ToolingError when upstream cannot be read; trees and
    notes that cannot be read are only said to be so.
    """
    source = open_upstream(settings)
    current = platform.store.pointer("production").release
    build = platform.store.get_release(current).upstream.build if current else None
    target = choose(source, to, build)
    later = newer(source.releases(), build)
    here = f"production b{build}" if build else "production empty"
    if target is None:
        row.done(f"{here}, {len(later)} newer upstream, target none: nothing eligible is newer")
        return None, None
    found = changed(source, settings, build, target)
    told = [f"{here}, {len(later)} newer, target {target}", *([found.summary] if found else [])]
    rows = [(r.tag, "target" if r == target else "") for r in reversed(later[-NEWER_SHOWN:])]
    listed = markdown_table(("newer than production", ""), rows)
    detail: dict[str, object] = {"target": target.tag}
    if found:
        detail |= {"notes": found.risky.model_dump(mode="json"), "changes_read": len(found.changes)}
    row.done("; ".join(told), f"{notes.digest(found)}\n\n{listed}" if found else listed, detail=detail)
    return target, found
