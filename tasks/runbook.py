"""The runbook: every symptom that is known, with its cause, its fix, and what of this software catches it.

The table is runbook.toml. `llama-release explain` finds the rows that a text shows, `doctor` names those of its checks,
a server that does not come up is blamed on what they say, and the documentation's runbook is written from them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from modal_app.redaction import redact
from tasks.release import BadInput, Model, Problem, ReleaseFailed, ToolingError, pieces

TABLE = Path(__file__).with_name("runbook.toml")
Area = Literal[
    "loading", "flags", "deployment", "client", "tool calling", "monitoring", "upgrade", "building", "GPU", "snapshots",
    "Modal", "Prefect", "network", "machine",
]  # fmt: skip
Owner = Literal["model", "settings", "machine", "upstream", "request", "service"]
Rank = Literal["cause", "ending", "request", "warning"]
"""In a log of many symptoms the first of these comes first: what ended something outdoes what it went on after."""

NOT_SAID = "(it does not say)"
LONGEST = 160
"""Characters of a text's own words that a row repeats."""
SHOWN = 3
"""So many flags, files or reasons are named where several lines belong to one row."""
NOT_THE_BUILDS = "and not the build's"
"""In what is said of a server that did not come up through no fault of the candidate."""
NAME = re.compile(r"\$\{([a-z]+)\}")
"""A word of a message in a row's texts, by the group of the expression that finds it."""


class Row(Model):
    """One symptom. runbook.toml says at its head what each field is."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    area: Area
    owner: Owner | None = None
    rank: Rank = "cause"
    symptom: str
    patterns: tuple[str, ...] = Field(min_length=1)
    cause: str
    fix: str
    source: str
    checks: tuple[str, ...] = ()
    examples: tuple[str, ...] = Field(min_length=1)

    def filled(self, found: dict[str, list[str]]) -> Row:
        """With the words that were found in a text in place of their names."""
        symptom, cause, fix = (
            NAME.sub(lambda name: ", ".join(found.get(name[1], ())) or NOT_SAID, text) for text in self.texts
        )
        return self.model_copy(update={"symptom": symptom, "cause": cause, "fix": fix})

    @property
    def texts(self) -> tuple[str, str, str]:
        return self.symptom, self.cause, self.fix


class Place(Model):
    """Where to look next for a message that no row knows."""

    looks_like: str
    where: str


class Runbook(Model):
    """The whole table."""

    collect: tuple[str, ...] = Field(description="what to collect when no row knows a message")
    place: tuple[Place, ...]
    row: tuple[Row, ...]


class Match(Model):
    """A symptom that a text shows."""

    row: Row
    line: str = Field(description="the first line that shows it")
    at: int = Field(description="number of that line, from 1")
    count: int = Field(description="how many lines show it")


@cache
def load() -> Runbook:
    """The table. Raises pydantic's ValidationError, which names the row, for one that is not whole."""
    return Runbook.model_validate(tomllib.loads(TABLE.read_text(encoding="utf-8")))


def known() -> tuple[Row, ...]:
    """Every row, in the order in which a line is compared with them."""
    return load().row


def rows_of(check: str) -> list[Row]:
    """The rows that a check catches, such as `doctor budget`."""
    return [row for row in known() if check in row.checks]


def explain(lines: Iterable[str]) -> list[Match]:
    """The symptoms that these lines show, each once: causes first, then endings, refused requests and warnings, each in
    the order in which they first appear. A line counts for the first row that knows it."""
    found: dict[str, Match] = {}
    words: dict[str, dict[str, list[str]]] = {}
    for at, line in enumerate(lines, 1):
        if hit := _find(line):
            row, quoted, said = hit
            count = found[row.id].count + 1 if row.id in found else 1
            first = found.get(row.id) or Match(row=row, line=quoted, at=at, count=1)
            found[row.id] = first.model_copy(update={"count": count})
            _add(words.setdefault(row.id, {}), said)
    ranks = get_args(Rank)
    matches = sorted(found.values(), key=lambda match: (ranks.index(match.row.rank), match.at))
    return [match.model_copy(update={"row": match.row.filled(words[match.row.id])}) for match in matches]


def blame(text: str) -> tuple[Owner | None, Match | None]:
    """Whose fault a failure is by what a text tells of it, and the symptom that says so; no owner where none does.

    A warning, or a request that was refused meanwhile, ends nothing and is never to blame.
    """
    first = next((match for match in explain(text.splitlines()) if match.row.rank in ("cause", "ending")), None)
    return (first.row.owner if first else None), first


