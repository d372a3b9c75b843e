"""What a difference of two trees could do, and whether it touches us: by what we use, never by how a word sounds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tasks.preflight.compare import What
from tasks.upstream.ours import Ours
from tasks.upstream.risk import Risk
from tasks.upstream.treediff.compare import TreeChange
from tasks.upstream.treediff.facts import Kind

_OFF = re.compile(r"(?i)off|0|false|none|empty|disabled|unused|\"\"|''|-1|auto|")
_REFUSED = re.compile(r"\d{3}|refused|invalid_argument")
_FROM_OUTSIDE = ("tools/server/", "common/arg.cpp", "common/chat")
EVERY_ROUTE = " in ex_wrapper"
"""Ends the name of what happens around every handler (tools/server/server.cpp)."""
_STATE = re.compile(r"SESSION|STATE|SLOT|SEQ")
_KERNELS = "ggml/src/ggml-cuda/"
_SCHEMA = 10
"""So many request fields that get a type at once are a new way to read requests."""


@dataclass(frozen=True)
class Judge:
    """What we use, in the words of these two trees."""

    used: Ours
    parameters: Mapping[str, str]
    """Parameter that code names -> the flag of llama-server's that sets it."""
    backends: frozenset[str]
    """Beginnings of the names of options that other backends have (`GGML_SYCL_`)."""
    options: frozenset[str]
    """The names of all CMake options."""
    old_flags: frozenset[str]
    """Flags that llama-server took in the old tree: what is said of another one broke nobody."""

    def judged(self, changes: Iterable[TreeChange]) -> list[TreeChange]:
        """The changes with their risk and what of ours they touch, the riskiest first."""
        found = [self._judge(change) for change in _gathered(list(changes))]
        return sorted(found, key=lambda c: (-c.risk.rank, list(Kind).index(c.kind), c.at_new or c.at_old))

    def _judge(self, change: TreeChange) -> TreeChange:
        touches = tuple(dict.fromkeys(self._touches(change)))
        breaks = self._breaks(change)
        if breaks and (not touches or self._is_said_by_us(change)):
            risk = Risk.MAY_BREAK
        elif breaks:
            risk = Risk.TOUCHES_US if _takes_as_much(change) else Risk.MAY_BREAK_US
        else:
            risk = Risk.TOUCHES_US if touches else Risk.NONE
        return change.model_copy(update={"risk": risk, "touches": touches})

    def _is_said_by_us(self, change: TreeChange) -> bool:
        """Whether it is a default that is never taken here, since our settings say the value themselves."""
        if change.kind is Kind.OPTION:
            return not change.gone and change.name in self.used.options
        return change.what is What.DEFAULT_CHANGED or change.kind is Kind.DEFAULT

    # -- what could break somebody --------------------------------------------------------------------

    def _breaks(self, change: TreeChange) -> bool:
        if self._is_of_others(change):
            return False
        added = change.what is What.ADDED
        if change.kind is Kind.ERROR or change.kind is Kind.WARNING:
            return self._refuses(change)
        if change.kind is Kind.OPTION:
            return not added or not _OFF.fullmatch(change.now)
        if change.kind is Kind.VARIABLE:
            return change.gone or (added and change.new_in != "file" and not change.at_new.startswith("common/arg.cpp"))
        if change.kind is Kind.FLAG:
            return change.gone or self._is_on(change) if added else change.gone or change.what is not What.RENAMED
        if change.kind is Kind.HTTP:
            return not added or change.name.startswith("set_")
        if change.kind is Kind.FORMAT:
            return change.what is What.CHANGED or (added and bool(_STATE.search(change.name)))
        if change.kind is Kind.ARCHITECTURE:
            return change.gone and " " not in change.name
        if change.kind is Kind.TEMPLATE:
            return change.gone and not change.name.endswith(".jinja")
        if change.kind is Kind.LOG:
            return change.gone and change.at_old.startswith("tools/server/")
        if change.kind in (Kind.PARSER, Kind.CUDA, Kind.PATCHED):
            return change.kind is Kind.PATCHED and change.gone
        if change.kind is Kind.REQUEST_FIELD and change.what is What.CHANGED:
            return bool(change.now)
        return not added or change.kind is Kind.TOOLCHAIN

    @staticmethod
    def _is_on(change: TreeChange) -> bool:
        """A new flag of something that is on unless it is switched off."""
        return not _OFF.fullmatch(change.now) and bool(re.search(r"disabl", change.text) or change.now == "enabled")

    def _is_of_others(self, change: TreeChange) -> bool:
        """Of a backend that the recipe does not build."""
        path = (change.at_new or change.at_old).rpartition(":")[0]
        if path.startswith(_KERNELS) and self.used.backend != "cuda":
            return True
        folder = re.match(r"ggml/src/ggml-(\w+)/", path)
        if folder and f"GGML_{folder[1].upper()}_" in self.backends:
            return True
        return change.kind is Kind.OPTION and any(f"{change.name}_".startswith(each) for each in self.backends)

    def _refuses(self, change: TreeChange) -> bool:
        """Whether a message refuses, or takes another way for, what was taken before."""
        if change.kind is Kind.ERROR and not change.text:  # an exception's error, an error's status
            return change.what is not What.ADDED or not change.new_in
        if change.gone or self._is_of_another_flag(change):
            return False
        if change.kind is Kind.WARNING:
            return change.what is What.ADDED and self._names_a_way_out(change)
        asked = bool(self._flags(change)) or self._names_a_way_out(change)
        how_was, how_now = (text.partition(";")[0] for text in (change.was, change.now))
        outside = change.at_new.startswith(_FROM_OUTSIDE)
        if change.what is What.CHANGED:
            return (outside and how_was != how_now and bool(_REFUSED.search(how_now))) or asked
        refused = bool(_REFUSED.search(how_now))
        return asked or (outside and refused and change.new_in != "file")

    def _is_of_another_flag(self, change: TreeChange) -> bool:
        said = re.findall(r"--[a-z][\w-]+", re.split(r"\b[Uu]se\b", change.name)[0])
        return any(flag not in self.old_flags for flag in (*said, *self._flags(change)))

    def _flags(self, change: TreeChange) -> list[str]:
        """The flags whose parameters it names."""
        return list(dict.fromkeys(self.parameters[name] for name in change.about if name in self.parameters))

    def _names_a_way_out(self, change: TreeChange) -> bool:
        words = set(re.findall(r"--[a-z][\w-]+|[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+", change.name))
        return any(word.startswith("--") or word in self.options for word in words)

    # -- what of ours ---------------------------------------------------------------------------------

    def _touches(self, change: TreeChange) -> Iterator[str]:
        if self._is_of_others(change):
            return
        used, names = self.used, [change.name, *change.name.split(", ")]
        if change.kind is Kind.FLAG:
            yield from (f"setting {used.flags[name]} ({name})" for name in names if name in used.flags)
        if change.kind is Kind.VARIABLE:
            yield from (f"environment {name}" for name in names if name in used.variables)
        if change.kind is Kind.OPTION:
            yield from (f"build option {name}={used.options[name]}" for name in names if name in used.options)
        if change.kind in (Kind.ERROR, Kind.DEFAULT) and not change.gone:
            flags = self._flags(change)
            if all(flag in used.flags for flag in flags):  # else a flag that we don't set must be set, too
                yield from (f"setting {used.flags[flag]} ({flag})" for flag in flags)
        if change.kind is Kind.WARNING:
            told = re.split(r"\b[Uu]se\b", change.name)[0]  # what it says to use instead is what we use already
            yield from (what for what in used.named(told) if what.startswith("setting "))
        if change.what is not What.ADDED:
            yield from self._of_clients(change)
        yield from self._of_the_model(change)
        if change.kind is Kind.PATCHED:
            yield used.files[change.name]
        if change.kind is Kind.ERROR and change.name.endswith(EVERY_ROUTE):
            yield "every route"
        if change.kind in (Kind.CUDA, Kind.TOOLCHAIN) and "cuda" in f"{change.name} {change.at_new}".lower():
            yield from ["backend cuda"] if used.backend == "cuda" else []

    def _of_clients(self, change: TreeChange) -> Iterator[str]:
        if change.kind is Kind.ROUTE:
            paths = [word for word in change.name.split() if word.startswith("/")]
            yield from (f"contracts {used}" for path in paths if (used := self.used.promises.get(path)))
        if change.kind is Kind.REQUEST_FIELD:
            yield from (
                f"contracts {used} ({n})" for n in (change.name, *change.fields) if (used := self.used.promises.get(n))
            )
        if change.kind is Kind.RESPONSE_FIELD:
            key = change.name.partition(" of ")[0]
            if used := self.used.answers.get(key):
                yield f"contracts {used} ({key})"

    def _of_the_model(self, change: TreeChange) -> Iterator[str]:
        own = re.sub(r"[^a-z0-9]", "", self.used.architecture.lower())
        if not own:
            return
        last = re.sub(r"[^a-z0-9]", "", change.name.rpartition(" ")[2].lower())
        if change.kind is Kind.ARCHITECTURE and (last == own or re.fullmatch(rf"{own}(?!\d)[a-z]*", last)):
            yield f"model architecture {self.used.architecture}"
        if change.kind is Kind.PARSER and last.startswith(own):
            yield f"model architecture {self.used.architecture}"
        if change.kind is Kind.PRE_TOKENIZER and change.name == self.used.pre_tokenizer:
            yield f"model's pre-tokenizer {change.name}"


