"""When a patch breaks, what broke it: the first build that can be had where it does not fit, found without a compile.

A bisection. Of each build on the way only the files that the series touches are read out of its archive, which takes
about a second; what that says is then asked of the two whole trees that it ends at, since a function that went to
another file is not seen in a part of a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from modal_app.archives import Wanted
from tasks.patches.classify import Placed
from tasks.patches.conflict import fenced, ranked, shortened
from tasks.patches.series import Hunk, Patch, read_diff
from tasks.patches.trees import diff, files_of
from tasks.release import Change, Problem, ReleaseNotes, ToolingError, UpstreamRelease
from tasks.sources import WHOLE, Sources
from tasks.upstream import Upstream

HUNKS_SHOWN = 4
SUSPECTS_SHOWN = 3

Fits = Callable[[str, UpstreamRelease], bool]
"""Whether a patch is not blocked on a tree (git hash) of a release, or on the part of it that the series touches."""
Tell = Callable[[str], object]
"""Says what goes on."""


@dataclass(frozen=True)
class Culprit:
    """Two neighbours of the builds that can be had: the last one that a patch fits, and the first where it does not."""

    patch: Patch
    good: UpstreamRelease
    bad: UpstreamRelease
    theirs: str
    """Upstream's hunks between the two that are nearest to the patch's own."""
    notes: ReleaseNotes | str
    """What upstream's notes say of that step, or why they say nothing."""

    @property
    def suspects(self) -> list[Change]:
        """Upstream's changes between the two, but those that are known not to touch the files of the patch."""
        mine = {path for file in self.patch.files for path in (file.old, file.new)}
        known = () if isinstance(self.notes, str) else self.notes.changes
        return ranked(self.patch, [change for change in known if not change.files or mine & set(change.files)])

    @property
    def line(self) -> str:
        """One line: the build, and what it was in it, as far as upstream's notes tell; a build is one commit."""
        commits = self.bad.build - self.good.build
        some = self.suspects
        told = "; ".join(map(str, some[:SUSPECTS_SHOWN]))
        if commits == 1:
            return f"{self.bad.tag} broke it: {told or 'what that is, notes do not tell'}"
        whole = not isinstance(self.notes, str) and len(self.notes.changes) == commits
        if whole and len(some) == 1:
            return f"{self.bad.tag} broke it: {told}"
        named = f"notes name {len(some)} of them: {told}" if some else "notes do not tell which"
        return f"{self.bad.tag} broke it, by one of the {commits} commits after {self.good.tag}; {named}"

    @property
    def section(self) -> str:
        """Upstream's hunks and pull requests as Markdown, to stand above the patch's own hunks."""
        head = f"### Upstream's change, in {self.bad.tag} (after {self.good.tag})"
        told = "\n".join(f"- {change}" for change in self.suspects[:SUSPECTS_SHOWN])
        return "\n\n".join(filter(None, [head, fenced(self.theirs, "diff"), told]))


def find(
    sources: Sources,
    upstream: Upstream,
    fits: Fits,
    patches: Sequence[Patch],
    placed: Placed,
    bad: UpstreamRelease,
    good: int | None = None,
    tell: Tell = lambda _: None,
) -> Culprit | None:
    """What broke a patch that is blocked on `bad`, of the builds after `good` (the one it was made on); `patches` are
    the series up to it. None where that is no earlier build, or one that the patch does not fit either.

    Raises Problem when upstream or git fails.
    """
    good = good if good is not None else placed.base.build if placed.base else placed.patch.exported_on
    if good is None or good >= bad.build:
        return None
    steps = [*(r for r in upstream.releases() if good <= r.build < bad.build), bad]
    files = {path for patch in patches for file in patch.files for path in (file.old, file.new) if path}
    wanted = _wanted(files, {file.new for patch in patches for file in patch.files if file.old is None and file.new})

    def fits_part(release: UpstreamRelease) -> bool:
        tree = sources.tree_of(upstream.fetch(release), wanted)
        there = files_of(sources, tree)
        if WHOLE not in there and files - there:
            raise ToolingError(f"the archive of {release.tag} is not whole")
        return fits(tree, release)

    def whole(release: UpstreamRelease) -> str:
        return sources.upstream_tree(release.build) or sources.add(release, upstream.fetch(release))[1]

    def fits_whole(release: UpstreamRelease) -> bool:
        return fits(whole(release), release)

    if not fits_whole(steps[0]):
        return None
    for does_fit in (fits_part, fits_whole):
        low, high = _bisected(steps, does_fit, tell)
        if fits_whole(low) and not fits_whole(high):
            theirs = _theirs(sources, whole(low), whole(high), placed.patch)
            return Culprit(placed.patch, low, high, theirs, _notes(upstream, low, high))
    return None


def _bisected(
    steps: Sequence[UpstreamRelease], fits: Callable[[UpstreamRelease], bool], tell: Tell
) -> tuple[UpstreamRelease, UpstreamRelease]:
    """The last of the steps that fits and the next one, between the first, which does, and the last, which does not.

    A build that can't be had is passed over.
    """
    left = list(steps)
    low, high = 0, len(left) - 1
    while high - low > 1:
        at = (low + high) // 2
        tell(f"looking at {left[at].tag}: {high - low - 1} builds between {left[low].tag} and {left[high].tag}")
        try:
            low, high = (at, high) if fits(left[at]) else (low, at)
        except Problem:
            del left[at]
            high -= 1
    return left[low], left[high]


def _wanted(files: Iterable[str], new: Iterable[str]) -> Wanted:
    """Whether a file of an archive is one that the patches change, stands in a folder that they put a file into, or
    tells that the archive is whole.
    """
    paths = tuple(f"/{path}" for path in (*files, WHOLE))
    folders = [f"/{PurePosixPath(path).parent}/" for path in new]
    return lambda name: name.endswith(paths) or any(folder in name for folder in folders)


def _theirs(sources: Sources, old: str, new: str, patch: Patch) -> str:
    """Upstream's hunks in the files of a patch, those first that have the most of the patch's lines."""
    mine = {line for file in patch.files for hunk in file.hunks for line in hunk.before if line.strip()}
    paths = sorted({path for file in patch.files for path in (file.old, file.new) if path})
    hunks = [(file.path, hunk) for file in read_diff(diff(sources, old, new, 3, "--", *paths)) for hunk in file.hunks]

    def shared(each: tuple[str, Hunk]) -> int:
        return -len(mine & {line[1:] for line in each[1].lines})

    near = [each for each in hunks if shared(each)] or hunks
    shown = sorted(near, key=shared)[:HUNKS_SHOWN]
    return shortened("\n".join(f"{path}\n{hunk.text}" for path, hunk in shown)) or "none in the files of the patch"


def _notes(upstream: Upstream, low: UpstreamRelease, high: UpstreamRelease) -> ReleaseNotes | str:
    try:
        return upstream.changes(low.build, high.build)
    except Problem as problem:
        return problem.what
