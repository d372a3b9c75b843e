"""What changed between two upstream builds: read from their two trees, explained by upstream's own notes."""

from __future__ import annotations

from tasks.release import Problem, UpstreamRelease
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream import Upstream, notes, tree_of, treediff
from tasks.upstream.notes import Assessment
from tasks.upstream.ours import Ours, used_by
from tasks.upstream.treediff import TreeDiff


def between(source: Upstream, settings: Settings, low: int, target: UpstreamRelease) -> Assessment:
    """What changed after build `low`, up to and with the target. Trees or notes that can't be had are said to be so.

    It is advice: whatever it would have told of, preflight, contracts and the gates look at themselves.
    """
    used = used_by(settings)
    found = notes.read(source.changes, low, target.build, used)
    trees = _trees(source, settings, low, target, used)
    titles = {change.title: change.name for change in found.changes}
    return found.model_copy(update={"trees": treediff.explain(trees, titles)})


def _trees(source: Upstream, settings: Settings, low: int, target: UpstreamRelease, used: Ours) -> TreeDiff:
    try:
        sources = Sources(settings.cache)
        old, new = tree_of(source, sources, low), tree_of(source, sources, target.build, target)
        return treediff.read(sources, old, new, used)
    except Problem as error:
        why = ": ".join([error.what, *error.evidence.splitlines()[:1]])
    except Exception as error:  # text that its reader does not understand: advice stops no release
        why = f"their reader failed, {type(error).__name__}: {error}"
    return TreeDiff(old="", new="", problem=why)
