"""What can be known of a patch's place in a tree: which functions it changes, where they are now, what they hold."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

from tasks.patches.lines import Change, changes, is_telling, plain
from tasks.patches.scopes import Scope, Scopes, Unreadable, is_source
from tasks.patches.series import Broken, FileDiff, Hunk, Patch, read_diff
from tasks.patches.trees import diff, files_of, holding, lines_of, mentioning, text_of
from tasks.process import TimedOut, run
from tasks.release import ToolingError
from tasks.sources import Sources, fits

FILE_S = 3.0
"""How long one file is read for its functions: b11434's largest, ggml-vulkan.cpp, takes 0.6 s."""
BUILT_FROM = ("common", "src", "include", "ggml", "tools", "app")
"""The folders that a server is built from, where what moved is looked for. Not vendor: single headers of 100,000 lines,
whose `search` and `to_json` are none of upstream's."""
FILES_SOUGHT = 60
EXPRESSION_S = 10.0
"""How long the expression of an Evidence trailer may take over the lines that it is looked for in."""

Edits = Counter["Edit"]


@dataclass(frozen=True)
class Edit:
    """One changed line, with the scope it stands in."""

    path: str
    scope: str
    """A label of the scope; '' outside of all."""
    sign: str
    text: str


@dataclass(frozen=True)
class Function:
    """A scope that a patch changes, by the file it was in when the patch was exported."""

    path: str
    name: str


@dataclass(frozen=True)
class Place:
    """Where a function stands in a tree."""

    path: str
    scope: Scope
    lines: tuple[str, ...]
    """The lines of the scope."""

    def __str__(self) -> str:
        return f"{self.path}:{self.scope.first}"


@dataclass(frozen=True)
class Unit:
    """One change of a patch: lines next to each other, in one file."""

    path: str
    change: Change


@dataclass(frozen=True)
class Line:
    """One line of upstream's code."""

    path: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.text.strip()}"


