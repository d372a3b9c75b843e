"""Two texts line by line: what differs, what of it could as well stand at another place, what is alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.patches.series import Hunk

LEAST_TELLING = 12
"""How many characters, white space aside, a line has that may tell a place; `break;` has fewer."""


@dataclass(frozen=True)
class Change:
    """Lines of one text that stand instead of lines of another, all next to each other."""

    start: int
    """Where it is in the text before, from 0: its first removed line, or the line that it is put above."""
    removed: tuple[str, ...]
    new_start: int
    """The same in the text after."""
    added: tuple[str, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.removed)

    @property
    def telling(self) -> list[str]:
        """The lines that it adds and that say something, white space aside."""
        return [plain(line) for line in self.added if re.search(r"\w", line)]


def changes(hunks: Iterable[Hunk]) -> list[Change]:
    """The changes of a diff without context."""
    found = []
    for hunk in hunks:
        removed = tuple(line[1:] for line in hunk.lines if line[0] == "-")
        added = tuple(line[1:] for line in hunk.lines if line[0] == "+")
        start = hunk.start - 1 if removed else hunk.start  # git counts from 1, and names the line above what is added
        new_start = hunk.new_start - 1 if added else hunk.new_start
        found.append(Change(start, removed, new_start, added))
    return found


def changed(lines: Sequence[str], some: Iterable[Change]) -> list[str]:
    """The lines with these changes."""
    found = list(lines)
    for change in sorted(some, key=lambda c: -c.start):
        found[change.start : change.end] = change.added
    return found


def now_at(line: int, some: Iterable[Change]) -> int:
    """Where what stands above a line (from 0) went by these changes; within one, where it begins."""
    at = line
    for change in some:
        if change.end <= line and change.start < line:
            at += len(change.added) - len(change.removed)
        elif change.start < line:
            return change.new_start
    return at


def respaced(lines: Sequence[str], target: Sequence[str], differing: Iterable[Change]) -> list[str]:
    """The lines as the target writes them where only white space differs; `differing` is what differs else."""
    found: list[str] = []
    at = there = 0
    for change in [*differing, Change(len(lines), (), len(target), ())]:
        same = change.start - at
        found += target[there : there + same] if same == change.new_start - there else lines[at : change.start]
        found += lines[change.start : change.end]
        at, there = change.end, change.new_start + len(change.added)
    return found


def could_slide(old: Sequence[str], new: Sequence[str], change: Change, mine: Change, at: int) -> bool:
    """Whether lines that upstream added or removed could as well be others, around the place of a change of ours.

    Of two blocks that look alike a diff can't tell which one is new or gone: `a b X a b Y` without X may have lost
    `a b X` or `X a b`. `at` is where our change stands in `new`.
    """
    if change.removed and change.added:
        return False
    text, start, size, first = (
        (old, change.start, len(change.removed), mine.start)
        if change.removed
        else (new, change.new_start, len(change.added), at)
    )
    low = high = start
    while low > 0 and text[low - 1] == text[low + size - 1]:
        low -= 1
    while high + size < len(text) and text[high] == text[high + size]:
        high += 1
    return max(low, first - size + 1) <= min(high, first + len(mine.removed) - 1)


def alike(some: Iterable[str], others: Iterable[str]) -> float:
    """What part of the telling lines of the shorter text the other one has too, white space aside; 0 to 1."""
    one, other = (Counter(plain(line) for line in lines if is_telling(line)) for lines in (some, others))
    least = min(one.total(), other.total())
    return (one & other).total() / least if least else 0.0


def is_telling(line: str) -> bool:
    """Whether a line is long enough to say where it stands."""
    return len(plain(line)) >= LEAST_TELLING and bool(re.search(r"\w{3}", line))


def plain(line: str) -> str:
    """A line without its white space."""
    return re.sub(r"\s+", "", line)
