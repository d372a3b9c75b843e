"""The options of one build, looked up as llama-server looks them up."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tasks.flags.flag import Flag, flags_of_help

KNOWN = "b11434"
"""The build whose `--help` lies beside this file, for whoever has no build and no source tree to ask."""
_NEAR = 0.75


class Table:
    """What one build's llama-server takes, and who says so."""

    def __init__(self, flags: Iterable[Flag], source: str) -> None:
        self.flags, self.source = tuple(flags), source
        # upstream keeps the last of two options that share a name (common_params_to_map)
        self._by_name = {name: flag for flag in self.flags for name in flag.names}
        self._by_variable = {name: flag for flag in self.flags for name in flag.variables}

    def find(self, word: str) -> Flag | None:
        """The option that a word names and that is still taken; None for any other word."""
        found = self._by_name.get(spelled(word))
        return None if found is None or found.removed else found

    def main(self, word: str) -> str:
        """The first long name of the option that a word names: by that it goes everywhere here. The word itself where
        it names none."""
        found = self.find(word)
        return found.main if found else word

    def removed(self, word: str) -> str:
        """What upstream says of an option that it lists only to say that it is gone; '' for any other."""
        found = self._by_name.get(spelled(word))
        return found.text if found and found.removed else ""

    def of_variable(self, name: str) -> Flag | None:
        """The option that an environment variable sets, by its own name or by the LLAMA_ARG_NO_ form of it."""
        found = self._by_variable.get(name)
        return None if found is None or found.removed else found

    def nearest(self, word: str) -> str:
        """The option whose name is most like a word that is none; '' when none is like it."""
        names = [name for flag in self.flags if not flag.removed for name in flag.names if name.startswith("--")]
        near = difflib.get_close_matches(spelled(word), names, n=1, cutoff=_NEAR)
        return near[0] if near else ""

    def nearest_variable(self, name: str) -> str:
        """The same for a variable."""
        begin = "LLAMA_ARG_"
        tails = [each.removeprefix(begin) for each in self._by_variable if each.startswith(begin)]
        near = difflib.get_close_matches(name.removeprefix(begin), tails, n=1, cutoff=_NEAR)
        return begin + near[0] if near else ""


def spelled(word: str) -> str:
    """A word as upstream reads it: of a long name `_` is `-` (common/arg.cpp, common_params_parse_ex)."""
    return word.replace("_", "-") if word.startswith("--") else word


@cache
def known() -> Table:
    """The options of the build that this release of llama-release was tested against."""
    text = Path(__file__).with_name(f"{KNOWN}-help.txt").read_text(encoding="utf-8")
    return Table(flags_of_help(text), KNOWN)