class Reader:
    """Reads files and their scopes out of trees, each once."""

    def __init__(self, sources: Sources) -> None:
        self.sources = copy(sources)
        """With an `until` of its own."""
        self.until = math.inf
        """Of time.monotonic(): no file is read for its scopes after that."""
        self._texts: dict[tuple[str, str], str | None] = {}
        self._scopes: dict[tuple[str, str], Scopes] = {}
        self._read: dict[tuple[str, str], Scopes] = {}
        self._files: dict[str, frozenset[str]] = {}
        self._diffs: dict[tuple[str, ...], tuple[FileDiff, ...]] = {}

    def text(self, tree: str, path: str) -> str | None:
        key = tree, path
        if key not in self._texts:
            self._texts[key] = text_of(self.sources, tree, path)
        return self._texts[key]

    def scopes(self, tree: str, path: str) -> Scopes:
        """Raises Unreadable, also when there is no time left for it."""
        key = tree, path
        if key not in self._scopes:
            try:
                self._scopes[key] = Scopes(
                    path, self.text(tree, path) or "", min(self.until, time.monotonic() + FILE_S)
                )
            except TimeoutError as error:
                raise Unreadable(f"it takes too long: {error}") from error
        return self._scopes[key]

    def scope(self, tree: str, path: str, line: int) -> Scope | None:
        """The innermost scope of a line (from 1); None where there is none, or where that can't be read."""
        try:
            return self.scopes(tree, path).at(line)
        except Unreadable:
            return None

    def files(self, tree: str) -> frozenset[str]:
        """The paths of a tree."""
        if tree not in self._files:
            self._files[tree] = files_of(self.sources, tree)
        return self._files[tree]

    def lines(self, tree: str, path: str) -> list[str]:
        return (self.text(tree, path) or "").split("\n")

    def place(self, tree: str, path: str, scope: Scope) -> Place:
        return Place(path, scope, tuple(self.lines(tree, path)[scope.first - 1 : scope.last]))

    # -- what changes ---------------------------------------------------------------------------

    def differing(self, old: str, new: str, *options: str) -> tuple[FileDiff, ...]:
        """The diff of two trees without context; `options` as for `trees.diff`."""
        key = old, new, *options
        if key not in self._diffs:
            self._diffs[key] = read_diff(diff(self.sources, old, new, 0, *options))
        return self._diffs[key]

    def edits(self, old: str, new: str, beside: tuple[str, ...] = ()) -> Edits:
        """The lines that differ between two trees, each with its scope.

        A scope whose name is taken twice, here or in the trees `beside`, is told apart by its signature. Lines
        without a letter or digit don't count: a diff may place a brace or an empty line in two ways.
        Raises Unreadable.
        """
        found: Edits = Counter()
        for file in self.differing(old, new):
            twice = frozenset[str]().union(*(self.scopes(t, file.path).twice for t in (old, new, *beside)))
            for hunk in file.hunks:
                at = {"-": hunk.start, "+": hunk.new_start}
                for line in hunk.lines:
                    if line[0] not in at:
                        continue
                    scope = self.scopes(old if line[0] == "-" else new, file.path).at(at[line[0]])
                    at[line[0]] += 1
                    if re.search(r"\w", line[1:]):
                        found[Edit(file.path, label(scope, twice), line[0], line[1:])] += 1
        return found

    def units(self, old: str, new: str) -> list[Unit]:
        """What differs between two trees, change by change; a file that is there in one of them only has none."""
        return [
            Unit(file.path, change)
            for file in self.differing(old, new)
            if file.old and file.new
            for change in changes(file.hunks)
        ]

    def functions(self, old: str, new: str) -> list[Function]:
        """The scopes of `old` that the diff to `new` changes. Raises Unreadable."""
        found: dict[Function, None] = {}
        for file in self.differing(old, new):
            before, after = self.scopes(old, file.path), self.scopes(new, file.path)
            known = {scope.name for scope in before.found}
            for hunk in file.hunks:
                minus = sum(line[0] == "-" for line in hunk.lines)
                plus = sum(line[0] == "+" for line in hunk.lines)
                scopes = [before.at(n) for n in range(hunk.start, hunk.start + minus)]
                scopes += [after.at(n) for n in range(hunk.new_start, hunk.new_start + plus)]
                names = (scope.name for scope in scopes if scope)
                found |= dict.fromkeys(Function(file.path, name) for name in names if name in known)
        return list(found)

    # -- where it is ----------------------------------------------------------------------------

    def locate(self, tree: str, wanted: Iterable[Function]) -> dict[Function, list[Place]]:
        """Where functions stand: in their own file, else in any other that a server is built from.

        Elsewhere a scope counts by its full name, or by its last part when only one function has that.
        Raises Unreadable for a function's own file.
        """
        found = {
            function: [
                self.place(tree, function.path, s) for s in self.scopes(tree, function.path).named(function.name)
            ]
            for function in wanted
        }
        lost = [function for function, places in found.items() if not places]
        words = {function: re.split(r"::|/|->", function.name.partition("<")[0])[-1].lstrip("#") for function in lost}
        sought = sorted({word for word in words.values() if word})
        paths = [p for p in mentioning(self.sources, tree, sought, self._folders(lost)) if is_source(p)]
        for function in lost:
            near = sorted(paths, key=lambda p: _apart(p, function.path))[:FILES_SOUGHT]
            found[function] = self._elsewhere(tree, function, words[function], near)
        return found

    def _folders(self, lost: Iterable[Function]) -> list[str]:
        return sorted({*BUILT_FROM, *(function.path.split("/")[0] for function in lost)})

    def _elsewhere(self, tree: str, function: Function, word: str, paths: list[str]) -> list[Place]:
        exact: list[Place] = []
        near: list[Place] = []
        for path in paths:
            try:
                scopes = self.scopes(tree, path).found
            except Unreadable:
                continue
            for scope in scopes:
                if scope.name == function.name and path != function.path:
                    exact.append(self.place(tree, path, scope))
                elif scope.kind == "function" and scope.short == word:
                    near.append(self.place(tree, path, scope))
        return exact or (near if len(near) == 1 else [])

    def look_alikes(self, base: str, tree: str, path: str, around: Sequence[str]) -> list[Line]:
        """Lines of a tree that stood in one file of `base` and stand in another now: what moved under another name.

        `around` are the lines by the change; three of them, and a third of those that tell anything, must be in
        one file that had fewer of them before. The first of each function, the file with the most first.
        """
        telling = list(dict.fromkeys(line.strip() for line in around if is_telling(line)))[:16]
        if not telling:
            return []
        folders = sorted({*BUILT_FROM, path.split("/")[0]})
        found = holding(self.sources, tree, telling, folders)
        least = max(min(3, len(telling)), len(telling) / 3)
        best: list[tuple[int, list[Line]]] = []
        wanted = [plain(word) for word in telling]
        for where, hits in found.items():
            here = [(number, text) for number, text in hits if any(word in plain(text) for word in wanted)]
            if where == path or sum(any(word in plain(text) for _, text in here) for word in wanted) < least:
                continue
            before = {plain(line) for line in self.lines(base, where)}
            new = [Line(where, number, text) for number, text in here if plain(text) not in before]
            kinds = sum(any(word in plain(line.text) for line in new) for word in wanted)
            if kinds >= least:
                best.append((kinds, new))
        return [line for _, lines in sorted(best, key=lambda b: -b[0])[:1] for line in lines]

    # -- what upstream has ------------------------------------------------------------------------

    def evidence_line(self, patch: Patch, tree: str, places: list[Place], wanted: bool) -> Line | None:
        """The upstream line that the patch's Evidence trailer describes, in one of the functions that it changes.

        A patch that changes no function (`wanted` is false) is looked for in all files of the trailer.
        Raises Broken when its expression does not come to an end.
        """
        globs, _, pattern = patch.trailers.get("Evidence", "").partition(" :: ")
        if not pattern:
            return None
        if not wanted:
            lines = list(lines_of(self.sources, tree, globs.split()))
        else:
            lines = [
                (place.path, number, text)
                for place in places
                if any(fits(place.path, glob) for glob in globs.split())
                for number, text in enumerate(place.lines, place.scope.first)
            ]
        at = first_with(pattern, [text for _, _, text in lines], self.sources.until - time.monotonic())
        return None if at is None else Line(*lines[at])


