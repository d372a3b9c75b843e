"""Rebase each patch from the upstream release it was exported on to the target, and decide its status on evidence.

First the merge, as git makes it of the two trees that the patch is the difference of and the target; what it came to is
judged after it. A merge that is clean proves little: where upstream took a function away it can put a line into the
next one that looks like it, and where upstream has the same statement a few lines up it puts it there a second time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tasks.patches import conflict
from tasks.patches.bases import Base, Bases, TreeOf
from tasks.patches.evidence import Edits, Function, Line, Place, Reader, Unit, heading_name, label, occurrences
from tasks.patches.lines import Change, alike, changed, changes, could_slide, is_telling, now_at, plain, respaced
from tasks.patches.scopes import Scope, Scopes, Unreadable
from tasks.patches.series import Broken, Patch, read_diff
from tasks.patches.trees import Merge, apply_strictly, diff, merge, merge_texts, with_texts
from tasks.process import TimedOut
from tasks.release import PatchResult, PatchStatus, Problem, ReleaseNotes, UpstreamRelease
from tasks.sources import Sources

SERIES_S = 45.0
"""How long a series is judged: what is left of it then is `undecided`. 30 patches on a full pair of trees take 9 s."""
PATCH_S = 15.0
"""How long upstream's files are read for the functions of one patch."""
UNITS = 60
"""The most changes of a patch that are merged one by one to see which of them upstream has."""
SAME = 0.6
"""What part of its telling lines a function keeps when it is only renamed, split or given another head."""
LEAN = 0.6
"""An archive with fewer files than this part of another release's is not whole (b9611: 1,006 of about 2,500)."""
AROUND = 12
"""Lines above and below a change that are looked for elsewhere when its function is gone."""

Notes = Callable[[int, int], ReleaseNotes]
"""What upstream changed after one build, up to and with another. Raises Problem when it can't be had."""


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


def classify(
    sources: Sources,
    patches: list[Patch],
    release: UpstreamRelease,
    upstream: str,
    tree_of: TreeOf,
    notes: Notes,
    *,
    chosen: Sequence[str] | None = None,
    series_s: float = SERIES_S,
    patch_s: float = PATCH_S,
) -> list[Placed]:
    """Each patch of the series on an upstream tree, in order; a patch that is not built with leaves the tree as it is.

    `chosen` names those that are placed, in this order: each is still read as made where it stands in the series. What
    takes longer than `series_s` or `patch_s` is `undecided`. Raises ToolingError when git fails; what is wrong with a
    patch is its status.
    """
    reader = Reader(sources)
    bases = Bases(reader, tree_of, (release.build, upstream))
    target = Target(release, upstream, upstream, notes)
    found: list[Placed] = []
    bases.fetch(patches)
    end = reader.sources.until = time.monotonic() + series_s
    based = {patch.name: (patch, *bases.of(patch)) for patch in patches}
    for patch, base, lack in (based[name] for name in (based if chosen is None else chosen)):
        reader.until = min(end, time.monotonic() + patch_s)
        case = _Case(reader, patch, target, base, lack)
        placed = case.decide() if time.monotonic() < end else case.close(
            PatchStatus.UNDECIDED, f"the patches before it took more than {series_s:.0f} s"
        )  # fmt: skip
        found.append(placed)
        target = replace(target, tree=placed.tree)
    return found


