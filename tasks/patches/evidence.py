"""What can be known of a patch's place in a tree: which functions it changes, where they are now, what they hold."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.patches.scopes import Scope, Scopes, Unreadable, is_source
from tasks.patches.series import Broken, Hunk, Patch, read_diff
from tasks.patches.trees import diff, lines_of, mentioning, text_of
from tasks.process import run
from tasks.release import ToolingError
from tasks.sources import Sources, fits

EXPRESSION_S = 20.0
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
        self.sources = sources
        self.until = math.inf
        """Of time.monotonic(): no file is read for its scopes after that."""
        self._texts: dict[tuple[str, str], str | None] = {}
        self._scopes: dict[tuple[str, str], Scopes] = {}

    def text(self, tree: str, path: str) -> str | None:
        key = tree, path
        if key not in self._texts:
            self._texts[key] = text_of(self.sources, tree, path)
        return self._texts[key]

    def scopes(self, tree: str, path: str) -> Scopes:
        """Raises Unreadable, and ToolingError when there is no time left for it."""
        key = tree, path
        if key not in self._scopes:
            try:
                self._scopes[key] = Scopes(path, self.text(tree, path) or "", self.until)
            except TimeoutError as error:
                raise ToolingError(
                    "it takes too long to read upstream's files for their functions",
                    evidence=f"{path} of tree {tree}: {error}",
                    todo="try again on a machine that does nothing else; look at that file if it is the same one again",
                ) from error
        return self._scopes[key]

    def place(self, tree: str, path: str, scope: Scope) -> Place:
        lines = (self.text(tree, path) or "").split("\n")[scope.first - 1 : scope.last]
        return Place(path, scope, tuple(lines))

    # -- what changes ---------------------------------------------------------------------------

    def edits(self, old: str, new: str, beside: tuple[str, ...] = ()) -> Edits:
        """The lines that differ between two trees, each with its scope.

        A scope whose name is taken twice, here or in the trees `beside`, is told apart by its signature. Lines
        without a letter or digit don't count: a diff may place a brace or an empty line in two ways.
        Raises Unreadable.
        """
        found: Edits = Counter()
        for file in read_diff(diff(self.sources, old, new, 0)):
            twice = frozenset[str]().union(*(self.scopes(t, file.path).twice for t in (old, new, *beside)))
            for hunk in file.hunks:
                at = {"-": hunk.start, "+": hunk.new_start}
                for line in hunk.lines:
                    if line[0] not in at:
                        continue
                    scope = self.scopes(old if line[0] == "-" else new, file.path).at(at[line[0]])
                    at[line[0]] += 1
                    if re.search(r"\w", line[1:]):
                        found[Edit(file.path, _label(scope, twice), line[0], line[1:])] += 1
        return found

    def functions(self, old: str, new: str) -> list[Function]:
        """The scopes of `old` that the diff to `new` changes. Raises Unreadable."""
        found: dict[Function, None] = {}
        for file in read_diff(diff(self.sources, old, new, 0)):
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
        """Where functions stand: in their own file, else anywhere in the tree.

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
        words = {function: re.split(r"::|/|->", function.name)[-1] for function in lost}
        paths = [p for p in mentioning(self.sources, tree, sorted(set(words.values()))) if is_source(p)]
        for function in lost:
            found[function] = self._elsewhere(tree, function, words[function], paths)
        return found

    def _elsewhere(self, tree: str, function: Function, word: str, paths: list[str]) -> list[Place]:
        exact: list[Place] = []
        alike: list[Place] = []
        for path in paths:
            try:
                scopes = self.scopes(tree, path).found
            except Unreadable:
                continue
            for scope in scopes:
                if scope.name == function.name:
                    exact.append(self.place(tree, path, scope))
                elif scope.kind == "function" and scope.short == word:
                    alike.append(self.place(tree, path, scope))
        return exact or (alike if len(alike) == 1 else [])

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
        at = _first_with(pattern, [text for _, _, text in lines])
        return None if at is None else Line(*lines[at])


_FIRST_WITH = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
print(next((n for n, text in enumerate(texts) if re.search(pattern, text)), ""))
"""


def _first_with(pattern: str, texts: Sequence[str]) -> int | None:
    """The index of the first text that holds a pattern; None when none does. Raises Broken when it takes too long.

    In a process of its own: a person wrote the pattern, and a search in this one cannot be ended.
    """
    if not texts:
        return None
    try:
        said = run(
            [sys.executable, "-I", "-c", _FIRST_WITH], timeout_s=EXPRESSION_S, stdin=json.dumps([pattern, texts])
        )
    except ToolingError as error:
        raise Broken(
            f"its Evidence expression did not come to an end within {EXPRESSION_S:.0f} s ({error.what}): write it "
            "without a repeat within a repeat"
        ) from error
    return int(said.stdout) if said.stdout.strip() else None


def _label(scope: Scope | None, twice: frozenset[str]) -> str:
    if scope is None:
        return ""
    return scope.signature if scope.name in twice else scope.name


def effect_line(edits: Edits, base: list[Place], patched: list[Place], now: list[Place]) -> Line | None:
    """The first line of the patch (or of the function) in `now`, when a function there holds all that the patch brings.

    That is: no fewer of each added line than the patched function and no more of each removed one, white space
    aside, where the function before the patch holds fewer or more.
    """

    def short_of(places: list[Place]) -> bool:
        have = Counter(_plain(line) for place in places for line in place.lines)
        goal = Counter(_plain(line) for place in patched for line in place.lines)
        return any(
            have[_plain(e.text)] < goal[_plain(e.text)]
            if e.sign == "+"
            else have[_plain(e.text)] > goal[_plain(e.text)]
            for e in edits
        )

    added = {_plain(edit.text) for edit in edits if edit.sign == "+"}
    if not now or not all(edit.scope for edit in edits) or short_of(now) or not short_of(base):
        return None
    lines = [
        Line(place.path, number, text) for place in now for number, text in enumerate(place.lines, place.scope.first)
    ]
    return next((line for line in lines if _plain(line.text) in added), lines[0])


def _plain(line: str) -> str:
    return re.sub(r"\s+", "", line)


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


def occurrences(text: str, hunk: Hunk) -> int:
    """In how many places of a file all lines that a hunk must find stand together."""
    lines, before = text.split("\n"), hunk.before
    return sum(lines[n : n + len(before)] == before for n in range(len(lines) - len(before) + 1))
