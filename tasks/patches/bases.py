"""The trees that patches were made from: a patch is brought to another release as the change of one tree to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tasks.patches.evidence import Reader, occurrences
from tasks.patches.series import FileDiff, Patch
from tasks.patches.trees import Applied, apply_strictly, blob_of
from tasks.process import TimedOut
from tasks.release import Problem

TreeOf = Callable[[int], str]
"""The upstream tree (git hash) of a build. Raises Problem when it can't be had."""
TOPS_TRIED = 4
"""How many of the trees with earlier patches a patch is tried on: it was made on the last one, or on upstream's."""
BUILDS_TRIED = 40


@dataclass(frozen=True)
class Base:
    """The two trees that a patch is the difference of: without it and with it."""

    build: int
    tree: str
    patched: str
    note: str = ""
    """What is weaker about it than the tree that the patch names."""


@dataclass
class Bases:
    """Upstream's own trees, then with each earlier patch of the series."""

    reader: Reader
    tree_of: TreeOf
    target: tuple[int, str]
    """The build and the tree that patches are brought to: the nearest that there is for one made there."""
    _tops: dict[int, list[str]] = field(default_factory=dict)
    _trees: dict[int, str | Problem] = field(default_factory=dict)

    def fetch(self, patches: Iterable[Patch]) -> None:
        """Have the trees that patches name, as far as they can be had: it may take the network, and any time."""
        for build in {patch.exported_on for patch in patches if patch.exported_on is not None}:
            try:
                self._trees[build] = self.tree_of(build)
            except Problem as problem:
                self._trees[build] = problem

    def of(self, patch: Patch) -> tuple[Base | None, str]:
        """(the base of a patch, why it is not the one that the patch names). In the order of the series.

        A diff that names no build, or a wrong one, is of the build whose files have the blob ids that git wrote into
        it, else of the nearest one where each hunk stands at its line and nowhere else.
        """
        try:
            return (None, "") if patch.broken else self._of(patch)
        except TimedOut as error:
            return None, f"there was no time left to look for the tree that it was made on: {error.what}"

    def _of(self, patch: Patch) -> tuple[Base | None, str]:
        build, lack = patch.exported_on, "it has no Exported-on trailer"
        if build is not None:
            tree = self._trees[build]
            if isinstance(tree, Problem):
                lack = f"the source of b{build}, which it was exported on, can't be had: {tree.what}"
            elif found := self._on(patch, build, tree, exact=False):
                return found, found.note
            else:
                lack = f"it does not apply to b{build}, which it says it was exported on"
        for known, tree in self._known():
            if found := self._on(patch, known, tree, exact=True):
                return found, f"{lack}; its lines are those of b{known}"
        return None, lack

    def _known(self) -> Iterator[tuple[int, str]]:
        """The builds that are on this machine, those first that an earlier patch stands on, then the nearest."""
        known = self.reader.sources.upstream_trees() | dict([self.target])
        near = sorted(known, key=lambda build: (build not in self._tops, abs(build - self.target[0])))
        return ((build, known[build]) for build in near[:BUILDS_TRIED])

    def _on(self, patch: Patch, build: int, upstream: str, *, exact: bool) -> Base | None:
        tops = [*reversed(self._tops.get(build, [])[-TOPS_TRIED:]), upstream]
        for tree in dict.fromkeys(tops):
            if exact and not self._stands(patch, tree):
                continue
            applied = apply_strictly(self.reader.sources, patch.diff, tree)
            if applied.tree and not applied.moved:
                return self._put(Base(build, tree, applied.tree))
        return None if exact else self._elsewhere(patch, build, list(dict.fromkeys(tops)))

    def _elsewhere(self, patch: Patch, build: int, trees: list[str]) -> Base | None:
        """On a tree that it names, at other lines than it says, where that is the only place for each hunk."""
        for tree in trees:
            applied: Applied = apply_strictly(self.reader.sources, patch.diff, tree)
            if applied.tree and all(self._once(file, tree) for file in patch.files):
                return self._put(Base(build, tree, applied.tree, f"its line numbers are not those of b{build}"))
        return None

    def _put(self, base: Base) -> Base:
        self._tops.setdefault(base.build, []).append(base.patched)
        return base

    def _stands(self, patch: Patch, tree: str) -> bool:
        """Whether a tree has the very files that a diff was made from, as far as it tells."""
        seen: set[str] = set()
        for file in patch.files:
            if file.old is None or file.old in seen:  # a second mail on one file stands on the first one
                continue
            seen.add(file.path)
            if not self._is_blob(file, tree):
                return False
        return bool(seen) or all(file.old is None for file in patch.files)

    def _is_blob(self, file: FileDiff, tree: str) -> bool:
        path = file.old or ""
        if file.old_blob:
            return blob_of(self.reader.sources, tree, path).startswith(file.old_blob)
        lines = self.reader.lines(tree, path)
        at = all(lines[hunk.start - 1 : hunk.start - 1 + len(hunk.before)] == hunk.before for hunk in file.hunks)
        return bool(at and file.hunks) and self._once(file, tree)

    def _once(self, file: FileDiff, tree: str) -> bool:
        text = self.reader.text(tree, file.old) if file.old else None
        return file.old is None or all(occurrences(text or "", hunk) == 1 for hunk in file.hunks)
