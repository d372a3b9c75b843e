"""Two trees' facts side by side: what is gone, what is new, what is another way, with its place in both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Literal

from pydantic import Field

from tasks.flags.flag import Flag
from tasks.preflight.compare import Difference, What
from tasks.preflight.compare import Kind as SurfaceKind
from tasks.preflight.compare import compare as compare_surfaces
from tasks.preflight.surface import Route, Surface
from tasks.release import Model
from tasks.upstream.risk import Risk
from tasks.upstream.treediff import (
    answers,
    chat,
    cmake,
    defaults,
    flags,
    formats,
    http,
    models,
    readme,
    refusals,
    variables,
)  # fmt: skip
from tasks.upstream.treediff.facts import Fact, Kind, unique
from tasks.upstream.treediff.flags import Declared
from tasks.upstream.treediff.http import PUBLIC
from tasks.upstream.treediff.trees import Tree

READERS = (http, answers, refusals, cmake, variables, formats, models, chat, readme, defaults)
REWORDED = 0.8
"""Alike as difflib counts it: one message of one function in other words."""
_OF_SURFACE = {SurfaceKind.FLAG: Kind.FLAG, SurfaceKind.VARIABLE: Kind.VARIABLE, SurfaceKind.ROUTE: Kind.ROUTE}
Key = tuple[Kind, str]


class TreeChange(Model):
    """One thing that upstream's two trees say differently."""

    kind: Kind
    what: What
    name: str = Field(description="what it is about, by its old name where it had one")
    was: str = ""
    now: str = Field(default="", description="the new value or name; for what is gone: what upstream says instead")
    at_old: str = Field(default="", description="path:line in the old tree")
    at_new: str = Field(default="", description="path:line in the new tree")
    text: str = Field(default="", description="upstream's own words on it")
    about: tuple[str, ...] = Field(default=(), description="parameters of the server that it reads or sets")
    gone: bool = Field(default=False, description="whether the old name no longer works")
    new_in: Literal["", "file", "function"] = Field(
        default="", description="what it stands in that was not there before"
    )
    fields: tuple[str, ...] = Field(default=(), description="names that it is about beside its own")
    risk: Risk = Risk.NONE
    touches: tuple[str, ...] = Field(default=(), description="what of ours it is about")
    explained: tuple[str, ...] = Field(default=(), description="upstream's own changes that name it")


@dataclass(frozen=True)
class Side:
    """One tree with what it says."""

    tree: Tree

    @cached_property
    def listed(self) -> list[Declared]:
        """The flags of all programs."""
        return flags.declared(self.tree.files)

    @cached_property
    def declared(self) -> list[Declared]:
        """The flags that llama-server takes."""
        return [
            each for each in self.listed if each.served and (not each.roots or any(map(self.tree.reads, each.roots)))
        ]

    @cached_property
    def facts(self) -> dict[Key, Fact]:
        return unique(fact for reader in READERS for fact in reader.facts(self.tree.files))

    @cached_property
    def by_flag(self) -> dict[str, Declared]:
        return {name: each for each in reversed(self.declared) for name in each.flag.names}

    @cached_property
    def answers(self) -> frozenset[tuple[str, str]]:
        """(key, function that puts it into an answer)."""
        return frozenset(
            (n.rpartition(" of ")[0], n.rpartition(" of ")[2]) for k, n in self.facts if k is Kind.RESPONSE_FIELD
        )

    @cached_property
    def functions(self) -> frozenset[str]:
        """Functions that say or answer something."""
        saying = (fact.text for fact in self.facts.values() if fact.kind in _SAYING)
        return frozenset(saying) | {function for _, function in self.answers}

    def mentions(self, name: str) -> bool:
        """Whether a name stands in quotes anywhere in what was read."""
        return any(f'"{name}"' in text for text in self.tree.files.texts.values())

    def surface(self) -> Surface:
        """What tasks/preflight/compare.py compares of a build, of a tree."""
        asked = tuple(name for kind, name in self.facts if kind is Kind.VARIABLE)
        routes = (fact for (kind, name), fact in self.facts.items() if kind is Kind.ROUTE and fact.value != PUBLIC)
        return Surface(
            build="",
            tag="",
            flags=tuple(each.flag for each in self.declared),
            variables=asked,
            routes=tuple(Route(method=r.name.split()[0], path=r.name.split()[1], handler=r.value) for r in routes),
            fields=(),
        )

    def place(self, kind: Kind, name: str) -> str:
        """Where a flag, a variable or a route is declared."""
        if kind is Kind.FLAG:
            return self.by_flag[name].at if name in self.by_flag else ""
        if kind is Kind.VARIABLE:
            of_flag = next((each.at for each in self.declared if name in each.flag.variables), "")
            return of_flag or self._at(kind, name)
        return self._at(kind, name)

    def _at(self, kind: Kind, name: str) -> str:
        fact = self.facts.get((kind, name))
        return fact.at if fact else ""


_SAYING = (Kind.ERROR, Kind.WARNING, Kind.LOG)


