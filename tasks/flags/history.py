"""What upstream renamed and removed: an option's words in the words of another build."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

from tasks.flags.flag import Flag
from tasks.flags.table import known, spelled
from tasks.release import Model

Words = tuple[str, ...]
"""An option as an argv has it: its name, and its values."""


class Old(Model):
    """An option that today's builds do not take; see history.toml."""

    names: tuple[str, ...]
    value: str = ""
    variable: str = ""
    now: str | None = None
    off: str | None = None
    why: str = ""
    only_with: tuple[str, ...] = ()

    @cached_property
    def flag(self) -> Flag:
        """The option as those builds knew it."""
        return Flag(names=self.names, value=self.value, env=self.variable)

    def says_no(self, name: str) -> bool:
        """Whether it is said by one of its names that say no. `-ndio` is listed before the long one."""
        return name in self.flag.negative

    def pairs(self, name: str) -> tuple[str, str] | None:
        """(its name, what says the same now) for the name that says yes or no; None where nothing does."""
        now = self.off if self.says_no(name) else self.now
        return None if now is None else (self.flag.twin(name), now)


class _Value(Model):
    option: str
    old: str
    new: str


class History(Model):
    """All of history.toml."""

    option: tuple[Old, ...]
    bare: Mapping[str, str]
    """Option that took no value once -> what it said."""
    value: tuple[_Value, ...]
    variables: Mapping[str, str]
    """Variable that was renamed -> its name now."""

    def find(self, word: str) -> Old | None:
        """The row of an option's old name."""
        return next((old for old in self.option if spelled(word) in old.names), None)

    def of_variable(self, name: str) -> Old | None:
        """The row of an old option's variable."""
        return next((old for old in self.option if name in old.flag.variables), None)

    def spellings(self, words: Words, beside: Collection[str] = ()) -> Iterator[Words]:
        """The same option in the words of other builds, newer ones first; `()`: what a build does by default.

        `beside`: the options that are said together with it (`--spec-type ngram-mod`), which may decide what it means.
        """
        name, *values = words
        flag = known().find(name)
        words = (flag.twin(spelled(name)), *values) if flag else words
        if (old := self.find(name)) and (pair := old.pairs(spelled(name))) and _certain(old, beside):
            yield tuple(word.replace("{}", " ".join(values)) for word in shlex.split(pair[1]))
        for each in self.value:
            if words[0] == each.option and values == [each.old]:
                yield each.option, each.new
            if words[0] == each.option and values == [each.new]:
                yield each.option, each.old
        for old in self.option:
            yield from _back(old, words)
        if on := self.bare.get(words[0]):
            if not values:
                yield words[0], on
            elif values == [on]:
                yield (words[0],)


def _certain(old: Old, beside: Collection[str]) -> bool:
    """Whether nothing that is said beside an option gives it another meaning."""
    options = {said.split()[0] for said in old.only_with}
    return all(said in old.only_with for said in beside if said.split()[0] in options)


def _back(old: Old, words: Words) -> Iterator[Words]:
    """Words of today in those of an old option."""
    for name in dict.fromkeys(old.flag.twin(each) for each in old.names):
        if not (pair := old.pairs(name)) or not pair[1]:
            continue
        pattern = re.escape(pair[1]).replace(r"\{\}", r"(\S+)")
        if found := re.fullmatch(pattern, " ".join(words)):
            yield (name, *found.groups())


@cache
def history() -> History:
    """What is known of upstream's earlier options."""
    return History.model_validate(tomllib.loads(Path(__file__).with_name("history.toml").read_text(encoding="utf-8")))
