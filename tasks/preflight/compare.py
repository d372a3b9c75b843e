"""Two surfaces compared: every difference, classed, with the evidence for its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from enum import StrEnum

from pydantic import Field as Described

from tasks.flags.flag import Flag
from tasks.preflight.observe import NO_KEY
from tasks.preflight.surface import Exchange, Route, Surface
from tasks.release import Model

_SAME_WORDS = 4  # as many words of a flag's help in a row, and
_SAME_SHARE = 0.6  # this share of them, in another flag's help are the same option
_SIMILAR = 0.85  # difflib ratio of two names that may be one
_METRICS = "GET /metrics"


class Kind(StrEnum):
    FLAG = "flag"
    VARIABLE = "variable"
    ROUTE = "route"
    FIELD = "field"
    KEY = "response key"
    METRIC = "metric"
    STATUS = "status"


class What(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    RENAMED = "renamed"
    DEFAULT_CHANGED = "default changed"
    VALUE_CHANGED = "value changed"
    """A flag that took a value takes none now, or the other way round."""
    STATUS_CHANGED = "status changed"
    CHANGED = "changed"
    DESCRIBED = "described otherwise"
    """The same flag with other words in its help: what it does with its value may be another thing."""


class Difference(Model):
    """One thing that the candidate does in another way than production."""

    kind: Kind
    what: What
    names: tuple[str, ...] = Described(description="what is concerned, by all its names; production's if it has it")
    before: str = Described(default="", description="production's default, value or status")
    after: str = Described(default="", description="the new name, default, value or status; for removed: what to use")
    gone: bool = Described(default=False, description="whether the names no longer work")
    evidence: str = ""
    where: tuple[str, ...] = Described(default=(), description="exchanges that show it")
    used_by: tuple[str, ...] = Described(default=(), description="which of our settings, contracts, patches use it")
    fails: bool = Described(default=False, description="whether we cannot do without")

    @property
    def name(self) -> str:
        return ", ".join(self.names)

    def __str__(self) -> str:
        change = f" {self.before} -> {self.after}" if self.before and self.after else ""
        instead = f" -> {self.after}" if self.after and not change else ""
        return f"{self.kind} {self.name} {self.what}{change}{instead}"


def compare(old: Surface, new: Surface) -> tuple[Difference, ...]:
    """Every difference between two surfaces, `old` being production's."""
    return (*_flags(old, new), *_variables(old, new), *_routes(old, new), *_fields(old, new), *_exchanges(old, new))


# -- flags and their variables ------------------------------------------------------------------------


def _flags(old: Surface, new: Surface) -> Iterator[Difference]:
    live = [flag for flag in new.flags if not flag.removed]
    by_name = {name: flag for flag in live for name in flag.names}
    known = {name for flag in old.flags if not flag.removed for name in flag.names}
    for flag in old.flags:
        if flag.removed:
            continue
        after = by_name.get(flag.main) or next((by_name[name] for name in flag.names if name in by_name), None)
        if after is None:
            yield _lost(flag, old, new)
            continue
        yield from _changed(flag, after, by_name)
    for flag in live:
        if not known & set(flag.names):
            yield Difference(kind=Kind.FLAG, what=What.ADDED, names=flag.names, evidence=flag.text)


def _lost(flag: Flag, old: Surface, new: Surface) -> Difference:
    successor, evidence = successor_of(flag, old, new)
    known = {name for each in old.flags for name in each.names}
    renamed = successor is not None and not known & set(successor.names)
    return Difference(
        kind=Kind.FLAG,
        what=What.RENAMED if renamed else What.REMOVED,
        names=flag.names,
        after=successor.main if successor else "",
        gone=True,
        evidence=evidence,
    )


