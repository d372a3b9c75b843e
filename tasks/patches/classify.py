"""Rebase each patch from the upstream release it was exported on to the target, and decide its status on evidence."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tasks.patches import conflict
from tasks.patches.evidence import Edits, Function, Line, Place, Reader, effect_line, heading_name, occurrences
from tasks.patches.scopes import Unreadable
from tasks.patches.series import Broken, Patch, positions, read_diff
from tasks.patches.trees import Merge, apply_strictly, diff, merge
from tasks.release import PatchResult, PatchStatus, Problem, ReleaseNotes, UpstreamRelease
from tasks.sources import Sources

PATCH_S = 300.0
"""How long upstream's files are read for the functions of one patch; for a moved `main`, sought in all, it is 20."""

TreeOf = Callable[[int], str]
"""The upstream tree (git hash) of a build. Raises Problem when it can't be had."""
Notes = Callable[[int, int], ReleaseNotes]
"""What upstream changed after one build, up to and with another. Raises Problem when it can't be had."""


@dataclass(frozen=True)
class Base:
    """The two trees that a patch was exported from: without it and with it."""

    build: int
    tree: str
    patched: str


@dataclass(frozen=True)
class Placed:
    """A patch on the target: what became of it, and the tree after it."""

    patch: Patch
    result: PatchResult
    tree: str
    base: Base | None = None


@dataclass(frozen=True)
class Target:
    """What patches are brought to."""

    release: UpstreamRelease
    upstream: str
    """Upstream's own tree."""
    tree: str
    """The tree with the earlier patches of the series."""
    notes: Notes


@dataclass
class Bases:
    """The trees that patches were exported from: upstream's own, then with each earlier patch of the series."""

    sources: Sources
    tree_of: TreeOf
    _tops: dict[int, str] = field(default_factory=dict)

    def of(self, patch: Patch) -> tuple[Base | None, str]:
        """(the base of a patch, why there is none). Patches must be asked for in the order of the series."""
        build = patch.exported_on
        if build is None:
            return None, "it has no Exported-on trailer"
        try:
            upstream = self.tree_of(build)
        except Problem as problem:
            return None, f"the source of b{build}, which it was exported on, can't be had: {problem.what}"
        for tree in dict.fromkeys((self._tops.get(build, upstream), upstream)):
            patched, _ = apply_strictly(self.sources, patch.path, tree)
            if patched and positions(read_diff(diff(self.sources, tree, patched, 0))) == positions(patch.files):
                self._tops[build] = patched
                return Base(build, tree, patched), ""
        return None, f"it does not apply to b{build}, which it says it was exported on"


def classify(
    sources: Sources,
    patches: list[Patch],
    release: UpstreamRelease,
    upstream: str,
    tree_of: TreeOf,
    notes: Notes,
    patch_s: float = PATCH_S,
) -> list[Placed]:
    """Each patch of the series on an upstream tree, in order; a patch that is not built with leaves the tree as it is.

    Raises ToolingError when git fails, or upstream's files are read for longer than `patch_s` for one patch; what is
    wrong with a patch is its status.
    """
    bases, reader = Bases(sources, tree_of), Reader(sources)
    target = Target(release, upstream, upstream, notes)
    found: list[Placed] = []
    for patch in patches:
        reader.until = time.monotonic() + patch_s
        base, lack = (None, "") if patch.broken else bases.of(patch)
        placed = _Case(reader, patch, target, base, lack).decide()
        found.append(placed)
        target = replace(target, tree=placed.tree)
    return found


