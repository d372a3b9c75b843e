"""C++ as far as a reader of facts needs it: comments away, which block a place is in, what a call is given.

No compiler: upstream's tree is read as text, in which every place stays where it was.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

PLACEHOLDER = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|z)?[a-zA-Z]")
"""Where printf puts a value."""
_TOKEN = re.compile(
    r"""//(?:[^\n\\]|\\.)*|/\*.*?\*/"""
    r"""|R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)["]"""
    r"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.){1,8}'""",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}
_OPEN, _CLOSE = "([{", ")]}"
_CONTROL = re.compile(r"\b(if|else|for|while|do|switch|try|catch)\b")
_LAMBDA = re.compile(r"([\w.>-]*\w)\s*=\s*\[[^\[\]]*\]\s*(?:\(|$)")
_CALLED = re.compile(r"([~\w][\w:]*)\s*\($")
_LONGEST_HEAD = 1500
"""Characters before a `{` that may say what it opens; an argument list of upstream's is shorter."""


class Block(NamedTuple):
    """What stands between two braces."""

    start: int
    end: int
    head: str
    """The words before it: `if (x)`, `void f(int a)`, `struct s`."""
    outer: int
    """Its number's outer block; -1 at the top."""

    @property
    def function(self) -> str:
        """The name of the function or named lambda that it is the body of; '' for others."""
        if _CONTROL.match(self.head) or self.head.count("(") != self.head.count(")"):
            return ""
        if found := _LAMBDA.search(self.head):
            return re.split(r"[.>]", found[1])[-1]
        opens = self.head.find("(")
        found = _CALLED.search(self.head[: opens + 1]) if opens > 0 else None
        return found[1] if found and "=" not in self.head[:opens] else ""

    @property
    def condition(self) -> str:
        """What must hold for it to be entered, as it is written; '' for what is no `if`."""
        if not (found := re.match(r"(?:else\s+)?if\s*(?:constexpr\s*)?\(", self.head)):
            return "else" if self.head.startswith("else") else ""
        return self.head[found.end() - 1 :].strip()[1:-1].strip()


class Code:
    """One source file."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self._functions: dict[int, str] = {}

    @cached_property
    def bare(self) -> str:
        """The text with blanks for comments."""
        return self._blanked("/")

    @cached_property
    def shape(self) -> str:
        """The text with blanks for comments and for what stands in quotes."""
        return self._blanked("/\"'R")

    @cached_property
    def _tokens(self) -> list[tuple[int, int]]:
        return [m.span() for m in _TOKEN.finditer(self.text)]

    def _blanked(self, beginnings: str) -> str:
        parts, last = [], 0
        for start, end in self._tokens:
            token = self.text[start:end]
            if token[0] in beginnings:
                parts += [self.text[last:start], _blank(token)]
                last = end
        return "".join([*parts, self.text[last:]])

    @cached_property
    def _lines(self) -> list[int]:
        return [m.start() for m in re.finditer("\n", self.text)]

    def at(self, place: int) -> str:
        """`path:line` of a place."""
        return f"{self.path}:{bisect.bisect_left(self._lines, place) + 1}"

    @cached_property
    def blocks(self) -> list[Block]:
        """Every block, in the order of its start."""
        found: list[Block] = []
        open_ones: list[int] = []
        last = 0  # where what can be a head begins
        for m in re.finditer(r"[{};]", self.shape):
            if m[0] == "{":
                head = " ".join(self.bare[max(last, m.start() - _LONGEST_HEAD) : m.start()].split())
                found.append(Block(m.start(), len(self.text), head, open_ones[-1] if open_ones else -1))
                open_ones.append(len(found) - 1)
            elif m[0] == "}" and open_ones:
                number = open_ones.pop()
                found[number] = found[number]._replace(end=m.start())
            last = m.end()
        return found

    @cached_property
    def _starts(self) -> list[int]:
        return [block.start for block in self.blocks]

    def around(self, place: int) -> Iterator[Block]:
        """The blocks that a place lies in, the innermost first."""
        number = bisect.bisect_right(self._starts, place) - 1
        while number >= 0:  # whatever holds the place holds the last block that began before it, or is that block
            block = self.blocks[number]
            if block.end >= place:
                yield block
            number = block.outer

    def _function_of(self, block: Block) -> str:
        if block.start not in self._functions:
            self._functions[block.start] = block.function
        return self._functions[block.start]

    def functions(self, place: int) -> list[str]:
        """The functions and named lambdas that a place lies in, the innermost first."""
        return [name for block in self.around(place) if (name := self._function_of(block))]

    def function(self, place: int) -> str:
        """The outermost function that a place lies in; '' outside of any."""
        return next(reversed(self.functions(place)), "")

    def inner(self, place: int) -> str:
        """The innermost function that a place lies in; '' outside of any."""
        return next(iter(self.functions(place)), "")

    def conditions(self, place: int) -> tuple[str, ...]:
        """What must hold for a place to be reached inside its function, the innermost first."""
        found: list[str] = []
        start = max(self.shape.rfind(c, 0, place) for c in "{};")
        if bare := re.match(r"\s*(?:else\s+)?if\s*\(", self.shape[start + 1 : place]):
            opens = start + 1 + bare.end() - 1
            found.append(self.bare[opens + 1 : self.closing(opens)])
        for block in self.around(place):
            if self._function_of(block):
                break
            if block.condition:
                found.append(block.condition)
        return tuple(" ".join(each.split()) for each in found)

    def closing(self, opens: int) -> int:
        """Where the bracket that opens here is closed; the end of the text when it is not."""
        depth = 0
        for m in re.compile(r"[(\[{)\]}]").finditer(self.shape, opens):
            depth += 1 if m[0] in _OPEN else -1
            if depth == 0:
                return m.start()
        return len(self.text)

    def arguments(self, opens: int) -> list[tuple[int, int]]:
        """Where each argument of the call whose bracket opens here begins and ends."""
        found: list[tuple[int, int]] = []
        depth, begin = 0, opens + 1
        for m in re.compile(r"[(\[{)\]},]").finditer(self.shape, opens):
            if m[0] in _OPEN:
                depth += 1
            elif m[0] in _CLOSE:
                depth -= 1
                if depth == 0:
                    return [*found, (begin, m.start())]
            elif depth == 1:
                found.append((begin, m.start()))
                begin = m.end()
        return found

    def strings(self, start: int, end: int) -> list[str]:
        """The texts in quotes between two places; neighbours with nothing between them are one, as in C."""
        found: list[str] = []
        last = -1
        first = bisect.bisect_left(self._tokens, (start, start))
        for begin, close in self._tokens[first:]:
            if close > end:
                break
            if not (said := _quoted(self.text[begin:close])):
                continue
            if last >= 0 and not self.shape[last:begin].strip():
                found[-1] += said[0]
            else:
                found.append(said[0])
            last = close
        return found


def _quoted(token: str) -> list[str]:
    """What stands in a token's quotes; nothing when it is no string."""
    if token[0] == "R":
        mark = token.index("(") - 2
        return [token[mark + 3 : -mark - 2]]
    return [unescaped(token[1:-1])] if token[0] == '"' else []


def _blank(text: str) -> str:
    return "\n".join(" " * len(line) for line in text.split("\n"))


def unescaped(text: str) -> str:
    """A C string's text as it is printed."""
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), text)