class _Case:
    """One patch and one target."""

    def __init__(self, reader: Reader, patch: Patch, target: Target, base: Base | None, lack: str) -> None:
        self.reader, self.patch, self.target, self.base = reader, patch, target, base
        self.facts = [f"less evidence: {lack}"] if lack else []
        self.places: dict[Function, list[Place]] = {}

    @property
    def sources(self) -> Sources:
        return self.reader.sources

    def decide(self) -> Placed:
        if self.patch.broken:
            return self.close(PatchStatus.BROKEN, self.patch.broken)
        try:
            return self.weigh(self.base) if self.base else self.by_apply()
        except Broken as error:
            return self.close(PatchStatus.BROKEN, str(error))
        except Unreadable as error:
            return self.close(PatchStatus.UNDECIDED, f"a file that it changes can't be read for functions: {error}")
        except TimedOut as error:
            return self.close(PatchStatus.UNDECIDED, f"there was no time left: {error.what}")

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

    def weigh(self, base: Base) -> Placed:
        if missing := self.missing(base):
            return self.gone(base, missing)
        wanted = self.reader.functions(base.tree, base.patched)
        self.places = self.reader.locate(self.target.upstream, wanted)
        merged = self.merged(base)
        if merged.conflicts and (same := self.respaced(base)):
            base, merged = same, self.merged(same)
            self.facts.append("only white space differs around it")
        if not merged.conflicts and merged.tree == self.target.tree:
            return self.adds_nothing(base, wanted)
        if line := self.evidence(wanted):
            return self.upstreamed(f"upstream's own code has it: {line}")
        units = self.reader.units(base.tree, base.patched)
        there = self.there(base, units)
        if there and len(there) == len(units) and not self.by_file(base):
            line = next((line for line in there.values() if line), None)
            self.facts.append("a merge alone does not show that: its proof must agree on a build without it")
            return self.upstreamed(f"its effect is in upstream's own code: {line or 'the lines it removes are gone'}")
        if there:
            return self.left(base, units, there)
        if merged.conflicts:
            fact = f"both upstream and the patch changed the same lines of {', '.join(merged.conflicts)}"
            if not merge(self.sources, base.tree, self.target.upstream, base.patched).conflicts:
                fact += ", or rather: an earlier patch of the series did"
            return self.stopped(base, fact, merged)
        if fault := self.fault(base, merged):
            return self.stopped(base, fault, merged)
        return self.landed(base, merged.tree)

    def merged(self, base: Base, style: str = "merge") -> Merge:
        renames = any(file.old and file.new and file.old != file.new for file in self.patch.files)
        return merge(self.sources, base.tree, self.target.tree, base.patched, renames=renames, style=style)

    def respaced(self, base: Base) -> Base | None:
        """The base in the target's white space, if nothing else keeps a merge from it; None where that is no help."""
        texts: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for path in {unit.path for unit in self.reader.units(base.tree, base.patched)}:
            before, after, now = (self.reader.lines(t, path) for t in (base.tree, base.patched, self.target.tree))
            differing = self.changes(base.tree, self.target.tree, path, "-w")
            same = respaced(before, now, differing)
            mine = self.changes(base.tree, base.patched, path)
            texts[0][path] = "\n".join(same)
            texts[1][path] = "\n".join(changed(same, mine))
            if "\ufffd" in texts[0][path] or after != changed(before, mine):
                return None
        found = replace(
            base,
            tree=with_texts(self.sources, base.tree, texts[0]),
            patched=with_texts(self.sources, base.patched, texts[1]),
        )
        return None if found.tree == base.tree or self.merged(found).conflicts else found

    def changes(self, old: str, new: str, path: str, *options: str) -> list[Change]:
        """What differs in one file of two trees."""
        files = self.reader.differing(old, new, *options, "--", path)
        return [change for file in files for change in changes(file.hunks)]

    def evidence(self, wanted: list[Function]) -> Line | None:
        """The line of upstream's that the Evidence trailer describes, if that says anything."""

        def line(tree: str, found: dict[Function, list[Place]]) -> Line | None:
            return self.reader.evidence_line(self.patch, tree, [p for ps in found.values() for p in ps], bool(wanted))

        if self.base and (said := line(self.base.tree, self.reader.locate(self.base.tree, wanted))):
            self.facts.append(f"its Evidence trailer proves nothing: it is true of b{self.base.build} too, {said}")
            return None
        return line(self.target.upstream, self.places)

    # -- change by change -----------------------------------------------------------------------

    def by_file(self, base: Base) -> bool:
        """Whether the patch makes, removes, renames or turns over whole files."""
        files = self.reader.differing(base.tree, base.patched)
        return any(not (file.old and file.new) or file.whole for file in files)

    def there(self, base: Base, units: Sequence[Unit]) -> dict[Unit, Line | None]:
        """The changes that upstream's own tree has already, each with the line that shows it."""
        found: dict[Unit, Line | None] = {}
        for unit in units if len(units) <= UNITS else ():
            line = self.effect(base, unit)
            if line or self.is_merged(base, unit):
                found[unit] = line
        return found

    def is_merged(self, base: Base, unit: Unit) -> bool:
        """Whether a merge of this change alone leaves upstream's file as it is."""
        before, now = (self.reader.text(tree, unit.path) or "" for tree in (base.tree, self.target.upstream))
        if "\ufffd" in before + now:
            return False
        mine = "\n".join(changed(before.split("\n"), [unit.change]))
        text, conflicts = merge_texts(self.sources, before, now, mine)
        return not conflicts and text == now and self.in_scope(base, unit, [])

    def in_scope(self, base: Base, unit: Unit, telling: Sequence[str]) -> bool:
        """Whether the function that the change stands in is on the target, with these lines in it."""
        scope = self.scope_of(base, unit)
        homes = self.homes(base, unit.path, scope)
        return any(not Counter(telling) - Counter(plain(line) for line in place.lines) for place in homes)

    def scope_of(self, base: Base, unit: Unit) -> Scope | None:
        change = unit.change
        if change.added:
            return self.reader.scope(base.patched, unit.path, change.new_start + 1)
        return self.reader.scope(base.tree, unit.path, change.start + 1)

    def homes(self, base: Base, path: str, scope: Scope | None) -> list[Place]:
        """Where upstream has a scope of the base: of this name (and of this head, where several have the name), or the
        one that took its place; the whole file for what stands in none.
        """
        tree = self.target.upstream
        if scope is None:
            lines = self.reader.lines(tree, path)
            return [Place(path, Scope("block", "", "", 1, len(lines)), tuple(lines))]
        there = self.reader.scopes(tree, path)
        found = there.named(scope.name)
        if scope.name in self.reader.scopes(base.tree, path).twice | there.twice:
            found = [one for one in found if one.signature == scope.signature]
        found = found or [one for one in there.found if self.is_heir(base.tree, scope, tree, one, path)]
        return [self.reader.place(tree, path, one) for one in found]

    def effect(self, base: Base, unit: Unit) -> Line | None:
        """The line that shows that upstream's function does what the change does, somewhere else in it.

        It must have all of its lines, in their order and near each other, where the function had fewer before; one of
        them must tell something that stood nowhere in the file; and what the change removes must be gone.
        """
        change = unit.change
        before = Counter(plain(line) for line in self.reader.lines(base.tree, unit.path))
        telling = change.telling
        if not any(is_telling(line) and not before[line] for line in telling):
            return None
        scope = self.scope_of(base, unit)
        for home in self.homes(base, unit.path, scope):
            now = [plain(line) for line in home.lines]
            own = self.own_lines(base.patched, unit.path, scope)
            first = _in_order(now, telling)
            short = Counter(telling) - Counter(now)
            kept = Counter(line for line in map(plain, change.removed) if line and line not in telling)
            left = any(now.count(line) > own.count(line) for line in kept)
            if first is not None and not short and not left:
                return Line(unit.path, home.scope.first + first, home.lines[first])
        return None

    def own_lines(self, tree: str, path: str, scope: Scope | None) -> list[str]:
        lines = self.reader.lines(tree, path)
        named = self.reader.scopes(tree, path).named(scope.name) if scope else []
        spans = [lines[one.first - 1 : one.last] for one in named] or [lines]
        return [plain(line) for span in spans for line in span]

    # -- what can be said -----------------------------------------------------------------------

    def upstreamed(self, fact: str) -> Placed:
        for function, found in self.places.items():
            if found and found[0].path != function.path:
                self.facts.append(f"source_moved: {function.name} is in {found[0]} now, not in {function.path}")
        if "Fixed-in" in self.patch.trailers:
            self.facts.append(f"fixed upstream in {self.patch.trailers['Fixed-in']}, as the patch says")
        return self.close(PatchStatus.UPSTREAMED, fact)

    def adds_nothing(self, base: Base, wanted: list[Function]) -> Placed:
        """A merge leaves the target as it is: upstream has every line, if it has them where they belong."""
        upstream = self.target.upstream
        units = self.reader.units(base.tree, base.patched)
        misplaced = [unit for unit in units if not self.in_scope(base, unit, unit.change.telling)]
        if misplaced or merge(self.sources, base.tree, upstream, base.patched).tree != upstream:
            fact = "a merge adds nothing, but its lines are another function's, or an earlier patch's of the series"
            return self.stopped(base, fact)
        line = self.evidence(wanted) or next((line for unit in units if (line := self.shown(base, unit))), None)
        return self.upstreamed(f"a merge adds nothing to upstream's own code: {line or 'what it removes is gone'}")

    def shown(self, base: Base, unit: Unit) -> Line | None:
        """The line of upstream's that shows a change best: one that the file did not have before."""
        before = {plain(line) for line in self.reader.lines(base.tree, unit.path)}
        telling = sorted(unit.change.telling, key=lambda line: line in before)[:1]
        for home in self.homes(base, unit.path, self.scope_of(base, unit)):
            for at, line in enumerate(home.lines):
                if plain(line) in telling:
                    return Line(unit.path, home.scope.first + at, line)
        return None

    def left(self, base: Base, units: Sequence[Unit], there: dict[Unit, Line | None]) -> Placed:
        """Upstream has a part of it: the rest is brought there alone."""
        rest = [unit for unit in units if unit not in there]
        texts = {
            path: "\n".join(changed(self.reader.lines(base.tree, path), [u.change for u in rest if u.path == path]))
            for path in {unit.path for unit in units}
        }
        alone = replace(base, patched=with_texts(self.sources, base.patched, texts))
        merged = self.merged(alone)
        has = [
            str(line or f"{unit.path}, what is removed near line {unit.change.start + 1}")
            for unit, line in there.items()
        ]
        self.facts.append(f"upstream has {len(there)} of its {len(units)} changes: {'; '.join(has[:3])}")
        if merged.conflicts:
            fact = f"upstream has a part of it, and what is left does not merge into {', '.join(merged.conflicts)}"
            return self.stopped(base, fact, merged)
        if fault := self.fault(alone, merged):
            return self.stopped(alone, fault, merged)
        new = diff(self.sources, self.target.tree, merged.tree, 3)
        where = self.where(self.done(alone, merged.tree))
        fact = f"partly upstream's: what is left is in {where}"
        return self.close(PatchStatus.PARTLY_UPSTREAMED, fact, detail=new, tree=merged.tree)

    def landed(self, base: Base, tree: str) -> Placed:
        where = self.where(self.done(base, tree))
        new = diff(self.sources, self.target.tree, tree, 3)
        strict = apply_strictly(self.sources, self.patch.diff, self.target.tree)
        if strict.tree == tree and not strict.moved:
            return self.close(PatchStatus.CLEAN, f"applies strictly, line for line, in {where}", tree=tree)
        moves = ", ".join(self.moves(new)[:3])
        return self.close(
            PatchStatus.REBASED, f"every changed line is in {where}; {moves or 'fewer hunks'}", detail=new, tree=tree
        )

    def where(self, done: Edits) -> str:
        homes = {function.name: f" ({found[0]})" for function, found in self.places.items() if found}
        scopes = sorted({edit.scope or f"{edit.path} outside any function" for edit in done})
        whole = sorted({file.path for file in self.patch.files if not file.hunks})
        return ", ".join([*(f"{scope}{homes.get(scope, '')}" for scope in scopes), *whole])

    def moves(self, new: str) -> list[str]:
        """Where hunks went, as far as one hunk is still one hunk."""
        olds = {file.path: file.hunks for file in self.patch.files}
        return [
            f"{file.path}:{hunk.start}, was {old.start}"
            for file in read_diff(new)
            for hunk, old in zip(file.hunks, olds.get(file.path, ()), strict=False)
            if hunk.start != old.start
        ]

    # -- whether a clean merge is right ---------------------------------------------------------

    def done(self, base: Base, tree: str) -> Edits:
        return self.reader.edits(self.target.tree, tree, (base.tree, base.patched))

    def fault(self, base: Base, merged: Merge) -> str:
        """Why a merge without a conflict is not what the patch means; empty when it is."""
        goal = self.reader.edits(base.tree, base.patched, (self.target.tree, merged.tree))
        for edit in (strayed := self.done(base, merged.tree) - goal):
            if not self.same_home(
                base, edit.path, edit.scope, goal - self.done(base, merged.tree), edit.sign, edit.text
            ):
                where = edit.scope or "no function"
                return (
                    f"a merge would put `{edit.sign}{edit.text.strip()}` into {where} of {edit.path}: "
                    "not where it belongs"
                )
        if strayed:
            scopes = {edit.scope for edit in strayed}
            self.facts.append(f"the function around it is another one there: {', '.join(sorted(filter(None, scopes)))}")
        known = {path for file in self.reader.differing(base.tree, base.patched) for path in (file.old, file.new)}
        if astray := [f.path for f in self.reader.differing(self.target.tree, merged.tree) if f.path not in known]:
            return f"a merge would change {', '.join(astray)}, which the patch does not"
        for file in self.reader.differing(base.tree, base.patched):
            folder = file.path.rpartition("/")[0]
            if (
                file.old is None
                and folder
                and self.has(base.tree, folder)
                and not self.has(self.target.upstream, folder)
            ):
                return f"it puts {file.path} into a folder that {self.target.release.tag} does not have"
        for unit in self.reader.units(base.tree, base.patched):
            if fact := self.doubt(base, unit):
                return fact
        return ""

    def has(self, tree: str, folder: str) -> bool:
        return any(path.startswith(f"{folder}/") for path in self.reader.files(tree))

    def same_home(self, base: Base, path: str, now: str, left: Edits, sign: str, text: str) -> bool:
        """Whether a line that stands in another scope than before stands in the heir of that scope."""
        tree = base.tree if sign == "-" else base.patched
        befores = {edit.scope for edit in left if (edit.path, edit.sign, edit.text) == (path, sign, text)}
        old, new = self.reader.scopes(tree, path), self.reader.scopes(self.target.tree, path)
        twice = old.twice | new.twice
        heirs = [one for one in new.found if label(one, twice) == now]
        return any(
            self.is_heir(tree, one, self.target.tree, heir, path)
            for one in old.found
            if label(one, twice) in befores
            for heir in heirs
        )

    def is_heir(self, old_tree: str, old: Scope, new_tree: str, new: Scope, path: str) -> bool:
        """Whether a scope is an earlier one under another name or head, or a part that was taken out of it.

        The two hold mostly the same lines, and no other scope of the base held as many of them. And both are the only
        ones of their short name, or the new name (or the new head of the old name) is new, and what still has the old
        one is something else: no function that was copied.
        """
        olds, news = self.reader.scopes(old_tree, path), self.reader.scopes(new_tree, path)
        lines = self.reader.place(new_tree, path, new).lines
        kept = alike(self.reader.place(old_tree, path, old).lines, lines)
        if kept < SAME:
            return False
        if old.kind == new.kind and old.short == new.short and _only(olds.found, old) and _only(news.found, new):
            return True
        others = (one for one in olds.found if one.last < old.first or old.last < one.first)
        if any(alike(self.reader.place(old_tree, path, one).lines, lines) >= kept for one in others):
            return False
        if old.name == new.name:
            return old.signature not in _heads(news) and new.signature not in _heads(olds)
        still = (self.reader.place(new_tree, path, one).lines for one in news.named(old.name))
        return not olds.named(new.name) and all(alike(lines, rest) < 1 - SAME for rest in still)

    def doubt(self, base: Base, unit: Unit) -> str:
        """Why a change may as well belong to a block that looks like the one it landed in; empty when it may not."""
        before, now = (self.reader.lines(tree, unit.path) for tree in (base.tree, self.target.tree))
        if any(before.count(line) == 1 for line in unit.change.removed):
            return ""
        theirs = self.changes(base.tree, self.target.tree, unit.path)
        at = now_at(unit.change.start, theirs)
        mine = self.reader.scope(base.tree, unit.path, unit.change.start + 1)
        for change in theirs:
            if self.reader.scope(base.tree, unit.path, change.start + 1) == mine and could_slide(
                before, now, change, unit.change, at
            ):
                return (
                    f"upstream added or removed a block that looks like that of {unit.path}:{unit.change.start + 1}: "
                    f"no diff can tell which of them line {at + 1} is in"
                )
        return ""

    # -- when a person has to look --------------------------------------------------------------

    def missing(self, base: Base) -> list[str]:
        """The files that the patch changes and the target does not have."""
        files = self.reader.differing(base.tree, base.patched)
        paths = [file.old for file in files if file.old]
        return [path for path in paths if path not in self.reader.files(self.target.tree)]

    def gone(self, base: Base, missing: list[str]) -> Placed:
        """What can be said where a file of the patch is not on the target at all."""
        if self.is_lean(base):
            here, there = (len(self.reader.files(tree)) for tree in (self.target.upstream, base.tree))
            fact = (
                f"the archive of {self.target.release.tag} is not whole: {here:,} files where b{base.build} has "
                f"{there:,}. That {', '.join(missing)} is not in it says nothing of upstream"
            )
            return self.close(PatchStatus.UNDECIDED, fact)
        wanted = self.reader.functions(base.tree, base.patched)
        self.places = self.reader.locate(self.target.upstream, wanted)
        if line := self.evidence(wanted):
            return self.upstreamed(f"upstream's own code has it: {line}")
        merged = self.merged(base)
        if not merged.conflicts and merged.tree == self.target.tree:
            return self.upstreamed(f"a merge adds nothing: {', '.join(missing)} is not there either")
        return self.stopped(base, f"{self.target.release.tag} has no {', no '.join(missing)}")

    def stopped(self, base: Base, fact: str, merged: Merge | None = None) -> Placed:
        """The status of a patch that does not fit: what it changes is elsewhere, not there yet, or just different."""
        missing = self.missing(base)
        if merged and merged.conflicts:
            merged = self.merged(base, "diff3")  # for a person; nothing is judged by it
        lost = [function for function, found in self.places.items() if not found]
        moved = {f: found for f, found in self.places.items() if found and found[0].path != f.path}
        if moved:
            where = [f"{f.name} is in {', '.join(map(str, found))} now, not in {f.path}" for f, found in moved.items()]
            return self.blocked(
                PatchStatus.SOURCE_MOVED, "; ".join([*where, *self.facts_of(fact, lost)]), moved, merged
            )
        alikes = self.look_alikes(base, lost, missing)
        if alikes:
            words = "; ".join(f"lines of {name} are in {line.path}:{line.number} now" for name, line in alikes.items())
            return self.blocked(PatchStatus.SOURCE_MOVED, "; ".join([words, *self.facts_of(fact, lost)]), {}, merged)
        all_of_it = bool(lost or missing) and len(lost) == len(self.places) and self.nothing_else(base, lost, missing)
        if all_of_it and self.target.release.build < base.build and not self.is_lean(base):
            what = [f"{f.name} of {f.path}" for f in lost] or [f"file {path}" for path in missing]
            older = f"{self.target.release.tag} is older than b{base.build} and has no {', no '.join(what)}"
            return self.close(
                PatchStatus.NOT_APPLICABLE, f"{older}, and nothing like it: what it mends does not exist yet"
            )
        return self.blocked(PatchStatus.CONFLICT, "; ".join(self.facts_of(fact, lost) or [fact]), {}, merged)

    def is_lean(self, base: Base) -> bool:
        here, there = (len(self.reader.files(tree)) for tree in (self.target.upstream, base.tree))
        return here < LEAN * there

    def facts_of(self, fact: str, lost: Sequence[Function]) -> list[str]:
        if not lost:
            return [fact]
        names = ", ".join(f"{f.name} of {f.path}" for f in lost)
        return [f"{names} is nowhere in {self.target.release.tag}: renamed, removed, or not there yet", fact]

    def nothing_else(self, base: Base, lost: Sequence[Function], missing: Sequence[str]) -> bool:
        """Whether all that the patch changes is in functions or files that the target does not have."""
        names = {(function.path, function.name) for function in lost}
        for unit in self.reader.units(base.tree, base.patched):
            scope = self.reader.scope(base.tree, unit.path, unit.change.start + 1) or self.scope_of(base, unit)
            if unit.path not in missing and (scope is None or (unit.path, scope.name) not in names):
                return False
        return True

    def look_alikes(self, base: Base, lost: Sequence[Function], missing: Sequence[str]) -> dict[str, Line]:
        """What the lines around the changes are in now, where their function or file is gone."""
        found: dict[str, Line] = {}
        for unit in self.reader.units(base.tree, base.patched) or [
            Unit(path, Change(0, tuple(self.reader.lines(base.tree, path)), 0, ())) for path in missing
        ]:
            scope = self.reader.scope(base.tree, unit.path, unit.change.start + 1)
            function = Function(unit.path, scope.name) if scope else None
            if unit.path not in missing and function not in lost:
                continue
            lines = self.reader.lines(base.tree, unit.path)
            low, high = (scope.first - 1, scope.last) if scope else (0, len(lines))
            around = lines[max(low, unit.change.start - AROUND) : min(high, unit.change.end + AROUND)]
            if hits := self.reader.look_alikes(base.tree, self.target.upstream, unit.path, around):
                found[scope.name if scope else unit.path] = hits[0]
        return found

    def blocked(
        self, status: PatchStatus, fact: str, moved: dict[Function, list[Place]], merged: Merge | None = None
    ) -> Placed:
        places = [place for found in moved.values() for place in found]
        now = conflict.upstream_now(self.reader, self.patch, self.target.tree, places, merged)
        homes = [f"`{f.name}`: {', '.join(map(str, found)) or 'nowhere'}" for f, found in self.places.items()]
        detail = conflict.report(self.patch, self.target.release, homes, now, self.notes())
        return self.close(status, fact, detail=detail)

    def notes(self) -> ReleaseNotes | str:
        """Upstream's changes since the patch was exported, or why they are not known."""
        exported = self.base.build if self.base else self.patch.exported_on
        if exported is None:
            return "the patch does not say which upstream release it was exported on"
        if time.monotonic() > self.sources.until:
            return "there was no time left to read upstream's notes"
        try:
            return self.target.notes(*sorted((exported, self.target.release.build)))
        except Problem as problem:
            return problem.what

    # -- with the target alone --------------------------------------------------------------------

    def by_apply(self) -> Placed:
        """Without the tree it was exported from: strictly, in one place only, in the function git's heading names."""
        wanted = self.headings()
        self.places = self.reader.locate(self.target.upstream, wanted)
        if line := self.evidence(wanted):
            return self.upstreamed(f"upstream's own code has it: {line}")
        applied = apply_strictly(self.sources, self.patch.diff, self.target.tree)
        if applied.tree is None:
            back = apply_strictly(self.sources, self.patch.diff, self.target.upstream, "--reverse")
            if back.tree and all(self.fits(n, after=True) == 1 for n in self.hunks()):
                return self.upstreamed("upstream's own code has all of it, with every line around it")
            said = next((line for line in applied.said.splitlines() if line.startswith("error")), applied.said)
            return self.blocked(PatchStatus.CONFLICT, f"it does not apply strictly: {said}", {})
        for file, hunk in self.hunks():
            if (n := self.fits((file, hunk))) != 1:
                header = self.patch.files[file].hunks[hunk].header
                path = self.patch.files[file].path
                return self.blocked(PatchStatus.CONFLICT, f"{header} fits in {n} places of {path}", {})
        done = self.reader.edits(self.target.tree, applied.tree)
        headings = {function.name for function in wanted}
        hunks = "\n".join(line[1:] for file in self.patch.files for hunk in file.hunks for line in hunk.lines)
        for edit in done:
            name = edit.scope.rpartition("::")[2].partition("/")[0]
            if headings and edit.scope and not headings & {edit.scope, name} and f"{name}(" not in hunks:
                fact = (
                    f"it would land in {edit.scope} of {edit.path}; git's headings name {', '.join(sorted(headings))}"
                )
                return self.blocked(PatchStatus.CONFLICT, fact, {})
        where = self.where(done)
        if not applied.moved:
            return self.close(PatchStatus.CLEAN, f"applies strictly, line for line, in {where}", tree=applied.tree)
        new = diff(self.sources, self.target.tree, applied.tree, 3)
        return self.close(PatchStatus.REBASED, f"every changed line is in {where}", detail=new, tree=applied.tree)

    def headings(self) -> list[Function]:
        """The functions that git named behind `@@`."""
        named = (
            Function(file.old, name)
            for file in self.patch.files
            if file.old
            for hunk in file.hunks
            if (name := heading_name(hunk))
        )
        return list(dict.fromkeys(named))

    def hunks(self) -> list[tuple[int, int]]:
        """(file, hunk) of each hunk that must find its lines."""
        return [(f, h) for f, file in enumerate(self.patch.files) if file.old for h in range(len(file.hunks))]

    def fits(self, which: tuple[int, int], *, after: bool = False) -> int:
        """In how many places the lines of a hunk stand on the target: those before it, or those `after` it."""
        file = self.patch.files[which[0]]
        text = self.reader.text(self.target.tree, (file.new if after else file.old) or "") or ""
        return occurrences(text, file.hunks[which[1]], after=after)


def _heads(scopes: Scopes) -> set[str]:
    return {scope.signature for scope in scopes.found}


def _only(found: Sequence[Scope], scope: Scope) -> bool:
    return sum((one.kind, one.short) == (scope.kind, scope.short) for one in found) == 1


def _in_order(lines: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Where some lines stand in their order, no more than a few others between them; None where they don't."""
    for start in (n for n, line in enumerate(lines) if line == wanted[0]):
        left = list(wanted)
        for line in lines[start : start + 2 * len(wanted) + 6]:
            if left and line == left[0]:
                left.pop(0)
        if not left:
            return start
    return None