class _Case:
    """One patch and one target."""

    def __init__(self, reader: Reader, patch: Patch, target: Target, base: Base | None, lack: str) -> None:
        self.reader, self.patch, self.target, self.base = reader, patch, target, base
        self.facts = [f"less evidence: {lack}"] if lack else []
        self.places: dict[Function, list[Place]] = {}

    def decide(self) -> Placed:
        if self.patch.broken:
            return self.close(PatchStatus.BROKEN, self.patch.broken)
        try:
            return self.weigh()
        except Broken as error:
            return self.close(PatchStatus.BROKEN, str(error))
        except Unreadable as error:
            return self.close(PatchStatus.CONFLICT, f"a file that it changes can't be read for functions: {error}")

    def close(self, status: PatchStatus, fact: str, *, detail: str = "", tree: str | None = None) -> Placed:
        result = PatchResult(
            file=self.patch.name,
            title=self.patch.title,
            status=status,
            evidence="\n".join([fact, *self.facts]),
            detail=detail,
        )
        return Placed(self.patch, result, tree or self.target.tree, self.base)

    # -- the order of evidence ------------------------------------------------------------------

    def weigh(self) -> Placed:
        wanted = self.wanted()
        places = self.places = self.reader.locate(self.target.upstream, wanted)
        if line := self.evidence(wanted, places):
            return self.upstreamed(line, places)
        gone = [
            file.old
            for file in self.patch.files
            if file.old and self.reader.text(self.target.upstream, file.old) is None
        ]
        lost = [function for function, found in places.items() if not found]
        if len(lost) == len(wanted) and (lost or gone):
            return self.nowhere(lost, [path for path in gone if path], all_of_it=True)
        if moved := {f: found for f, found in places.items() if found and found[0].path != f.path}:
            return self.moved(moved)
        if lost:
            return self.nowhere(lost, [], all_of_it=False)
        return self.by_merge(self.base) if self.base else self.by_apply(wanted)

    def wanted(self) -> list[Function]:
        """The functions that the patch changes: from the trees it was exported from, else from git's hunk headings."""
        if self.base:
            return self.reader.functions(self.base.tree, self.base.patched)
        named = [
            Function(file.old, name)
            for file in self.patch.files
            if file.old
            for hunk in file.hunks
            if (name := heading_name(hunk))
        ]
        return list(dict.fromkeys(named))

    def evidence(self, wanted: list[Function], places: dict[Function, list[Place]]) -> Line | None:
        def line(tree: str, found: dict[Function, list[Place]]) -> Line | None:
            return self.reader.evidence_line(self.patch, tree, [p for ps in found.values() for p in ps], bool(wanted))

        if self.base and (said := line(self.base.tree, self.reader.locate(self.base.tree, wanted))):
            self.facts.append(f"its Evidence trailer proves nothing: it is true of b{self.base.build} too, {said}")
            return self.effect(wanted, places)
        return line(self.target.upstream, places) or self.effect(wanted, places)

    def effect(self, wanted: list[Function], places: dict[Function, list[Place]]) -> Line | None:
        """The line of upstream's that shows every changed line there, function by function."""
        if not self.base or not wanted:
            return None
        lines, left = self.effects(self.base, wanted, places)
        return lines[0] if lines and all(lines) and not left else None

    def effects(
        self, base: Base, wanted: list[Function], places: dict[Function, list[Place]]
    ) -> tuple[list[Line | None], Edits]:
        """(for each function a line that shows the patch's effect there, the edits that are in none of them)."""
        before, after = (self.reader.locate(tree, wanted) for tree in (base.tree, base.patched))
        left = self.reader.edits(base.tree, base.patched)
        lines: list[Line | None] = []
        for function in wanted:
            own = Counter({e: n for e, n in left.items() if (e.path, e.scope) == (function.path, function.name)})
            if own:
                lines.append(effect_line(own, before[function], after[function], places[function]))
            left -= own
        return lines, left

    # -- what can be said -----------------------------------------------------------------------

    def upstreamed(self, line: Line, places: dict[Function, list[Place]]) -> Placed:
        for function, found in places.items():
            if found and found[0].path != function.path:
                self.facts.append(f"source_moved: {function.name} is in {found[0]} now, not in {function.path}")
        if "Fixed-in" in self.patch.trailers:
            self.facts.append(f"fixed upstream in {self.patch.trailers['Fixed-in']}, as the patch says")
        return self.close(PatchStatus.UPSTREAMED, f"upstream's own code has it: {line}")

    def nowhere(self, lost: list[Function], gone: list[str], *, all_of_it: bool) -> Placed:
        what = [f"{f.name} of {f.path}" for f in lost] or [f"the file {path}" for path in gone]
        exported = self.patch.exported_on
        tag = self.target.release.tag
        if all_of_it and exported and self.target.release.build < exported:
            fact = f"{tag} is older than b{exported} and has no {', no '.join(what)}: what it mends does not exist yet"
            return self.close(PatchStatus.NOT_APPLICABLE, fact)
        fact = f"{', '.join(what)} is nowhere in {tag}: renamed, removed, or not there yet"
        return self.blocked(PatchStatus.CONFLICT, fact, {})

    def moved(self, moved: dict[Function, list[Place]]) -> Placed:
        where = [f"{f.name} is in {', '.join(map(str, found))} now, not in {f.path}" for f, found in moved.items()]
        return self.blocked(PatchStatus.SOURCE_MOVED, "; ".join(where), moved)

    def blocked(
        self, status: PatchStatus, fact: str, moved: dict[Function, list[Place]], merged: Merge | None = None
    ) -> Placed:
        places = [place for found in moved.values() for place in found]
        now = conflict.upstream_now(self.reader, self.patch, self.target.tree, places, merged)
        homes = [f"`{f.name}`: {', '.join(map(str, found)) or 'nowhere'}" for f, found in self.places.items()]
        detail = conflict.report(self.patch, self.target.release, homes, now, self.changes())
        return self.close(status, fact, detail=detail)

    def changes(self) -> ReleaseNotes | str:
        """Upstream's changes since the patch was exported, or why they are not known."""
        exported = self.patch.exported_on
        if exported is None:
            return "the patch does not say which upstream release it was exported on"
        try:
            return self.target.notes(*sorted((exported, self.target.release.build)))
        except Problem as problem:
            return problem.what

    # -- with both trees ------------------------------------------------------------------------

    def by_merge(self, base: Base) -> Placed:
        merged = merge(self.reader.sources, base.tree, self.target.tree, base.patched)
        if merged.conflicts:
            fact = f"both upstream and the patch changed the same lines of {', '.join(merged.conflicts)}"
            if not merge(self.reader.sources, base.tree, self.target.upstream, base.patched).conflicts:
                fact += ", or rather: an earlier patch of the series did"
            return self.blocked(PatchStatus.CONFLICT, fact, {}, merged)
        if merged.tree == self.target.tree:
            return self.adds_nothing(base)
        goal = self.reader.edits(base.tree, base.patched, (self.target.tree, merged.tree))
        done = self.reader.edits(self.target.tree, merged.tree, (base.tree, base.patched))
        if strayed := done - goal:
            edit = next(iter(strayed))
            where = edit.scope or "no function"
            fact = (
                f"a merge would put `{edit.sign}{edit.text.strip()}` into {where} of {edit.path}: not where it belongs"
            )
            return self.blocked(PatchStatus.CONFLICT, fact, {}, merged)
        strict, _ = apply_strictly(self.reader.sources, self.patch.path, self.target.tree)
        if strict and strict != merged.tree and self.fits_too(strict, base, goal):
            fact = "its context fits in two places of the same function: a merge and a strict apply disagree"
            return self.blocked(PatchStatus.CONFLICT, fact, {}, merged)
        if left := goal - done:
            self.facts.append(f"upstream has {left.total()} of its {goal.total()} changed lines already")
        return self.landed(merged.tree, strict, sorted({e.scope or "outside any function" for e in done}))

    def fits_too(self, strict: str, base: Base, goal: Edits) -> bool:
        return not self.reader.edits(self.target.tree, strict, (base.tree, base.patched)) - goal

    def adds_nothing(self, base: Base) -> Placed:
        """A merge leaves the target as it is: upstream has every line, if it has them where they belong."""
        upstream = self.target.upstream
        lines, left = self.effects(base, list(self.places), self.places)
        names = {s.name for file in self.patch.files for s in self.reader.scopes(upstream, file.path).found}
        elsewhere = None in lines or any(e.scope not in names for e in left if e.scope and e.sign == "+")
        if elsewhere or merge(self.reader.sources, base.tree, upstream, base.patched).tree != upstream:
            fact = "a merge adds nothing, but its lines are another function's, or an earlier patch's of the series"
            return self.blocked(PatchStatus.CONFLICT, fact, {})
        texts = {e.text for e in left if e.sign == "+"}
        found = (
            Line(file.path, number, text)
            for file in self.patch.files
            for number, text in enumerate((self.reader.text(upstream, file.path) or "").split("\n"), 1)
            if text in texts
        )
        line = next(filter(None, lines), None) or next(found, None)
        told = line or "the lines it removes are gone"
        return self.close(PatchStatus.UPSTREAMED, f"a merge adds nothing to upstream's own code: {told}")

    def landed(self, tree: str, strict: str | None, scopes: list[str]) -> Placed:
        homes = {function.name: f" ({found[0]})" for function, found in self.places.items() if found}
        where = ", ".join(f"{scope}{homes.get(scope, '')}" for scope in scopes)
        new = diff(self.reader.sources, self.target.tree, tree, 3)
        if strict == tree and positions(read_diff(new)) == positions(self.patch.files):
            return self.close(PatchStatus.CLEAN, f"applies strictly, line for line, in {where}", tree=tree)
        moves = ", ".join(self.moves(new)[:3])
        return self.close(
            PatchStatus.REBASED, f"every changed line is in {where}; {moves or 'fewer hunks'}", detail=new, tree=tree
        )

    def moves(self, new: str) -> list[str]:
        """Where hunks went, as far as one hunk is still one hunk."""
        olds = {file.path: file.hunks for file in self.patch.files}
        return [
            f"{file.path}:{hunk.start}, was {old.start}"
            for file in read_diff(new)
            for hunk, old in zip(file.hunks, olds.get(file.path, ()), strict=False)
            if hunk.start != old.start
        ]

    # -- with the target alone --------------------------------------------------------------------

    def by_apply(self, wanted: list[Function]) -> Placed:
        """Without the tree it was exported from: strictly, in one place only, in the function git's heading names."""
        tree, said = apply_strictly(self.reader.sources, self.patch.path, self.target.tree)
        if tree is None:
            return self.blocked(PatchStatus.CONFLICT, f"it does not apply strictly: {said.splitlines()[0]}", {})
        for file in self.patch.files:
            text = (self.reader.text(self.target.tree, file.old) if file.old else "") or ""
            for hunk in file.hunks:
                if file.old and (n := occurrences(text, hunk)) != 1:
                    return self.blocked(PatchStatus.CONFLICT, f"{hunk.header} fits in {n} places of {file.path}", {})
        done = self.reader.edits(self.target.tree, tree)
        known = {function.name for function in wanted}
        hunks = "\n".join(line[1:] for file in self.patch.files for hunk in file.hunks for line in hunk.lines)
        for edit in done:
            name = edit.scope.rpartition("::")[2].partition("/")[0]
            if edit.scope and not any(k in (edit.scope, name) for k in known) and f"{name}(" not in hunks:
                fact = (
                    f"it would land in {edit.scope} of {edit.path}; git's headings name {', '.join(known) or 'nothing'}"
                )
                return self.blocked(PatchStatus.CONFLICT, fact, {})
        return self.landed(tree, tree, sorted({e.scope or "outside any function" for e in done}))