def compare(old: Side, new: Side) -> Iterator[TreeChange]:
    """Every difference between two trees; what a lean archive may have left out is none."""
    yield from _surface(old, new)
    yield from _described(old, new)
    before, after = _comparable(old, new)
    lost, fresh = [key for key in before if key not in after], [key for key in after if key not in before]
    paired = dict(_pairs(lost, fresh, before, after))
    taken = set(paired.values())
    for key in lost:
        if key in paired:
            yield from _renamed(before[key], after[paired[key]])
        elif key[0] is not Kind.DEFAULT and not (key[0] is Kind.METRIC and new.mentions(key[1].partition(":")[2])):
            change = _change(What.REMOVED, before[key], None)
            yield change.model_copy(update={"now": "needs the key"}) if key[0] is Kind.ROUTE else change
    for key in fresh:
        if key not in taken and key[0] is not Kind.DEFAULT:
            change = _change(What.ADDED, _caught(before, key), after[key])
            yield change.model_copy(update={"new_in": _new_in(after[key], old)})
    for key in before:
        values = {fact.value for side in (before, after) if (fact := side.get(key))}
        if key in after and len(values) > 1 and cmake.ALTERED not in values:
            yield _change(What.CHANGED, before[key], after[key])
    yield from _cuda(old.tree, new.tree)


def _comparable(old: Side, new: Side) -> tuple[dict[Key, Fact], dict[Key, Fact]]:
    """The facts of both sides that can be laid side by side by name and value."""
    return _told_by(old, new), _told_by(new, old)


def _told_by(here: Side, there: Side) -> dict[Key, Fact]:
    fresh = {key for key, function in there.answers if function not in here.functions}
    return {
        key: fact
        for key, fact in here.facts.items()
        if not (key[0] is Kind.VARIABLE or (key[0] is Kind.ROUTE and fact.value != PUBLIC))
        and not there.tree.lacks(_path(fact.at))
        and not (key[0] is Kind.RESPONSE_FIELD and _moved(key[1], there, fresh))
    }


def _moved(name: str, there: Side, fresh: set[str]) -> bool:
    """Whether an answer's key is written elsewhere: its function is gone, or one that is new writes it."""
    key, _, function = name.rpartition(" of ")
    if (key, function) in there.answers:
        return False
    return key in fresh or (function not in there.functions and any(key == other for other, _ in there.answers))


def _path(at: str) -> str:
    return at.rpartition(":")[0]


def _caught(before: Mapping[Key, Fact], key: Key) -> Fact | None:
    """What an exception was that has a clause of its own now: one of any kind."""
    where = re.fullmatch(rf"{http.EXCEPTION} \S+ in (.+)", key[1])
    return before.get((Kind.ERROR, f"{http.EXCEPTION} std::exception in {where[1]}")) if where else None


def _new_in(fact: Fact, old: Side) -> Literal["", "file", "function"]:
    if _path(fact.at) not in old.tree.blobs:
        return "file"
    return "function" if fact.kind in _SAYING and fact.text and fact.text not in old.functions else ""


def _change(what: What, before: Fact | None, after: Fact | None) -> TreeChange:
    fact = before or after
    assert fact
    return TreeChange(
        kind=fact.kind,
        what=what,
        name=(after or fact).name if what is What.ADDED else fact.name,
        was=before.value if before else "",
        now=after.value if after else "",
        at_old=before.at if before else "",
        at_new=after.at if after else "",
        gone=after is None,
        text=(after or fact).text,
        about=_about(before, after) if before and after else tuple(sorted(fact.about)),
    )


def _about(before: Fact, after: Fact) -> tuple[str, ...]:
    """The names in what differs: of two rules, in what is not a condition of both."""
    if before.kind not in _SAYING:
        return tuple(sorted(before.about | after.about))
    was, now = (set(re.split(r" and | \| ", fact.value.partition("; when ")[2])) for fact in (before, after))
    return tuple(sorted({name for each in was ^ now for name in refusals.PARAMETER.findall(each)}))


def _renamed(before: Fact, after: Fact) -> Iterator[TreeChange]:
    if before.kind not in _SAYING:
        change = _change(What.RENAMED, before, after)
        yield change.model_copy(update={"was": before.name, "now": after.name, "gone": True})
    elif before.kind is not Kind.LOG and before.value != after.value:
        yield _change(What.CHANGED, before, after)


def _pairs(
    lost: Iterable[Key], fresh: Iterable[Key], before: Mapping[Key, Fact], after: Mapping[Key, Fact]
) -> Iterator[tuple[Key, Key]]:
    """Which of what is gone is there by another name: a message in other words, a key or an option renamed."""
    near: dict[tuple[str, ...], list[Key]] = {}
    for key in fresh:
        near.setdefault(_neighbours(after[key]), []).append(key)
    for key in lost:
        others = near.get(_neighbours(before[key]), [])
        found = max(others, key=lambda other: _alike(before[key], after[other]), default=None)
        if found and _alike(before[key], after[found]) >= REWORDED:
            others.remove(found)
            yield key, found


