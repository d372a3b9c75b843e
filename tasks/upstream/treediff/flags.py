"""Flags, as common/arg.cpp declares them: what `--help` would say, without a binary to ask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.flags.flag import Flag, read_flag
from tasks.upstream.treediff.cpp import PLACEHOLDER, Code
from tasks.upstream.treediff.defaults import Defaults, plain
from tasks.upstream.treediff.facts import Files

ARGUMENTS = "common/arg.cpp"
PASSED_ON = "common/common.cpp"
"""Where parameters are handed to the library under its own names (`cparams.type_k = params.cache_type_k`)."""
SERVED = ("SERVER", "COMMON")
"""Whose flags llama-server takes; a flag that names no program is every program's (common_arg, `examples`)."""

UNKNOWN = "`"
"""Stands around the words of a default that only the running program knows."""

_OPTION = re.compile(r"\badd_opt\(\s*common_arg\(")
_EXAMPLES = re.compile(r"\.set_examples\(\s*\{?([^)}]*)")
_EXCLUDED = re.compile(r"\.set_excludes\(\s*\{([^}]*)\}")
_ENV = re.compile(r'\.set_env\(\s*"(\w+)"')
_HANDED = re.compile(r"\b[cm]params\.(\w+)\s*=[^;]*?\bparams\.(?:\w+\.)*(\w+)\s*;")
_PARAMETER = re.compile(r"\bparams\.((?:\w+\.)*\w+)\b(?!\s*\()")


class Declared(NamedTuple):
    """A flag and where it is declared."""

    flag: Flag
    at: str
    served: bool
    """Whether llama-server takes it."""
    about: frozenset[str]
    """The parameters that it sets or shows, by their own names."""
    roots: frozenset[str]
    """The same by what they are a part of, in the outermost struct."""


def declared(files: Files) -> list[Declared]:
    """Every flag of a tree."""
    known = Defaults(files)
    return [found for code in files.code(ARGUMENTS) for found in _options(code, known)]


def _options(code: Code, known: Defaults) -> Iterator[Declared]:
    groups = _groups(code)
    for m in _OPTION.finditer(code.shape):
        opens = m.end() - 1
        arguments = code.arguments(opens)
        if len(arguments) < 3:
            continue
        closes = code.closing(m.start() + len("add_opt"))
        chain = code.bare[code.closing(opens) : closes]
        names = code.strings(*arguments[0])
        second = code.bare[slice(*arguments[1])].strip()
        if second.startswith("{"):
            names += code.strings(*arguments[1])
        hints = [_hint(code, span) for span in arguments[1:-2]] if not second.startswith("{") else []
        env = _ENV.search(chain)
        said = _help(code, arguments[-2], known) + (f" (env: {env[1]})" if env else "")
        if not names or not names[0].startswith("-"):
            continue
        examples = _EXAMPLES.search(chain)
        named = examples[1] if examples else ""
        programs = groups.get(named.strip()) or re.findall(r"LLAMA_EXAMPLE_(\w+)", named) or list(SERVED)
        excluded = _EXCLUDED.search(chain)
        left_out = "LLAMA_EXAMPLE_SERVER" in excluded[1] if excluded else False
        ways = _PARAMETER.findall(code.bare[m.start() : closes])
        yield Declared(
            read_flag(", ".join(names) + "".join(f" {hint}" for hint in hints), said),
            code.at(code.shape.index("{", opens)),
            not left_out and any(program in SERVED for program in programs),
            frozenset(way.rpartition(".")[2] for way in ways),
            frozenset(way.partition(".")[0] for way in ways),
        )


def _groups(code: Code) -> dict[str, list[str]]:
    """Lists of programs that have a name of their own (`mmproj_examples`)."""
    found = re.findall(r"\bstd::set<llama_example>\s+(\w+)\s*=\s*\{([^}]*)\}", code.bare)
    return {name: re.findall(r"LLAMA_EXAMPLE_(\w+)", text) for name, text in found}


def _hint(code: Code, span: tuple[int, int]) -> str:
    return " ".join(code.strings(*span)) or "VALUE"


def _help(code: Code, span: tuple[int, int], known: Defaults) -> str:
    """What `--help` says of it, its values put in where they are known."""
    said = code.bare[slice(*span)]
    called = re.match(r"\s*string_format\s*\(", said)
    if not called:
        return " ".join(code.strings(*span))
    first, *rest = code.arguments(span[0] + called.end() - 1)
    values = iter([_value(code.bare[slice(*each)], known) for each in rest])
    return PLACEHOLDER.sub(lambda m: next(values, m[0]), "".join(code.strings(*first)).replace("%%", "%"))


def _value(said: str, known: Defaults) -> str:
    """What an argument of the help's format is: a default where one is found, else its own words."""
    said = " ".join(said.split())
    found = _PARAMETER.search(said)
    member = known.find(found[1]) if found else None
    if not found or member is None or not member.value:
        return f"{UNKNOWN}{re.sub(r'[(),]', ' ', said).strip()}{UNKNOWN}"
    value = plain(member.value).strip('"')
    if chosen := re.fullmatch(r'!?\(?params\.[\w.]+\)?\s*\?\s*"([^"]*)"\s*:\s*"([^"]*)"', said):
        return chosen[1 if (value == "true") is not said.startswith("!") else 2]
    return re.sub(r"^GGML_TYPE_", "", value).lower() if value.startswith("GGML_TYPE_") else value


def parameters(flags: Iterable[Declared], files: Files) -> dict[str, str]:
    """Parameter that a condition of the code may name -> the flag of llama-server's that sets it.

    One word, such as `path`, means many things; of those with more than one the last is the member's own name.
    """
    found = {name: each.flag.main for each in reversed([*flags]) if each.served for name in each.about}
    for code in files.code(PASSED_ON):
        for inner, outer in _HANDED.findall(code.bare):
            if outer in found:
                found.setdefault(inner, found[outer])
    return {name: flag for name, flag in found.items() if "_" in name}