def _changed(flag: Flag, after: Flag, by_name: Mapping[str, Flag]) -> Iterator[Difference]:
    if lost := tuple(name for name in flag.names if name not in by_name):
        kept = f"the same flag is still {after.main}"
        yield Difference(
            kind=Kind.FLAG, what=What.RENAMED, names=lost, after=after.main, gone=True, evidence=kept
        )  # fmt: skip
    if flag.main in after.names and after.main not in flag.names:
        kept = f"{flag.main} is still taken"
        yield Difference(kind=Kind.FLAG, what=What.RENAMED, names=flag.names, after=after.main, evidence=kept)
    if flag.default != after.default:
        yield Difference(
            kind=Kind.FLAG, what=What.DEFAULT_CHANGED, names=flag.names,
            before=flag.default or "none", after=after.default or "none", evidence=after.text,
        )  # fmt: skip
    if bool(flag.value) != bool(after.value):
        yield Difference(
            kind=Kind.FLAG, what=What.VALUE_CHANGED, names=flag.names,
            before=flag.value or "none", after=after.value or "none", evidence=after.text,
        )  # fmt: skip


def successor_of(flag: Flag, old: Surface, new: Surface) -> tuple[Flag | None, str]:
    """The flag of `new` that does what `flag` did, and what shows it; (None, "") when nothing does.

    In this order: upstream's own words, the same variable, the same help, most of the same help. Never a name alone.
    """
    live = {name: each for each in new.flags if not each.removed for name in each.names}
    known = {name for each in old.flags for name in each.names}
    fresh = [each for each in live.values() if not known & set(each.names)]
    notice = next((each.text for each in new.flags if each.removed and set(each.names) & set(flag.names)), "")
    for text in (notice, flag.text if "DEPRECATED" in flag.text else ""):
        if named := [name for name in re.findall(r"(?<!-)--[\w-]*\w", text) if name in live]:
            return live[named[0]], f"upstream says: {text}"
    for each in live.values():
        if flag.env and flag.env == each.env:
            return each, f"the same variable {flag.env}"
    for each in fresh:
        if flag.text == each.text and len(flag.text.split()) >= _SAME_WORDS:
            return each, f"the same help: {each.text}"
    for each in fresh:
        if same := _common_words(flag.text, each.text):
            return each, f"its help is part of {each.main}'s: {same}"
    return None, ""


def _common_words(text: str, other: str) -> str:
    ours, theirs = (re.findall(r"[\w-]+", each.lower()) for each in (text, other))
    match = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match()
    long = match.size >= max(_SAME_WORDS, _SAME_SHARE * len(ours))
    return " ".join(ours[match.a : match.a + match.size]) if long else ""


def _variables(old: Surface, new: Surface) -> Iterator[Difference]:
    read, had = _read_variables(new), _read_variables(old)
    by_name = {name: flag for flag in new.flags if not flag.removed for name in flag.names}
    said: set[str] = set()
    for flag in old.flags:
        if lost := tuple(name for name in flag.variables if name in had - read):
            after = next((by_name[name] for name in flag.names if name in by_name), None)
            evidence = f"the variable of {flag.main}" if after else ""
            if after is None:
                after, evidence = successor_of(flag, old, new)
            renamed = after is not None and after.env and after.env not in had
            said.update(lost)
            yield Difference(
                kind=Kind.VARIABLE,
                what=What.RENAMED if renamed else What.REMOVED,
                names=lost,
                after=after.env if after else "",
                gone=True,
                evidence=evidence,
            )
    for name in old.variables:
        if name in had - read - said:
            yield Difference(kind=Kind.VARIABLE, what=What.REMOVED, names=(name,), gone=True)
    for name in sorted(read - had):
        yield Difference(kind=Kind.VARIABLE, what=What.ADDED, names=(name,))


def _read_variables(surface: Surface) -> set[str]:
    """The variables that do something. That of a flag which is only listed to be refused ends the server (b9105)."""
    live, refused = (
        {name for flag in surface.flags if flag.removed is removed for name in flag.variables}
        for removed in (False, True)
    )
    return live.union(surface.variables) - (refused - live)


