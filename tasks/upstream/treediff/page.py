"""A tree diff for people: what could break us, then defaults, then what is new for us, then the rest in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasks.console import console, one_line, show_table
from tasks.preflight.compare import What
from tasks.report import markdown, markdown_table
from tasks.upstream.risk import Risk
from tasks.upstream.treediff import TreeDiff
from tasks.upstream.treediff.compare import TreeChange
from tasks.upstream.treediff.facts import Kind

NAMES = 12
"""Names of a kind that one line of the rest lists."""
NEW = 5
"""New flags that are shown."""
HEADER = ("what", "name", "was -> is", "of ours", "where")
_LONGEST = 160
_BRIEF = 40
_FEW = 3
_SEPARATOR = " · "
_PLURALS = {Kind.FLAG: "flags", Kind.VARIABLE: "environment variables", Kind.HTTP: "HTTP", Kind.TOOLCHAIN: "toolchain",
            Kind.CUDA: "CUDA code", Kind.DEFAULT: "defaults in code", Kind.README: "server README"}  # fmt: skip


class Section(NamedTuple):
    """Some changes under a title."""

    title: str
    changes: Sequence[TreeChange]


class Table(NamedTuple):
    """A section as it is shown."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(found: TreeDiff) -> list[Section]:
    """What a person is to look at, in this order; each that has something."""
    defaults = [c for c in found.of(Risk.MAY_BREAK) if is_default(c)]
    parts = [
        Section("What could break us", found.of(Risk.MAY_BREAK_US)),
        Section("Defaults that changed", defaults),
        Section("New, about what we use", useful(found)),
    ]
    return [part for part in parts if part.changes]


def is_default(change: TreeChange) -> bool:
    """Whether it is in force without anybody having asked for it."""
    if change.kind is Kind.OPTION:
        return change.what in (What.CHANGED, What.ADDED)
    if change.kind is Kind.FLAG:
        return change.what in (What.DEFAULT_CHANGED, What.ADDED)
    return change.kind in (Kind.DEFAULT, Kind.README)


def useful(found: TreeDiff) -> list[TreeChange]:
    """What is new and about something that we use."""
    touching = [c for c in found.of(Risk.TOUCHES_US) if c.what is not What.REMOVED]
    return sorted(touching, key=lambda c: c.kind is not Kind.FLAG)[:NEW]


def rest(found: TreeDiff) -> Iterator[tuple[str, str]]:
    """(what, names) of what may break others, a kind a line."""
    left = [c for c in found.of(Risk.MAY_BREAK) if not is_default(c)]
    for kind in Kind:
        for what, word in _WORDS.items():
            group = [c for c in left if c.kind is kind and c.what in what]
            if group:
                yield f"{plural(kind)} {word}", _names(group)


_WORDS = {
    (What.REMOVED, What.RENAMED): "gone",
    (What.ADDED,): "new",
    (What.CHANGED, What.VALUE_CHANGED, What.STATUS_CHANGED): "changed",
    (What.DESCRIBED,): "described otherwise",
}


def plural(kind: Kind) -> str:
    return _PLURALS.get(kind, f"{kind}s")


def _names(group: Sequence[TreeChange]) -> str:
    """The names of a group; of what only new code says, and of lines of the log, how many."""
    named = [c for c in group if c.kind is not Kind.LOG and c.new_in != "function"]
    shown = list(dict.fromkeys(_of_many(named)))
    more = len(group) - len(named) + max(0, len(shown) - NAMES)
    return _SEPARATOR.join([*shown[:NAMES], *([f"{more} more" if shown else str(more)] if more else [])])


def _of_many(group: Sequence[TreeChange]) -> Iterator[str]:
    """Each by its name, but the keys of an answer that lost many of them together."""
    lost = Counter(_answer(c) for c in group)
    for change in group:
        many = lost[_answer(change)] if change.kind is Kind.RESPONSE_FIELD and change.what is What.REMOVED else 0
        yield f"{many} of {_answer(change)}" if many > _FEW else _brief(change)


def _answer(change: TreeChange) -> str:
    return change.name.rpartition(" of ")[2]


def _brief(change: TreeChange) -> str:
    """Its name, and what became of it where that is short."""
    name = one_line(change.name)
    if change.what is What.RENAMED:
        return f"{name} -> {change.now}"
    was, now = (text.partition("; when ")[0] for text in (change.was, change.now))
    if change.kind is Kind.WARNING or (change.kind is Kind.ERROR and (was == now or not was)):
        return name
    said = " -> ".join(filter(None, (was, now)))
    return f"{name} ({said})" if said and len(said) <= _BRIEF else name


def counts(found: TreeDiff) -> str:
    """What is left: nothing in it breaks anybody."""
    by_kind = Counter(c.kind for c in found.of(Risk.NONE))
    return ", ".join(f"{n} {plural(kind) if n > 1 else kind}" for kind, n in by_kind.most_common())


def summary(found: TreeDiff) -> str:
    """One line: `331 differences in the two trees, 1 may break us (--no-mmap), 22 may break others`."""
    ours, others = found.of(Risk.MAY_BREAK_US), found.of(Risk.MAY_BREAK)
    named = ", ".join(one_line(change.name)[:_BRIEF] for change in ours[:_FEW])
    told = f" ({named}{', …' if len(ours) > _FEW else ''})" if ours else ""
    return f"{len(found.changes)} differences in the two trees, {len(ours)} may break us{told}, {len(others)} others"


def row(change: TreeChange) -> tuple[str, str, str, str, str]:
    """The cells of `HEADER`."""
    return (
        f"{change.kind} {change.what}",
        change.name,
        moved(change),
        ", ".join(change.touches),
        change.at_new or f"{change.at_old} (old)",
    )


def moved(change: TreeChange) -> str:
    """What it was and what it is, as far as that is more than its name; then upstream's own words."""
    was, now = (_short(text.removeprefix("warning; ")) for text in (change.was, change.now))
    said = f"{was} -> {now}" if was and now else now or was
    notes = "; ".join(change.explained)
    words = _short(change.text) if change.kind in (Kind.FLAG, Kind.REQUEST_FIELD, Kind.VARIABLE) else ""
    return "; ".join(filter(None, (said, words, notes)))


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def tables(found: TreeDiff) -> list[Table]:
    """All that a person is to look at."""
    shown = [Table(part.title, HEADER, [row(change) for change in part.changes]) for part in sections(found)]
    others = list(rest(found))
    return [*shown, *([Table("May break others", ("what", "names"), others)] if others else [])]


def lines(found: TreeDiff) -> list[tuple[str, str]]:
    """All of it, a line each: (what it is, the rest)."""
    told = [(title.lower(), "; ".join(filter(None, cells))) for title, _, rows in tables(found) for cells in rows]
    return [*told, *(("not known", line) for line in found.unknown)]


def show(found: TreeDiff) -> None:
    """Print it in the terminal."""
    for table in tables(found):
        show_table(*table)
        console.print()
    for line in found.unknown:
        console.print(f"Not known: {one_line(line)}")
    if left := counts(found):
        console.print(f"And what breaks nobody: {left}.")


def digest(found: TreeDiff) -> str:
    """The same as Markdown."""
    parts = [f"{markdown(summary(found))}."]
    for title, header, rows in tables(found):
        parts += [f"**{title}**", markdown_table(header, rows)]
    if found.unknown:
        parts.append("**Not known**\n\n" + "\n".join(f"- {markdown(line)}" for line in found.unknown))
    if left := counts(found):
        parts.append(f"And what breaks nobody: {markdown(left)}.")
    return "\n\n".join(parts)