def _neighbours(fact: Fact) -> tuple[str, ...]:
    """What two facts share of which one may be the other by a new name."""
    if fact.kind in _SAYING:
        return (fact.kind, fact.text)
    if fact.kind is Kind.RESPONSE_FIELD:
        return (fact.kind, fact.name.rpartition(" of ")[2])
    return (fact.kind, fact.text, _path(fact.at))


def _alike(before: Fact, after: Fact) -> float:
    """How alike two neighbours are; 0 where one can't be the other."""
    if before.kind in _SAYING:
        return _ratio(before.name, after.name)
    if before.kind is Kind.RESPONSE_FIELD:
        old, new = (fact.name.rpartition(" of ")[0] for fact in (before, after))
        return float(old.startswith(new) or new.startswith(old) or _ratio(old, new) >= REWORDED)
    return float(before.kind is Kind.OPTION and len(before.text.split()) > 3)


def _ratio(one: str, other: str) -> float:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.ratio() if matcher.real_quick_ratio() >= REWORDED and matcher.quick_ratio() >= REWORDED else 0.0


# -- flags, variables and routes: as builds are compared ----------------------------------------------


def _surface(old: Side, new: Side) -> Iterator[TreeChange]:
    for found in compare_surfaces(old.surface(), new.surface()):
        kind = _OF_SURFACE[found.kind]
        if flags.UNKNOWN in found.before + found.after and found.what is What.DEFAULT_CHANGED:
            continue
        change = _of_difference(found, kind, old, new)
        there, here = (old, new) if found.what is What.ADDED else (new, old)
        if kind is Kind.VARIABLE and found.what is What.REMOVED and new.mentions(found.names[0]):
            continue  # asked for in another way
        if not there.tree.lacks(_path(here.place(kind, found.names[0]))):
            yield change


def _of_difference(found: Difference, kind: Kind, old: Side, new: Side) -> TreeChange:
    name = found.names[0]
    declared = (old.by_flag.get(name) or new.by_flag.get(name)) if kind is Kind.FLAG else None
    fact = new.facts.get((kind, name)) or old.facts.get((kind, name))
    at_new = next(filter(None, (new.place(kind, each) for each in (name, found.after))), "")
    return TreeChange(
        kind=kind,
        what=found.what,
        name=found.name,
        was=found.before,
        now=declared.flag.default if declared and found.what is What.ADDED else found.after,
        gone=found.gone,
        at_old=old.place(kind, name),
        at_new=at_new,
        text=found.evidence or (fact.text if fact else ""),
        about=tuple(sorted(declared.about)) if declared else (),
        new_in="file" if at_new and _path(at_new) not in old.tree.blobs else "",
    )


def _described(old: Side, new: Side) -> Iterator[TreeChange]:
    """Flags of the same name with other words: what one does may be another thing."""
    done = set()
    for before in old.declared:
        after = new.by_flag.get(before.flag.main)
        if after is None or before.flag.removed or after.flag.removed or before.flag.main in done:
            continue
        done.add(before.flag.main)
        was, now = _words(before.flag), _words(after.flag)
        if was != now:
            lost, added = ([w for w in one if w not in other] for one, other in ((was, now), (now, was)))
            if lost or added:
                yield TreeChange(
                    kind=Kind.FLAG,
                    what=What.DESCRIBED,
                    name=before.flag.main,
                    was=before.flag.text,
                    now=after.flag.text,
                    at_old=before.at,
                    at_new=after.at,
                    about=tuple(sorted(before.about | after.about)),
                )


def _words(flag: Flag) -> list[str]:
    return re.findall(r"[a-z0-9_./*-]*[a-z0-9]", f"{flag.value} {flag.text}".lower())


# -- what is told by files alone ----------------------------------------------------------------------


def _cuda(old: Tree, new: Tree) -> Iterator[TreeChange]:
    """CUDA sources: how many are not what they were. What they compute nobody reads off a diff."""
    here = {path for path in (*old.blobs, *new.blobs) if path.startswith("ggml/src/ggml-cuda/")}
    differ = sorted(path for path in here if differs(old, new, path))
    if differ:
        names = ", ".join(path.rpartition("/")[2] for path in differ[:5])
        yield TreeChange(
            kind=Kind.CUDA,
            what=What.CHANGED,
            name=f"{len(differ)} of {len(here)} files",
            now=names + (" and others" if len(differ) > 5 else ""),
            at_old=f"{differ[0]}:1",
            at_new=f"{differ[0]}:1",
        )


def differs(old: Tree, new: Tree, path: str) -> bool:
    """Whether a file is not the same in both trees, by all that their archives let one know."""
    return old.blobs.get(path) != new.blobs.get(path) and not old.lacks(path) and not new.lacks(path)


def patched(old: Tree, new: Tree, paths: Iterable[str]) -> Iterator[TreeChange]:
    """Those of these files that differ."""
    for path in sorted(paths):
        if differs(old, new, path):
            what = What.CHANGED if path in new.blobs else What.REMOVED
            here = f"{path}:1" if path in new.blobs else ""
            yield TreeChange(kind=Kind.PATCHED, what=what, name=path, at_old=f"{path}:1", at_new=here, gone=not here)
