"""What upstream's changes could break for us: each one judged by the words and files that it names, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

from pydantic import Field

from tasks.console import console, one_line, show_table
from tasks.release import Change, Model, Problem, ReleaseNotes, pieces
from tasks.report import markdown, markdown_table
from tasks.sources import fits
from tasks.upstream.ours import Ours
from tasks.upstream.risk import Risk
from tasks.upstream.rules import (
    ADDS,
    AREAS,
    BESIDE,
    CUDA_BACKEND,
    DECLARED,
    INSIDE,
    OTHER_BACKEND,
    OUTSIDE,
    RULES,
    Area,
)
from tasks.upstream.treediff import TreeDiff, page

SHOWN = 15
"""How many of the changes that break things elsewhere a page lists; those that touch us are all listed."""


class Assessed(Model):
    """One upstream change, and what it could break."""

    build: int = Field(description="the first build that has it")
    pull: int | None
    title: str
    areas: tuple[Area, ...]
    risk: Risk
    why: tuple[str, ...] = Field(description="the words or files that decided, each with what they mean")
    touches: tuple[str, ...] = Field(description="the settings, promises, patches and the like that it names")

    @property
    def name(self) -> str:
        return f"b{self.build} #{self.pull} {self.title}" if self.pull else f"b{self.build} {self.title}"


class Assessment(Model):
    """What is known of all changes between two builds."""

    low: int
    high: int
    until: int = Field(description="the last build that the notes speak of; less than `high`: the rest is unknown")
    changes: tuple[Assessed, ...] = Field(default=(), description="the riskiest first, then the newest")
    problem: str = Field(default="", description="why the notes could not be read: then they tell nothing")
    trees: TreeDiff | None = Field(default=None, description="what the two source trees themselves say")

    @property
    def compared(self) -> TreeDiff | None:
        """What the trees say, when they could be read."""
        return self.trees if self.trees and not self.trees.problem else None

    @property
    def uncompared(self) -> str:
        """Why nothing comes from the trees; '' when something does."""
        return f"the source trees were not compared: {self.trees.problem}" if self.trees and self.trees.problem else ""

    def of(self, *risks: Risk) -> tuple[Assessed, ...]:
        return tuple(change for change in self.changes if change.risk in risks)

    @property
    def risky(self) -> Assessment:
        """The same without what breaks nobody."""
        some = tuple(risk for risk in Risk if risk is not Risk.NONE)
        trees = self.trees and self.trees.model_copy(update={"changes": self.trees.of(*some)})
        return self.model_copy(update={"changes": self.of(*some), "trees": trees})

    @property
    def shown(self) -> tuple[Assessed, ...]:
        """What a person is to look at: all that could break us, and the newest that could break others."""
        return self.of(Risk.MAY_BREAK_US) + self.of(Risk.MAY_BREAK)[:SHOWN]

    @property
    def summary(self) -> str:
        """One line for a person: what the trees say; without them, what the notes say."""
        if self.compared:
            return page.summary(self.compared)
        untold = f"; {self.uncompared}" if self.uncompared else ""
        if self.problem:
            return f"what changed is not known: {self.problem}{untold}"
        ours = len(self.of(Risk.MAY_BREAK_US, Risk.TOUCHES_US))
        may = f", {n} may break it" if (n := len(self.of(Risk.MAY_BREAK_US))) else ""
        end = f"; the notes end at b{self.until}" if self.until < self.high else ""
        return f"{len(self.changes)} changes read ({self.coverage}), {ours} touch what we use{may}{end}{untold}"

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What a person is to look at, a line each with its kind."""
        if self.compared:
            return page.lines(self.compared)
        return [(c.risk, "; ".join((c.name, *c.why, *c.touches))) for c in self.shown]

    @property
    def coverage(self) -> str:
        """How much of what lies between the notes tell of; upstream gives each commit a build number."""
        return f"{len({change.build for change in self.changes})} of {self.high - self.low} builds are told of"


def assess(change: Change, used: Ours) -> Assessed:
    """What one change could break, judged by its title, and by its body and files where upstream tells them."""
    change = change.model_copy(update={"title": pieces(change.title)[0]})
    areas = tuple(area for area in Area if _in(area, change))
    touches = used.named(change.title) + used.holding(change.files)
    why: tuple[str, ...] = ()
    if elsewhere := _elsewhere(change.title, used):
        risk, why, touches = Risk.NONE, (f"`{elsewhere}` is no part of our server",), []
    elif why := tuple(_said(change, used)):
        touches += used.named(change.body)
        if used.backend == "cuda" and Area.CUDA in areas:
            touches.append("backend cuda")
        risk = Risk.MAY_BREAK_US if touches else Risk.MAY_BREAK
    else:
        risk = Risk.TOUCHES_US if touches else Risk.NONE
    return Assessed(
        build=change.build,
        pull=change.pull,
        title=change.title,
        areas=areas,
        risk=risk,
        why=why,
        touches=tuple(dict.fromkeys(touches)),
    )