# -- routes and fields --------------------------------------------------------------------------------


def _routes(old: Surface, new: Surface) -> Iterator[Difference]:
    had, has = ({str(route) for route in each.routes} for each in (old, new))
    for route in old.routes:
        if str(route) in has:
            continue
        same = [each for each in new.routes if each.handler == route.handler and each.method == route.method]
        after = next((each for each in same if each.path.startswith("/v1/")), same[0] if same else None)
        yield Difference(
            kind=Kind.ROUTE,
            what=What.RENAMED if after and str(after) not in had else What.REMOVED,
            names=(str(route),),
            after=str(after or ""),
            gone=True,
            evidence=f"the same handler {route.handler}" if after else "",
        )
    for route in new.routes:
        if str(route) not in had:
            yield Difference(kind=Kind.ROUTE, what=What.ADDED, names=(str(route),), evidence=_twin(route, old.routes))


def _twin(route: Route, routes: Iterable[Route]) -> str:
    twin = next((each for each in routes if each.handler == route.handler), None)
    return f"does what {twin} does" if twin else ""


def _fields(old: Surface, new: Surface) -> Iterator[Difference]:
    added = [name for name in new.fields if name not in (*old.fields, *old.mentioned)]
    for name in old.fields:
        if name in new.fields or name in new.mentioned:
            continue
        near = [each for each in added if SequenceMatcher(None, name, each).ratio() >= _SIMILAR]
        evidence = (
            f"its name is nowhere in the source; {near[0]} is new" if near else "its name is nowhere in the source"
        )
        yield Difference(kind=Kind.FIELD, what=What.REMOVED, names=(name,), gone=True, evidence=evidence)
    for name in added:
        yield Difference(kind=Kind.FIELD, what=What.ADDED, names=(name,))


# -- what running servers answered --------------------------------------------------------------------


def _exchanges(old: Surface, new: Surface) -> Iterator[Difference]:
    keys: dict[tuple[Kind, What, str, str, str], list[str]] = {}
    statuses: dict[tuple[str, str, str], list[str]] = {}
    for name, before in old.exchanges.items():
        after = new.exchanges.get(name)
        if after is None:
            continue
        if before.status != after.status:
            case = name.rpartition(", ")[2] if ", " in name else ""
            statuses.setdefault((case, str(before.status), str(after.status)), []).append(name)
        elif not name.endswith(NO_KEY):
            kind = Kind.METRIC if name == _METRICS else Kind.KEY
            for change in _key_changes(before, after):
                keys.setdefault((kind, *change), []).append(name)
    for (_, was, now), names in statuses.items():
        yield Difference(
            kind=Kind.STATUS, what=What.STATUS_CHANGED, names=tuple(names), before=was, after=now, where=tuple(names)
        )
    for (kind, what, key, to, why), where in keys.items():
        yield Difference(
            kind=kind, what=what, names=(key,), after=to, gone=what is not What.ADDED, evidence=why, where=tuple(where)
        )


def _key_changes(before: Exchange, after: Exchange) -> Iterator[tuple[What, str, str, str]]:
    lost = [key for key in before.keys if key not in after.keys]
    new = [key for key in after.keys if key not in before.keys]
    for key in lost:
        to = next((each for each in new if _one_key(key, before.keys[key], each, after.keys[each])), "")
        if to:
            new.remove(to)
        why = f"same place and type ({after.keys[to]}), its name's end" if to else ""
        yield What.RENAMED if to else What.REMOVED, key, to, why
    for key in new:
        yield What.ADDED, key, "", ""


def _one_key(old: str, old_type: str, new: str, new_type: str) -> bool:
    """Whether two keys are one by another name: same place, same type, one name the end or beginning of the other."""
    place, _, was = old.rpartition(".")
    there, _, now = new.rpartition(".")
    short, long = sorted((was, now), key=len)
    return place == there and old_type == new_type and (long.endswith(short) or long.startswith(short))
