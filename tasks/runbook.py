"""The runbook: every symptom that is known, with its cause, its fix, and what of this software catches it.

The table is runbook.toml. `llama-release explain` finds the rows that a text shows, `doctor` names those of its checks,
a server that does not come up is blamed on what they say, and the documentation's runbook is written from them.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
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
READ = 50
"""So many lines of one row are read for them: a log may have a hundred thousand."""
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
    counts: Counter[str] = Counter()
    words: dict[str, dict[str, list[str]]] = {}
    for at, line in enumerate(lines, 1):
        if hit := _find(line):
            row, piece, pattern = hit
            counts[row.id] += 1
            if row.id not in found:
                found[row.id] = Match(row=row, line=_hidden(_plain(line).strip()), at=at, count=1)
            if counts[row.id] <= READ and (shown := _compiled(pattern).search(_hidden(piece))):
                _add(words.setdefault(row.id, {}), shown.groupdict())
    ranks = get_args(Rank)
    matches = sorted(found.values(), key=lambda match: (ranks.index(match.row.rank), match.at))
    return [
        match.model_copy(update={"row": match.row.filled(words.get(match.row.id, {})), "count": counts[match.row.id]})
        for match in matches
    ]


def blame(text: str) -> tuple[Owner | None, Match | None]:
    """Whose fault a failure is by what a text tells of it, and the symptom that says so; no owner where none does.

    That is the last cause: what llama.cpp says before it, as of a card that it does without, it has gone on after. A
    warning, or a request that was refused meanwhile, ends nothing and is never to blame.
    """
    found = explain(text.splitlines())
    causes = [match for match in found if match.row.rank == "cause"]
    last = max(causes, key=lambda match: match.at, default=None)
    last = last or next((match for match in found if match.row.rank == "ending"), None)
    return (last.row.owner if last else None), last


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
_SECRET = re.compile(r"(?i)(bearer\s{1,8}|api[_-]?key[\"']?\s{0,8}[ :=]\s{0,8}[\"']?)[^\s\"',]{6,}")
_EDGES = " \t:;,.'\"`\\"
_START = 4
"""Characters of the words that every expression holds at least, by which they are looked up."""


@cache
def _table() -> tuple[tuple[str, str, Row], ...]:
    """(the words that a line must hold, the expression that it is searched with then, its row), in order."""
    return tuple((needed(pattern).lower(), pattern, row) for row in known() for pattern in row.patterns)


@cache
def _starts() -> dict[str, list[int]]:
    """The places in the table of the expressions whose words begin so: of a thousand a line is searched with a few."""
    found: dict[str, list[int]] = {}
    for place, (words, _, _) in enumerate(_table()):
        found.setdefault(words[:_START], []).append(place)
    return found


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _find(line: str) -> tuple[Row, str, str] | None:
    """(the first row that knows a line, the piece of the line that shows it, the expression that finds it)."""
    said = pieces(_plain(line).replace('\\"', '"'))
    for place, at in sorted((place, at) for at, piece in enumerate(said) for place in _held(piece.lower())):
        _, pattern, row = _table()[place]
        if _compiled(pattern).search(said[at]):
            return row, said[at], pattern
    return None


def _held(low: str) -> Iterator[int]:
    """The places in the table whose words stand in a text."""
    starts, table = _starts(), _table()
    for gram in {low[at : at + _START] for at in range(len(low) - _START + 1)}:
        yield from (place for place in starts.get(gram, ()) if table[place][0] in low)


def _plain(line: str) -> str:
    return _COLOURS.sub("", line)


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
