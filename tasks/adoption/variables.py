"""Files of variables, and variables in a text: as docker, docker compose and systemd read them, each in its way."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from tasks.release import BadInput

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")
Unset = Callable[[str], str]


def interpolate(text: str, known: Mapping[str, str], unset: Unset = lambda _name: "", where: str = "") -> str:
    """A text with $VAR, ${VAR}, ${VAR:-default}, ${VAR-default}, ${VAR:?why}, ${VAR?why}, ${VAR:+other} and $$, nested,
    as compose has them (compose-spec, 12-interpolation.md). Raises BadInput for ${VAR:?why} and for what is none: it
    says `where`, never the text, which may hold a key."""
    done, at = [], 0
    while (dollar := text.find("$", at)) >= 0:
        done.append(text[at:dollar])
        rest = text[dollar + 1 :]
        if rest.startswith("$"):
            done.append("$")
            at = dollar + 2
        elif found := _NAME.match(rest):
            done.append(known[found[0]] if found[0] in known else unset(found[0]))
            at = dollar + 1 + found.end()
        elif rest.startswith("{"):
            end = _closing(rest, where)
            done.append(_braced(rest[1:end], known, unset, where))
            at = dollar + 2 + end
        else:
            done.append("$")
            at = dollar + 1
    return "".join([*done, text[at:]])


def _closing(rest: str, where: str) -> int:
    depth = 0
    for at, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return at
    raise BadInput("a ${ is not closed", evidence=where, todo="write $$ for a dollar sign")


def _braced(inner: str, known: Mapping[str, str], unset: Unset, where: str) -> str:
    found = _NAME.match(inner)
    operator = _OPERATOR.match(inner, found.end()) if found else None
    if not found or (found.end() < len(inner) and not operator):
        raise BadInput("a variable is not understood", evidence=where, todo="write $$ for a dollar sign")
    name = found[0]
    if not operator:
        return known[name] if name in known else unset(name)
    there = bool(known.get(name)) if operator[0].startswith(":") else name in known
    other = inner[operator.end() :]
    match operator[0][-1]:
        case "+":
            return interpolate(other, known, unset, where) if there else ""
        case "?" if not there:
            raise BadInput(f"{name} is not set", evidence=where, todo=f"export {name}")
    return known[name] if there else interpolate(other, known, unset, where)


def read_text(path: Path) -> str:
    """A file that a person named. Raises BadInput when it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} can't be read", evidence=str(error), todo="name another file, or be its user"
        ) from error


def docker_file(text: str, caller: Mapping[str, str]) -> dict[str, str]:
    """`docker run --env-file`: a line is NAME=value to its end, quotes are part of it; a name alone is the caller's.

    Source: docker/cli, cli/opts/file.go (parseKeyValueFile).
    """
    found = {}
    for line in text.splitlines():
        name, sign, value = line.lstrip().partition("=")
        if not name or name.startswith("#"):
            continue
        if sign:
            found[name] = value
        elif name in caller:
            found[name] = caller[name]
    return found


def dotenv_file(text: str, known: Mapping[str, str], file: str = "") -> dict[str, str]:
    """`.env` and `env_file` of compose: quotes, `export`, comments; what is not in single quotes is interpolated from
    `known` and from the lines before (compose-go, dotenv)."""
    found: dict[str, str] = {}
    for line in parse_stream(io.StringIO(text)):
        if line.key is None:
            continue
        if line.value is None:  # a name alone
            found |= {line.key: known[line.key]} if line.key in known else {}
            continue
        literal = line.original.string.partition("=")[2].lstrip().startswith("'")
        where = f"{line.key}, of {file}" if file else line.key
        found[line.key] = line.value if literal else interpolate(line.value, {**found, **known}, where=where)
    return found


def systemd_file(text: str, file: str = "a file of variables") -> dict[str, str]:
    """`EnvironmentFile=` of systemd.exec(5): quotes are quotes at a value's beginning only and behind one another, from
    the first other character on they are ordinary; comments with # or ;, a backslash joins lines, no variable is looked
    into (src/basic/env-file.c, parse_env_file_internal).

    Raises BadInput for a quote that is not closed: systemd takes all that follows for its value, keys too.
    """
    found = {}
    for each in _ASSIGNED.finditer(text):
        if each["open"]:
            raise BadInput(f"a quote of {each['name']} is not closed", evidence=file, todo="close it")
        if _NAME.fullmatch(each["name"]):
            found[each["name"]] = "".join(_unquoted(each["quoted"])) + _ESCAPED.sub(_kept, each["plain"])
    return found


_QUOTED = r"""'[^']*'|"(?:\\.|[^"\\])*\""""
_ASSIGNED = re.compile(
    rf"""^[ \t]*(?P<name>[^\s=#;][^\n=]*?)[ \t]*=(?P<quoted>(?:[ \t]*(?:{_QUOTED}))*)[ \t]*"""
    r"""(?:(?P<plain>(?:(?:\\(?:.|\Z)|[^\n'"\\])(?:\\(?:.|\Z)|[^\n\\])*?)?)[ \t]*$|(?P<open>['"]))""",
    re.MULTILINE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.|\Z)", re.DOTALL)


def _kept(escaped: re.Match[str]) -> str:
    """What a backslash outside of quotes leaves: the character, or nothing of a line's end."""
    return escaped[1].replace("\n", "")


def _unquoted(quoted: str) -> Iterator[str]:
    for piece in re.findall(_QUOTED, quoted, re.DOTALL):
        inner = piece[1:-1]
        yield inner if piece[0] == "'" else re.sub(r'\\([\\"$`\n])', _kept, inner)
