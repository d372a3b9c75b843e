"""The examples and the names in the pages, as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.generate import PART, REPOSITORY, pages

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[\w ]+: [^>]*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S
)
CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Example:
    """One fenced block of a page.

    `mark` is the comment right above it: `server: NAME` for the trial server that Python is run against, `file: NAME`
    for Python that a test of its own runs, `not run: WHY`.
    """

    page: Path
    line: int
    kind: str
    text: str
    mark: str
    shows: str
    """What a `text` block right below says that it prints; '' without one."""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def marked(self, what: str) -> str:
        """The value of a mark, '' when it has none of that name."""
        return self.mark.removeprefix(f"{what}: ") if self.mark.startswith(f"{what}: ") else ""


def examples(kind: str = "") -> list[Example]:
    """Every block of a kind, or every block, in the order of the pages."""
    return [example for page in pages() for example in _of(page) if kind in ("", example.kind)]


def _of(page: Path) -> Iterator[Example]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        below = FENCE.match(text, found.end() + 2)
        indent = found["indent"]
        lines = [line.removeprefix(indent) for line in found["text"].splitlines(keepends=True)]
        shows = below["text"] if below and below["kind"] == "text" else ""
        line = text.count("\n", 0, found.start("kind")) + 1
        yield Example(page, line, found["kind"], "".join(lines), found["mark"] or "", shows)


def names() -> list[tuple[Path, str]]:
    """(page, what stands in backticks in its running text; the parts that are made of the code are not looked at)."""
    found = []
    for page in pages():
        prose = PART.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
        found += [(page, name) for name in CODE.findall(prose)]
    return found
