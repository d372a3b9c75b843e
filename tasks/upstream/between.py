"""What changed between two upstream builds: read from their two trees, explained by upstream's own notes."""

from __future__ import annotations

from tasks.release import Problem, UpstreamRelease
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream import Upstream, find, notes, treediff
from tasks.upstream.notes import Assessment
from tasks.upstream.ours import Ours, used_by
from tasks.upstream.treediff import TreeDiff


def between(source: Upstream, settings: Settings, low: int, target: UpstreamRelease) -> Assessment:
    """What changed after build `low`, up to and with the target. Trees or notes that can't be had are said to be so.

    It is advice: whatever it would have told of, preflight, contracts and the gates look at themselves.
    """
    used = used_by(settings)
    found = notes.read(source.changes, low, target.build, used)
    trees = _trees(source, Sources(settings.cache), low, target, used)
    titles = {change.title: change.name for change in found.changes}
    return found.model_copy(update={"trees": treediff.explain(trees, titles)})


def _trees(source: Upstream, sources: Sources, low: int, target: UpstreamRelease, used: Ours) -> TreeDiff:
    try:
        old = sources.upstream_tree(low) or _fetched(source, sources, find(source.releases(), f"b{low}"))
        new = sources.upstream_tree(target.build) or _fetched(source, sources, target)
        return treediff.read(sources, old, new, used)
    except Problem as error:
        why = ": ".join([error.what, *error.evidence.splitlines()[:1]])
        return TreeDiff(old="", new="", problem=why)


def _fetched(source: Upstream, sources: Sources, release: UpstreamRelease) -> str:
    _, tree = sources.add(release, source.fetch(release))
    return tree
