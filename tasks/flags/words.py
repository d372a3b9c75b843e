"""What a command line and its variables say to one build's llama-server, and what is wrong with them.

They are read as llama-server reads them (common/arg.cpp, common_params_parse_ex): no `--name=value`, `_` is `-` in a
long name, the last of several decides, a variable counts where no word says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.flags.flag import Flag
from tasks.flags.history import Words, history
from tasks.flags.table import Table, known, spelled

CUMULATIVE = frozenset(
    (
        "--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "--override-kv", "--override-tensor",
        "--spec-draft-override-tensor", "--logit-bias", "--spec-type", "--dry-sequence-breaker", "--reverse-prompt",
        "--chat-template-kwargs", "--alias", "--tags", "--api-key", "--api-key-file",
    )
)  # fmt: skip
"""Options of which every one counts, not the last: their handlers add to what is there (common/arg.cpp)."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
YES, NO = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")
"""What upstream takes for yes and no (common_arg_utils, is_truthy and is_falsey)."""
_SECRET = re.compile(r"(?i)key|token|secret|passw|\btokn")
"""An option whose value nobody should read in an error, as it is or as it was meant."""
_LOCKED = {frozenset(("mmap", "mlock")): "mmap+mlock", frozenset(("none", "mlock")): "mlock"}
"""What two of the old switches for loading come to together: since b10884 they are one option."""


@dataclass(frozen=True)
class Said:
    """One option as a build's llama-server is told it."""

    flag: Flag
    words: Words
    """Its first long name that says this, and its values."""
    said: str
    """As it was said: `-ngl 99`, `LLAMA_ARG_CTX_SIZE=4096`."""
    translated: bool = False
    """Whether it was said in the words of another build."""

    @property
    def main(self) -> str:
        """The option's first long name."""
        return self.flag.main

    @property
    def off(self) -> bool:
        """Whether it is said by a name that says no."""
        return self.words[0] in self.flag.negative

    @property
    def value(self) -> str:
        """Its value; of a switch `on` or `off`."""
        return " ".join(self.words[1:]) if self.flag.takes else "off" if self.off else "on"


@dataclass(frozen=True)
class Refused:
    """Words that this build's llama-server does not take, or that it would not understand."""

    said: str
    why: str

    def __str__(self) -> str:
        return f"`{self.said}`: {self.why}"


@dataclass(frozen=True)
class Reading:
    """What was said, in order, and what is refused of it."""

    said: tuple[Said, ...]
    refused: tuple[Refused, ...] = ()
    defaults: tuple[str, ...] = ()
    """Old options that today's builds need not be told: they do it by default."""
    unread: tuple[str, ...] = ()
    """Variables that no llama-server of this build reads, with what is known of them."""

    @property
    def effective(self) -> tuple[Said, ...]:
        """What counts: the last of each option, every one of those that add up."""
        last = {each.main: each for each in self.said}
        return tuple(each for each in self.said if each.main in CUMULATIVE or last[each.main] is each)

    @property
    def overridden(self) -> tuple[Said, ...]:
        """What does not count, since it is said again."""
        return tuple(each for each in self.said if each not in self.effective)

    @property
    def words(self) -> Words:
        """What counts as an argv."""
        return tuple(word for each in self.effective for word in each.words)


def read(words: Sequence[str], table: Table, variables: Mapping[str, str] | None = None) -> Reading:
    """What these words and variables say to a build's llama-server."""
    groups = list(split(words, table))
    beside = [" ".join(group) for group in groups]
    said: list[Said] = []
    refused: list[Refused] = []
    defaults: list[str] = []
    for group in groups:
        found = _understood(group, table, beside)
        if isinstance(found, Refused):
            refused.append(found)
        elif found is None:
            defaults.append(" ".join(group))
        else:
            said.append(found)
    from_words = {each.main for each in said}
    unread: list[str] = []
    by_variable: list[Said] = []
    # of a variable and its LLAMA_ARG_NO_ form the one that says no wins
    for name, value in sorted((variables or {}).items(), key=lambda pair: ("_NO_" in pair[0], pair[0])):
        by_name = _of_variable(name, value, table, beside)
        if isinstance(by_name, Refused):
            refused.append(by_name)
        elif isinstance(by_name, str):
            unread.append(by_name)
        elif by_name and (by_name.main not in from_words or by_name.main in CUMULATIVE):  # words win, or add up
            by_variable.append(by_name)
    return Reading(_as_one_mode([*by_variable, *said]), tuple(refused), tuple(defaults), tuple(unread))


def values_of(words: Sequence[str]) -> dict[str, str]:
    """What an argv says, in the words of any build: first long name of an option today -> the value that counts; of a
    switch `on` or `off`."""
    return {each.main: each.value for each in read(words, known()).said}


def split(words: Sequence[str], table: Table) -> Iterator[Words]:
    """The words, each option with its values; what no build is known to take has those up to the next option."""
    at = 0
    while at < len(words):
        name = words[at]
        flag = _any_build(name, table)
        if flag is None:
            end = at + 1
            while end < len(words) and _any_build(words[end], table) is None and not _looks_like_one(words[end]):
                end += 1
        elif _is_bare(flag, words[at + 1 : at + 2], table):
            end = at + 1
        else:
            end = at + 1 + flag.takes
        yield tuple(words[at:end])
        at = end


def _any_build(word: str, table: Table) -> Flag | None:
    """An option of this build, of the newest one that is known, or of an earlier one."""
    old = history().find(word)
    return table.find(word) or known().find(word) or (old.flag if old else None)