_FIRST_WITH = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
print(next((n for n, text in enumerate(texts) if re.search(pattern, text)), ""))
"""


def first_with(pattern: str, texts: Sequence[str], left_s: float = math.inf) -> int | None:
    """The index of the first text that holds a pattern; None when none does. Raises Broken when it takes too long,
    TimedOut when only `left_s` were left for it.

    In a process of its own: a person wrote the pattern, and a search in this one cannot be ended.
    """
    if not texts:
        return None
    words, limit_s = [sys.executable, "-I", "-c", _FIRST_WITH], max(0.0, min(EXPRESSION_S, left_s))
    try:
        said = run(words, timeout_s=limit_s, stdin=json.dumps([pattern, texts]))
    except ToolingError as error:
        if isinstance(error, TimedOut) and limit_s < EXPRESSION_S:
            raise
        raise Broken(
            f"its expression did not come to an end within {EXPRESSION_S:.0f} s ({error.what}): write it "
            "without a repeat within a repeat"
        ) from error
    return int(said.stdout) if said.stdout.strip() else None


def label(scope: Scope | None, twice: frozenset[str]) -> str:
    """What tells a scope from the others of a file: its name, or its head where several have that name."""
    if scope is None:
        return ""
    return scope.signature if scope.name in twice else scope.name


def _apart(path: str, other: str) -> int:
    """How far two files are from each other: 0 in one folder."""
    one, two = path.split("/")[:-1], other.split("/")[:-1]
    common = next(
        (n for n, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), min(len(one), len(two))
    )
    return len(one) + len(two) - 2 * common


def heading_name(hunk: Hunk) -> str:
    """The function that a hunk says it is in: one that starts above its first change, else the one git put behind @@.

    Git cuts headings at 80 bytes and knows no end of a function: good enough only where the trees can't be had.
    """
    context = []
    for line in hunk.lines:
        if line[0] != " ":
            break
        context.append(line[1:])
    for text in (*reversed(context), hunk.heading):
        head, opened, _ = text.partition("(")
        name = re.split(r"[^~\w:]", head.rstrip())[-1]
        if opened and name and re.match(r"[^#}/*\s;=][^;=]*$", head) and not text.rstrip().endswith(";"):
            return name
    return ""


def occurrences(text: str, hunk: Hunk, *, after: bool = False) -> int:
    """In how many places of a file all lines that a hunk must find stand together, or those that it leaves behind."""
    lines, before = text.split("\n"), hunk.after if after else hunk.before
    return sum(lines[n : n + len(before)] == before for n in range(len(lines) - len(before) + 1))