def _elsewhere(title: str, used: Ours) -> str:
    found = OTHER_BACKEND.search(title)
    if not found and used.backend != "cuda":
        found = CUDA_BACKEND.search(title)
    if not found and not OUTSIDE.search(title):
        found = BESIDE.search(title)
    return found[0].strip(" :[]()") if found else ""


def _in(area: Area, change: Change) -> bool:
    words, globs = AREAS[area]
    return bool(words.search(change.title)) or any(fits(path, glob) for path in change.files for glob in globs)


def _said(change: Change, used: Ours) -> Iterable[str]:
    """Each rule's words as they stand in the change, with what they mean; then the files."""
    title, *body = [
        "" if INSIDE.search(line) and not OUTSIDE.search(line) else line
        for line in (change.title, *chain.from_iterable(map(pieces, change.body.splitlines())))
    ]
    for rule in RULES:
        if not rule.of.search(change.title) or (rule.only_ours and not used.serves(change.title)):
            continue
        lines = (title, *body) if rule.body else (title,)
        if found := next(filter(None, map(rule.words.search, lines)), None):
            yield f"{rule.means}: `{found[0].strip(' :')}`"
    if not ADDS.search(change.title):
        yield from (f"touches {path}: {why}" for path, why in DECLARED.items() if path in change.files)


def assess_all(notes: ReleaseNotes, used: Ours) -> Assessment:
    """All changes of these notes, the riskiest first, then those that name more of ours, then the newest."""
    found = [assess(change, used) for change in notes.changes]
    found.sort(key=lambda change: (change.risk.rank, len(change.touches), change.build), reverse=True)
    return Assessment(low=notes.low, high=notes.high, until=notes.until, changes=tuple(found))


def read(changes: Callable[[int, int], ReleaseNotes], low: int, high: int, used: Ours) -> Assessment:
    """What upstream's notes tell of the way between two builds. Notes that can't be read, or end too early, say so."""
    try:
        notes = changes(low, high)
    except Problem as error:
        why = ": ".join([error.what, *error.evidence.splitlines()[:1]])
        return Assessment(low=low, high=high, until=low, problem=why)
    if notes.until <= low:
        return Assessment(low=low, high=high, until=notes.until, problem=f"upstream's notes end at b{notes.until}")
    return assess_all(notes, used)


def digest(found: Assessment) -> str:
    """The page of an assessment: what could break us first, in Markdown."""
    if found.compared:
        witnesses = markdown(_witnesses(found))
        return "\n\n".join([f"b{found.low} to b{found.high}", page.digest(found.compared), witnesses])
    if found.problem:
        why = "; ".join(filter(None, (found.problem, found.uncompared)))
        return f"**What changed upstream is not known:** {markdown(why)}"
    risky = found.shown
    parts = [markdown(f"b{found.low} to b{found.high}: {found.summary}.")]
    if risky:
        rows = ((c.risk, c.name, "; ".join(c.why), "; ".join(c.touches) or "-") for c in risky)
        parts.append(markdown_table(("risk", "change", "why", "what of ours it names"), rows))
    if hidden := len(found.of(Risk.MAY_BREAK, Risk.MAY_BREAK_US)) - len(risky):
        parts.append(f"And {hidden} older ones of risk `{Risk.MAY_BREAK}`.")
    if touching := found.of(Risk.TOUCHES_US):
        names = "\n".join(f"- {markdown(change.name)}" for change in touching)
        parts.append(f"Names what we use, no word of a break:\n\n{names}")
    areas = Counter(area for change in found.of(Risk.NONE) for area in change.areas or ("others",))
    if areas:
        parts.append("The rest, by area: " + ", ".join(f"{n} {area}" for area, n in areas.most_common()) + ".")
    return "\n\n".join(parts)


def _witnesses(found: Assessment) -> str:
    """What upstream's notes add to the trees."""
    if found.problem:
        return f"Upstream's notes explain none of it: {found.problem}."
    return f"Upstream's notes: {found.coverage}."


def show(found: Assessment) -> None:
    """Print in the terminal what could break us."""
    if found.compared:
        console.print(one_line(f"b{found.low} to b{found.high}: {found.summary}"))
        page.show(found.compared)
        console.print(one_line(_witnesses(found)))
        return
    title = f"upstream's notes: {found.summary}"
    if not found.shown:
        console.print(one_line(title))
        return
    rows = ((c.risk, c.name, "; ".join((*c.why, *c.touches))) for c in found.shown)
    show_table(title, ("risk", "change", "why"), rows)