def _takes_as_much(change: TreeChange) -> bool:
    """Whether a flag's help only says more than before."""
    was, now = (set(re.findall(r"[\w-]+", text.lower())) for text in (change.was, change.now))
    return change.what is What.DESCRIBED and was <= now


def _gathered(changes: list[TreeChange]) -> Iterator[TreeChange]:
    """The changes, each once: a default that a flag's help, code and README tell of is the flag's; fields that get a
    type and limits all at once are a new way to read requests."""
    renamed = {name for c in changes if c.kind is Kind.FLAG and c.what is What.RENAMED for name in c.now.split(", ")}
    shown = {name for c in changes if c.what is What.DEFAULT_CHANGED for name in c.about}
    defaults = {c.name.rpartition(".")[2]: c for c in changes if c.kind is Kind.DEFAULT}
    told = shown | defaults.keys()
    typed = [c for c in changes if c.kind is Kind.REQUEST_FIELD and c.what is What.CHANGED and not c.was]
    gathered = typed if len(typed) >= _SCHEMA else []
    for change in changes:
        last = change.name.rpartition(".")[2]
        again = change.kind is Kind.DEFAULT and (last in shown or defaults[last] is not change)
        again |= (
            change.kind is Kind.FLAG and change.what is What.ADDED and not renamed.isdisjoint(change.name.split(", "))
        )
        again |= change.kind is Kind.README and change.what is What.CHANGED and change.name in told
        if not again and change not in gathered:
            yield change
    if gathered:
        yield _schema(gathered)


def _schema(typed: list[TreeChange]) -> TreeChange:
    limits = ", ".join(f"{c.name} ({c.now.partition(', ')[2]})" for c in typed if "limits" in c.now)
    return typed[0].model_copy(
        update={
            "name": "request schema",
            "was": "a field of the wrong type was left out, and its default taken",
            "now": "a field of the wrong type, or beyond its hard limits, is refused with 400",
            "text": f"{len(typed)} request fields have a type now; those with limits: {limits}",
            "fields": tuple(c.name for c in typed),
        }
    )