_FAILURES: dict[Owner, tuple[type[Problem], str]] = {
    "model": (BadInput, f"the model file's fault, {NOT_THE_BUILDS}"),
    "settings": (BadInput, f"the settings' fault, {NOT_THE_BUILDS}"),
    "machine": (ToolingError, f"the machine's fault, {NOT_THE_BUILDS}"),
    "service": (ToolingError, f"a service's fault, {NOT_THE_BUILDS}"),
    "upstream": (ReleaseFailed, "upstream's fault"),
}


def failure(what: str, said: str, evidence: str, todo: str) -> Problem:
    """The error of a server that did not come up: BadInput, ToolingError or ReleaseFailed, by whose fault it is as far
    as what it said tells. Where that tells nothing, the candidate is to blame."""
    owner, match = blame(said)
    if match is None or owner not in _FAILURES:
        return ReleaseFailed(what, evidence=evidence, todo=todo)
    kind, whose = _FAILURES[owner]
    return kind(f"{what}; {whose}: {match.row.symptom}", evidence=evidence, todo=f"{match.row.fix}\n{todo}")


def where_to_look(text: str) -> list[str]:
    """Places to look next at for a text that no row knows, the likeliest first."""
    return [place.where for place in load().place if any(re.search(place.looks_like, s) for s in pieces(text))]


# -- reading a line -------------------------------------------------------------------------------------------------

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SECRET = re.compile(r"(?i)(bearer\s+|api[_-]?key[\"']?\s*[ :=]\s*[\"']?)[^\s\"',]{6,}")
_EDGES = " \t:;,.'\"`\\"


@cache
def _index() -> tuple[tuple[str, str, Row], ...]:
    """(the words that a line must hold, the expression that it is searched with then, its row): of a thousand
    expressions a line is searched with a few, and only those are compiled."""
    return tuple((needed(pattern).lower(), pattern, row) for row in known() for pattern in row.patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _find(line: str) -> tuple[Row, str, dict[str, str | None]] | None:
    """(the first row that knows a line, the line as it may be shown, the words that its expression names)."""
    said = [(piece, piece.lower()) for piece in pieces(_COLOURS.sub("", line).replace('\\"', '"'))]
    for words, pattern, row in _index():
        for piece, low in said:
            if words in low and _compiled(pattern).search(piece):
                shown = _compiled(pattern).search(_hidden(piece))
                return row, _hidden(_COLOURS.sub("", line).strip()), shown.groupdict() if shown else {}
    return None


def _hidden(line: str) -> str:
    return redact(_SECRET.sub(r"\1***", line))


def _add(found: dict[str, list[str]], said: dict[str, str | None]) -> None:
    for name, value in said.items():
        word = " ".join((value or "").replace("\\n", " ").split()).strip(_EDGES)[:LONGEST]
        names = found.setdefault(name, [])
        if word and word not in names and len(names) < SHOWN:
            names.append(word)


# -- what an expression needs ---------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))(.*)\)", re.DOTALL)


def needed(pattern: str) -> str:
    """The longest text that stands in whatever an expression matches; '' where there is a choice instead of one."""
    runs = [""]
    for atom, times in _atoms(pattern):
        if atom == "|":
            return ""
        if times[:1] in ("?", "*") or times[:2] in ("{0", "{,"):
            runs.append("")
        elif group := _GROUP.fullmatch(atom):
            runs += [needed(group[1]), ""]
        elif atom[-1:] not in ("]", ")") and (atom not in ("^", "$", ".") if len(atom) == 1 else not atom[1].isalnum()):
            runs[-1] += atom[-1]
            runs += [""] if times else []
        else:
            runs.append("")
    return max(runs, key=len)


def _atoms(pattern: str) -> Iterator[tuple[str, str]]:
    """The characters, classes and groups of an expression, each with how often it may be there ('' for once)."""
    tokens = _TOKEN.findall(pattern)
    at = 0
    while at < len(tokens):
        start = at
        depth = tokens[at] == "("
        at += 1
        while depth:
            depth += (tokens[at] == "(") - (tokens[at] == ")")
            at += 1
        atom, times = "".join(tokens[start:at]), ""
        if at < len(tokens) and tokens[at][0] in "?*+{":
            times = tokens[at]
            at += 1 + (tokens[at + 1 : at + 2] in (["?"], ["+"]))
        yield atom, times
