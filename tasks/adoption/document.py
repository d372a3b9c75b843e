"""llama-release.toml with a comment on each line; what another hand wrote into it stays."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from tasks.adoption.settle import Line, Settled
from tasks.console import one_line
from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE, LocalSettings, ServerSettings

_HEADER = re.compile(r"^[ \t]*\[\[?(?P<name>[^\[\]\n]+)\]\]?[ \t]*(#.*)?$", re.MULTILINE)
_WIDTH = 46
"""Where comments begin, where the line is shorter."""


def render(settled: Settled) -> str:
    """The settings of a launch as a file."""
    return "\n".join(_sections(settled, {})) + "\n"


def merged(settled: Settled, old: str) -> str:
    """A file with its `[server]` and what of its other sections is ours replaced; all else stays as it is.

    Raises BadInput where its text can't be kept.
    """
    kept = {name: text for name, text in _parts(old) if name != "server" and not name.startswith("server.")}
    new = "\n".join(_sections(settled, kept)) + "\n"
    try:
        before, after = tomllib.loads(old), tomllib.loads(new)
    except tomllib.TOMLDecodeError as error:
        raise _not_kept(str(error)) from error
    ours = {section: set(settled.section(section)) for section in ("local", "recipe")}
    if _others(before, ours) != _others(after, ours):
        raise _not_kept("its sections can't be told apart")
    return new


def _not_kept(evidence: str) -> BadInput:
    return BadInput(
        f"{SETTINGS_FILE} has settings that can't be kept beside the new ones", evidence=evidence,
        todo="move it away, run this again, and put back what you need",
    )  # fmt: skip


def says_the_same(settled: Settled, old: str) -> bool:
    """Whether a file says already what a launch comes to: comments apart, and a key's variable where none is said."""
    try:
        tree = tomllib.loads(old)
        there = ServerSettings.model_validate(tree.get("server", {}))
        server = settled.server
        ours = ServerSettings.model_validate({"api_key_env": there.api_key_env, **server})
        local = LocalSettings.model_validate(tree.get("local", {})).model_dump()
    except (tomllib.TOMLDecodeError, ValidationError):
        return False
    wanted = settled.section("local")
    recipe = _table(tree, "recipe")
    return (
        ours == there
        and all(local[key] == value for key, value in wanted.items())
        and all(recipe.get(key) == value for key, value in settled.section("recipe").items())
    )


def keeping_key(settled: Settled, old: str) -> Settled:
    """The same with the variable of the key that a file names, where the launch says none: its argv never does."""
    try:
        named = _table(tomllib.loads(old), "server").get("api_key_env")
    except tomllib.TOMLDecodeError:
        return settled
    if not isinstance(named, str) or "api_key_env" in settled.server:
        return settled
    line = Line("server", "api_key_env", named, "as it was: no key is said")
    return replace(settled, lines=(*settled.lines, line))


def _sections(settled: Settled, kept: Mapping[str, str]) -> Iterator[str]:
    """Lines of the new file: what stands before all sections first, then ours, then the others."""
    if head := _without("\n" + kept.get("", ""), {"server"}):  # `server = ...` on one line is replaced, too
        yield f"{head}\n"
    yield "[server]  # taken over by `llama-release import`: behind each setting stands what it came from"
    yield from (_line(line) for line in settled.lines if line.section == "server")
    if settled.free:
        yield "flags = ["
        for each in settled.free:
            yield _commented(f"  {', '.join(map(toml, each.words))},", each.comment)
        yield "]"
    if any(line.section == "server.env" for line in settled.lines):
        yield "\n[server.env]"
        yield from (_line(line) for line in settled.lines if line.section == "server.env")
    for section in ("local", "recipe"):
        lines = [line for line in settled.lines if line.section == section]
        rest = _without(kept.get(section, ""), {line.key for line in lines})
        if lines:
            yield f"\n[{section}]"
            yield from map(_line, lines)
            if rest:
                yield rest
        elif section in kept:
            yield "\n" + kept[section].strip("\n")
    for name, text in kept.items():
        if name not in ("", "local", "recipe"):
            yield "\n" + text.strip("\n")


def _line(line: Line) -> str:
    return _commented(f"{line.key} = {toml(line.value)}", line.comment)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{_WIDTH}}  # {one_line(comment)}"


def toml(value: Any) -> str:
    """A value as TOML has it. A basic string of TOML is one of JSON, but for DEL (toml.io, v1.0.0, String)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parts(text: str) -> list[tuple[str, str]]:
    """(section, its text with the header) of a file; '' is what stands before the first one."""
    found, at, name = [], 0, ""
    for header in _HEADER.finditer(text):
        found.append((name, text[at : header.start()]))
        at, name = header.start(), header["name"].replace(" ", "")
    return [*found, (name, text[at:])]


def _without(text: str, keys: set[str]) -> str:
    """A section's text without its header and these keys."""
    lines = text.split("\n")[1:]
    return "\n".join(each for each in lines if each.partition("=")[0].strip() not in keys).strip("\n")


def _others(tree: Mapping[str, Any], ours: Mapping[str, set[str]]) -> dict[str, Any]:
    """What of a document is not ours."""
    found = {name: value for name, value in tree.items() if name != "server"}
    for section, keys in ours.items():
        if isinstance(found.get(section, {}), dict):
            rest = {key: value for key, value in found.pop(section, {}).items() if key not in keys}
            found |= {section: rest} if rest else {}
    return found


def _table(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a document; empty where it is none."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}