def _looks_like_one(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def _is_bare(flag: Flag, following: Sequence[str], table: Table) -> bool:
    """Whether an option that took no value once is said without one: nothing follows it, or another option does."""
    once = flag.main in history().bare
    return once and flag.takes == 1 and (not following or _any_build(following[0], table) is not None)


def _understood(group: Words, table: Table, beside: Sequence[str]) -> Said | Refused | None:
    """One option with its values; None where the build does by default what it says."""
    name, *values = group
    said = " ".join(group)
    if not _looks_like_one(name):
        return Refused(said, "it is no option, and no option takes it as its value")
    flag = table.find(name)
    if flag and flag.takes and not values and flag.main in history().bare:
        return Said(flag, (flag.twin(spelled(name)), history().bare[flag.main]), said, translated=True)
    known_as = flag or _any_build(name, table)
    if known_as and len(values) < known_as.takes:
        return Refused(said, f"it needs {'a value' if known_as.takes == 1 else f'{known_as.takes} values'}")
    if flag:
        words = (flag.twin(spelled(name)), *values)
        if not (wrong := wrong_value(flag, values)):
            return Said(flag, words, said)
        for other in history().spellings((flag.main, *values), beside):
            if (there := table.find(other[0])) and not wrong_value(there, other[1:]):
                return Said(there, other, said, translated=True)
        return Refused(said, wrong)
    for other in (*history().spellings((spelled(name), *values), beside), *same_names((spelled(name), *values))):
        if not other:
            return None
        if (there := table.find(other[0])) and not wrong_value(there, other[1:]):
            return Said(there, (there.twin(spelled(other[0])), *other[1:]), said, translated=True)
    bare = name.partition("=")[0]  # people write --name=value all the same
    return Refused(bare if _SECRET.search(f"{bare} {table.nearest(bare)}") else said, _unknown(bare, table))


def same_names(words: Words) -> Iterator[Words]:
    """An option by its other names: a build may know it by an earlier one, such as --model-draft."""
    flag = known().find(words[0])
    if flag is None:
        return
    for name in flag.names:
        if (
            name.startswith("--")
            and name != words[0]
            and (name in flag.negative) is (spelled(words[0]) in flag.negative)
        ):
            yield (name, *words[1:])


def option_of(name: str, table: Table | None = None) -> bool:
    """Whether a variable says an option, to a build of this table or to any that is known."""
    by_name = (table or known()).of_variable(name) or history().of_variable(name)
    return bool(by_name) or name in history().variables or name.startswith("LLAMA_ARG_")


def _unknown(name: str, table: Table) -> str:
    old = history().find(name)
    if old and old.why:
        return f"{table.source} takes it no more: {old.why}"
    if told := table.removed(name):
        return f"{table.source} takes it no more; upstream says: {told}"
    near = table.nearest(name)
    return f"{table.source} has no such option" + (f"; there is {near}" if near else "")


def wrong_value(flag: Flag, values: Sequence[str]) -> str:
    """What is wrong with an option's values, as far as upstream's own list of them tells; '' when nothing is."""
    value = " ".join(values)
    if choices := flag.choices:
        allowed = choices | (frozenset(YES + NO) if {"on", "off"} <= choices else frozenset())
        allowed |= frozenset(("-1",) if "auto" in choices else ())  # is_autoy
        given = value.split(",") if flag.several else [value]
        if not set(given) <= allowed:
            return f"{flag.main} takes {', '.join(sorted(choices))}"
    elif flag.value == "N" and not _NUMBER.fullmatch(value) and f"'{value}'" not in flag.text:
        return f"{flag.main} takes a number"
    return ""


def _of_variable(name: str, value: str, table: Table, beside: Sequence[str]) -> Said | Refused | str | None:
    """What a variable says; in words, why nobody reads it; None for what a build does anyway."""
    now = name if table.of_variable(name) else history().variables.get(name, name)
    old = history().of_variable(name)
    flag = table.of_variable(now) or (old.flag if old else None)
    if flag is None:
        near = table.nearest_variable(name)
        return f"{name}: no llama-server of {table.source} reads it" + (f"; it reads {near}" if near else "")
    said = f"{name}={value}"
    if flag.takes:
        group: Words = (flag.main, value)
    elif now != flag.env or value in NO:  # of LLAMA_ARG_NO_ any value says no (common_arg::get_value_from_env)
        no = next((each for each in flag.names if each in flag.negative), None)
        if no is None:  # a switch that has no name for no is only ever switched on
            return None
        group = (flag.twin(no),)
    elif value in YES:
        group = (flag.main,)
    else:
        return Refused(said, f"it takes {', '.join((*YES, *NO))}")
    found = _understood(group, table, beside)
    if isinstance(found, Said):
        return replace(found, said=said, translated=found.translated or now != name)
    return Refused(said, found.why) if found else None


def _as_one_mode(said: Iterable[Said]) -> tuple[Said, ...]:
    """Two old switches for loading that come to one option now are said as one."""
    found = list(said)
    modes = [each for each in found if each.main == "--load-mode" and each.translated]
    both = _LOCKED.get(frozenset(each.value for each in modes))
    if both is None:
        return tuple(found)
    first, *rest = modes
    whole = Said(first.flag, ("--load-mode", both), " ".join(each.said for each in modes), translated=True)
    return tuple(whole if each is first else each for each in found if each not in rest)
