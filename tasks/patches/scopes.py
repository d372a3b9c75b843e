"""Which function a line stands in: the fact that decides whether a hunk landed where it belongs.

C, C++, CUDA and their like are read by their braces, which is no compiler: comments, strings and preprocessor lines are
blanked, each `{` is named by the text before it, and of `#if`/`#else` branches the first one counts for what is open
afterwards. What is read is verified: braces that do not close make a file unreadable, and such a file proves nothing.

Python is read by its indentation, CMake and Jinja by their words that open and close. Any other file has no functions.

Upstream may write anything: a file is read in one pass, a head is cut to LONGEST_HEADER, and no expression takes more
than the square of that. A file of more than LARGEST characters is not read: none that a server is built from is a
quarter of it (b11434: vendor/miniaudio has 4,108,168; the largest of its own, ggml-vulkan.cpp, 900,000).
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

LONGEST_HEADER = 4000
LARGEST = 4_000_000
DEEPEST = 256
"""Braces within braces, as many as clang takes (`-fbracket-depth`); what is open is copied at each `#if`."""
SUFFIXES = frozenset([".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".cu", ".cuh", ".m", ".mm", ".metal"])


@dataclass(frozen=True)
class Scope:
    """A named piece of a source file: a function, a named lambda, a class, an enum or a table."""

    kind: str
    """`function` for functions and named lambdas, else `block`."""
    name: str
    """As upstream names it, with the classes and functions around it: `server_context::launch`."""
    signature: str
    """The text before its brace without white space, behind the namespaces around it: tells overloads apart."""
    first: int
    last: int
    """Line numbers from 1, both included."""

    @property
    def short(self) -> str:
        """The name without what is around it."""
        return re.split(r"::|/", self.name)[-1]


class Unreadable(Exception):
    """The braces of a file do not close: what its functions are is not known."""


class Scopes:
    """The scopes of one file. Empty for a file in no language that is read."""

    def __init__(self, path: str, text: str, until: float = math.inf) -> None:
        """Raises Unreadable, and TimeoutError when it is not read to its end `until` then, of time.monotonic()."""
        self.path = path
        if len(text) > LARGEST:
            raise Unreadable(f"it has {len(text):,} characters, more than are read")
        read = _reader_of(path)
        self.found = read(text, until) if read else []
        self._names = Counter(scope.name for scope in self.found)
        self._at: dict[int, Scope] = {}
        for scope in self.found:  # outer ones come first
            self._at |= dict.fromkeys(range(scope.first, scope.last + 1), scope)

    def at(self, line: int) -> Scope | None:
        """The innermost scope that holds this line (from 1)."""
        return self._at.get(line)

    @property
    def twice(self) -> frozenset[str]:
        """The names that more than one scope of this file has."""
        return frozenset(name for name, n in self._names.items() if n > 1)

    def named(self, name: str) -> list[Scope]:
        """The scopes of this name."""
        return [scope for scope in self.found if scope.name == name]


def is_source(path: str) -> bool:
    """Whether a path is read for functions of C and its like."""
    return PurePosixPath(path).suffix in SUFFIXES


def _reader_of(path: str) -> Callable[[str, float], list[Scope]] | None:
    name = PurePosixPath(path)
    if name.suffix in SUFFIXES:
        return _read
    if name.suffix in (".py", ".pyi"):
        return lambda text, _: _by_indentation(text)
    if name.name == "CMakeLists.txt" or name.suffix == ".cmake":
        return lambda text, _: _by_words(text, _CMAKE)
    if name.suffix in (".jinja", ".j2"):
        return lambda text, _: _by_words(text, _JINJA)
    return None


_DEFINED = re.compile(r"([ \t]*)(?:async[ \t]+)?(def|class)[ \t]+(\w+)")


def _by_indentation(text: str) -> list[Scope]:
    """The functions and classes of Python: a scope ends with its last line that is further in than its head."""
    found: list[Scope] = []
    open_: list[tuple[int, str, str, str, int]] = []  # (indentation, kind, name, signature, first line)
    last, decorated = 0, 0
    for number, line in enumerate([*text.split("\n"), "."], 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        while open_ and indent <= open_[-1][0] and not line.lstrip().startswith((")", "]", "}")):
            _, kind, name, signature, first = open_.pop()
            found.append(Scope(kind, name, signature, first, last))
        if line.lstrip().startswith("@"):
            decorated = decorated or number
        elif match := _DEFINED.match(line):
            name = "::".join([*([open_[-1][2]] if open_ else []), match[3]])
            kind = "function" if match[2] == "def" else "block"
            open_.append((indent, kind, name, re.sub(r"\s+", "", line), decorated or number))
            decorated = 0
        else:
            decorated = 0
        last = number
    return sorted(found, key=lambda s: (s.first, -s.last))


_CMAKE = (
    re.compile(r"^\s*(?P<kind>function|macro)\s*\(\s*(?P<name>\w+)", re.IGNORECASE),
    re.compile(r"^\s*end(?:function|macro)\b", re.IGNORECASE),
)
_JINJA = (
    re.compile(r"\{%-?\s*(?P<kind>macro|block)\s+(?P<name>\w+)"),
    re.compile(r"\{%-?\s*end(?:macro|block)\b"),
)


def _by_words(text: str, words: tuple[re.Pattern[str], re.Pattern[str]]) -> list[Scope]:
    """The scopes of a language that names what it opens and says when it closes it."""
    opens, closes = words
    found: list[Scope] = []
    open_: list[tuple[str, str, int]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if match := opens.search(line):
            open_.append((match["name"], re.sub(r"\s+", "", line), number))
        if closes.search(line) and open_:
            name, signature, first = open_.pop()
            found.append(Scope("function", name, signature, first, number))
    return sorted(found, key=lambda s: (s.first, -s.last))


_BLANKED = re.compile(
    r"""
      //(?:\\\n|[^\n])*                                      # a comment
    | /\*.*?(?:\*/|\Z)
    | (?:u8|[uUL])?R"(?P<mark>[^()\\\s]{0,16})\(.*?(?:\)(?P=mark)"|\Z)   # a raw string
    | (?<![0-9A-Za-z_])(?:u8|[uUL])?"(?:\\.|[^"\\\n])*+"?     # a string
    | "(?:\\.|[^"\\\n])*+"?
    | (?<![0-9A-Fa-f])'(?:\\.|[^'\\\n]){1,8}'                # a character, not a digit separator
    """,
    re.DOTALL | re.VERBOSE,
)
"""What does not end is blanked to the end of the file or line: to look for its end again at the next is quadratic."""
_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(\w*)(?:\\\n|[^\n])*", re.MULTILINE)


def _spaces(match: re.Match[str]) -> str:
    kept = '""' if match[0][-1] == '"' else "  "
    return kept + re.sub(r"[^\n]", " ", match[0][2:])


@dataclass
class _Open:
    """A `{` that is not closed yet."""

    kind: str
    """function, block, namespace, initializer (its `}` does not end the statement) or plain"""
    name: str
    signature: str
    first: int


def _read(text: str, until: float) -> list[Scope]:
    code = _BLANKED.sub(_spaces, text)
    directives = {match.start(): match for match in _DIRECTIVE.finditer(code)}
    reader = _Reader(until)
    at = 0
    token = re.compile(r"^[ \t]*#|[{};()]|\n|[^{};()\n]+", re.MULTILINE)
    while match := token.match(code, at):
        if directive := directives.get(match.start()):
            reader.directive(directive[1], directive[0])
            reader.line += directive[0].count("\n")
            at = directive.end()
        else:
            reader.token(match[0])
            at = match.end()
    return reader.finish()


class _Reader:
    def __init__(self, until: float) -> None:
        self.until = until
        self.line = 1
        self.open: list[_Open] = []
        self.found: list[Scope] = []
        self._parens = 0
        self._header = ""
        self._header_line = 0
        self._held: list[tuple[str, int]] = []
        self._branches: list[tuple[_State, _State | None]] = []

    # -- preprocessor branches ------------------------------------------------------------------

    def directive(self, word: str, text: str) -> None:
        if word == "define" and "\n" in text and (match := re.search(r"define\s+(\w+)", text)):
            last = self.line + text.count("\n")
            self.found.append(Scope("block", f"#{match[1]}", f"#{match[1]}", self.line, last))
        elif word in ("if", "ifdef", "ifndef"):
            self._branches.append((self._state(), None))
        elif word in ("else", "elif") and self._branches:
            before, first = self._branches.pop()
            self._branches.append((before, first or self._state()))
            self._restore(before)
        elif word == "endif" and self._branches:
            _, first = self._branches.pop()
            if first:
                self._restore(first)

    def _state(self) -> _State:
        return _State(tuple(self.open), tuple(self._held), self._parens, self._header, self._header_line)

    def _restore(self, state: _State) -> None:
        self.open, self._held = list(state.open), list(state.held)
        self._parens, self._header, self._header_line = state.parens, state.header, state.header_line

    # -- tokens ---------------------------------------------------------------------------------

    def token(self, text: str) -> None:
        if text == "\n":
            self.line += 1
            self._header += " " if self._header else ""
        elif text == "{":
            self._enter()
        elif text == "}":
            self._leave()
        elif text == ";" and not self._parens:
            self._header = ""
        else:
            self._parens += {"(": 1, ")": -1}.get(text, 0)
            if not self._header and text.strip():
                self._header_line = self.line
            if self._header or text.strip():
                self._header = (self._header + text)[-LONGEST_HEADER:]

    def _enter(self) -> None:
        if time.monotonic() > self.until:
            raise TimeoutError(f"line {self.line} is as far as it was read")
        if len(self.open) == DEEPEST:
            raise Unreadable(f"line {self.line} opens a brace within {DEEPEST} others")
        header = re.sub(r"^\s*(?:(?:public|private|protected)\s*:(?!:)\s*|\}\s*)+", "", self._header)
        around = next((o for o in reversed(self.open) if o.name), None)
        inside = around is not None and around.kind == "function"
        kind, name = _kind(header.strip(), inside) if not self._parens else ("initializer", "")
        if name and around:
            name = f"{around.name}{'/' if inside else '::'}{name}"
        spaces = "".join(f"{o.signature}::" for o in self.open if o.kind == "namespace" and o.signature)
        signature = spaces + re.sub(r"\s+", "", header) if name else ""
        if kind == "namespace" and (match := _NAMESPACE.search(header)):
            signature = re.sub(r"\s+", "", match[1])
        self.open.append(_Open(kind, name, signature, self._header_line or self.line))
        self._held.append((self._header, self._parens))
        self._header, self._parens = "", 0

    def _leave(self) -> None:
        if not self.open:
            raise Unreadable(f"line {self.line} closes a brace that was not opened")
        done = self.open.pop()
        header, self._parens = self._held.pop()
        carries_on = done.kind == "initializer" or self._parens
        self._header = (header + "{}")[-LONGEST_HEADER:] if carries_on else ""
        if done.name and done.kind in ("function", "block", "initializer"):
            kind = "function" if done.kind == "function" else "block"
            self.found.append(Scope(kind, done.name, done.signature, done.first, self.line))

    def finish(self) -> list[Scope]:
        if self.open:
            raise Unreadable(f"the brace of line {self.open[-1].first} is not closed")
        return sorted(set(self.found), key=lambda s: (s.first, -s.last))


@dataclass(frozen=True)
class _State:
    open: tuple[_Open, ...]
    held: tuple[tuple[str, int], ...]
    parens: int
    header: str
    header_line: int


_NAMESPACE = re.compile(r"namespace\s+(\w+(?:\s*::\s*\w+)*+)\s*$")
_WORD = r"(?<!\w)[A-Za-z_]\w*+"
_OPERATOR = r"(?<!\w)operator\s*(?:\(\)|\[\]|[^\s\w(]+|\w[\w:\s*&<>]*+)"
_NAME = rf"(?:{_WORD}(?:<[^<>()]*>)?\s*::\s*)*+(?:{_OPERATOR}|~?{_WORD})"
_LAMBDA = re.compile(r"((?<!\w)[A-Za-z_][\w.\->:]*+)\s*=\s*\[[^\]]*\]\s*(?:\(.*\))?[\w\s:*&<>,\->]*$", re.DOTALL)
_TABLE = re.compile(rf"({_WORD})\s*(?:\[[^\]]*\]\s*)*=$")
_TYPES = ("struct", "class", "union", "enum")
_CLASS = re.compile(
    r"^(?:template\s*<.*>\s*)?(?:typedef\s+|static\s+|const\s+|inline\s+)*(?:struct|class|union|enum(?:\s+(?:class|struct))?)\b"
    r"\s*(?:\w+\s*\(\(?[^()]*\)?\)\s*)?(?:[A-Z_]+\s+)?(?P<name>[A-Za-z_][\w:]*(?:\s*<.*?>)?)?\s*(?:final\s*)?(?::(?!:).*)?$",
    re.DOTALL,
)
_ARGUMENTS = r"<[^<>()]*+(?:<[^<>()]*+>[^<>()]*+)*+>"
"""What a specialisation is for: `f<4, X>(`."""
_CALL = re.compile(rf"(?P<name>{_NAME}(?:\s*{_ARGUMENTS})?)\s*\(")
# Of what stands in the parentheses of a macro or of noexcept any `)` may be the last, and more of them may follow: one
# `.*` from the first `(` on is all of that. A word is taken whole and given back never: several ways to take one apart
# were exponentially many for a line of capitals.
_QUALIFIER = r"(?:(?:(?:const|noexcept|override|final|volatile|mutable|try|[A-Z_][A-Z0-9_]*|__\w+)\b|&)\s*+)"
_AFTER = re.compile(rf"\s*+(?:{_QUALIFIER}++(?:\(.*\)\s*+{_QUALIFIER}*+)?)?(?:->.*|:(?!:).*|requires.*)?", re.DOTALL)
_NOT_A_NAME = frozenset(
    (
        "alignas",
        "decltype",
        "noexcept",
        "__attribute__",
        "__declspec",
        "requires",
        "throw",
        "if",
        "for",
        "while",
        "switch",
    )
)


def _kind(header: str, inside: bool) -> tuple[str, str]:
    """What a brace opens, and its name. Most braces are a table's: those are told without an expression."""
    if header.endswith(","):  # the next value of a table, which may have thousands
        return "initializer", ""
    if re.match(r"^(?:inline\s+)?namespace\b|^extern\s*\"\"\s*$", header):
        return "namespace", ""
    if any(word in header for word in _TYPES) and (match := _CLASS.match(header)):
        return "block", re.sub(r"\s+", "", match["name"] or "")
    if "[" in header and (match := _LAMBDA.search(header)):
        return "function", match[1]
    if inside:
        return ("initializer" if _VALUE.search(header) and not _STATEMENT.search(header) else "plain"), ""
    if header.endswith("=") and (match := _TABLE.search(header)) and "operator" not in match[0]:
        return "initializer", match[1]
    return _function(header) if "(" in header else ("initializer", "")


_VALUE = re.compile(r"[=,\w]\s*$")
_STATEMENT = re.compile(r"(?:^|\s|\}|\))(?:else|do|try|mutable|const|noexcept)\s*$|^\s*$")


def _function(header: str) -> tuple[str, str]:
    if not header.rstrip().endswith((")", "}")) and re.search(
        r"\)\s*(?:noexcept\s*)?:(?!:).*[\w>]$", header, re.DOTALL
    ):
        return "initializer", ""  # `foo() : member{1} {`: the brace of a member
    closings = _closings(header)
    for match in _CALL.finditer(header):
        name = re.sub(r"\s+", "", match["name"]) if "operator" not in match["name"] else " ".join(match["name"].split())
        end = closings.get(match.end() - 1)
        if name not in _NOT_A_NAME and end and _AFTER.fullmatch(header, end):
            return "function", name
    return "initializer", ""


def _closings(text: str) -> dict[int, int]:
    """The position of each parenthesis that is closed -> the position after the one that closes it."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"[()]", text):
        if match[0] == "(":
            opened.append(match.start())
        elif opened:
            found[opened.pop()] = match.end()
    return found
